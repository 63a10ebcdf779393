"""The solve of a batch with its exact transpose as a rule for the node, in compiled chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from odegrad.checkpoints import Checkpoints
from odegrad.gradients.node import Rule
from odegrad.gradients.rules import Backward, in_chunks, keeps_graphs, sweeping_rule
from odegrad.state import Leaves
from odegrad.sweeps import Cotangents, Kept
from odegrad.sweeps.samples import SampleRun

if TYPE_CHECKING:
    from odegrad.compiled import SamplePrograms

__all__ = ["chunked_rule"]


def chunked_rule(
    run: SampleRun,
    programs: SamplePrograms,
    checkpoints: Checkpoints,
    n_y: int,
    wanted: Sequence[bool],
    rows: Callable[[list[Tensor | None], Tensor], list[Tensor | None]],
) -> Rule:
    """The map (y0, p, ts) ↦ outputs, and its transpose.

    Arguments:
        run: The solve.
        programs: The compiled steps.
        checkpoints: The schedule.
        n_y: How many leaves the state has.
        wanted: Which of p and ts may need a cotangent.
        rows: Makes the cotangent of times, [B, T] in a list, that of ts, as a list of its rows.

    Raises:
        NotCompilable: If a step has no transpose that is one graph.
    """
    from odegrad.sweeps.samples import compiled  # what it imports takes its time

    keeps, n = keeps_graphs(checkpoints), programs.n_read
    pullback = programs.pullback(tuple(wanted[:n]), wanted[-1], keeps, run.reads)
    checkpoints = in_chunks(checkpoints, programs.rows(pullback))

    def ahead(y0: Leaves, p: Leaves, ts: Tensor) -> tuple[Leaves, Kept | None]:
        del ts
        return compiled.ahead(run, programs, y0, p, checkpoints, pullback)

    def back(given: Backward) -> Cotangents:
        # What was kept is for all that may need a gradient; else only what does is computed.
        used, needs = pullback, given.needs
        if not keeps:
            used = programs.pullback(tuple(needs[n_y : n_y + n]), needs[-1], keeps, run.reads)
        y0, p, kept, retain = given.y0, given.p, given.kept, given.retain
        found = compiled.pull(run, programs, y0, p, checkpoints, used, kept, given.grads, retain)
        return found._replace(times=rows(found.times, given.ts))

    return sweeping_rule(run, n_y, ahead, back, None)
