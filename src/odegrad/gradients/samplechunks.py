"""The solve of a batch with its exact transpose as a rule for the node, in compiled chunks."""

from __future__ import annotations

from collections.abc import Sequence
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
) -> Rule:
    """The map (y0, p, ts) ↦ outputs; the cotangent of ts comes as one of shape [B, T], in a list.

    Raises:
        NotCompilable: If a step has no transpose that is one graph.
    """
    from odegrad.sweeps.samples import compiled  # what it imports takes its time

    keeps, n = keeps_graphs(checkpoints), programs.n_read
    pullback = programs.pullback(tuple(wanted[:n]), wanted[-1], keeps)
    checkpoints = in_chunks(checkpoints, programs.rows(pullback))

    def ahead(y0: Leaves, p: Leaves, ts: Tensor) -> tuple[Leaves, Kept | None]:
        del ts
        return compiled.ahead(run, programs, y0, p, checkpoints, pullback)

    def back(given: Backward) -> Cotangents:
        # What was kept is for all that may need a gradient; else only what does is computed.
        used, needs = pullback, given.needs
        if not keeps:
            used = programs.pullback(tuple(needs[n_y : n_y + n]), needs[-1], keeps)
        return compiled.pull(
            run, programs, given.y0, given.p, checkpoints, used, given.kept, given.grads, given.retain
        )

    return sweeping_rule(run, n_y, ahead, back, None)
