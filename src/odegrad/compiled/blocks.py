"""Stored states of the compiled engine: rows of the buffers that its loops wrote."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.state import Leaves, nbytes

__all__ = ["Blocks"]


class Blocks:
    """States by number, each a row of some block of buffers."""

    def __init__(self) -> None:
        self._blocks: list[Leaves | None] = []
        self._places: dict[int, tuple[int, int]] = {}
        self._count: list[int] = []
        self._written: list[int] = []

    def put(self, numbers: Sequence[int], rows: Leaves) -> None:
        """Keeps states; row r of each buffer belongs to state numbers[r]."""
        k = len(self._blocks)
        self._blocks.append(rows)
        self._count.append(len(numbers))
        self._written.append(len(numbers))
        self._places |= {n: (k, r) for r, n in enumerate(numbers)}

    def __contains__(self, n: int) -> bool:
        return n in self._places

    def get(self, n: int) -> Leaves:
        """State n, a copy."""
        k, r = self._places[n]
        return tuple(leaf[r].clone() for leaf in self._block(k))

    def drop(self, n: int) -> None:
        """Forgets state n; a block without states is freed."""
        k, _ = self._places.pop(n)
        self._count[k] -= 1
        if not self._count[k]:
            self._blocks[k] = None

    def rows(self, start: int, stop: int, size: int) -> Leaves:
        """The states start … stop − 1 in the first rows of buffers with `size` rows."""
        k, r = self._places[start]
        whole, n = self._block(k), stop - start
        if r + size <= len(whole[0]) and self._places[stop - 1] == (k, r + n - 1):
            return tuple(leaf[r : r + size] for leaf in whole)
        buffers = tuple(leaf.new_empty((size, *leaf.shape[1:])) for leaf in whole)
        done = 0
        while done < n:
            k, r = self._places[start + done]
            run = 1
            while done + run < n and self._places[start + done + run] == (k, r + run):
                run += 1
            for buffer, leaf in zip(buffers, self._block(k), strict=True):
                buffer[done : done + run] = leaf[r : r + run]
            done += run
        return buffers

    def tensors(self) -> Leaves:
        """The tensors that hold the data."""
        return tuple(leaf for block in self._blocks if block is not None for leaf in block)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Blocks:
        """The same places, whose data `tensors` hold as this one's `tensors` did."""
        other, left = Blocks(), iter(tensors)
        width = len(self._any_block())
        other._blocks = [
            None if block is None else tuple(next(left) for _ in range(width))
            for block in self._blocks
        ]
        other._places, other._count = dict(self._places), list(self._count)
        other._written = list(self._written)
        return other

    def forget_data(self) -> None:
        """Lets go of the tensors (someone else holds them), keeping the places."""
        self._blocks = [
            None if b is None else tuple(torch.empty(0) for _ in b) for b in self._blocks
        ]

    @property
    def nbytes(self) -> int:
        """The bytes held, without rows that were never written."""
        pairs = zip(self._blocks, self._written, strict=True)
        return sum(n * nbytes(x) // max(1, len(x[0])) for x, n in pairs if x is not None)

    def _any_block(self) -> Leaves:
        return next((b for b in self._blocks if b is not None), ())

    def _block(self, k: int) -> Leaves:
        block = self._blocks[k]
        assert block is not None
        return block
