"""The backward sweep: the transposes of the accepted steps, from the last to the first.

With λ the cotangent of the state, for n = N − 1, …, 0: at a landing time the cotangent of that output
joins λ (all labels in one sweep), then

    (t̄_n, h̄_n, λ, c̄, Δp̄) = step_vjp(λ, c̄),     p̄ += Δp̄,

and the transpose of the scheme's `init` ends it. The parameter gradient is a sum over steps: the
discrete form of the integral ∫ a(t)ᵀ ∂f/∂p dt of Hu 2024 (arXiv 2402.15141).
"""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.checkpoints import Advance, Checkpoints, Drop, Restore, Store, Transpose
from odegrad.grid import Clock
from odegrad.replay import Snapshot
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.cotangents import Cotangents, Total
from odegrad.sweeps.run import Run
from odegrad.sweeps.slab import Slab
from odegrad.sweeps.steps import number, steps

__all__ = ["backward"]


def backward(
    run: Run,
    y0: Leaves,
    p: Leaves,
    landings: Tensor | None,
    checkpoints: Checkpoints,
    slab: Slab,
    grad_ys: OptionalLeaves,
) -> Cotangents:
    """Transposes a solve whose forward sweep is through.

    Arguments:
        run: The solve.
        y0: The initial state.
        p: The tensors that f reads, bound; those that require grad get a cotangent.
        landings: The landing times as a float64 tensor if they are to get cotangents, else None.
        checkpoints: The schedule that the forward sweep followed.
        slab: What it stored.
        grad_ys: The cotangents of the outputs, shape [len(landings), *leaf.shape]; None is zero.
    """
    engine = _Engine(run, y0, p, landings, slab, grad_ys)
    if run.monitor is not None:
        run.monitor.start("backward")
    here = run.field.snapshot()
    try:
        for action in checkpoints.backward(run.accepted_grid.n_steps):
            match action:
                case Advance(start, stop, every) if stop is not None:
                    engine.advance(start, stop, every)
                case Store(i):
                    engine.store(i)
                case Restore(i):
                    engine.restore(i)
                case Drop(i):
                    engine.slab.drop(i)
                case Transpose(start, stop):
                    engine.transpose(start, stop)
                case _:
                    raise AssertionError(f"{action} has no place in a backward sweep")
        return engine.finish()
    finally:
        if here is not None:
            here.restore()
        run.count()
        if run.monitor is not None:
            run.monitor.stop()


class _Engine:
    """Executes a schedule's actions one step at a time."""

    def __init__(
        self,
        run: Run,
        y0: Leaves,
        p: Leaves,
        landings: Tensor | None,
        slab: Slab,
        grad_ys: OptionalLeaves,
    ) -> None:
        self.run, self.p, self.slab = run, p, slab
        self.clock = Clock(run.accepted_grid, run.times if landings is None else landings)
        self.start = run.times[0] if landings is None else landings[0]
        self.y0, self.n_leaves, self.current = y0, len(y0), (0, y0)
        self.grad_ys = grad_ys
        self.grad_y = tuple(torch.zeros_like(leaf) for leaf in y0)
        self.grad_carry: Leaves | None = None
        self.grad_p = Total(len(p))
        self.grad_times: list[Tensor | None] = [None] * len(run.times)
        self.timed = landings is not None

    def restore(self, i: int) -> None:
        state, snapshot = self.slab.get(i)
        self.current = (i, state)
        if snapshot is not None:
            snapshot.restore()

    def store(self, i: int) -> None:
        assert self.current[0] == i, f"state {self.current[0]} is current, not {i}"
        self._put(i, self.current[1], self.run.field.snapshot())

    def _put(self, i: int, state: Leaves, snapshot: Snapshot | None) -> None:
        self.slab.put(i, state, snapshot)
        self.run.stats.kept_bytes = max(self.run.stats.kept_bytes, self.slab.nbytes)

    def advance(self, start: int, stop: int, every: int | None) -> None:
        assert self.current[0] == start, f"state {self.current[0]} is current, not {start}"
        y, carry = self.current[1][: self.n_leaves], self.current[1][self.n_leaves :]
        with torch.no_grad():
            for accepted in steps(self.run, self.clock, start, stop, y, carry, self.p):
                if every is not None and (accepted.n - start) % every == 0:
                    state = (*accepted.y, *accepted.carry)
                    self._put(accepted.n, state, accepted.snapshot)
                self.current = (accepted.n + 1, (*accepted.step.y, *accepted.step.carry))
                self.run.stats.recomputed += 1

    def transpose(self, start: int, stop: int) -> None:
        run = self.run
        for n in reversed(range(start, stop)):
            state, snapshot = self.slab.get(n)
            _restore(snapshot)
            landing = self.clock.landing(n)
            if landing is not None:
                self._inject(landing)
            t, dt = self.clock.step(n)
            y, carry = state[: self.n_leaves], state[self.n_leaves :]
            grads = run.scheme.step_vjp(
                run.field, t, dt, y, carry, self.p, self.grad_y, self.grad_carry
            )
            self.grad_y, self.grad_carry = grads.y, grads.carry
            self.grad_p.add(grads.p)
            if self.timed:
                self.clock.step_vjp(n, grads.t, grads.dt, self.grad_times)
            if run.monitor is not None:
                run.monitor.step("backward", n, number(t), number(dt), y, run.stats)

    def finish(self) -> Cotangents:
        """Transposes `init`, and adds the cotangent of the output at the start."""
        run = self.run
        if self.grad_carry is not None:
            _restore(run.initial)
            grads = run.scheme.init_vjp(run.field, self.start, self.y0, self.p, self.grad_carry)
            self.grad_y = tuple(a + b for a, b in zip(self.grad_y, grads.y, strict=True))
            self.grad_p.add(grads.p)
            if self.timed and grads.t is not None:
                old = self.grad_times[0]
                self.grad_times[0] = grads.t if old is None else old + grads.t
        self._inject(0)
        return Cotangents(self.grad_y, self.grad_p.result(), self.grad_times)

    def _inject(self, j: int) -> None:
        """Adds the cotangent of output j."""
        self.grad_y = tuple(
            a if g is None else a + g[j] for a, g in zip(self.grad_y, self.grad_ys, strict=True)
        )


def _restore(snapshot: Snapshot | None) -> None:
    if snapshot is not None:
        snapshot.restore()
