"""The tape of the compiled engine: rows of the buffers that its loops wrote."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.state import Leaves, nbytes

__all__ = ["Blocks"]


class Blocks:
    """What is kept of consecutive steps, one row each, in blocks of buffers."""

    def __init__(self) -> None:
        self._blocks: list[Leaves] = []
        self._starts: list[int] = []
        self._counts: list[int] = []
        self.nbytes = 0  # held, without rows that were never written
        self.room = 0  # with them

    def put(self, start: int, n: int, rows: Leaves) -> None:
        """Adds n steps from `start` on, in the first rows of the buffers."""
        assert not self._starts or start == self._starts[-1] + self._counts[-1]
        self._blocks.append(rows)
        self._starts.append(start)
        self._counts.append(n)
        self.nbytes += n * nbytes(rows) // max(1, len(rows[0]))
        self.room += nbytes(rows)

    def rows(self, start: int, stop: int, size: int) -> Leaves:
        """The steps start … stop − 1 in the first rows of buffers with `size` rows."""
        k = bisect_right(self._starts, start) - 1
        r, whole, n = start - self._starts[k], self._blocks[k], stop - start
        if r + size <= len(whole[0]) and r + n <= self._counts[k]:
            return tuple(leaf[r : r + size] for leaf in whole)
        buffers = tuple(leaf.new_empty((size, *leaf.shape[1:])) for leaf in whole)
        done = 0
        while done < n:
            m = min(self._counts[k] - r, n - done)
            for buffer, leaf in zip(buffers, self._blocks[k], strict=True):
                buffer[done : done + m] = leaf[r : r + m]
            done, k, r = done + m, k + 1, 0
        return buffers

    def buffers(self, size: int) -> list[Leaves]:
        """The buffers with so many rows."""
        return [block for block in self._blocks if len(block[0]) == size]

    def tensors(self) -> Leaves:
        """The tensors that hold the data."""
        return tuple(leaf for block in self._blocks for leaf in block)

    def with_tensors(self, tensors: Sequence[Tensor], retain: bool) -> Blocks:
        """The same places, whose data `tensors` hold as this one's `tensors` did; they are only read."""
        del retain
        other, left = Blocks(), iter(tensors)
        other._blocks = [tuple(next(left) for _ in block) for block in self._blocks]
        other._starts, other._counts = list(self._starts), list(self._counts)
        other.nbytes, other.room = self.nbytes, self.room
        return other

    def forget_data(self) -> None:
        """Lets go of the tensors (someone else holds them), keeping the places."""
        self._blocks = [tuple(torch.empty(0) for _ in block) for block in self._blocks]
