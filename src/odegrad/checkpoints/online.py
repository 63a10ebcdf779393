"""Checkpointing while the number of steps is not known, as with an adaptive step size.

Which states are stored must be near the optimum wherever the solve may end. Every state has a level, and
the level of a new one is 0. A stored state is dispensable if a later state has a higher level. State i,
once it is known that the solve goes on from it, is stored if there is a free slot or a dispensable
state, which is dropped then. Otherwise it is not stored, and its level plus 1 is that of state i + 1,
which makes all states of lower levels dispensable.

No step is taken more often than the optimum for the number of steps that it turns out to be demands:
r times, with C(c + r − 1, c) < N ≤ C(c + r, c). All together, with the last step counted on both
sides, at most 1.2 times the t(N, c) + 1 steps of the optimum are taken for r ≤ 2 and c ≤ 40. Beyond, up
to 10 times as many steps, it was at most 1.44 times (c = 40, N = 900), and 1.04 to 1.09 times on average.

Wang, Moin & Iaccarino, Minimal repetition dynamic checkpointing algorithm for unsteady adjoint
calculation, SIAM J. Sci. Comput. 31 (2009); Stumm & Walther, New algorithms for optimal online
checkpointing, SIAM J. Sci. Comput. 32 (2010). Other than there, the backward sweep is optimal for what
the forward sweep has stored; and the state before the last step is kept for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from odegrad.checkpoints.actions import Action, Advance, Drop, Store
from odegrad.checkpoints.base import Bounds, Hold
from odegrad.checkpoints.checks import check_count
from odegrad.checkpoints.reversal import first_sweep, placed, reverse

__all__ = ["Online"]


@dataclass(frozen=True)
class Online:
    """Stores at most so many states of a solve whose number of steps is not known in advance.

    If the number of steps is known, this does the same as `Binomial`.

    Arguments:
        slots: How many states are stored at most, that before the first step included.

    Raises:
        InvalidTypeError: If `slots` is not an int.
        InvalidValueError: If `slots` < 1.

    Reference:
        Wang, Moin & Iaccarino, Minimal repetition dynamic checkpointing algorithm for unsteady adjoint
        calculation, SIAM J. Sci. Comput. 31 (2009), algorithm 1.

    Example:
        >>> from odegrad.checkpoints import Online
        >>> Online(4).stored(5), Online(4).stored(6), Online(4).stored(10)
        ([0, 1, 2, 3], [0, 1, 2, 5], [0, 5, 6, 9])
    """

    slots: int

    def __post_init__(self) -> None:
        check_count("Online: slots", self.slots)

    @property
    def holds(self) -> Hold | None:
        """The state before the last step."""
        return Hold.LAST

    def bounds(self, n: int, known: bool) -> Bounds:
        """All slots, if there are as many states to store; and the state before the last step."""
        if known:
            return Bounds(device=max(1, min(self.slots, n - 1)), held=int(n > 1))
        return Bounds(device=min(self.slots, n), held=int(n > self.slots))

    def forward(self, n: int | None) -> Iterator[Action]:
        """Advances step by step, for as long as the solve goes on."""
        return _advance(self.slots) if n is None else first_sweep(n, self.slots)

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        """Transposes step by step, from the last, advancing to each from the stored state before it."""
        stack = placed(n, self.slots) if known else self.stored(n)
        return reverse(stack, n, self.slots)

    def stored(self, n: int) -> list[int]:
        """The states that are stored when a solve ends after n steps, in order."""
        states: dict[int, None] = {}
        for action in _advance(self.slots):
            match action:
                case Store(i):
                    states[i] = None
                case Drop(i):
                    del states[i]
                case _ if action == Advance(n - 1, n):
                    break
                case _:
                    pass
        return list(states)


def _advance(slots: int) -> Iterator[Action]:
    """The forward sweep, without an end."""
    kept: list[tuple[int, int]] = []  # states and their levels, which do not increase
    dispensable: list[int] = []
    level = 0  # of state i
    for i in count():
        if len(kept) + len(dispensable) < slots or dispensable:
            if len(kept) + len(dispensable) == slots:
                yield Drop(dispensable.pop())
            yield Store(i)
            kept.append((i, level))
            level = 0
        else:
            level += 1
            # State 0 is never dispensable. That the latest of the others is dropped first is a choice:
            # it was the best on average of first, middle and last.
            while len(kept) > 1 and kept[-1][1] < level:
                dispensable.append(kept.pop()[0])
            dispensable.reverse()
        yield Advance(i, i + 1)
