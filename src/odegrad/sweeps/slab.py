"""Stored states as rows of a few large tensors.

A hundred thousand small tensors cost many times their data in resident memory; a slab holds one tensor
per leaf and chunk. A row is handed out as a fresh copy: a row that does not start at an aligned address
can change the last bits of a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from odegrad.replay import Snapshot
from odegrad.state import Leaves, nbytes

__all__ = ["Slab"]

_FIRST_ROWS, _FIRST_BYTES = 8, 1 << 20
"""How many rows to begin with if nobody knows how many there will be: fewer if they are large."""


class Slab:
    """A growing store of numbered states.

    Arguments:
        rows: How many states will be stored at once, if known: room for them is made at the first one.
        limit: The most states that will be stored at once, if there is such a number.
    """

    def __init__(self, rows: int | None = None, limit: int | None = None) -> None:
        self._expected, self._limit = rows, limit
        self._chunks: list[Leaves] = []
        self._room: list[tuple[int, int]] = []  # free (chunk, row) places
        self._places: dict[int, tuple[int, int]] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._size = 0
        self._width = 0
        self._frozen = 0
        self.nbytes = 0  # that are held, with what was stored beside the states

    def put(self, i: int, state: Leaves, snapshot: Snapshot | None) -> None:
        """Stores state i; does nothing if it is stored already."""
        if i in self._places:
            return
        if not self._room:
            self._grow(state)
        place = self._room.pop()
        for column, leaf in zip(self._chunks[place[0]], state, strict=True):
            column[place[1]].copy_(leaf)
        self._places[i] = place
        if snapshot is not None:
            self._snapshots[i] = snapshot
            self.nbytes += snapshot.nbytes

    def __contains__(self, i: int) -> bool:
        return i in self._places

    def get(self, i: int) -> tuple[Leaves, Snapshot | None]:
        """A fresh copy of state i, and what was stored with it."""
        chunk, row = self._places[i]
        state = tuple(column[row].clone() for column in self._chunks[chunk])
        return state, self._snapshots.get(i)

    def drop(self, i: int) -> None:
        """Forgets state i; its place is free for another."""
        place = self._places.pop(i)
        if place[0] >= self._frozen:
            self._room.append(place)
        snapshot = self._snapshots.pop(i, None)
        if snapshot is not None:
            self.nbytes -= snapshot.nbytes

    def clear(self) -> None:
        """Forgets all states."""
        for i in list(self._places):
            self.drop(i)

    def tensors(self) -> Leaves:
        """The tensors that hold the data, chunk after chunk."""
        return tuple(column for chunk in self._chunks for column in chunk)

    def with_tensors(self, tensors: Sequence[Tensor], retain: bool) -> Slab:
        """A slab with the same places, whose data `tensors` hold as this one's `tensors` did.

        Arguments:
            tensors: The data.
            retain: Whether they have to serve again: then they are read only, and what is put into the
                slab takes new room.
        """
        new = self._size if retain else 0  # beside what is read only
        other = Slab(limit=None if self._limit is None else self._limit + new)
        width = other._width = self._width
        chunks = range(0, len(tensors), width) if width else ()
        other._chunks = [tuple(tensors[k : k + width]) for k in chunks]
        other._places, other._snapshots = dict(self._places), dict(self._snapshots)
        other._size, other.nbytes = self._size, self.nbytes
        if retain:
            other._frozen = len(other._chunks)
        else:
            other._room = list(self._room)
        return other

    def forget_data(self) -> None:
        """Lets go of the tensors (someone else holds them), keeping the places."""
        self._chunks = []

    def _grow(self, state: Leaves) -> None:
        few = max(1, min(_FIRST_ROWS, _FIRST_BYTES // max(1, nbytes(state))))
        rows = self._expected or max(few, self._size // 2)
        self._expected = None
        if self._limit is not None:
            rows = max(1, min(rows, self._limit - self._size))
        k, self._width = len(self._chunks), len(state)
        self._chunks.append(tuple(leaf.new_empty((rows, *leaf.shape)) for leaf in state))
        self.nbytes += nbytes(self._chunks[-1])
        self._room += [(k, row) for row in reversed(range(rows))]
        self._size += rows
