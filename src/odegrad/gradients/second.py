"""Second derivatives in the memory of a schedule: both sweeps once more, over tangent-lifted steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from odegrad.checkpoints import Checkpoints
from odegrad.errors import UnreachableTensorError
from odegrad.field import VectorField
from odegrad.state import Leaves, OptionalLeaves, is_legacy_batched
from odegrad.sweeps import Run, Stats, backward, forward
from odegrad.sweeps.lifted import LiftedField

__all__ = ["second"]


def second(
    run: Run,
    schedule: Callable[[Run, Leaves, Leaves, Tensor], Checkpoints],
    n_y: int,
    inputs: Leaves,
    active: Sequence[int],
    cotangents: OptionalLeaves,
    directions: Leaves,
) -> tuple[OptionalLeaves, Leaves] | None:
    """The transpose of (inputs, cotangents) ↦ cotangents of the active inputs, along `directions`.

    Arguments:
        run: A solve whose forward sweep is through.
        schedule: Says what to keep in the lifted solve.
        n_y: The number of leaves of the state.
        inputs: The initial state, the tensors that f reads, and ts.
        active: Which of them take part.
        cotangents: Those of the outputs; None is zero.
        directions: u, one per active input.

    Returns:
        ∇⟨g, S'u⟩ for each active input, and S'u for each output; None if it has to be had in another way:
        for derivatives with respect to times or of streamed losses, or if f has no tangent here.
    """
    run.field.check_draws()
    run.check_unchanged()
    timed = len(inputs) - 1 in active
    if timed or run.loss is not None or any(map(is_legacy_batched, (*directions, *inputs))):
        return None
    moves: list[Tensor | None] = [None] * len(inputs)
    for i, u in zip(active, directions, strict=True):
        moves[i] = u.detach()  # it may have a history on another level of torch.func
    y0, p, ts = inputs[:n_y], inputs[n_y:-1], inputs[-1]
    field = cast("VectorField", LiftedField(run.field, n_y, tuple(moves[n_y:-1])))
    lifted = dataclasses.replace(
        run, field=field, stepsize=run.accepted_grid, stats=Stats(), grid=None, monitor=None,
        programs=None, witness=None, max_steps=None,
    )  # fmt: skip
    starts = (torch.zeros_like(x) if u is None else u for x, u in zip(y0, moves, strict=False))
    state = (*y0, *starts)
    wanted = [i in active for i in range(n_y, len(inputs) - 1)]
    missing = (None,) * (n_y - len(cotangents))
    grads = (*(None for _ in y0), *cotangents, *missing)
    before = run.field.snapshot()
    try:
        if before is not None and run.initial is not None:
            run.initial.restore()
        checkpoints = schedule(lifted, state, p, ts)
        p = run.field.own(p, wanted)
        ahead = lambda: forward(lifted, state, p, run.times, checkpoints)  # noqa: E731
        outputs, kept = lifted.repeatable(p, ahead)
        assert kept is not None
        back = lambda: backward(lifted, state, p, None, checkpoints, kept, grads, False)  # noqa: E731
        found = run.field.bound(p, back)
    except UnreachableTensorError:
        return (
            None  # f reads tensors where they cannot be replaced, in a torch.autograd.Function, say
        )
    finally:
        if before is not None:
            before.restore()
    gradients = (*found.y0[:n_y], *found.p, None)
    chosen = tuple(
        torch.zeros_like(inputs[i]) if (g := gradients[i]) is None else g for i in active
    )
    return chosen, outputs[len(outputs) // 2 :]
