"""The exact gradient of the computed numbers, by the transposed steps, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from odegrad.checkpoints import Checkpoints, StoreAll
from odegrad.errors import InvalidTypeError
from odegrad.gradients.base import Gradient, landing_times
from odegrad.gradients.node import Rule, apply
from odegrad.grid import Clock, stack_times
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps import Run, Slab, backward, forward
from odegrad.sweeps.forward import replay

__all__ = ["Discrete"]


@dataclass(frozen=True)
class Discrete(Gradient):
    """The discrete adjoint: the transpose of every accepted step, in reverse order.

    Equal to `Tape` up to rounding, without keeping the graph of any evaluation: between the sweeps
    only the states that `checkpoints` names are kept. Second and higher derivatives are exact, too,
    at the memory of `Tape`.

    f is evaluated again in the backward sweep, with the same parameters, buffers, training mode,
    autocast state and random numbers of torch's default generators. What else f may depend on (a
    generator of its own, NumPy's, a counter in Python) has to give the same again: it is not replayed,
    and such a field needs `Tape`.

    Arguments:
        checkpoints: Which states to keep; `StoreAll` (default) or `Every(k)`.

    Raises:
        InvalidTypeError: If `checkpoints` is not a schedule.
    """

    checkpoints: Checkpoints = field(default_factory=StoreAll)

    def __post_init__(self) -> None:
        if isinstance(self.checkpoints, type) or not isinstance(self.checkpoints, Checkpoints):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                "checkpoints must be a schedule such as StoreAll() or Every(10), "
                f"received {self.checkpoints!r}"
            )

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves inside one autograd node."""
        return apply(_rule(run, self.checkpoints, len(y0), len(p)), (*y0, *p, ts))


def _rule(run: Run, checkpoints: Checkpoints, n_y: int, n_p: int) -> Rule:
    """The solve as a map (y0, p, ts) ↦ ys with its transpose."""
    slabs: list[Slab] = []  # places only: the data is kept by autograd

    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, p = inputs[:n_y], inputs[n_y : n_y + n_p]
        ys, slab = run.repeatable(p, lambda: forward(run, y0, p, run.times, checkpoints))
        run.field.mark()
        kept = slab.tensors()
        slab.forget_data()
        slabs.append(slab)
        return ys, kept

    def transpose(
        inputs: Leaves, kept: Leaves, grad_ys: OptionalLeaves, needs: Sequence[bool]
    ) -> OptionalLeaves:
        run.field.check_unchanged()
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y : n_y + n_p], needs[n_y:-1])
        landings = landing_times(ts).detach() if needs[-1] else None
        slab = slabs[0].with_tensors(kept)
        grads = run.field.bound(
            p, lambda: backward(run, y0, p, landings, checkpoints, slab, grad_ys)
        )
        run.field.mark()
        grad_ts = stack_times(grads.times, ts) if needs[-1] else None
        found = (*grads.y0, *_zeros(grads.p, p), grad_ts)
        return tuple(g if need else None for g, need in zip(found, needs, strict=True))

    def again(inputs: Leaves) -> Leaves:
        y0, p, ts = inputs[:n_y], inputs[n_y : n_y + n_p], inputs[-1]
        landings = landing_times(ts) if ts.requires_grad else run.times
        clock = Clock(run.accepted_grid, landings)
        return run.field.bound(p, lambda: replay(run, clock, y0, p, landings[0]))

    return Rule(primal, transpose, again, "Discrete")


def _zeros(grads: OptionalLeaves, like: Leaves) -> OptionalLeaves:
    """Zeros for parameters that f never touched, as DistributedDataParallel expects."""
    return tuple(
        torch.zeros_like(x) if g is None and x.requires_grad else g
        for g, x in zip(grads, like, strict=True)
    )
