"""The costate: the cotangent that goes back through the steps, and what it leaves on its way.

With λ the cotangent of the state, for n = N − 1, …, 0: at a landing time the cotangent of that output
joins λ (all labels in one sweep), then

    (t̄_n, h̄_n, λ, c̄, Δp̄) = step_vjp(λ, c̄),     p̄ += Δp̄,

and the transpose of the scheme's `init` ends it. The parameter gradient is a sum over steps: the
discrete form of the integral ∫ a(t)ᵀ ∂f/∂p dt of Hu 2024 (arXiv 2402.15141).
"""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.grid import Clock
from odegrad.replay import Snapshot
from odegrad.schemes.base import Scheme
from odegrad.schemes.dense import Read
from odegrad.state import Leaves, OptionalLeaves, wide
from odegrad.sweeps.cotangents import Cotangents, Total
from odegrad.sweeps.graphs import Graphs, Stretch, pull
from odegrad.sweeps.labels import direct
from odegrad.sweeps.run import Run
from odegrad.sweeps.steps import number

__all__ = ["Costate"]


class Costate:
    """The cotangents of state and carry, of the tensors that f reads, and of the landing times.

    Arguments:
        run: The solve.
        y0: The initial state.
        p: The tensors that f reads; those that require grad get a cotangent.
        clock: The steps.
        times: The landing times if they are to get cotangents, else None.
        grads: The cotangents of the outputs; None is zero.
        end: The last state, if the direct cotangents need states.
        scheme: The scheme whose steps are transposed; None is that of the solve.
    """

    def __init__(
        self,
        run: Run,
        y0: Leaves,
        p: Leaves,
        clock: Clock,
        times: Leaves | None,
        grads: OptionalLeaves,
        end: Leaves,
        scheme: Scheme | None = None,
    ) -> None:
        self._run, self._y0, self._p, self._clock, self._times = run, y0, p, clock, times
        self._other, self._scheme = scheme is not None, scheme or run.scheme
        self._grad_y: Leaves = tuple(torch.zeros_like(wide(leaf)) for leaf in y0)
        self._grad_carry: Leaves | None = None
        self._grad_p = Total(len(p))
        self._grad_times: list[Tensor | None] = [None] * len(run.times)
        self._labels = direct(run, p, grads, self._grad_p)
        self._below = end  # the state after the step whose turn it is, if the labels need it

    def pull_step(
        self, n: int, state: Leaves, snapshot: Snapshot | None, slopes: list[Leaves] | None
    ) -> None:
        """Transposes step n.

        Arguments:
            n: Its number.
            state: State and carry before it.
            snapshot: Generators and buffers before it.
            slopes: Its dense coefficients, if they are known.
        """
        run, n_y = self._run, len(self._y0)
        if snapshot is not None:
            snapshot.restore()
        landing = self._clock.landing(n)
        if landing is not None:
            self._inject(landing, self._below)
        t, dt = self._clock.step(n)
        y, carry = state[:n_y], state[n_y:]
        # One stage at a time, from the last: not in the order in which f drew random numbers.
        known = slopes if snapshot is None and not self._other else None
        reads = [Read(at, self._labels.at(j, y)) for j, at in self._clock.reads(n)]
        mark = None if self._other else run.fingerprints.get(n + 1)
        grads = self._scheme.step_vjp(
            run.field, t, dt, y, carry, self._p, self._grad_y, self._grad_carry,
            kept=known, after=mark is not None, reads=reads,
        )  # fmt: skip
        if mark is not None and grads.after is not None:
            mark.check(grads.after[: run.field.n_state], number(t))
        self._grad_y, self._grad_carry = tuple(map(wide, grads.y)), grads.carry
        self._grad_p.add(grads.p)
        if self._times is not None:
            self._clock.step_vjp(n, grads.t, grads.dt, self._grad_times)
            for (j, _), grad in zip(self._clock.reads(n), grads.reads, strict=True):
                self._add_time(j, grad)
        if self._labels.needs_states:
            self._below = y
        if run.witness is not None:
            run.witness.step(n, grads.y, grads.p)
        if run.monitor is not None:
            run.monitor.step("backward", n, number(t), number(dt), y, run.stats)

    def check(self, stretch: Stretch, stop: int) -> None:
        """Whether a stretch that was taken again, up to state `stop`, ends as it did before."""
        run = self._run
        if stop in run.fingerprints:
            t, _ = self._clock.step(stop - 1)
            run.fingerprints[stop].check(stretch.outputs[: run.field.n_state], number(t))

    def pull_stretch(self, graphs: Graphs, stretch: Stretch, retain: bool) -> None:
        """Transposes the steps of a stretch of graphs at once; they serve again if `retain`."""
        run, n = self._run, len(self._y0)
        grad = (*self._grad_y, *(self._grad_carry or ()))
        found = pull(graphs, stretch, grad, self._labels, retain)
        run.field.transposes += stretch.evaluations
        filled = tuple(
            torch.zeros_like(x) if g is None else g
            for x, g in zip(stretch.inputs, found.state, strict=True)
        )
        self._grad_y, self._grad_carry = tuple(map(wide, filled[:n])), filled[n:] or None
        self._grad_p.add(found.p)
        for j, g in found.times.items():
            self._add_time(j, g)
        self._below = tuple(x.detach() for x in stretch.inputs[:n])
        if run.monitor is not None:
            run.count()
            for i, t, dt, y in reversed(stretch.watched):
                run.monitor.step("backward", i, t, dt, y, run.stats)

    def finish(self) -> Cotangents:
        """Transposes `init`, and adds the cotangent of the output at the start."""
        run = self._run
        if self._grad_carry is not None:
            if run.initial is not None:
                run.initial.restore()
            start = run.times[0] if self._times is None else self._times[0]
            grads = run.scheme.init_vjp(run.field, start, self._y0, self._p, self._grad_carry)
            self._grad_y = tuple(a + b for a, b in zip(self._grad_y, grads.y, strict=True))
            self._grad_p.add(grads.p)
            if self._times is not None:
                self._add_time(0, grads.t)
            if run.witness is not None:
                run.witness.step(0, self._grad_y, grads.p)
        self._inject(0, self._y0)
        return Cotangents(self._grad_y, self._grad_p.result(), self._grad_times)

    def _add_time(self, j: int, grad: Tensor | None) -> None:
        old = self._grad_times[j]
        if grad is not None:
            self._grad_times[j] = grad if old is None else old + grad

    def _inject(self, j: int, y: Leaves) -> None:
        """Adds the direct cotangent of the state y at landing j."""
        direct = self._labels.at(j, y)
        pairs = zip(self._grad_y, direct, strict=True)
        self._grad_y = tuple(a if g is None else a + g for a, g in pairs)
