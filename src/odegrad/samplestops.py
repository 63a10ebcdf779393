"""Which times the steps of each sample of a batch end at, and which are read inside of them.

With ts_b the times of sample b and c further times that all share (breakpoints), the steps of the sample
end at

    L_bs = (ts_b | c)_source(b, s),     s = 0 … S_b,

so that samples may have different numbers of segments. A time τ between that is read lies in a segment s
at the fraction (τ − L_bs) / (L_b,s+1 − L_bs) of it, as in `odegrad.grid.Stops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Reading", "SampleStops", "scattered"]


@dataclass(frozen=True, eq=False)
class SampleStops:
    """Where the steps of each sample end, and where its state is read.

    Arguments:
        count: T, the number of times of each sample.
        breaks: c, float64.
        source: int64 of shape [B, S + 1]; behind S_b the end of the sample again.
        segments: S_b, int64 of shape [B].
        order: The numbers of the times that are read, as the sample comes by them, int64 of shape
            [B, R + 1]; what stands behind the last one means nothing.
        segment: The segments that they lie in, −1 behind the last one.
        fraction: Their fractions of these segments, float64.
    """

    count: int
    breaks: Tensor
    source: Tensor
    segments: Tensor
    order: Tensor
    segment: Tensor
    fraction: Tensor

    @staticmethod
    def of(
        times: Tensor, breaks: Tensor, source: Sequence[Sequence[int]], read: Tensor | None = None
    ) -> SampleStops:
        """Those of samples, at least one, with given sources.

        Arguments:
            times: float64 of shape [B, T], on the CPU.
            breaks: Further times, float64.
            source: For each sample the numbers of what it ends steps at, T + i for the further time i.
            read: Which times are read, bool of shape [B, T]; by default all that are no such ends.
        """
        most, device = max(map(len, source)), times.device
        rows = torch.tensor(
            [[*row, *[row[-1]] * (most - len(row))] for row in source], device=device
        )
        segments = torch.tensor([len(row) - 1 for row in source], device=device)
        size, count = times.shape
        if read is None:
            ends = torch.zeros((size, count + len(breaks)), dtype=torch.bool, device=device)
            read = ~ends.scatter_(1, rows, value=True)[:, :count]
        landings = _landings(times, breaks, rows)
        sign = torch.where(landings[:, -1:] < landings[:, :1], -1.0, 1.0).to(times)
        key = (sign * times).masked_fill(~read, float("inf"))
        order = key.argsort(dim=1, stable=True)[:, : int(read.sum(1).max())]
        # A time at the end of a segment is in the next one, if there is one of some length.
        inner = sign * landings[:, 1:]
        inner = inner.masked_fill(inner >= inner[:, -1:], float("inf")).contiguous()
        found = times.gather(1, order)
        at = torch.searchsorted(inner, (sign * found).contiguous(), right=True)
        at = at.clamp(max=most - 2)  # of times that are not read
        start, stop = landings.gather(1, at), landings.gather(1, at + 1)
        span = stop - start
        flat = span == 0.0
        part = ((found - start) / torch.where(flat, 1.0, span)).clamp(0.0, 1.0)
        blank = torch.zeros((size, 1), dtype=torch.int64, device=device)
        there = read.gather(1, order)
        return SampleStops(
            count,
            breaks,
            rows,
            segments,
            torch.cat([order, blank], 1),
            torch.cat([at.masked_fill(~there, -1), blank - 1], 1),
            torch.cat([part.masked_fill(flat, 0.0), blank.to(part)], 1),
        )

    @property
    def reads(self) -> bool:
        """Whether some time is read."""
        return self.order.shape[1] > 1

    def landings(self, times: Tensor) -> Tensor:
        """L, shape [B, S + 1], on the graph of the times, shape [B, T]."""
        return _landings(times, self.breaks, self.source)

    def labels(self, s: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """(j, b) for those of the samples b that are at their end s which is a time of theirs."""
        j = self.source[b, s]
        own = j < self.count
        return j[own], b[own]

    def vjp(self, grad: Tensor) -> Tensor:
        """The cotangent of the times, [B, T], for one of the landings, 0 behind S_b."""
        size = (len(grad), self.count + len(self.breaks))
        return grad.new_zeros(size).scatter_add_(1, self.source, grad)[:, : self.count]


class Reading:
    """The times that are read, as the steps of the samples come by them.

    Arguments:
        stops: What is read.
    """

    def __init__(self, stops: SampleStops) -> None:
        self._stops = stops
        self._next = torch.zeros_like(stops.segments)
        self._all = torch.arange(len(stops.segments), device="cpu")

    def inside(self, taken: Tensor, segment: Tensor, stop: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(j, b) of the first time inside of a step of each sample, of the second, and so on.

        Arguments:
            taken: Which samples take one, bool of shape [B].
            segment: The segments that they are in.
            stop: The fractions at which their steps end.
        """
        found: list[tuple[Tensor, Tensor]] = []
        stops, every = self._stops, self._all
        while stops.reads:
            place = self._next
            within = stops.segment[every, place] == segment
            hit = taken & within & (stops.fraction[every, place] <= stop)
            b = hit.nonzero().squeeze(1)
            if not len(b):
                break
            found.append((stops.order[b, place[b]], b))
            self._next = place + hit
        return found


def scattered(times: Tensor, j: Tensor, b: Tensor) -> Tensor:
    """The times j of the samples b, shape [B], NaN for other samples; `times` is of shape [B, T]."""
    nan = torch.full_like(times[:, 0].detach(), float("nan"))
    return nan.index_copy(0, b, times[b, j])


def _landings(times: Tensor, breaks: Tensor, source: Tensor) -> Tensor:
    every = torch.cat([times, breaks.to(times).expand(len(times), -1)], 1)
    return every.gather(1, source)
