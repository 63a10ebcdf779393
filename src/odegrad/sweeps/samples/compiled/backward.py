"""The backward sweep of a batch in compiled chunks of rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.checkpoints import Checkpoints
from odegrad.compiled import Pullback, SamplePrograms
from odegrad.schemes.base import StepGrad
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.compiled.backward import Backward
from odegrad.sweeps.compiled.chunks import watched
from odegrad.sweeps.cotangents import Cotangents
from odegrad.sweeps.kept import Kept
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.compiled.rounds import Rounds, program_inputs
from odegrad.sweeps.transposing import execute

__all__ = ["pull"]


def pull(
    run: SampleRun,
    programs: SamplePrograms,
    y0: Leaves,
    p: Leaves,
    checkpoints: Checkpoints,
    pullback: Pullback,
    kept: Kept,
    grads: OptionalLeaves,
    retain: bool,
) -> Cotangents:
    """Transposes a solve whose forward sweep is through; see `odegrad.sweeps.samples.backward.pull`."""
    with watched(run, programs, "backward"):
        engine = _SampleBackward(run, programs, y0, p, run.landings, pullback, kept, grads, retain)
        n = run.accepted_steps.n_steps
        execute(checkpoints.backward(n, known=True) if n else (), kept, engine)
        return engine.finish()


class _SampleBackward(Backward):
    """Executes a schedule's actions on rounds."""

    run: SampleRun
    programs: SamplePrograms
    ticks: Rounds

    def read(self, p: Leaves) -> Leaves:
        return program_inputs(self.run, self.programs, self.y0, p)

    def follow_clock(self, landings: Tensor | None) -> None:
        run = self.run
        self.times, self.n_steps = run.landings.T, run.accepted_steps.n_steps
        self.ticks = Rounds(run, run.accepted_steps)
        self.grad_times = torch.zeros_like(self.times)
        self.grad_read = torch.zeros_like(run.outputs_at)

    def init_vjp(self, carry: Leaves) -> StepGrad:
        run = self.run
        start = run.landings[:, 0].contiguous()
        return run.persample(self.y0).init_vjp(run.field, start, self.y0, self.p, carry)

    def is_labelled(self, start: int, stop: int) -> bool:
        """Samples are at their outputs in rounds of their own."""
        return True

    def put_labels(self, start: int, stop: int, rows: Leaves, labelled: bool) -> None:
        device = self.device
        r, j, b = (x.to(device) for x in self.ticks.landed(start, stop))
        if not len(r):
            return
        for buffer, g in zip(self.labels, self.output_grads, strict=True):
            if g is not None:
                buffer[r, b] = g[j, b].to(buffer.dtype)

    def told(self, times: Tensor) -> tuple[Tensor, ...]:
        return times.unbind()

    def finish(self) -> Cotangents:
        """The cotangents of the times are one tensor of shape [B, T], if they are wanted."""
        found = super().finish()
        times = [x for x in found.times if x is not None]
        if not times:
            return found._replace(times=[])
        total, stops = torch.stack(times, 1), self.run.stops
        return found._replace(times=[total if stops is None else stops.vjp(total) + self.grad_read])
