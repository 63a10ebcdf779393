"""The rounds of a grid as the compiled programs are given them, many at a time."""

from __future__ import annotations

from torch import Tensor

from odegrad.compiled import SamplePrograms
from odegrad.samplegrid import SampleClock, SampleGrid
from odegrad.state import Leaves
from odegrad.sweeps.compiled.chunks import plain
from odegrad.sweeps.samples.batch import SampleRun

__all__ = ["Rounds", "program_inputs"]


def program_inputs(run: SampleRun, programs: SamplePrograms, y0: Leaves, p: Leaves) -> Leaves:
    """What the programs read: what f reads, and where samples that take no step are evaluated."""
    scheme = run.persample(y0)
    start = scheme.start.to(programs.device)
    return plain((*p[: programs.n_read], start, *scheme.y0))


class Rounds:
    """The rounds of a grid between landing times; for samples what `Ticks` is.

    Arguments:
        grid: The steps.
        landings: The landing times, float64 of shape [B, T], on the CPU.
    """

    def __init__(self, grid: SampleGrid, landings: Tensor) -> None:
        self._grid = grid
        self._t, self._dt = SampleClock(grid, landings.detach()).steps

    def step(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(t_n, h_n) for start ≤ n < stop, shape [stop − start, B]; h is NaN where a sample sits out."""
        return self._t[start:stop], self._dt[start:stop]

    def landed(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """(r, j, b) for the samples b that are at their landing j after round start + r."""
        r, b = self._grid.lands[start:stop].nonzero(as_tuple=True)
        return r, self._grid.segments[start + r, b] + 1, b

    def step_vjp(self, start: int, grad_t: Tensor, grad_dt: Tensor, grads: Tensor) -> None:
        """Adds the cotangents of the landing times of rounds from `start` on to `grads`, shape [T, B]."""
        grid, rows = self._grid, slice(start, start + len(grad_t))
        j, sigma, delta = (x[rows] for x in (grid.segments, grid.starts, grid.widths))
        grads.scatter_add_(0, j, (1.0 - sigma) * grad_t - delta * grad_dt)
        grads.scatter_add_(0, j + 1, sigma * grad_t + delta * grad_dt)

    def inside(self, start: int, stop: int) -> None:
        """Nothing is read inside of rounds."""
        del start, stop
