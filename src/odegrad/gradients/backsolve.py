"""The traditional (continuous) adjoint: state, costate and parameter gradient, backwards as one ODE.

    dy/dt = f,     da/dt = −f_yᵀ a,     dp̄/dt = −f_pᵀ a,

restarted from the stored state at every landing time, where the cotangent of the output joins a.

This is a discretisation of the derivative of the *exact* solution. It is inconsistent with the computed
loss: it differs from the gradient of the numbers returned by the discretisation errors of both solves.

References:
    R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, *Neural ordinary differential equations*,
        NeurIPS 2018, algorithm 2.
    P. Kidger, R. T. Q. Chen, T. Lyons, *"Hey, that's not an ODE": faster ODE adjoints via seminorms*,
        ICML 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.gradients.base import Gradient
from odegrad.gradients.continuous import (
    back_through,
    check_back,
    check_error_estimate,
    mirrored,
    scheme_back,
)
from odegrad.gradients.node import Rule, apply
from odegrad.grid import stack_times
from odegrad.schemes import Scheme
from odegrad.state import Leaves, OptionalLeaves, Structure, wide
from odegrad.stepsize import AdaptiveStepSize, Decision, History, StepSize
from odegrad.sweeps import Run, forward

__all__ = ["Backsolve"]


@dataclass(frozen=True)
class Backsolve(Gradient):
    """The traditional adjoint of Chen et al. 2018: little memory, inconsistent with the computed loss.

    Kept here to be compared with; first derivatives only.

    Arguments:
        scheme: The scheme of the way back; None is that of the solve.
        stepsize: Its step sizes; None is those of the solve.
        seminorm: Whether adaptive steps leave the parameter gradient out of their error control (Kidger
            et al. 2021), which takes fewer of them.

    Raises:
        InvalidTypeError: If scheme or step sizes are no such objects.
        InvalidValueError: If they do not go with each other.
    """

    scheme: Scheme | None = None
    stepsize: StepSize | None = None
    seminorm: bool = False

    def __post_init__(self) -> None:
        check_back("Backsolve", self.scheme, self.stepsize)

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves inside one autograd node."""
        scheme, stepsize = scheme_back(run, self.scheme), self.stepsize or run.stepsize
        check_error_estimate("Backsolve", scheme, stepsize)
        return apply(self._rule(run, len(y0), len(p)), (*y0, *p, ts))

    def _rule(self, run: Run, n_y: int, n_p: int) -> Rule:
        def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
            y0, p = inputs[:n_y], inputs[n_y : n_y + n_p]
            ys, _ = run.repeatable(p, lambda: forward(run, y0, p, run.times))
            run.field.mark()
            return ys, tuple(y.clone() for y in ys)

        def transpose(
            inputs: Leaves,
            kept: Leaves,
            grad_ys: OptionalLeaves,
            needs: Sequence[bool],
            retain: bool,
        ) -> OptionalLeaves:
            del retain
            run.field.check_unchanged()
            p = run.field.own(inputs[n_y : n_y + n_p], needs[n_y:-1])
            found = run.field.bound(p, lambda: self._integrate(run, p, kept, grad_ys))
            grads = (*found[0], *found[1], stack_times(found[2], inputs[-1]))
            return tuple(g if need else None for g, need in zip(grads, needs, strict=True))

        return Rule(primal, transpose, None, "Backsolve")

    def _integrate(
        self, run: Run, p: Leaves, ys: Leaves, grad_ys: OptionalLeaves
    ) -> tuple[Leaves, OptionalLeaves, list[Tensor | None]]:
        """The backward solve: cotangents of the initial state, of p and of the times."""
        field, n = run.field, len(ys)
        wanted = [i for i, x in enumerate(p) if x.requires_grad]
        grad_p = tuple(torch.zeros_like(wide(p[i].detach())) for i in wanted)

        def augmented(t: Tensor, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            point = field.linearize(t, z[:n], p)
            _, f_y, f_p = point.vjp(z[n : 2 * n])
            params = [_or_zero(f_p[i], p[i]) for i in wanted]
            return (*point.value, *(-x for x in f_y), *(-x for x in params))

        def back(j: int, y: Leaves, a: Leaves) -> Leaves:
            nonlocal grad_p
            z = self._segment(run, j, (*y, *a, *grad_p), augmented, 2 * n)
            grad_p = z[2 * n :]
            return z[n : 2 * n]

        with torch.no_grad():
            a, times = back_through(run, p, ys, grad_ys, back)
        run.count()
        full: list[Tensor | None] = [None] * len(p)
        for i, g in zip(wanted, grad_p, strict=True):
            full[i] = g.to(p[i].dtype)
        return a, tuple(full), times

    def _segment(self, run: Run, j: int, z: Leaves, augmented: object, n: int) -> Leaves:
        """The augmented state carried from landing j back to landing j − 1."""
        stepsize = mirrored(self.stepsize or run.stepsize, j)
        if self.seminorm and isinstance(stepsize, AdaptiveStepSize):
            stepsize = _Seminorm(stepsize, n)
        back = Run(
            field=VectorField(augmented, Structure(z), z),  # pyright: ignore[reportArgumentType]
            scheme=scheme_back(run, self.scheme),
            stepsize=stepsize,
            times=(run.times[j], run.times[j - 1]),
            eps=run.eps,
            max_steps=run.max_steps,
        )
        return tuple(leaf[-1] for leaf in forward(back, z, (), back.times)[0])


@dataclass(frozen=True)
class _Seminorm:
    """A controller that sees the error of the first n leaves only."""

    control: AdaptiveStepSize
    n: int

    @property
    def dt0(self) -> float | None:
        return self.control.dt0

    @property
    def dt_min(self) -> float:
        return self.control.dt_min

    @property
    def dt_max(self) -> float:
        return self.control.dt_max

    def scaled_norm(self, x: Leaves, y0: Leaves, y1: Leaves) -> Tensor:
        return self.control.scaled_norm(x[: self.n], y0[: self.n], y1[: self.n])

    def decide(self, ratio: float, history: History, order: int) -> Decision:
        return self.control.decide(ratio, history, order)


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
