"""Asynchronous leapfrog (ALF), the reversible scheme of MALI.

The carry is a velocity v, which starts as f(t_0, y_0). With the damping η, one step is

    y½ = y + h/2 v,     u = f(t + h/2, y½),     v' = v + 2η (u − v),     y' = y½ + h/2 v',

and its inverse, exact up to rounding, is

    y½ = y' − h/2 v',   u = f(t + h/2, y½),     v = u + (v' − u) / (1 − 2η),   y = y½ − h/2 v.

Transpose, with λ and μ the cotangents of y' and v':

    ν = μ + h/2 λ,     w = f_y(y½)ᵀ 2ην,     τ = f_t(y½)ᵀ 2ην,     p̄ = f_p(y½)ᵀ 2ην,
    ȳ = λ + w,     v̄ = (1 − 2η) ν + h/2 ȳ,     t̄ = τ,     h̄ = ½ (⟨v', λ⟩ + ⟨v, ȳ⟩ + τ).

Each of the three costs one evaluation of f; the transpose also one vector–Jacobian product.

Limits. Without damping (η = 1) the order is 2 and the scheme is only neutrally stable: its region is
the segment of the imaginary axis from −i to i, in units of 1/h. Where the solution decays as exp(−μt),
the difference between v and f(t, y) grows as (−1)ⁿ exp(μt), whatever h; so the scheme is for short or
oscillating solves. With damping (1/2 < η < 1) the region has an inside, but

  - the order is 1: v lags behind f(t, y) by h (1 − η)/(2η) y'', to first order in h;
  - the inverse multiplies errors of v by 1/(2η − 1) in each step: with η = 0.9, a hundred steps cost
    ten of sixteen digits.

The estimate η h (u − v) of the local error compares y' with the Euler step y + h v and is O(h²).

References:
    U. Mutze, *An asynchronous leapfrog method II*, arXiv 1311.6602 (2013).
    J. Zhuang, N. C. Dvornek, S. Tatikonda & J. S. Duncan, *MALI: A memory efficient and reverse
        accurate integrator for neural ODEs*, ICLR (2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.schemes.base import Scheme, Step, StepGrad
from odegrad.schemes.checks import check_between
from odegrad.schemes.dense import Read
from odegrad.state import Leaves, OptionalLeaves, Time, axpy, combine, inner, scale

__all__ = ["ALF"]


@dataclass(frozen=True)
class ALF(Scheme):
    """Asynchronous leapfrog: order 2, one evaluation per step, reversible.

    Arguments:
        damping: η in (1/2, 1]; below 1, errors of the velocity are damped and the order is 1.

    Raises:
        InvalidTypeError: If the damping is not a number.
        InvalidValueError: If it is not in (1/2, 1].

    Example:
        >>> import torch, odegrad
        >>> y0, ts = torch.ones(1, dtype=torch.float64), [0.0, 1.0]
        >>> scheme = odegrad.ALF()
        >>> sol = odegrad.solve(lambda t, y: -y, y0, ts, scheme=scheme, stepsize=odegrad.Steps(100))
        >>> round(float(sol.ys[-1]), 4)
        0.3679
        >>> odegrad.ALF(damping=0.5)
        Traceback (most recent call last):
        odegrad.errors.InvalidValueError: damping must be in (0.5, 1], received 0.5; ...
    """

    damping: float = 1.0
    order: int = dataclasses.field(init=False, repr=False, compare=False)
    error_order = 2
    reversible = True

    def __post_init__(self) -> None:
        hint = "at 0.5 the step has no inverse, and 1 is no damping"
        check_between("damping", self.damping, 0.5, hint)
        object.__setattr__(self, "order", 2 if self.damping == 1.0 else 1)

    def init(self, field: VectorField, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """The first velocity, f(t, y)."""
        return field(t, y, p)

    def init_vjp(
        self, field: VectorField, t: Time, y: Leaves, p: Leaves, grad_carry: Leaves
    ) -> StepGrad:
        """The transpose of the first velocity: one vector–Jacobian product."""
        tau, grad_y, grad_p = field.vjp(t, y, p, grad_carry)
        return StepGrad(tau, None, grad_y, None, grad_p)

    def step(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """One step; see the head of this module."""
        half = axpy(y, dt, (0.5,), (carry,))
        u = field(t + dt * 0.5, half, p)
        v = self._reflected(u, carry)
        with torch.no_grad():
            error = combine(dt, (self.damping, -self.damping), (u, carry))
        return Step(y=axpy(half, dt, (0.5,), (v,)), carry=v, error=error)

    def unstep(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> tuple[Leaves, Leaves]:
        """The inverse of one step: one evaluation."""
        half = axpy(y, dt, (-0.5,), (carry,))
        u = field(t + dt * 0.5, half, p)
        difference = axpy(carry, 1.0, (-1.0,), (u,))
        v = axpy(u, 1.0, (1.0 / (1.0 - 2.0 * self.damping),), (difference,))
        return axpy(half, dt, (-0.5,), (v,)), v

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
        half = axpy(y, dt, (0.5,), (carry,))
        point = field.linearize(t + dt * 0.5, half, p)
        grad_v = axpy(grad_carry, dt, (0.5,), (grad_y,)) if grad_carry else scale(dt * 0.5, grad_y)
        tau, pulled, grad_p = point.vjp(scale(2.0 * self.damping, grad_v))
        grad_half = axpy(grad_y, 1.0, (1.0,), (pulled,))
        before = axpy(scale(1.0 - 2.0 * self.damping, grad_v), dt, (0.5,), (grad_half,))
        grad_t, grad_dt = (tau if isinstance(t, Tensor) else None), None
        if isinstance(dt, Tensor):
            v = self._reflected(point.value, carry)
            grad_dt = 0.5 * (inner(v, grad_y, dt) + inner(carry, grad_half, dt))
            grad_dt = grad_dt if tau is None else grad_dt + 0.5 * tau
        end = None
        if after:
            end = axpy(half, dt, (0.5,), (self._reflected(point.value, carry),))
        return StepGrad(grad_t, grad_dt, grad_half, before, grad_p, end)

    def _reflected(self, u: Leaves, v: Leaves) -> Leaves:
        """v' = 2η u + (1 − 2η) v."""
        return axpy(scale(2.0 * self.damping, u), 1.0, (1.0 - 2.0 * self.damping,), (v,))
