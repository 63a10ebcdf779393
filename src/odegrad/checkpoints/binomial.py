"""Binomial checkpointing: the fewest steps taken again with a given number of stored states.

With c stored states, that before the first step included, N steps are reversed in
t(N, c) = r N − C(c + r, r − 1) steps, where r is the least number with N ≤ C(c + r, r); no schedule takes
fewer. For N = 1000 and c = 8 that is 4285, a little more than four times the steps of the solve.

Griewank & Walther, Algorithm 799: revolve, ACM Trans. Math. Softw. 26 (2000). The optimum supposes
that all steps cost the same. With an unknown number of steps see `Online`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from odegrad.checkpoints.actions import Action
from odegrad.checkpoints.base import Bounds, Hold
from odegrad.checkpoints.checks import check_count
from odegrad.checkpoints.online import Online
from odegrad.checkpoints.reversal import advances, first_sweep, placed, reverse, split

__all__ = ["Binomial", "advances", "split"]


@dataclass(frozen=True)
class Binomial:
    """Stores at most so many states, and takes as few steps again as that allows.

    If the number n of steps is known before the solve, t(n, c) − (n − 1) steps are taken again, see
    `advances`, which is optimal. If it is not known, as with an adaptive step size, the states are
    placed as `Online` does it: nearly as few steps are taken again.

    Arguments:
        slots: How many states are stored at most, that before the first step included.

    Raises:
        InvalidTypeError: If `slots` is not an int.
        InvalidValueError: If `slots` < 1.

    Reference:
        Griewank & Walther, Algorithm 799: revolve: an implementation of checkpointing for the reverse
        or adjoint mode of computational differentiation, ACM Trans. Math. Softw. 26 (2000).

    Example:
        >>> from odegrad.checkpoints import Binomial
        >>> for action in Binomial(2).forward(6):
        ...     print(action)
        Store(i=0, tier=Tier.DEVICE)
        Advance(start=0, stop=3, every=None, keep=None)
        Store(i=3, tier=Tier.DEVICE)
        Advance(start=3, stop=5, every=None, keep=None)
        Advance(start=5, stop=6, every=None, keep=None)
    """

    slots: int

    def __post_init__(self) -> None:
        check_count("Binomial: slots", self.slots)

    @property
    def holds(self) -> Hold | None:
        """The state before the last step."""
        return Hold.LAST

    def bounds(self, n: int, known: bool) -> Bounds:
        """All slots, if there are as many states to store; and the state before the last step."""
        if not known:
            return Online(self.slots).bounds(n, known)
        return Bounds(device=max(1, min(self.slots, n - 1)), held=int(n > 1))

    def forward(self, n: int | None) -> Iterator[Action]:
        """Advances to the end, storing states where it is optimal for n steps."""
        if n is None:
            return Online(self.slots).forward(n)
        return first_sweep(n, self.slots)

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        """Transposes step by step, from the last, advancing to each from the stored state before it."""
        if not known:
            return Online(self.slots).backward(n, known)
        return reverse(placed(n, self.slots), n, self.slots)
