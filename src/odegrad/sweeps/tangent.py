"""The tangent of a solve: how its outputs change with its inputs, carried forward step by step.

With ẏ the tangent of the state, along the accepted steps,

    ẏ_{n+1} = Φ_y ẏ_n + Φ_p ṗ + Φ_t ṫ_n + Φ_h ḣ_n.

Nothing is kept: it takes about as long as three solves, and the memory of one step. It is the other half
of the duality ⟨ȳ, ẏ⟩ = ⟨ȳ0, ẏ0⟩ + ⟨p̄, ṗ⟩ + ⟨T̄, Ṫ⟩, and by torch's forward mode, so that it shares nothing
with the backward sweep but f and the steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.state import Leaves
from odegrad.sweeps.forward import replay
from odegrad.sweeps.run import Run

with warnings.catch_warnings():  # torch's forward mode scripts some functions when first used
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._decomp.decompositions_for_jvp  # pyright: ignore[reportUnusedImport]

__all__ = ["tangent"]


def tangent(
    run: Run, inputs: Leaves, n_y: int, active: Sequence[int], directions: Leaves
) -> tuple[Leaves, Leaves]:
    """The outputs of a solve whose forward sweep is through, and their tangents.

    Arguments:
        run: The solve.
        inputs: The initial state, the tensors that f reads, the landing times (float64).
        n_y: The number of leaves of the state.
        active: Which of the inputs change.
        directions: How they change, one tensor per active input.
    """
    timed = len(inputs) - 1 in active

    def outputs(*changing: Tensor) -> Leaves:
        given = list(inputs)
        for i, x in zip(active, changing, strict=True):
            given[i] = x
        y0, p, landings = tuple(given[:n_y]), tuple(given[n_y:-1]), given[-1]
        times = landings if timed else run.times
        clock = run.clock(times)
        return run.field.bound(p, lambda: replay(run, clock, y0, p, times[0]))

    with torch.no_grad():
        primals = tuple(inputs[i].detach() for i in active)
        values, tangents = torch.func.jvp(outputs, primals, directions)[:2]
    return values, tangents
