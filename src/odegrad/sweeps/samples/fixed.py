"""Steps that do not depend on the solution: the grid of each sample, and samples that fail on it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from odegrad.errors import MaxStepsError, NonFiniteStateError
from odegrad.grid import Grid
from odegrad.samplegrid import SampleGrid
from odegrad.state import Leaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.samples.batch import SampleRun

__all__ = ["fail_if_not_finite", "fixed_steps", "note_reached"]


def fixed_steps(run: SampleRun) -> SampleGrid:
    """The steps of step sizes that do not depend on the solution, none of samples that fail.

    A sample with more than `run.max_steps` of them fails.
    """
    control = run.stepsize
    assert isinstance(control, FixedStepSize)
    n_segments = run.landings.shape[1] - 1
    if isinstance(control, SampleGrid):
        control.check_samples(run.segments)
        grid = control
    else:
        same: dict[tuple[float, ...], Grid] = {}
        grids: list[Grid] = []
        for row, count in zip(run.landings.tolist(), run.segments.tolist(), strict=True):
            times = tuple(row[: count + 1])
            if times not in same:
                control.check(count)
                pairs = itertools.pairwise(times)
                parts = [control.segment(j, a, b, run.eps) for j, (a, b) in enumerate(pairs)]
                same[times] = Grid(tuple(parts))
            grids.append(same[times])
        grid = SampleGrid.of(grids) if grids else SampleGrid.empty(n_segments)
    if run.max_steps is not None and grid.n_steps > run.max_steps:
        for b in (grid.counts > run.max_steps).nonzero().squeeze(1).tolist():
            run.fail(
                b,
                MaxStepsError(
                    f"sample {b} of the batch takes {int(grid.counts[b])} steps, max_steps is "
                    f"{run.max_steps}; raise max_steps or take larger steps"
                ),
            )
    return grid.without(run.failed) if run.failures else grid


def fail_if_not_finite(run: SampleRun, outputs: Leaves) -> bool:
    """Whether there are samples of a fixed grid that fail, since their states are not finite.

    They are noted, and so is what they reached.
    """
    if not isinstance(run.stepsize, FixedStepSize):
        return False
    before = run.failed
    finite = torch.ones(outputs[0].shape[:2], dtype=torch.bool, device=outputs[0].device)
    for x in outputs:
        finite &= torch.isfinite(x).flatten(2).all(2) if x.ndim > 2 else torch.isfinite(x)
    finite = finite.cpu()
    for b in (~finite.all(0) & ~before).nonzero().squeeze(1).tolist():
        j = int((~finite[:, b]).nonzero()[0])
        t = float(run.outputs_at[b, j])
        run.fail(
            b,
            NonFiniteStateError(
                f"sample {b} of the batch is NaN or infinite at its time {j}, t = {t:.6g}. The steps "
                "may be too large for stability, or the solution may blow up: take smaller steps, or "
                'adaptive ones, which find the place, or go on without this sample: on_failure="nan". '
                "(check_finite=False returns such numbers.)"
            ),
        )
        for x in outputs:
            x[j:, b] = float("nan")
    note_reached(run, outputs, before)
    return len(run.failures) > int(before.sum())


def note_reached(run: SampleRun, outputs: Leaves, before: Tensor) -> None:
    """Notes what samples reached that have failed now; `before` are those that had failed earlier."""
    new = (run.failed & ~before).nonzero().squeeze(1).to(outputs[0].device)
    if not len(new):
        return
    if run.reached is None:
        run.reached = tuple(x.clone() for x in outputs)
    for x, y in zip(run.reached, outputs, strict=True):
        x[:, new] = y[:, new]
