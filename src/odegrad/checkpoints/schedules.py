"""Schedules for any number of steps, known in advance or not."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from odegrad.checkpoints.actions import Action, Advance, Drop, Restore, Store, Transpose
from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = ["Checkpoints", "Every", "Keep", "StoreAll"]


class Keep(enum.Enum):
    """What the forward sweep keeps of a step for the backward sweep.

    With F the cost of evaluating f and V that of its transpose, an evaluation costs 2F + V in all if
    the state is kept, and F + V if the graph is, which is what backpropagation costs, in its memory.
    """

    STATE = "state"
    GRAPH = "graph"

    def __repr__(self) -> str:
        return f"Keep.{self.name}"


@runtime_checkable
class Checkpoints(Protocol):
    """A schedule. Law: every step is transposed once, from the last to the first, from what is kept."""

    @property
    def keep(self) -> Keep:
        """What is kept of the steps; `GRAPH` means of every one, and then no state is stored."""
        ...

    def slots(self, n: int) -> int:
        """How many states are stored when a forward sweep of `n` steps is through."""
        ...

    def forward(self) -> Iterator[Action]:
        """What the forward sweep does; it starts at state 0 and ends with ``Advance(…, None)``."""
        ...

    def backward(self, n: int) -> Iterator[Action]:
        """What the backward sweep does once the solve is known to have taken `n` steps."""
        ...


@dataclass(frozen=True)
class StoreAll:
    """Keeps the state before every step, or the autograd graph of every step: no step is taken twice.

    From its state, a transposed step evaluates its own stages again; what is saved against
    backpropagation through the solver is the graph of every evaluation of f. From its graph it
    evaluates nothing: that is backpropagation, freed graph by graph in the backward sweep.

    Arguments:
        keep: `Keep.STATE` (default) or `Keep.GRAPH`.

    Raises:
        InvalidTypeError: If `keep` is neither.

    Example:
        >>> import odegrad
        >>> fast = odegrad.Discrete(odegrad.StoreAll(keep=odegrad.Keep.GRAPH))
    """

    keep: Keep = Keep.STATE

    def __post_init__(self) -> None:
        if not isinstance(self.keep, Keep):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                f"StoreAll: keep must be Keep.STATE or Keep.GRAPH, received {self.keep!r}"
            )

    def slots(self, n: int) -> int:
        """n states, or none beside the graphs."""
        return n if self.keep is Keep.STATE else 0

    def forward(self) -> Iterator[Action]:
        """Advances to the end, storing every state."""
        yield Advance(0, None, every=1 if self.keep is Keep.STATE else None)

    def backward(self, n: int) -> Iterator[Action]:
        """Transposes all steps."""
        yield Transpose(0, n)


@dataclass(frozen=True)
class Every:
    """Keeps the state before every k-th step: N/k + k states, fewer than N steps taken again.

    Arguments:
        k: The distance of stored states in steps; √N keeps the fewest states.

    Raises:
        InvalidTypeError: If k is not an int.
        InvalidValueError: If k < 1.

    Example:
        >>> import odegrad
        >>> for action in odegrad.Every(3).backward(4):
        ...     print(action)
        Transpose(start=3, stop=4)
        Drop(i=3)
        Restore(i=0)
        Advance(start=0, stop=2, every=1)
        Store(i=2)
        Transpose(start=0, stop=3)
        Drop(i=2)
        Drop(i=1)
        Drop(i=0)
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(f"Every needs a whole number of steps, received {self.k!r}")
        if self.k < 1:
            raise InvalidValueError(f"Every needs a distance of at least 1 step, received {self.k}")

    @property
    def keep(self) -> Keep:
        """`Keep.STATE`."""
        return Keep.STATE

    def slots(self, n: int) -> int:
        """⌈n / k⌉."""
        return -(-n // self.k)

    def forward(self) -> Iterator[Action]:
        """Advances to the end, storing every k-th state."""
        yield Advance(0, None, every=self.k)

    def backward(self, n: int) -> Iterator[Action]:
        """Transposes block by block, from the last; each block is advanced through once more."""
        for start in reversed(range(0, n, self.k)):
            stop = min(start + self.k, n)
            if stop - start > 1:
                yield Restore(start)
                yield Advance(start, stop - 1, every=1)
                yield Store(stop - 1)
            yield Transpose(start, stop)
            for i in reversed(range(start, stop)):
                yield Drop(i)
