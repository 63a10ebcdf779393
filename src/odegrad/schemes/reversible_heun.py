"""The reversible Heun scheme.

The carry is a second state ŷ, which starts as y, and the slope f̂ = f(t, ŷ) there. One step is

    ŷ' = 2y − ŷ + h f̂,     f̂' = f(t + h, ŷ'),     y' = y + h/2 (f̂ + f̂'),

and its inverse, exact up to rounding, is

    ŷ = 2y' − ŷ' − h f̂',   f̂ = f(t, ŷ),           y = y' − h/2 (f̂ + f̂').

Transpose, with λ, μ and κ the cotangents of y', ŷ' and f̂':

    ν = κ + h/2 λ,     ρ = μ + f_y(ŷ')ᵀ ν,     τ = f_t(ŷ')ᵀ ν,     p̄ = f_p(ŷ')ᵀ ν,
    ȳ = λ + 2ρ,     −ρ for ŷ,     h/2 λ + h ρ for f̂,     t̄ = τ,
    h̄ = ½ ⟨f̂ + f̂', λ⟩ + ⟨f̂, ρ⟩ + τ.

Each of the three costs one evaluation of f; the transpose also one vector–Jacobian product.

Limits. The order is 2. The scheme is only neutrally stable: its region is the segment of the
imaginary axis from −i to i, in units of 1/h. Where the solution decays as exp(−μt), the difference
between y and ŷ grows as (−1)ⁿ exp(μt), whatever h; so the scheme is for short or oscillating solves.

The estimate h/2 (f̂' − f̂) of the local error compares y' with the Euler step y + h f̂ and is O(h²).

Reference: P. Kidger, J. Foster, X. Li & T. Lyons, *Efficient and accurate gradients for neural SDEs*,
NeurIPS (2021), algorithms 1 and 2 without noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.schemes.base import Scheme, Step, StepGrad
from odegrad.schemes.dense import Read
from odegrad.state import Leaves, OptionalLeaves, Time, axpy, combine, inner, scale

__all__ = ["ReversibleHeun"]


@dataclass(frozen=True)
class ReversibleHeun(Scheme):
    """The reversible Heun scheme: order 2, one evaluation per step.

    Example:
        >>> import torch, odegrad
        >>> y0, ts = torch.ones(1, dtype=torch.float64), [0.0, 1.0]
        >>> scheme = odegrad.ReversibleHeun()
        >>> sol = odegrad.solve(lambda t, y: -y, y0, ts, scheme=scheme, stepsize=odegrad.Steps(100))
        >>> round(float(sol.ys[-1]), 4)
        0.3679
        >>> sol.stats.f_evaluations
        101
    """

    order = 2
    error_order = 2
    reversible = True

    def init(self, field: VectorField, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """The second state, which is y, and the slope there."""
        return (*y, *field(t, y, p))

    def init_vjp(
        self, field: VectorField, t: Time, y: Leaves, p: Leaves, grad_carry: Leaves
    ) -> StepGrad:
        """The transpose of `init`: one vector–Jacobian product."""
        tau, pulled, grad_p = field.vjp(t, y, p, grad_carry[len(y) :])
        grad_y = axpy(grad_carry[: len(y)], 1.0, (1.0,), (pulled,))
        return StepGrad(tau, None, grad_y, None, grad_p)

    def step(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """One step; see the head of this module."""
        slope = carry[len(y) :]
        second = self._second(dt, y, carry)
        new = field(t + dt, second, p)
        with torch.no_grad():
            error = combine(dt, (0.5, -0.5), (new, slope))
        return Step(y=axpy(y, dt, (0.5, 0.5), (slope, new)), carry=(*second, *new), error=error)

    def unstep(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> tuple[Leaves, Leaves]:
        """The inverse of one step: one evaluation."""
        second = self._second(-dt, y, carry)
        slope = field(t, second, p)
        before = axpy(y, dt, (-0.5, -0.5), (slope, carry[len(y) :]))
        return before, (*second, *slope)

    def step_vjp(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
        grad_y: Leaves,
        grad_carry: Leaves | None = None,
        grad_dense: Sequence[OptionalLeaves | None] | None = None,
        kept: Sequence[Leaves] | None = None,
        after: bool = False,
        reads: Sequence[Read] = (),
    ) -> StepGrad:
        """The transpose of one step: one vector–Jacobian product; see the head of this module."""
        if reads:
            return super().step_vjp(
                field, t, dt, y, carry, p, grad_y, grad_carry, None, None, after, reads
            )
        del grad_dense, kept  # there are no dense coefficients
        n = len(y)
        point = field.linearize(t + dt, self._second(dt, y, carry), p)
        half = scale(dt * 0.5, grad_y)
        grad_new = axpy(half, 1.0, (1.0,), (grad_carry[n:],)) if grad_carry else half
        tau, pulled, grad_p = point.vjp(grad_new)
        rho = axpy(pulled, 1.0, (1.0,), (grad_carry[:n],)) if grad_carry else pulled
        grad_slope = axpy(half, dt, (1.0,), (rho,))
        grad_t, grad_dt = (tau if isinstance(t, Tensor) else None), None
        if isinstance(dt, Tensor):
            slope = carry[n:]
            both = axpy(slope, 1.0, (1.0,), (point.value,))
            grad_dt = 0.5 * inner(both, grad_y, dt) + inner(slope, rho, dt)
            grad_dt = grad_dt if tau is None else grad_dt + tau
        return StepGrad(
            grad_t,
            grad_dt,
            axpy(grad_y, 1.0, (2.0,), (rho,)),
            (*scale(-1.0, rho), *grad_slope),
            grad_p,
            axpy(y, dt, (0.5, 0.5), (carry[n:], point.value)) if after else None,
        )

    def _second(self, dt: Time, y: Leaves, carry: Leaves) -> Leaves:
        """ŷ' = 2y − ŷ + h f̂; with −h and what follows a step, ŷ."""
        n = len(y)
        return axpy(axpy(scale(2.0, y), 1.0, (-1.0,), (carry[:n],)), dt, (1.0,), (carry[n:],))
