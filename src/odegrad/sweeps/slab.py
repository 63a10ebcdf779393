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

_FIRST_CHUNK = 8


class Slab:
    """A growing store of numbered states.

    Arguments:
        rows: How many states will be stored, if known.
    """

    def __init__(self, rows: int | None = None) -> None:
        self._expected = rows
        self._chunks: list[Leaves] = []
        self._room: list[tuple[int, int]] = []  # free (chunk, row) places
        self._places: dict[int, tuple[int, int]] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._size = 0
        self._width = 0
        self._frozen = 0

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
        self._snapshots.pop(i, None)

    def tensors(self) -> Leaves:
        """The tensors that hold the data, chunk after chunk."""
        return tuple(column for chunk in self._chunks for column in chunk)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Slab:
        """A slab with the same places, whose data `tensors` hold as this one's `tensors` did.

        Those tensors are read only: they have to serve again if the graph is retained.
        """
        other = Slab()
        width = self._width
        chunks = range(0, len(tensors), width) if width else ()
        other._chunks = [tuple(tensors[k : k + width]) for k in chunks]
        other._frozen = len(other._chunks)
        other._places, other._snapshots = dict(self._places), dict(self._snapshots)
        return other

    def forget_data(self) -> None:
        """Lets go of the tensors (someone else holds them), keeping the places."""
        self._chunks = []

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return nbytes(self.tensors())

    def _grow(self, state: Leaves) -> None:
        rows = self._expected or max(_FIRST_CHUNK, self._size // 2)
        self._expected = None
        k, self._width = len(self._chunks), len(state)
        self._chunks.append(tuple(leaf.new_empty((rows, *leaf.shape)) for leaf in state))
        self._room += [(k, row) for row in reversed(range(rows))]
        self._size += rows
