"""The continuous adjoint with the parameter gradient as what it is: an integral.

    da/dt = −f_y(t, y(t))ᵀ a,     p̄ = ∫ f_p(t, y(t))ᵀ a(t) dt.

The costate alone is integrated backwards, along the trajectory y(t) of the forward solve, which is kept
and interpolated; nothing is solved backwards in time that was solved forwards. Then the integral is
taken, at the nodes of the scheme,

    p̄ ≈ Σ_n |h_n| Σ_i b_i f_p(t_i, y(t_i))ᵀ A_i     (A_i the stages of the costate),

or by adaptive Gauss–Kronrod quadrature with a tolerance of its own. How many evaluations are taken does
not depend on the number of parameters. Like `Backsolve` it is a discretisation of the derivative of the
*exact* solution, hence inconsistent with the computed loss.

Reference: J. Hu, *A note on the adjoint method for neural ODE network*, arXiv 2402.15141 (2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.checkpoints import Keep, StoreAll
from odegrad.errors import InvalidTypeError, InvalidValueError
from odegrad.field import VectorField
from odegrad.gradients.base import Gradient
from odegrad.gradients.continuous import (
    back_through,
    check_back,
    check_error_estimate,
    mirrored,
    scheme_back,
)
from odegrad.gradients.kronrod import GaussKronrod
from odegrad.gradients.node import apply
from odegrad.gradients.rules import Backward, sweeping_rule
from odegrad.grid import Clock
from odegrad.schemes import ExplicitRungeKutta, Scheme, Tableau
from odegrad.schemes.restarted import Restarted, seen_by
from odegrad.state import Leaves, OptionalLeaves, Structure, axpy, scale
from odegrad.stepsize import StepSize
from odegrad.sweeps import Cotangents, Kept, Run, forward
from odegrad.sweeps.cotangents import Total
from odegrad.sweeps.tape import Tape
from odegrad.sweeps.trajectory import Trajectory

__all__ = ["Quadrature"]


@dataclass(frozen=True)
class Quadrature(Gradient):
    """The costate along the stored trajectory, and the parameter gradient as an integral.

    Inconsistent with the computed loss; first derivatives only. One state per step is kept.

    Arguments:
        rule: How to take the integral: None is at the nodes of the scheme of the way back (an explicit
            Runge–Kutta scheme), a `GaussKronrod` by its own tolerance.
        scheme: The scheme of the way back; None is that of the solve.
        stepsize: Its step sizes; None is those of the solve.

    Raises:
        InvalidTypeError: If rule, scheme or step sizes are no such objects.
        InvalidValueError: If they do not go with each other.
    """

    rule: GaussKronrod | None = None
    scheme: Scheme | None = None
    stepsize: StepSize | None = None

    def __post_init__(self) -> None:
        check_back("Quadrature", self.scheme, self.stepsize)
        if not (self.rule is None or isinstance(self.rule, GaussKronrod)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                f"Quadrature: rule must be GaussKronrod(…) or None, received {self.rule!r}"
            )

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves inside one autograd node."""
        n_y, checkpoints = len(y0), StoreAll()
        scheme, stepsize = scheme_back(run, self.scheme), self.stepsize or run.stepsize
        check_error_estimate("Quadrature", scheme, stepsize)
        if self.rule is None:
            _tableau(scheme)

        def ahead(y0: Leaves, p: Leaves, ts: Tensor) -> tuple[Leaves, Kept | None]:
            del ts
            found = run.repeatable(p, lambda: forward(run, y0, p, run.times, checkpoints))
            run.mark()
            return found

        def back(given: Backward) -> Cotangents:
            costate = _Way(self, run, given.p, given.y0, given.kept, scheme, stepsize)
            with torch.no_grad():
                return run.field.bound(given.p, lambda: costate.back(given.grads))

        rule = sweeping_rule(run, n_y, ahead, back, run.check_unchanged, "Quadrature")
        return apply(rule, (*y0, *p, ts))


class _Way:
    """The way back of one solve."""

    def __init__(
        self,
        mode: Quadrature,
        run: Run,
        p: Leaves,
        y0: Leaves,
        kept: Kept,
        scheme: Scheme,
        stepsize: StepSize,
    ) -> None:
        self._mode, self._run, self._p, self._n = mode, run, p, len(y0)
        self._scheme, self._stepsize = scheme, stepsize
        self._total = Total(len(p))
        grid = run.accepted_grid
        self._y0, self._tape, self._n_steps = y0, kept.tape, grid.n_steps
        self._end: Leaves | None = None
        self._clock = Clock(grid, run.times)
        if self._n_steps:
            self._times = grid.times(run.times)
            order = max(run.scheme.order, scheme.order)
            kinks = [self._clock.node(j) for j in run.kinks]
            self._path = Trajectory(self._times, self._state, self._slope, order, kinks)

    def _state(self, i: int) -> Leaves:
        """The state at node i: kept, but for the last, whose step is taken again."""
        if i < self._n_steps:
            assert isinstance(self._tape, Tape)
            return self._tape.get(i, self._n)[0][: self._n]
        if self._end is None:
            assert isinstance(self._tape, Tape)
            state = self._tape.get(i - 1, self._n)[0]
            t, dt = self._clock.step(i - 1)
            y, carry = state[: self._n], state[self._n :]
            self._end = self._run.scheme.step(self._run.field, t, dt, y, carry, self._p).y
        return self._end

    def _slope(self, i: int, n: int) -> Leaves:
        """f at node i, as step n sees it."""
        seen = seen_by(self._run.scheme, self._run.field, *self._clock.step(n))
        return seen(self._times[i], self._state(i), self._p)

    def back(self, grads: OptionalLeaves) -> Cotangents:
        """The cotangents of the initial state, of p and of the times."""
        landings = [self._y0]
        if self._n_steps:
            landings = [self._state(self._clock.node(j)) for j in range(len(self._run.times))]
        ys = tuple(torch.stack(leaf) for leaf in zip(*landings, strict=True))
        a, times = back_through(self._run, self._p, ys, grads, self._segment)
        self._run.count()
        return Cotangents(a, self._total.result(), times)

    def _segment(self, j: int, y: Leaves, a: Leaves) -> Leaves:
        """The costate carried from landing j back to landing j − 1, and the integral between them."""
        del y
        back = Run(
            field=VectorField(self._costate, Structure(a), a),
            scheme=self._scheme,
            stepsize=mirrored(self._stepsize, j),
            times=(self._run.times[j], self._run.times[j - 1]),
            eps=self._run.eps,
            max_steps=self._run.max_steps,
        )
        found, kept = forward(back, a, (), back.times, StoreAll(Keep.STAGES))
        assert kept is not None
        assert isinstance(kept.tape, Tape)
        start = tuple(leaf[-1] for leaf in found)
        if self._mode.rule is None:
            self._at_nodes(back, kept.tape)
        else:
            self._by_rule(self._mode.rule, back, kept.tape, start)
        return start

    def _costate(self, t: Tensor, a: Leaves) -> Leaves:
        """−f_y(t, y(t))ᵀ a."""
        point = self._run.field.linearize(t, self._path(float(t)), self._p)
        return tuple(-x for x in point.vjp(a, with_p=False)[1])

    def _at_nodes(self, back: Run, tape: Tape) -> None:
        """The integral at the nodes of the scheme."""
        tableau, clock = _tableau(back.scheme), Clock(back.accepted_grid, back.times)
        for n in range(clock.n_steps):
            state, _, slopes = tape.get(n, self._n)
            assert slopes is not None
            t, dt = clock.step(n)
            seen = seen_by(back.scheme, self._run.field, t, dt)
            for i, weight in enumerate(tableau.b):
                if weight != 0.0:
                    stage = axpy(state[: self._n], dt, tableau.a[i], slopes)
                    time = t + dt * tableau.c[i]
                    point = seen.linearize(time, self._path(float(time)), self._p)
                    self._total.add(point.pull_p(scale(-dt * weight, stage)))

    def _by_rule(self, rule: GaussKronrod, back: Run, tape: Tape, start: Leaves) -> None:
        """The integral by adaptive quadrature, along the interpolated costate."""
        times, field = back.accepted_grid.times(back.times), self._run.field

        def state(i: int) -> Leaves:
            return start if i == len(times) - 1 else tape.get(i, self._n)[0][: self._n]

        def slope(i: int, n: int) -> Leaves:
            t, following = times[n], times[n + 1]
            return seen_by(back.scheme, back.field, t, following - t)(times[i], state(i), ())

        path = Trajectory(times, state, slope, back.scheme.order)

        def integrand(t: float) -> OptionalLeaves:
            return field.linearize(t, self._path(t), self._p).pull_p(path(t))

        self._total.add(tuple(rule.integrate(integrand, back.times[1], back.times[0])))


def _tableau(scheme: Scheme) -> Tableau:
    """The tableau of the scheme of the way back, for its nodes and weights."""
    base = scheme.base if isinstance(scheme, Restarted) else scheme
    if not isinstance(base, ExplicitRungeKutta):
        raise InvalidValueError(
            f"Quadrature: {base} is no explicit Runge–Kutta scheme, so it has no nodes for the integral; "
            "pass rule=GaussKronrod(), or scheme=RK4()"
        )
    return base.tableau
