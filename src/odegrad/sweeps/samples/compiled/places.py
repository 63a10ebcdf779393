"""In which steps of the samples their times lie that are read, found for many steps at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.compiled import SampleInside
from odegrad.samplestops import SampleStops

__all__ = ["Places", "Reader"]


class Places(NamedTuple):
    """Times that are read: in which row of the steps, which number, of which sample; int64, shape [R]."""

    rows: Tensor
    numbers: Tensor
    samples: Tensor

    def between(self, start: int, stop: int) -> Places:
        """Those in the rows start … stop − 1, counted from the first of these; rows ascend."""
        bounds = torch.tensor([start, stop], device="cpu")
        first, last = torch.searchsorted(self.rows, bounds).tolist()
        rows, numbers, samples = (x[first:last] for x in self)
        return Places(rows - start, numbers, samples)

    def inside(self, times: Tensor, t: Tensor, dt: Tensor) -> SampleInside | None:
        """As parts of the steps (t, dt), [rows, B], given the times, [B, T]; None if there are none."""
        r, j, b = self
        if not len(r):
            return None
        start, length = t[r, b], dt[r, b]
        x = (times[b, j] - start) / torch.where(length == 0.0, 1.0, length)
        return SampleInside(j, r, x, b, len(times))


class Reader:
    """The times that are read, as the samples come by them in chunks of steps.

    Arguments:
        stops: What is read.
    """

    def __init__(self, stops: SampleStops) -> None:
        self._stops = stops
        self._sums = stops.segment + stops.fraction
        self._next = torch.zeros_like(stops.segments)

    def places(self, taken: Tensor, segment: Tensor, stop: Tensor) -> Places:
        """Those in the following steps: in the first that ends at a time, or behind it.

        Arguments:
            taken: Which samples take them, bool of shape [rows, B].
            segment: The segments that they are in, likewise.
            stop: The fractions of these at which they end.
        """
        stops, n = self._stops, len(taken)
        # The steps of each sample first: [B, rows], with what is behind them last.
        order = (~taken).to(torch.uint8).argsort(dim=0, stable=True)
        counts = taken.sum(0)[:, None]
        segment, stop = (x.gather(0, order).T.contiguous() for x in (segment, stop))
        behind = torch.arange(n, device="cpu") >= counts
        sums = (segment + stop).masked_fill(behind, float("inf"))
        place = torch.searchsorted(sums, self._sums)
        while True:  # sums are rounded, and at a landing those of two segments are equal
            at = place.clamp(max=n - 1)
            j, end = segment.gather(1, at), stop.gather(1, at)
            early = (j < stops.segment) | ((j == stops.segment) & (end < stops.fraction))
            early &= place < counts
            if not bool(early.any()):
                break
            place = place + early
        numbers = torch.arange(stops.order.shape[1], device="cpu")
        found = (place < counts) & (stops.segment >= 0) & (numbers >= self._next[:, None])
        self._next = self._next + found.sum(1)
        b, q = found.nonzero(as_tuple=True)
        rows = order[place[b, q], b]
        rows, by = rows.sort(stable=True)
        return Places(rows, stops.order[b, q][by], b[by])
