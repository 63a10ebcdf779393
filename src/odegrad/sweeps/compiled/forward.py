"""The forward sweep in compiled chunks of steps."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from odegrad.checkpoints import Checkpoints
from odegrad.compiled import Programs, Pullback, Ticks
from odegrad.grid import Grid
from odegrad.state import Leaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.compiled.adaptive import Adaptive
from odegrad.sweeps.compiled.chunks import take_steps, watched
from odegrad.sweeps.compiled.march import Forward
from odegrad.sweeps.kept import Kept
from odegrad.sweeps.labels import salvaging, sink
from odegrad.sweeps.run import Run
from odegrad.sweeps.steps import fixed_grid

__all__ = ["forward"]


def forward(
    run: Run,
    programs: Programs,
    y: Leaves,
    p: Leaves,
    checkpoints: Checkpoints | None = None,
    pull: Pullback | None = None,
) -> tuple[Leaves, Kept | None]:
    """Solves, and returns the outputs and what is kept for the backward sweep.

    Arguments:
        run: The solve; its grid and statistics are filled in.
        programs: The compiled steps of its vector field and scheme.
        y: The initial state.
        p: The tensors that f reads.
        checkpoints: What to keep; None keeps nothing.
        pull: Says what is kept of the steps on the tape.
    """
    outputs = sink(run, y, p, on_graph=False)
    with watched(run, programs, "forward"), salvaging(run, outputs, y):
        known = isinstance(run.stepsize, FixedStepSize) or len(run.times) < 2
        kind = _Fixed if known else Adaptive
        march = kind(run, programs, y, p, outputs, pull, checkpoints)
        if checkpoints is None or len(run.times) < 2:
            march.advance(0, None, None, None)
        else:
            march.follow(checkpoints)
    run.stats.forward_evaluations = run.stats.f_evaluations
    return outputs.result(), march.kept


class _Fixed(Forward):
    """On a known grid."""

    def begin(self, y: Leaves, p: Leaves) -> None:
        del y, p
        run, control = self.run, self.run.stepsize
        run.grid = fixed_grid(run, control) if isinstance(control, FixedStepSize) else Grid(())
        self.ticks = Ticks(run.accepted_grid, self.times, run.stops)

    def through(self) -> bool:
        return self.n == self.run.accepted_grid.n_steps

    def take(self, rows: Leaves, stop: int | None, pull: Pullback | None) -> tuple[Leaves, int]:
        end = self.run.accepted_grid.n_steps if stop is None else stop
        n = min(len(rows[0]), end - self.n)
        self.state = take_steps(
            self.run, self.programs, pull, self.ticks, self.n, n, self.state, rows, self.p,
            self.inside,
        )  # fmt: skip
        self.read(self.ticks.inside(self.n, self.n + n), rows, self.inside)
        for j, i in self.ticks.landings(self.n, self.n + n):
            self.outputs.put(j, self.row(rows, i - self.n, n)[: self.n_y])
        self.report(rows, n, partial(self._times, self.n, n))
        return rows, n

    def _times(self, start: int, n: int) -> Iterable[list[float]]:
        return [x.tolist() for x in self.ticks.step(start, start + n)]
