"""What a search writes attempt by attempt, put in order step by step of each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.compiled import Blocks
from odegrad.state import Leaves

__all__ = ["Columns"]


class _Places(NamedTuple):
    """Which of the entries of a chunk's rows are accepted steps, and where they go.

    Attributes:
        source: Their places among the rows, flattened.
        target: Those in the columns, flattened.
        size: How many rows the columns need.
    """

    source: Tensor
    target: Tensor
    size: int


class Columns:
    """Buffers of shape [steps, B, …], in which row n of sample b is its n-th accepted step.

    Arguments:
        size: B.

    Attributes:
        counts: How many steps of each sample are accepted, int64 of shape [B], on the CPU.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.counts = torch.zeros(size, dtype=torch.int64, device="cpu")
        whole, real = (
            torch.zeros((0, size), dtype=x, device="cpu") for x in (torch.int64, torch.float64)
        )
        self._steps: Leaves = (whole, real, real)
        self._states: Leaves = ()

    def places(self, accept: Tensor) -> _Places:
        """Where the accepted steps of a chunk go, which are counted; bool of shape [rows, B]."""
        number = self.counts + accept.cumsum(0) - 1
        self.counts = self.counts + accept.sum(0)
        source = accept.flatten().nonzero().squeeze(1)
        target = number.flatten()[source] * self._size + source % max(1, self._size)
        return _Places(source, target, int(self.counts.max()) if self._size else 0)

    def put(self, at: _Places, rows: Leaves) -> None:
        """Takes in segments, starts and widths of steps, in rows of attempts."""
        self._steps = _scattered(self._steps, at, rows)

    def put_states(self, at: _Places, rows: Leaves) -> None:
        """Takes in the states before steps, in rows of attempts."""
        if not self._states:
            self._states = tuple(x.new_zeros((0, *x.shape[1:])) for x in rows)
        self._states = _scattered(self._states, at, rows)

    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Segments, starts and widths of all steps."""
        n = int(self.counts.max()) if self._size else 0
        segments, starts, widths = (x[:n].contiguous() for x in self._steps)
        return segments, starts, widths

    def blocks(self, like: Leaves) -> Blocks:
        """The states before all steps, as a tape of rounds; `like` is the last one."""
        n, blocks = int(self.counts.max()) if self._size else 0, Blocks()
        if n:
            blocks.put(0, n, self._states or tuple(x[None] for x in like))
        return blocks


def _scattered(columns: Leaves, at: _Places, rows: Leaves) -> Leaves:
    """The columns, with room for what is new, and that in its places."""
    have = len(columns[0])
    if at.size > have:
        more = max(at.size - have, have // 2)
        columns = tuple(torch.cat([x, x.new_zeros((more, *x.shape[1:]))]) for x in columns)
    device = columns[0].device
    source, target = at.source.to(device), at.target.to(device)
    for column, row in zip(columns, rows, strict=True):
        column.flatten(0, 1).index_copy_(0, target, row.flatten(0, 1)[source])
    return columns
