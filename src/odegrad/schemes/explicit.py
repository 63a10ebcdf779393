"""Explicit Runge–Kutta schemes and their exact transpose.

Forward, for i = 1 … s:

    Y_i = y + h Σ_{j<i} a_ij k_j,     k_i = f(t + c_i h, Y_i),     y⁺ = y + h Σ_i b_i k_i.

Transpose, for i = s … 1, with λ the cotangent of y⁺:

    u_i = b_i λ + Σ_{j>i} a_ji w_j,     κ_i = h u_i,     w_i = f_y(Y_i)ᵀ κ_i,
    p̄ += f_p(Y_i)ᵀ κ_i,     τ_i = f_t(Y_i)ᵀ κ_i,     ȳ = λ + Σ_i w_i,
    t̄ = Σ_i τ_i,     h̄ = Σ_i (⟨k_i, u_i⟩ + c_i τ_i).

Nothing divides by b_i. A stage is skipped iff κ_i is structurally zero: b_i = 0, a_ji = 0 for all
j > i, and no cotangent of the carry or the dense output reaches it. (Skipping whenever b_i = 0 is a
bug: Dopri5 has b_2 = 0 but a_32 ≠ 0.)

With the first-same-as-last property the last slope is the carry. Its cotangent joins κ_s, and the
cotangent of the first slope leaves through the incoming carry instead of through f, so that no
evaluation is differentiated twice.

References:
    W. W. Hager, *Runge–Kutta methods in optimal control and the transformed adjoint system*,
        Numer. Math. 87 (2000).
    J. M. Sanz-Serna, *Symplectic Runge–Kutta schemes for adjoint equations, automatic
        differentiation, optimal control, and more*, SIAM Review 58 (2016).
    J. Hu, *A note on the adjoint method for neural ODE network*, arXiv 2402.15141 (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.linearization import Linearization
from odegrad.schemes.base import Scheme, Step, StepGrad, pulled_by_graph
from odegrad.schemes.columns import Columns, suits
from odegrad.schemes.dense import DenseTranspose, Part, Read, part_of
from odegrad.schemes.interpolant import (
    Ends,
    Interpolant,
    bootstrapped,
    default_interpolant,
    through_middle,
)
from odegrad.schemes.tableau import Tableau
from odegrad.state import (
    Leaves,
    OptionalLeaves,
    Time,
    add,
    axpy,
    column,
    combine,
    inner,
    is_half,
    is_stand_in,
    rounded,
    scale,
    wide,
)

__all__ = ["ExplicitRungeKutta"]


@dataclass(frozen=True)
class ExplicitRungeKutta(Scheme):
    """The base of all explicit Runge–Kutta schemes: a subclass is a tableau.

    Attributes:
        tableau: The coefficients.
        interpolant: The dense output, if it needs nothing but the slopes.
    """

    tableau: ClassVar[Tableau]
    interpolant: ClassVar[Interpolant | None] = None

    def __init_subclass__(cls) -> None:
        cls.order = cls.tableau.order
        cls.error_order = cls.tableau.error_order
        if "step" in cls.__dict__ and "advance" not in cls.__dict__:
            cls.advance = Scheme.advance  # a step of one's own is a step without its error, too
        if "tableau" in cls.__dict__ and "interpolant" not in cls.__dict__:
            inherited = cls.interpolant
            if inherited is None or not inherited.fits(cls.tableau):
                cls.interpolant = default_interpolant(cls.tableau)
        if cls.interpolant is not None:
            cls.interpolant.check(cls.tableau)

    @property
    def reads_slopes(self) -> bool:
        """Whether there is an interpolant that needs nothing but the slopes."""
        return self.interpolant is not None

    @property
    def pulls_reads(self) -> bool:
        """Whether there is an interpolant, whose transpose is known."""
        return self.interpolant is not None

    @property
    def read_degree(self) -> int:
        """That of the interpolant, or of the bootstrapped one."""
        if self.interpolant is not None:
            return max(map(len, self.interpolant.beta))
        return 7 if self.order > 5 and not self.tableau.fsal else max(3, self.order)

    def init(self, field: VectorField, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """The first slope f(t, y), if the scheme has the first-same-as-last property."""
        return field(t, y, p) if self.tableau.fsal else ()

    def init_vjp(
        self, field: VectorField, t: Time, y: Leaves, p: Leaves, grad_carry: Leaves
    ) -> StepGrad:
        """The transpose of the first slope: one vector–Jacobian product."""
        if not self.tableau.fsal:
            return super().init_vjp(field, t, y, p, grad_carry)
        tau, grad_y, grad_p = field.vjp(t, y, p, grad_carry)
        return StepGrad(tau, None, grad_y, None, grad_p)

    def step(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
    ) -> Step:
        """One step; see the head of this module."""
        if isinstance(dt, Tensor) and suits(dt, y):
            return self._by_columns(field, t, dt, y, carry, p, rated=True)
        step = ExplicitRungeKutta.advance(self, field, t, dt, y, carry, p)  # not a subclass's
        return step._replace(error=self._error(dt, step.dense))

    def advance(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """One step without an estimate of its error."""
        if isinstance(dt, Tensor) and suits(dt, y):
            return self._by_columns(field, t, dt, y, carry, p, rated=False)
        tab = self.tableau
        slopes: list[Leaves] = [carry] if tab.fsal else []
        stage = y
        for i in range(len(slopes), tab.stages):
            stage = axpy(y, dt, tab.a[i], slopes)
            time = t + dt * tab.c[i]
            slopes.append(field(time, stage, p))
        return Step(
            y=stage if tab.fsal else axpy(y, dt, tab.b, slopes),
            carry=slopes[-1] if tab.fsal else (),
            dense=tuple(slopes),
        )

    def _by_columns(
        self,
        field: VectorField,
        t: Time,
        dt: Tensor,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
        rated: bool,
    ) -> Step:
        """The same step with one length per sample, in fewer operations; see `Columns`."""
        tab, n = self.tableau, self.tableau.stages
        rated = rated and tab.b_error is not None
        rows = (*tab.a, *(() if tab.fsal else (tab.b,)), *((tab.b_error or (),) if rated else ()))
        sums = Columns(rows, dt, y)
        times = t + dt * column(tab.c, dt.dtype, dt.device)
        times = times.to(field.time_dtype).to(field.device)
        slopes: list[Leaves] = []
        stage = y
        for i in range(n):
            if i == 0 and tab.fsal:
                slopes.append(carry)
            else:
                stage = sums.at(i, y)
                slopes.append(field(times[i], stage, p))
            sums.put(slopes[i])
        error = None
        if rated:
            with torch.no_grad():
                error = sums.alone(len(rows) - 1)
        return Step(
            y=stage if tab.fsal else sums.at(n, y),
            carry=slopes[-1] if tab.fsal else (),
            error=error,
            dense=tuple(slopes),
        )

    def _error(self, dt: Time, slopes: Sequence[Leaves]) -> Leaves | None:
        """The estimate h Σ (b_i − b̂_i) k_i, off the graph: step-size control has no derivative."""
        if self.tableau.b_error is None:
            return None
        with torch.no_grad():
            return combine(dt, self.tableau.b_error, slopes)

    def read(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        step: Step,
        p: Leaves,
        times: Sequence[Time | Part],
    ) -> list[Leaves]:
        """The state at times inside a step: the interpolant, or a bootstrapped one; see `Scheme.read`."""
        at = [part_of(time, t, dt) for time in times]
        if self.interpolant is not None:
            return [axpy(y, dt, self.interpolant.weights(x), step.dense) for x in at]
        last = step.dense[-1] if self.tableau.fsal else field(t + dt, step.y, p)
        ends = Ends(t, dt, y, step.y, step.dense[0], last)
        if self.order > 5 and not self.tableau.fsal:
            middle = self.step(field, t, dt * 0.5, y, (), p).y
            curve = through_middle(field, p, ends, middle)
        else:
            curve = bootstrapped(field, p, ends, self.order)
        return [curve(x) for x in at]  # fmt: skip

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
        timed: bool = True,
    ) -> StepGrad:
        """The transpose of one step, stage by stage; see the head of this module.

        With the slopes in `kept`, the graph of one evaluation of f exists at a time, else that of all. If
        the state was read by an interpolant that evaluates f, the step is transposed by one graph; and so
        it is for a step per sample without `kept`, since one reverse pass is quicker than one per stage.
        (Sums of cotangents in half precision are not left to autograd.) Unless `timed`, t and dt get no
        cotangents, though they may be tensors.
        """
        each = isinstance(dt, Tensor) and dt.ndim == 1 and kept is None and not is_stand_in(dt)
        if (reads and self.interpolant is None) or (each and not any(map(is_half, (*y, *p)))):
            return pulled_by_graph(
                self,
                field,
                (t, dt),
                y,
                carry,
                p,
                grad_y,
                grad_carry,
                grad_dense,
                after,
                reads,
                timed,
            )
        tab, first = self.tableau, int(self.tableau.fsal)
        # Cotangents that reach the slopes from outside the step.
        outside: list[OptionalLeaves | None] = list(grad_dense or [None] * tab.stages)
        dense = DenseTranspose(self.interpolant, t, dt, reads)
        outside = [add(a, b) for a, b in zip(outside, dense.slopes(tab.stages), strict=True)]
        if tab.fsal:
            outside[-1] = add(outside[-1], grad_carry)
        last = tab.stages
        while outside[last - 1] is None and tab.b[last - 1] == 0.0:
            last -= 1  # nothing behind it is reached: the last slope of FSAL, or one for the error
        stages = _Stages(tab, field, t, dt, y, carry, p, last, kept)

        grad_p: list[Tensor | None] = [None] * len(p)
        grad_t: Tensor | None = torch.zeros_like(t) if timed and isinstance(t, Tensor) else None
        grad_dt: Tensor | None = torch.zeros_like(dt) if timed and isinstance(dt, Tensor) else None
        pulled: list[Leaves | None] = [None] * tab.stages
        total, grad_first = tuple(map(wide, grad_y)), None
        for i in reversed(range(last)):
            terms = [(tab.b[i], grad_y)] + [
                (tab.a[j][i], w) for j in range(i + 1, last) if (w := pulled[j]) is not None
            ]
            weights, vectors = [w for w, _ in terms], [x for _, x in terms]
            if isinstance(dt, Tensor):
                u = combine(1.0, weights, vectors)
                kappa = None if u is None else scale(dt, u)
                if u is not None and grad_dt is not None:
                    grad_dt = grad_dt + inner(stages.slopes[i], u, grad_dt)
            else:
                kappa = combine(dt, weights, vectors)
            cotangent = add(kappa, outside[i])
            if first and i == 0:
                grad_first = cotangent
                continue
            if cotangent is None:
                continue
            tau, pulled[i], more = stages.vjp(i, cotangent)
            total = tuple(a + b for a, b in zip(total, pulled[i] or (), strict=True))
            grad_p = _accumulate(grad_p, more)
            if timed and tau is not None:
                grad_t = tau if grad_t is None else grad_t + tau
                grad_dt = None if grad_dt is None else grad_dt + tab.c[i] * tau
        end = axpy(y, dt, tab.b, stages.again) if after else None
        total = rounded(dense.state(total), grad_y)
        grad_t, grad_dt, at = dense.times(grad_t, grad_dt, stages.slopes)
        return StepGrad(grad_t, grad_dt, total, _filled(grad_first, carry), tuple(grad_p), end, at)


class _Stages:
    """The first `last` stages of a step, and their transposes.

    Without `kept` the graphs of all evaluations exist at once; with it, one by one.

    Attributes:
        slopes: k_i.
        again: The same as they were evaluated last: with `kept`, for the transpose.
    """

    def __init__(
        self,
        tableau: Tableau,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
        last: int,
        kept: Sequence[Leaves] | None,
    ) -> None:
        self._tab, self._field, self._t, self._dt, self._y, self._p = tableau, field, t, dt, y, p
        self._linear: dict[int, Linearization] = {}
        if kept is not None:
            self.slopes, self.again = kept, list(kept)
            return
        first = int(tableau.fsal)
        self.slopes = self.again = slopes = [carry] if first else list[Leaves]()
        for i in range(first, last):
            self._linear[i] = self._linearize(i)
            slopes.append(self._linear[i].value)

    def _linearize(self, i: int) -> Linearization:
        point = axpy(self._y, self._dt, self._tab.a[i], self.slopes)
        return self._field.linearize(self._t + self._dt * self._tab.c[i], point, self._p)

    def vjp(self, i: int, grad: OptionalLeaves) -> tuple[Tensor | None, Leaves, OptionalLeaves]:
        """(f_tᵀκ, f_yᵀκ, f_pᵀκ) at stage i; may be called once for each."""
        linear = self._linear.pop(i, None) or self._linearize(i)
        self.again[i] = linear.value
        return linear.vjp(grad)


def _accumulate(total: list[Tensor | None], more: OptionalLeaves) -> list[Tensor | None]:
    """The sum of both, out of place: a cotangent may be a view of something still needed."""
    return [
        a if b is None else b if a is None else wide(a) + wide(b)
        for a, b in zip(total, more, strict=True)
    ]


def _filled(grad: OptionalLeaves | None, like: Leaves) -> Leaves | None:
    """`grad` with zeros for its missing leaves."""
    if grad is None:
        return None
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(like, grad, strict=True))
