"""The times of a chunk of steps as tensors, and their transpose."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from odegrad.compiled.inside import Inside
from odegrad.grid import Grid, Nodes, Stops

__all__ = ["Ticks", "inside_of"]


def inside_of(times: Tensor, numbers: list[int], rows: list[int], t: Tensor, dt: Tensor) -> Inside:
    """Times inside of steps, given their numbers, the row of the step of each, and all steps."""
    at, steps = torch.tensor(numbers, device="cpu"), torch.tensor(rows, device="cpu")
    return Inside(at, steps, (times[at].detach() - t[steps]) / dt[steps])


class Ticks:
    """The steps of a grid between landing times, many at a time.

    Arguments:
        grid: The grid.
        times: The times at which there are outputs, float64, shape [T].
        stops: Which of them steps land on, and which are read inside steps; None: steps land on all.
    """

    def __init__(self, grid: Grid, times: Tensor, stops: Stops | None = None) -> None:
        self._segments, self._times, self._stops = grid.segments, times, stops
        self._at = range(len(times)) if stops is None else stops.at
        self.ends = list(accumulate(len(segment) for segment in grid.segments))

    def step(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(t_n, h_n) for start ≤ n < stop, the numbers that `Clock.step` gives."""
        t: list[Tensor] = []
        dt: list[Tensor] = []
        for j, sigma, delta in self._pieces(start, stop):
            begin = self._times[self._at[j]]
            span = self._times[self._at[j + 1]] - begin
            t.append(begin + span * sigma)
            dt.append(span * delta)
        return torch.cat(t), torch.cat(dt)

    def step_vjp(self, start: int, grad_t: Tensor, grad_dt: Tensor, grads: Tensor) -> None:
        """Adds the cotangents of the landing times of the steps from `start` on to `grads`."""
        offset = 0
        for j, sigma, delta in self._pieces(start, start + len(grad_t)):
            n = len(sigma)
            t, dt = grad_t[offset : offset + n], grad_dt[offset : offset + n]
            grads[self._at[j]] += ((1.0 - sigma) * t - delta * dt).sum()
            grads[self._at[j + 1]] += (sigma * t + delta * dt).sum()
            offset += n

    def landings(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(j, n) for every landing j whose state has a number start < n ≤ stop."""
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, stop)
        return [(self._at[j + 1], self.ends[j]) for j in range(first, last)]

    def inside(self, start: int, stop: int) -> Inside | None:
        """The times read inside the steps start … stop − 1, if there are any."""
        if self._stops is None:
            return None
        numbers, rows, n = list[int](), list[int](), start
        for j, sigma, _ in self._pieces(start, stop):
            first = sigma.tolist()
            last = [*first[1:], self._end(n + len(first) - 1)]
            for r, (a, b) in enumerate(zip(first, last, strict=True), start=n - start):
                found = self._stops.inside(j, a, b)
                numbers += found
                rows += [r] * len(found)
            n += len(first)
        return inside_of(self._times, numbers, rows, *self.step(start, stop)) if numbers else None

    def _end(self, n: int) -> float:
        """The fraction of its segment at which step n ends."""
        j = bisect_right(self.ends, n)
        i = n + 1 - self.ends[j] + len(self._segments[j])
        return 1.0 if n + 1 == self.ends[j] else self._segments[j].start(i)

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
