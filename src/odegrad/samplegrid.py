"""The accepted steps of a batch in which every sample has steps of its own.

Sample b takes N_b steps. Its k-th step is in *round* k, so that there are N = max_b N_b rounds, and a
sample that is through sits out the rounds that are left. With j the segment of the step and σ, δ its
fractions, as in `odegrad.grid`,

    t_nb = T_bj + σ_nb (T_b,j+1 − T_bj),     h_nb = δ_nb (T_b,j+1 − T_bj),

and h_nb is NaN for a sample that sits out round n. The transpose, for cotangents t̄ and h̄, is

    T̄_bj += (1 − σ_nb) t̄_nb − δ_nb h̄_nb,     T̄_b,j+1 += σ_nb t̄_nb + δ_nb h̄_nb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from odegrad.errors import InvalidValueError
from odegrad.grid import Grid, Nodes, Segment, Uniform
from odegrad.samplestops import Reading, SampleStops, scattered

__all__ = ["SampleClock", "SampleGrid"]


@dataclass(frozen=True, eq=False)
class SampleGrid:
    """The accepted steps of a solve with ``batch=0``; as ``stepsize=`` it replays them exactly.

    ``grid[b]`` is the grid of sample b, for a solve of this sample alone.

    Arguments:
        segments: j, in which segment each step is, int64 of shape [N, B].
        starts: σ, float64 of shape [N, B].
        widths: δ, likewise.
        counts: N_b, int64 of shape [B]. What stands behind step N_b of a sample means nothing.
        n_segments: The number of segments of the sample that has the most.

    Example:
        >>> from odegrad.grid import Grid, Nodes, Uniform
        >>> from odegrad.samplegrid import SampleGrid
        >>> grid = SampleGrid.of([Grid((Uniform(2),)), Grid((Nodes((0.0, 0.25, 0.75, 1.0)),))])
        >>> grid.n_steps, grid.counts.tolist(), grid[1]
        (3, [2, 3], Grid(segments=(Nodes(fractions=(0.0, 0.25, 0.75, 1.0)),)))
    """

    segments: Tensor
    starts: Tensor
    widths: Tensor
    counts: Tensor
    n_segments: int

    @staticmethod
    def of(grids: Sequence[Grid]) -> SampleGrid:
        """That of samples, at least one, whose grids are given."""
        different = list({id(grid): grid for grid in grids}.values())
        number = {id(grid): u for u, grid in enumerate(different)}
        which = torch.tensor([number[id(grid)] for grid in grids], dtype=torch.int64, device="cpu")
        n = max(grid.n_steps for grid in different)
        size = (len(different), n)
        segments = torch.zeros(size, dtype=torch.int64, device="cpu")
        starts, widths = (torch.zeros(size, dtype=torch.float64, device="cpu") for _ in range(2))
        for u, grid in enumerate(different):
            places = [(j, i) for j, s in enumerate(grid.segments) for i in range(len(s))]
            k, parts = len(places), grid.segments
            segments[u, :k] = torch.tensor([j for j, _ in places], dtype=torch.int64, device="cpu")
            for x, values in (
                (starts, [parts[j].start(i) for j, i in places]),
                (widths, [parts[j].width(i) for j, i in places]),
            ):
                x[u, :k] = torch.tensor(values, dtype=torch.float64, device="cpu")
        counts = torch.tensor(
            [grid.n_steps for grid in different], dtype=torch.int64, device="cpu"
        )[which]
        n_segments = max(len(grid.segments) for grid in different)
        j, start, width = (x[which].T.contiguous() for x in (segments, starts, widths))
        return SampleGrid(j, start, width, counts, n_segments)

    @staticmethod
    def empty(n_segments: int) -> SampleGrid:
        """That of no samples."""
        whole, real = (
            torch.zeros((0, 0), dtype=x, device="cpu") for x in (torch.int64, torch.float64)
        )
        return SampleGrid(whole, real, real, whole[0:0].flatten(), n_segments)

    @property
    def n_samples(self) -> int:
        """B."""
        return len(self.counts)

    @cached_property
    def n_steps(self) -> int:
        """N, the number of rounds: the steps of the sample that takes the most."""
        return int(self.counts.max()) if len(self.counts) else 0

    @cached_property
    def active(self) -> Tensor:
        """Which sample takes a step in which round, bool of shape [N, B]."""
        return torch.arange(self.n_steps, device="cpu")[:, None] < self.counts

    @cached_property
    def lands(self) -> Tensor:
        """Which of these steps end at a landing time, bool of shape [N, B]."""
        j = self.segments[: self.n_steps].masked_fill(~self.active, -1)
        following = torch.cat([j[1:], torch.full_like(j[:1], -1)])
        return self.active & (following != j)

    @cached_property
    def ends(self) -> Tensor:
        """After how many steps each sample is at each landing, int64 of shape [n_segments + 1, B].

        0 for a sample that takes no step at all.
        """
        ends = torch.zeros((self.n_segments + 1, self.n_samples), dtype=torch.int64, device="cpu")
        n, b = self.lands.nonzero(as_tuple=True)
        ends[self.segments[n, b] + 1, b] = n + 1
        return ends

    @cached_property
    def own_segments(self) -> Tensor:
        """How many segments each sample has, int64 of shape [B]; 0 if it takes no step."""
        last = (self.counts - 1).clamp(min=0)
        if not self.n_steps:
            return torch.zeros_like(last)
        found = self.segments.gather(0, last[None])[0] + 1
        return found.masked_fill(self.counts == 0, 0)

    def without(self, samples: Tensor) -> SampleGrid:
        """The same, but that those samples, bool of shape [B], take no step."""
        return replace(self, counts=self.counts.masked_fill(samples, 0))

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, b: int) -> Grid:
        """The grid of sample b."""
        n = int(self.counts[b])
        columns = (x[:n, b].tolist() for x in (self.segments, self.starts, self.widths))
        parts: list[list[tuple[float, float]]] = [[] for _ in range(self.n_segments)]
        for j, start, width in zip(*columns, strict=True):
            parts[j].append((start, width))
        return Grid(tuple(_segment(part) for part in parts if part))

    # The protocol of `odegrad.stepsize.FixedStepSize`; it serves no other solve.

    def segment(self, j: int, start: float, stop: float, eps: float) -> Segment:
        """Raises as `check` does."""
        del j, start, stop, eps
        raise InvalidValueError(_WITH_BATCH)

    def check(self, n_segments: int) -> None:
        """Raises `InvalidValueError`: a solve without ``batch`` has no use for it."""
        del n_segments
        raise InvalidValueError(_WITH_BATCH)

    def fits(self, segments: Tensor) -> bool:
        """Whether those samples that take steps have so many segments, int64 of shape [B]."""
        own = self.own_segments
        return len(own) == len(segments) and bool(((own == segments) | (own == 0)).all())

    def check_samples(self, segments: Tensor) -> None:
        """Raises `InvalidValueError` unless the grid `fits`."""
        if not self.fits(segments):
            n = int(segments.max()) if len(segments) else self.n_segments
            raise InvalidValueError(
                f"the recorded grid has {self.n_samples} samples and {self.n_segments} segments, the "
                f"solve has {len(segments)} and {n}: replay it with as many samples in y0, times in "
                "ts and breakpoints as it was recorded with"
            )


_WITH_BATCH = (
    "the recorded grid has steps for each sample: replay it with batch=0, or sample b alone with "
    "stepsize=grid[b]"
)


def _segment(steps: list[tuple[float, float]]) -> Segment:
    """The segment of steps (σ_i, δ_i)."""
    n = len(steps)
    if all(step == (i / n, 1.0 / n) for i, step in enumerate(steps)):
        return Uniform(n)
    return Nodes((*(start for start, _ in steps), 1.0))


class SampleClock:
    """The rounds of a grid in time, and the times that are read in them.

    Arguments:
        grid: The grid.
        landings: L, float64 of shape [B, n_segments + 1], on the CPU; times and steps are on its graph.
        stops: Which times these are, and which are read; None: these are all.
        times: The times of the samples, [B, T], if some are read, which are on its graph.
    """

    def __init__(
        self,
        grid: SampleGrid,
        landings: Tensor,
        stops: SampleStops | None = None,
        times: Tensor | None = None,
    ) -> None:
        self._grid, self._stops, n = grid, stops, grid.n_steps
        self._lands: list[bool] = grid.lands.any(dim=1).tolist()
        j, rows = grid.segments[:n], landings.T
        start = rows.gather(0, j)
        # What stands behind the last step of a sample may be no segment.
        span = rows.gather(0, (j + 1).clamp(max=len(rows) - 1)) - start
        self._t = start + span * grid.starts[:n]
        self._dt = (span * grid.widths[:n]).masked_fill(~grid.active, float("nan"))
        self._times = times
        self._inside: list[list[tuple[Tensor, Tensor]]] = []
        if n and stops is not None and stops.reads:
            ends = torch.cat([grid.starts[1:n], torch.ones_like(grid.starts[:1])])
            ends = ends.masked_fill(grid.lands, 1.0)
            reading = Reading(stops)
            self._inside = list(map(reading.inside, grid.active, j, ends))

    def step(self, n: int) -> tuple[Tensor, Tensor]:
        """(t_n, h_n), float64 of shape [B]; h is NaN where a sample sits out."""
        return self._t[n], self._dt[n]

    @property
    def steps(self) -> tuple[Tensor, Tensor]:
        """(t, h) of all rounds, float64 of shape [N, B]."""
        return self._t, self._dt

    def landing(self, n: int) -> tuple[Tensor, Tensor] | None:
        """(j, b) for the samples b that are at their time j after round n, or None if none is."""
        if not self._lands[n]:
            return None
        b = self._grid.lands[n].nonzero().squeeze(1)
        s = self._grid.segments[n, b] + 1
        return (s, b) if self._stops is None else self._stops.labels(s, b)

    def reads(self, n: int) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
        """(j, b) for the samples b that are read at their time j inside of round n, and these times.

        The times are of shape [B], NaN for samples that are not read.
        """
        if not self._inside:
            return []
        times = self._times
        assert times is not None
        return [((j, b), scattered(times, j, b)) for j, b in self._inside[n]]

    def count_reads(self, n: int) -> int:
        """How often the sample that is read most often is read inside of round n."""
        return len(self._inside[n]) if self._inside else 0

    def vjp(self, grad_t: Tensor, grad_dt: Tensor) -> Tensor:
        """The cotangent of the landing times, shape [B, n_segments + 1].

        Arguments:
            grad_t: t̄, float64 of shape [N, B], 0 where a sample sits out.
            grad_dt: h̄, likewise.
        """
        grid, n = self._grid, self._grid.n_steps
        j, start, width = (x[:n] for x in (grid.segments, grid.starts, grid.widths))
        total = grad_t.new_zeros((grid.n_segments + 1, grid.n_samples))
        if n:
            total.scatter_add_(0, j, (1.0 - start) * grad_t - width * grad_dt)
            total.scatter_add_(0, j + 1, start * grad_t + width * grad_dt)
        return total.T
