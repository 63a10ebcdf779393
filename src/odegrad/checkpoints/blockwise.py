"""Schedules whose unit is a block of consecutive steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from odegrad.checkpoints.actions import Action, Advance, Drop, Keep, Restore, Store, Transpose
from odegrad.checkpoints.base import Bounds, Checkpoints, Hold
from odegrad.checkpoints.checks import check_count, check_keep
from odegrad.checkpoints.store_all import StoreAll
from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = ["Blockwise", "Every"]


@dataclass(frozen=True)
class Blockwise:
    """A schedule over blocks of steps, each block taken again as a whole when its turn comes.

    Only states at the starts of blocks are stored, those that `schedule` says. To transpose a block, its
    steps are taken again onto the tape, with what `keep` says of each. If the number of steps is known in
    advance, the last block is kept by the forward sweep, and it is the first one that may be shorter.

    With `Keep.GRAPH` this costs as many evaluations as keeping every state, 2F + V, in as little memory
    as √N states and the graphs of √N steps; with fewer stored states, the recomputation of `schedule`
    comes on top.

    Arguments:
        schedule: What to do with blocks in place of steps; `StoreAll()` stores the start of each.
        length: Steps per block.
        keep: What to keep of the steps of the block that is transposed.

    Raises:
        InvalidTypeError: If an argument has the wrong type.
        InvalidValueError: If `length` < 1, or `schedule` cannot be used for blocks.

    Example:
        >>> import odegrad
        >>> schedule = odegrad.Blockwise(odegrad.Binomial(4), length=32)
    """

    schedule: Checkpoints
    length: int
    keep: Keep = Keep.GRAPH

    def __post_init__(self) -> None:
        check_count("Blockwise: length", self.length)
        check_keep("Blockwise", self.keep)
        if isinstance(self.schedule, type) or not isinstance(self.schedule, Checkpoints):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                "Blockwise: schedule must be a schedule such as StoreAll() or Binomial(8), "
                f"received {self.schedule!r}"
            )
        if not isinstance(self.schedule, StoreAll) and self.schedule.holds is not Hold.LAST:
            raise InvalidValueError(
                "Blockwise: schedule must be StoreAll, Binomial, Online or Tiered, "
                f"received {self.schedule!r}"
            )

    @property
    def _units(self) -> Checkpoints:
        return _Starts() if isinstance(self.schedule, StoreAll) else self.schedule

    @property
    def holds(self) -> Hold | None:
        """The start of the last block, if its schedule does not store it anyhow."""
        return self._units.holds

    def bounds(self, n: int, known: bool) -> Bounds:
        """What the schedule stores of the blocks, and one block on the tape."""
        inner = self._units.bounds(self._count(n), known)
        return inner._replace(tape=min(self.length, n), keep=self.keep)

    def forward(self, n: int | None) -> Iterator[Action]:
        """Advances through the blocks, storing the starts that the schedule says."""
        blocks, edge = None if n is None else self._count(n), self._edges(n, known=True)
        for action in self._units.forward(blocks):
            action = self._scaled(action, edge)
            if n is not None and isinstance(action, Advance) and action.stop == n:
                action = action._replace(keep=self.keep)
            yield action

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        """Takes block after block again, from the last, and transposes it."""
        taped, edge = known, self._edges(n, known)
        for action in self._units.backward(self._count(n), known):
            action = self._scaled(action, edge)
            if isinstance(action, Transpose):
                if not taped:
                    yield Advance(action.start, action.stop, keep=self.keep)
                taped = False
            yield action

    def _count(self, n: int) -> int:
        return -(-n // self.length)

    def _edges(self, n: int | None, known: bool) -> Callable[[int], int]:
        """Where a block begins."""
        k = self.length
        if n is None:
            return lambda b: b * k
        if not known:
            return lambda b: min(b * k, n)
        first = n - self._count(n) * k  # negative or 0: the first block may be shorter
        return lambda b: max(0, first + b * k)

    def _scaled(self, action: Action, edge: Callable[[int], int]) -> Action:
        """An action on blocks as one on steps."""
        match action:
            case Advance(start, stop, every, _):
                end = None if stop is None else edge(stop)
                return Advance(edge(start), end, None if every is None else every * self.length)
            case Store(i, tier):
                return Store(edge(i), tier)
            case Restore(i):
                return Restore(edge(i))
            case Drop(i):
                return Drop(edge(i))
            case Transpose(start, stop):
                return Transpose(edge(start), edge(stop))
            case _:
                raise AssertionError(f"{action} has no place in a blockwise schedule")


@dataclass(frozen=True)
class Every:
    """Keeps the state before every k-th step; every block of k steps is taken again once.

    N/k + k states with `Keep.STATE`: √N for k keeps the fewest. With `Keep.GRAPH` N/k states and k
    graphs, and no more evaluations than if every state were kept. The same as
    ``Blockwise(StoreAll(), k, keep)``.

    Arguments:
        k: The distance of stored states in steps.
        keep: What to keep of the steps of the block that is transposed.

    Raises:
        InvalidTypeError: If k is not an int, or `keep` not a `Keep`.
        InvalidValueError: If k < 1.

    Example:
        >>> import odegrad
        >>> for action in odegrad.Every(3).backward(4, known=False):
        ...     print(action)
        Restore(i=3)
        Advance(start=3, stop=4, every=None, keep=Keep.STATE)
        Transpose(start=3, stop=4)
        Drop(i=3)
        Restore(i=0)
        Advance(start=0, stop=3, every=None, keep=Keep.STATE)
        Transpose(start=0, stop=3)
        Drop(i=0)
    """

    k: int
    keep: Keep = Keep.STATE

    def __post_init__(self) -> None:
        check_count("Every: k", self.k)
        check_keep("Every", self.keep)

    @property
    def blocks(self) -> Blockwise:
        """The schedule in full."""
        return Blockwise(StoreAll(), self.k, self.keep)

    @property
    def holds(self) -> Hold | None:
        """Nothing."""
        return None

    def bounds(self, n: int, known: bool) -> Bounds:
        """⌈n / k⌉ states, and k steps on the tape."""
        return self.blocks.bounds(n, known)

    def forward(self, n: int | None) -> Iterator[Action]:
        """Advances to the end, storing every k-th state."""
        return self.blocks.forward(n)

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        """Transposes block by block, from the last."""
        return self.blocks.backward(n, known)


@dataclass(frozen=True)
class _Starts:
    """Stores the state before every step but the last, which is left to the tape if it is known."""

    @property
    def holds(self) -> Hold | None:
        return None

    def bounds(self, n: int, known: bool) -> Bounds:
        return Bounds(device=n - known)

    def forward(self, n: int | None) -> Iterator[Action]:
        if n is None:
            yield Advance(0, None, every=1)
            return
        for i in range(n - 1):
            yield Store(i)
            yield Advance(i, i + 1)
        yield Advance(n - 1, n)

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        for i in reversed(range(n)):
            taped = known and i == n - 1
            if not taped:
                yield Restore(i)
            yield Transpose(i, i + 1)
            if not taped:
                yield Drop(i)
