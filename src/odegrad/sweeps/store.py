"""Where a sweep stores numbered states: beside the state, in CPU memory, or on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from torch import Tensor

from odegrad.checkpoints import Action, Bounds, Restore, Tier
from odegrad.errors import SPENT, GradientUnavailableError
from odegrad.replay import Snapshot
from odegrad.state import Leaves
from odegrad.storage import DiskShelf, PinnedShelf, Shelf
from odegrad.sweeps.slab import Slab

__all__ = ["StateStore"]

_LOOKAHEAD = 16
"""How many actions ahead to look for a state that has to be fetched."""


class StateStore:
    """Numbered states, each in the tier that the schedule says.

    Arguments:
        bounds: How many states each tier has to hold at once.
        like: A state: shapes, dtypes and devices.
        known: Whether that many will be stored for certain; else room is made as it is needed.

    Raises:
        CheckpointStorageError: If there is no room on the disk.
    """

    def __init__(self, bounds: Bounds, like: Leaves, known: bool) -> None:
        self._shelves: dict[Tier, Shelf] = {}
        rows = bounds.device
        if bounds.ram and any(x.device.type != "cpu" for x in like):
            self._shelves[Tier.RAM] = PinnedShelf(bounds.ram, like)
        else:
            rows += bounds.ram
        if bounds.disk:
            self._shelves[Tier.DISK] = DiskShelf(bounds.disk, like, bounds.directory)
        self._slab = Slab(rows if known else None, rows)
        self._snapshots: dict[int, Snapshot] = {}
        self._spent = False

    def put(self, i: int, state: Leaves, snapshot: Snapshot | None, tier: Tier) -> None:
        """Stores state i; does nothing if it is stored already."""
        shelf = self._shelves.get(tier)
        if shelf is None:
            self._slab.put(i, state, snapshot)
        elif i not in shelf:
            shelf.put(i, state)
            if snapshot is not None:
                self._snapshots[i] = snapshot

    def get(self, i: int) -> tuple[Leaves, Snapshot | None]:
        """A fresh copy of state i, and what was stored with it."""
        for shelf in self._shelves.values():
            if i in shelf:
                return shelf.get(i), self._snapshots.get(i)
        return self._slab.get(i)

    def __contains__(self, i: int) -> bool:
        return i in self._slab or any(i in shelf for shelf in self._shelves.values())

    def drop(self, i: int) -> None:
        """Forgets state i; its place is free for another."""
        for shelf in self._shelves.values():
            if i in shelf:
                shelf.drop(i)
                self._snapshots.pop(i, None)
                return
        self._slab.drop(i)

    def ahead(self, actions: Iterable[Action]) -> Iterator[Action]:
        """The actions, while the state that is needed next is being fetched."""
        if not self._shelves:
            yield from actions
            return
        source = iter(actions)
        waiting = list(islice(source, _LOOKAHEAD))
        while waiting:
            action = waiting.pop(0)
            waiting += islice(source, 1)
            yield action
            following = next((a.i for a in waiting if isinstance(a, Restore)), None)
            for shelf in self._shelves.values():
                if following is not None and following in shelf:
                    shelf.prefetch(following)

    def tensors(self) -> Leaves:
        """The tensors that hold the data that are where the state is."""
        return self._slab.tensors()

    def forget_data(self) -> None:
        """Lets go of these tensors (someone else holds them)."""
        self._slab.forget_data()

    def with_tensors(self, tensors: Sequence[Tensor], retain: bool) -> StateStore:
        """The same states, with `tensors` for what `tensors` gave; see `Slab.with_tensors`.

        Raises:
            GradientUnavailableError: If this store has a shelf that was used up before.
        """
        if self._spent and self._shelves:
            raise GradientUnavailableError(SPENT)
        self._spent = not retain
        other = object.__new__(StateStore)
        other._slab = self._slab.with_tensors(tensors, retain)
        other._shelves = {k: x.fork() if retain else x for k, x in self._shelves.items()}
        other._snapshots, other._spent = dict(self._snapshots), False
        return other

    @property
    def nbytes(self) -> int:
        """The bytes held where the state is and in CPU memory."""
        ram = self._shelves.get(Tier.RAM)
        beside = sum(x.nbytes for x in self._snapshots.values())
        return self._slab.nbytes + beside + (ram.nbytes if ram is not None else 0)

    @property
    def disk_bytes(self) -> int:
        """The bytes held on disk."""
        disk = self._shelves.get(Tier.DISK)
        return disk.nbytes if disk is not None else 0
