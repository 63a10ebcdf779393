"""The rounds of a grid as the compiled programs are given them, many at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.compiled import Reading, SampleInside, SamplePrograms
from odegrad.samplegrid import SampleClock, SampleGrid
from odegrad.samplestops import SampleStops
from odegrad.state import Leaves
from odegrad.sweeps.compiled.chunks import plain
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.compiled.places import Places, Reader
from odegrad.sweeps.samples.outputs import Buffers

__all__ = ["Rounds", "labelled", "program_inputs", "read"]


def program_inputs(run: SampleRun, programs: SamplePrograms, y0: Leaves, p: Leaves) -> Leaves:
    """What the programs read: what f reads, and where samples that take no step are evaluated."""
    scheme = run.persample(y0)
    start = scheme.start.to(programs.device)
    return plain((*p[: programs.n_read], start, *scheme.y0))


def labelled(
    stops: SampleStops | None, r: Tensor, s: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(r, j, b) for those of the samples b, at their end s after row r, that are at their time j."""
    if stops is None:
        return r, s, b
    own = stops.source[b, s] < stops.count
    return r[own], *stops.labels(s, b)


def read(
    reading: Reading,
    outputs: Buffers,
    at: SampleInside | None,
    rows: Leaves,
    inside: Leaves,
) -> None:
    """Puts out the states at times inside of the steps of a chunk.

    Arguments:
        reading: How states inside are read.
        outputs: Takes them in.
        at: The times, or None.
        rows: The states before the steps, one row each.
        inside: What they are read from, likewise.
    """
    for piece in [] if at is None else at.pieces(len(rows[0])):
        found = reading.states(piece, rows, inside)
        outputs.put_each(piece.numbers, piece.samples, found)


class Rounds:
    """The rounds of a grid between landing times; for samples what `Ticks` is.

    Arguments:
        run: The solve.
        grid: The steps.
    """

    def __init__(self, run: SampleRun, grid: SampleGrid) -> None:
        self._grid, self._stops, self._times = grid, run.stops, run.outputs_at.detach()
        self._t, self._dt = SampleClock(grid, run.landings.detach()).steps
        self._places: Places | None = None
        n = grid.n_steps
        if n and run.stops is not None and run.reads:
            ends = torch.cat([grid.starts[1:n], torch.ones_like(grid.starts[:1])])
            ends = ends.masked_fill(grid.lands, 1.0)
            self._places = Reader(run.stops).places(grid.active, grid.segments[:n], ends)

    def step(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(t_n, h_n) for start ≤ n < stop, shape [stop − start, B]; h is NaN where a sample sits out."""
        return self._t[start:stop], self._dt[start:stop]

    def landed(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """(r, j, b) for the samples b that are at their time j after round start + r."""
        r, b = self._grid.lands[start:stop].nonzero(as_tuple=True)
        return labelled(self._stops, r, self._grid.segments[start + r, b] + 1, b)

    def step_vjp(self, start: int, grad_t: Tensor, grad_dt: Tensor, grads: Tensor) -> None:
        """Adds the cotangents of the landing times of rounds from `start` on to `grads`, shape [T, B]."""
        grid, rows = self._grid, slice(start, start + len(grad_t))
        j, sigma, delta = (x[rows] for x in (grid.segments, grid.starts, grid.widths))
        grads.scatter_add_(0, j, (1.0 - sigma) * grad_t - delta * grad_dt)
        grads.scatter_add_(0, j + 1, sigma * grad_t + delta * grad_dt)

    def inside(self, start: int, stop: int) -> SampleInside | None:
        """The times read inside of the rounds start … stop − 1, if there are any."""
        if self._places is None:
            return None
        return self._places.between(start, stop).inside(self._times, *self.step(start, stop))
