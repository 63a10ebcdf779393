"""Multistage checkpointing: stored states on the device, in CPU memory and on disk.

The states that a binomial schedule stores at any moment form a stack. Those near its bottom are stored
once and restored a few times; those above are stored and restored again and again. How often a level of
the stack is written and read follows from the numbers of steps between stored states, of which there are
few different ones, and the busiest levels lie in the fastest memory. Then no other assignment of levels
to tiers of these sizes writes and reads less often on disk.

Stumm & Walther, MultiStage approaches for optimal offline checkpointing, SIAM J. Sci. Comput. 31 (2009).
Writing and reading count alike. Of all binomial schedules that of `Binomial` is taken, which does not
have the fewest accesses on disk in every case.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TypeAlias

from odegrad.checkpoints.actions import Action, Advance, Drop, Store, Tier
from odegrad.checkpoints.base import Bounds, Hold
from odegrad.checkpoints.binomial import Binomial
from odegrad.checkpoints.checks import check_count
from odegrad.checkpoints.reversal import reverse, split
from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = ["Tiered", "accesses"]

Place: TypeAlias = tuple[int, Tier]
"""Where a state can be stored. Of the free places, that with the lowest number is taken."""


@dataclass(frozen=True)
class Tiered:
    """Stores states in CPU memory and on disk: the busiest in the fastest memory.

    As many steps are taken again as with ``Binomial(device + ram + disk)``. If the number of steps is not
    known before the solve, a state is stored in the fastest tier that has a free place.

    Arguments:
        ram: How many states are stored in CPU memory at most.
        disk: How many on disk.
        device: How many where the state is. That before the first step is among these three.
        directory: Where the files are; None: where the system keeps temporary files.

    Raises:
        InvalidTypeError: If a number is not an int, or `directory` not a path.
        InvalidValueError: If a number is negative, or all are 0.

    Reference:
        Stumm & Walther, MultiStage approaches for optimal offline checkpointing, SIAM J. Sci. Comput.
        31 (2009).

    Example:
        >>> from odegrad.checkpoints import Tiered
        >>> for action in Tiered(ram=1, disk=2).forward(12):
        ...     print(action)
        Store(i=0, tier=Tier.DISK)
        Advance(start=0, stop=4, every=None, keep=None)
        Store(i=4, tier=Tier.DISK)
        Advance(start=4, stop=8, every=None, keep=None)
        Store(i=8, tier=Tier.RAM)
        Advance(start=8, stop=11, every=None, keep=None)
        Advance(start=11, stop=12, every=None, keep=None)
    """

    ram: int
    disk: int
    device: int = 0
    directory: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_count("Tiered: ram", self.ram, least=0)
        check_count("Tiered: disk", self.disk, least=0)
        check_count("Tiered: device", self.device, least=0)
        if self.slots < 1:
            raise InvalidValueError("Tiered: ram, disk and device must not all be 0")
        if not isinstance(self.directory, str | os.PathLike | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                f"Tiered: directory must be a path or None, received {self.directory!r}"
            )

    @property
    def slots(self) -> int:
        """How many states are stored at most."""
        return self.device + self.ram + self.disk

    @property
    def holds(self) -> Hold | None:
        """The state before the last step."""
        return Hold.LAST

    def bounds(self, n: int, known: bool) -> Bounds:
        """Those of `Binomial`, in the fastest tiers."""
        whole = Binomial(self.slots).bounds(n, known)
        device = min(whole.device, self.device)
        ram = min(whole.device - device, self.ram)
        disk = whole.device - device - ram
        directory = None if self.directory is None else os.fspath(self.directory)
        return whole._replace(device=device, ram=ram, disk=disk, directory=directory)

    def forward(self, n: int | None) -> Iterator[Action]:
        """Advances to the end, storing the states that `Binomial` does."""
        return _tiered(Binomial(self.slots).forward(n), self._places(n), {})

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        """Transposes step by step, from the last, advancing to each from the stored state before it."""
        total = n if known else None
        free = self._places(total)
        stored: dict[int, Place] = {}
        for action in _tiered(Binomial(self.slots).forward(total), free, stored):
            if action == Advance(n - 1, n):
                break
        yield from _tiered(reverse(list(stored), n, self.slots), free, stored)

    def _places(self, n: int | None) -> _Places:
        """All places: level by level of the stack if n is known, else the fastest first."""
        if n is None:
            return _Places(self._tier)
        busy = accesses(n, min(self.slots, max(1, n)))
        levels = sorted(range(len(busy)), key=lambda level: -busy[level])
        tiers = dict(zip(levels, map(self._tier, range(len(levels))), strict=True))
        return _Places(lambda k: tiers.get(k, Tier.DISK))

    def _tier(self, k: int) -> Tier:
        """The tier of the k-th place, the fastest first."""
        if k < self.device:
            return Tier.DEVICE
        return Tier.RAM if k < self.device + self.ram else Tier.DISK


class _Places:
    """The free places, without a list of them: there may be very many."""

    def __init__(self, tier: Callable[[int], Tier]) -> None:
        self._tier, self._fresh = tier, 0
        self._freed: list[int] = []

    def take(self) -> Place:
        """The free place with the lowest number."""
        if self._freed:
            k = heappop(self._freed)
        else:
            k, self._fresh = self._fresh, self._fresh + 1
        return k, self._tier(k)

    def give(self, place: Place) -> None:
        """Frees a place."""
        heappush(self._freed, place[0])


def accesses(n: int, slots: int) -> list[int]:
    """How often the state at each level of the stack of `Binomial(slots)` is stored and restored.

    A state that is stored when c slots are free and has ℓ steps between it and the next one is stored
    once. It is restored whenever these steps are split, into those behind the split, which begin with a
    state of the next level, and those before it, which remain: until one remains.

    Arguments:
        n: The number of steps, known in advance.
        slots: How many states can be stored.

    Returns:
        One number for each level that is used, the bottom of the stack first.

    Example:
        >>> from odegrad.checkpoints.tiered import accesses
        >>> accesses(12, 3)
        [3, 5, 9]
    """
    busy: list[int] = []
    lengths = Counter({n: 1})  # at this level of the stack: which ℓ occur how often
    for free in range(slots, 0, -1):
        if not lengths:
            break
        count, lengths = _level(lengths, free)
        busy.append(count)
    return busy


def _level(lengths: Counter[int], free: int) -> tuple[int, Counter[int]]:
    """How often states of one level are accessed, and the numbers of steps at the next level."""
    if free == 1:  # each split leaves one step fewer
        return sum(many * length for length, many in lengths.items()), Counter()
    count = lengths.total()
    behind: Counter[int] = Counter()
    for length, many in lengths.items():
        while length > 1:
            m = split(length, free)
            if length - m > 1:  # else the state is not stored
                behind[length - m] += many
            count += many
            length = m
    return count, behind


def _tiered(actions: Iterable[Action], free: _Places, stored: dict[int, Place]) -> Iterator[Action]:
    """The actions with a place for every state, of those that are free."""
    for action in actions:
        match action:
            case Store(i):
                stored[i] = free.take()
                yield Store(i, stored[i][1])
            case Drop(i):
                free.give(stored.pop(i))
                yield action
            case _:
                yield action
