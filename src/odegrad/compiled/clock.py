"""The times of a chunk of steps as tensors, and their transpose."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from odegrad.grid import Grid, Nodes

__all__ = ["Ticks"]


class Ticks:
    """The steps of a grid between landing times, many at a time.

    Arguments:
        grid: The grid.
        landings: The landing times, float64, shape [len(grid.segments) + 1].
    """

    def __init__(self, grid: Grid, landings: Tensor) -> None:
        self._segments, self._landings = grid.segments, landings
        self.ends = list(accumulate(len(segment) for segment in grid.segments))

    def step(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(t_n, h_n) for start ≤ n < stop, the numbers that `Clock.step` gives."""
        t: list[Tensor] = []
        dt: list[Tensor] = []
        for j, sigma, delta in self._pieces(start, stop):
            begin, span = self._landings[j], self._landings[j + 1] - self._landings[j]
            t.append(begin + span * sigma)
            dt.append(span * delta)
        return torch.cat(t), torch.cat(dt)

    def step_vjp(self, start: int, grad_t: Tensor, grad_dt: Tensor, grads: Tensor) -> None:
        """Adds the cotangents of the landing times of the steps from `start` on to `grads`."""
        offset = 0
        for j, sigma, delta in self._pieces(start, start + len(grad_t)):
            n = len(sigma)
            t, dt = grad_t[offset : offset + n], grad_dt[offset : offset + n]
            grads[j] += ((1.0 - sigma) * t - delta * dt).sum()
            grads[j + 1] += (sigma * t + delta * dt).sum()
            offset += n

    def landings(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(j, n) for every landing j whose state has a number start < n ≤ stop."""
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, stop)
        return [(j + 1, self.ends[j]) for j in range(first, last)]

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Segment, fractions σ and widths δ of the steps start … stop − 1, segment by segment."""
        j = bisect_right(self.ends, start)
        while start < stop:
            segment, end = self._segments[j], min(stop, self.ends[j])
            first = start - (self.ends[j] - len(segment))
            n = end - start
            if isinstance(segment, Nodes):
                nodes = torch.tensor(segment.fractions[first : first + n + 1], dtype=torch.float64)
                yield j, nodes[:-1], nodes[1:] - nodes[:-1]
            else:
                sigma = torch.arange(first, first + n, dtype=torch.float64) / segment.n
                yield j, sigma, torch.full((n,), segment.width(first), dtype=torch.float64)
            start, j = end, j + 1
