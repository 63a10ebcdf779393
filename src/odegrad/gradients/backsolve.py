"""The traditional (continuous) adjoint, in its plain form.

The costate equation, the state and the parameter gradient are integrated backwards as one ODE:

    dy/dt = f,     da/dt = −f_yᵀ a,     dp̄/dt = −f_pᵀ a,

restarted from the stored state at every landing time, where the cotangent of the output joins a. The
times get  T̄_j = ⟨ȳ_j, f(T_j, y_j)⟩  and  T̄_0 = −⟨a(T_0), f(T_0, y_0)⟩ (before ȳ_0 joins).

This is a discretisation of the derivative of the *exact* solution. It is inconsistent with the computed
loss: it differs from the gradient of the numbers returned by the discretisation errors of both solves.

Reference: R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, *Neural ordinary differential
equations*, NeurIPS 2018, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.gradients.base import Gradient
from odegrad.gradients.node import Rule, apply
from odegrad.grid import Grid, Nodes, Segment, stack_times
from odegrad.state import Leaves, OptionalLeaves, Structure, inner
from odegrad.stepsize import StepSize
from odegrad.sweeps import Run, forward

__all__ = ["Backsolve"]


@dataclass(frozen=True)
class Backsolve(Gradient):
    """The traditional adjoint of Chen et al. 2018: little memory, no exactness.

    It uses the scheme and the step sizes of the forward solve; the error control of adaptive steps
    sees the whole augmented state. Kept here to be compared with; first derivatives only.
    """

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves inside one autograd node."""
        return apply(_rule(run, len(y0), len(p)), (*y0, *p, ts))


def _rule(run: Run, n_y: int, n_p: int) -> Rule:
    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, p = inputs[:n_y], inputs[n_y : n_y + n_p]
        ys, _ = run.repeatable(p, lambda: forward(run, y0, p, run.times))
        run.field.mark()
        return ys, tuple(y.clone() for y in ys)

    def transpose(
        inputs: Leaves, kept: Leaves, grad_ys: OptionalLeaves, needs: Sequence[bool], retain: bool
    ) -> OptionalLeaves:
        del retain
        run.field.check_unchanged()
        p = run.field.own(inputs[n_y : n_y + n_p], needs[n_y:-1])
        found = run.field.bound(p, lambda: _integrate(run, p, kept, grad_ys))
        grads = (*found[0], *found[1], stack_times(found[2], inputs[-1]))
        return tuple(g if need else None for g, need in zip(grads, needs, strict=True))

    return Rule(primal, transpose, None, "Backsolve")


def _integrate(
    run: Run, p: Leaves, ys: Leaves, grad_ys: OptionalLeaves
) -> tuple[Leaves, OptionalLeaves, list[Tensor | None]]:
    """The backward solve: cotangents of the initial state, of p and of the times."""
    field, n = run.field, len(ys)
    wanted = [i for i, x in enumerate(p) if x.requires_grad]
    a = tuple(torch.zeros_like(y[0]) for y in ys)
    grad_p = tuple(torch.zeros_like(p[i]) for i in wanted)
    grad_times: list[Tensor | None] = [None] * len(run.times)

    def augmented(t: Tensor, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        point = field.linearize(t, z[:n], p)
        _, f_y, f_p = point.vjp(z[n : 2 * n])
        params = [_or_zero(f_p[i], p[i]) for i in wanted]
        return (*point.value, *(-x for x in f_y), *(-x for x in params))

    zero = torch.zeros((), dtype=field.time_dtype, device=field.device)
    with torch.no_grad():
        for j in reversed(range(len(run.times))):
            y = tuple(leaf[j] for leaf in ys)
            slope = field(run.times[j], y, p)
            if j == 0 and len(run.times) > 1:
                grad_times[0] = -inner(a, slope, zero)
            direct = tuple(None if g is None else g[j] for g in grad_ys)
            if j > 0:
                grad_times[j] = inner(slope, direct, zero)
            a = tuple(x if g is None else x + g for x, g in zip(a, direct, strict=True))
            if j > 0:
                z = _segment(run, j, (*y, *a, *grad_p), augmented)
                a, grad_p = z[n : 2 * n], z[2 * n :]
    run.count()
    full: list[Tensor | None] = [None] * len(p)
    for i, g in zip(wanted, grad_p, strict=True):
        full[i] = g
    return a, tuple(full), grad_times


def _segment(run: Run, j: int, z: Leaves, augmented: Any) -> Leaves:
    """The augmented state carried from landing j back to landing j − 1."""
    back = Run(
        field=VectorField(augmented, Structure(z), z),
        scheme=run.scheme,
        stepsize=_mirrored(run.stepsize, j - 1),
        times=(run.times[j], run.times[j - 1]),
        eps=run.eps,
        max_steps=run.max_steps,
    )
    return tuple(leaf[-1] for leaf in forward(back, z, (), back.times)[0])


def _mirrored(stepsize: StepSize, j: int) -> StepSize:
    """The step sizes for segment j run backwards."""
    if not isinstance(stepsize, Grid):
        return stepsize
    segment: Segment = stepsize.segments[j]
    if isinstance(segment, Nodes):
        inside = tuple(1.0 - s for s in reversed(segment.fractions[1:-1]))
        segment = Nodes((0.0, *inside, 1.0))
    return Grid((segment,))


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
