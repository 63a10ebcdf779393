"""The forward sweep of a batch in compiled chunks: a search for the steps, or known rounds."""

from __future__ import annotations

import contextlib

import torch

from odegrad.checkpoints import Checkpoints, StoreAll
from odegrad.compiled import Pullback, SamplePrograms
from odegrad.samplegrid import SampleGrid
from odegrad.state import Leaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.compiled.chunks import plain, take_steps, watched
from odegrad.sweeps.compiled.march import Chunked
from odegrad.sweeps.kept import Kept
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.compiled.rounds import Rounds, program_inputs, read
from odegrad.sweeps.samples.compiled.search import search
from odegrad.sweeps.samples.fixed import fail_if_not_finite, fixed_steps
from odegrad.sweeps.samples.outputs import Buffers
from odegrad.sweeps.store import StateStore

__all__ = ["ahead"]


def ahead(
    run: SampleRun,
    programs: SamplePrograms,
    y: Leaves,
    p: Leaves,
    checkpoints: Checkpoints | None = None,
    pullback: Pullback | None = None,
) -> tuple[Leaves, Kept | None]:
    """Solves, and returns the outputs and what is kept for the backward sweep.

    Arguments:
        run: The solve; its steps, failures and statistics are filled in.
        programs: The compiled steps of its vector field and scheme.
        y: The initial state.
        p: The tensors that f reads.
        checkpoints: What to keep; None keeps nothing.
        pullback: Says what is kept of the rounds on the tape.

    Returns:
        Leaves of shape [T, B, …], and what was kept.
    """
    y = tuple(x.detach() for x in y)
    run.failures, run.reached = {}, None
    with watched(run, programs, "forward"):
        if isinstance(run.stepsize, FixedStepSize):
            run.steps = fixed_steps(run)
            counts = run.steps.counts
            run.stats.tell(counts, torch.zeros_like(counts))
            found = _walked(run, programs, run.steps, y, p, checkpoints, pullback)
        else:
            found = _searched(run, programs, y, p, checkpoints, pullback)
    run.stats.forward_evaluations = run.stats.f_evaluations
    return found


def _searched(
    run: SampleRun,
    programs: SamplePrograms,
    y: Leaves,
    p: Leaves,
    checkpoints: Checkpoints | None,
    pullback: Pullback | None,
) -> tuple[Leaves, Kept | None]:
    """Finds the steps; if the states before all of them are what is kept, these are left behind."""
    outputs = Buffers(y, run.outputs_at.shape[1])
    keeps = isinstance(checkpoints, StoreAll) and pullback is not None and not pullback.kept
    serves = keeps or checkpoints is None
    with contextlib.nullcontext() if serves else run.quiet():
        run.steps, tape = search(run, programs, y, p, outputs, keeps)
    found = outputs.result()
    if run.failures:
        run.reached = tuple(x.clone() for x in found)
    if not serves:
        return _walked(run, programs, run.steps, y, p, checkpoints, pullback)
    kept = None
    if checkpoints is not None:
        kept = Kept(StateStore(checkpoints.bounds(1, known=True), y, known=False), tape)
        run.stats.note(kept)
    return found, kept


def _walked(
    run: SampleRun,
    programs: SamplePrograms,
    grid: SampleGrid,
    y: Leaves,
    p: Leaves,
    checkpoints: Checkpoints | None,
    pullback: Pullback | None,
) -> tuple[Leaves, Kept | None]:
    """The outputs along known steps, and what is kept; once more if samples fail on a fixed grid."""
    outputs, rounds = Buffers(y, run.outputs_at.shape[1]), run.stats.rounds
    walk = _Walk(run, programs, grid, y, p, outputs, checkpoints, pullback)
    if checkpoints is None:
        walk.advance(0, None, None, None)
    else:
        walk.follow(checkpoints)
    found = outputs.result()
    if run.check_finite and fail_if_not_finite(run, found):
        run.steps, run.stats.rounds = grid.without(run.failed), rounds
        with run.quiet():  # all was told already
            return _walked(run, programs, run.steps, y, p, checkpoints, pullback)
    if run.reached is None and run.failures:
        run.reached = tuple(x.clone() for x in found)  # of those with too many steps
    return found, walk.kept


class _Walk(Chunked):
    """The march along known rounds."""

    run: SampleRun

    def __init__(
        self,
        run: SampleRun,
        programs: SamplePrograms,
        grid: SampleGrid,
        y: Leaves,
        p: Leaves,
        outputs: Buffers,
        checkpoints: Checkpoints | None,
        pullback: Pullback | None,
    ) -> None:
        super().__init__(run, programs, len(y), program_inputs(run, programs, y, p), pullback)
        self._outputs, self._stop, self._ticks = outputs, grid.n_steps, Rounds(run, grid)
        carry: Leaves = ()
        if self._stop:
            start, field = run.landings[:, 0].contiguous(), run.field
            carry = field.bound(p, lambda: run.persample(y).init(field, start, y, p))
        self.state = (*(x.clone() for x in plain(y)), *plain(carry))
        self.keep(self._stop, checkpoints)

    def through(self) -> bool:
        return self.n == self._stop

    def take(self, rows: Leaves, stop: int | None, pull: Pullback | None) -> tuple[Leaves, int]:
        end = self._stop if stop is None else stop
        start, n = self.n, min(len(rows[0]), end - self.n)
        self.state = take_steps(
            self.run, self.programs, pull, self._ticks, start, n, self.state, rows, self.p,
            self.inside,
        )  # fmt: skip
        n_y = self.n_y
        states, at = tuple(x[:n] for x in rows[:n_y]), self._ticks.inside(start, start + n)
        read(self.programs.reading, self._outputs, at, states, self.inside)
        self._outputs.put_rows(*self._ticks.landed(start, start + n), states, self.state[:n_y])
        self._report(rows, n)
        return rows, n

    def _report(self, rows: Leaves, n: int) -> None:
        """Counts the rounds of a chunk and tells the monitor."""
        run, steps = self.run, self._ticks.step(self.n, self.n + n)
        if isinstance(run.stepsize, FixedStepSize):
            run.stats.rounds += n
        if run.monitor is not None:
            run.count()
            for r, (t, dt) in enumerate(zip(*steps, strict=True)):
                y = self.row(rows, r + 1, n)[: self.n_y]
                run.monitor.step("forward", self.n + r, t, dt, y, run.stats)  # pyright: ignore
        self.n += n
