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

from odegrad.checkpoints import (
    Advance,
    Checkpoints,
    Drop,
    Keep,
    Restore,
    Store,
    Tier,
    Transpose,
    Unstep,
)
from odegrad.grid import Clock
from odegrad.replay import Snapshot
from odegrad.state import Leaves, OptionalLeaves, rms_norm
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.cotangents import Cotangents, Total
from odegrad.sweeps.graphs import Graphs, Stretch, pull
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.labels import direct
from odegrad.sweeps.run import Run
from odegrad.sweeps.saved import Meter
from odegrad.sweeps.steps import State, number, steps
from odegrad.sweeps.tape import Tape

__all__ = ["backward"]


def backward(
    run: Run,
    y0: Leaves,
    p: Leaves,
    landings: Tensor | None,
    checkpoints: Checkpoints,
    kept: Kept,
    grads: OptionalLeaves,
    retain: bool,
) -> Cotangents:
    """Transposes a solve whose forward sweep is through.

    Arguments:
        run: The solve.
        y0: The initial state.
        p: The tensors that f reads, bound; those that require grad get a cotangent.
        landings: The landing times as a float64 tensor if they are to get cotangents, else None.
        checkpoints: The schedule that the forward sweep followed.
        kept: What it kept.
        grads: The cotangents of its outputs; None is zero.
        retain: Whether what was kept has to serve again.
    """
    n, known = run.accepted_grid.n_steps, isinstance(run.stepsize, FixedStepSize)
    rows = checkpoints.bounds(n, known).tape if n else 0
    engine = _Engine(run, y0, p, landings, kept, grads, retain, rows)
    if run.monitor is not None:
        run.monitor.start("backward")
    here = run.field.snapshot()
    try:
        for action in kept.store.ahead(checkpoints.backward(n, known) if n else ()):
            match action:
                case Advance(start, stop, every, keep) if stop is not None:
                    engine.advance(start, stop, every, keep)
                case Store(i, tier):
                    engine.store(i, tier)
                case Restore(i):
                    engine.restore(i)
                case Drop(i):
                    kept.store.drop(i)
                case Unstep(start, stop):
                    engine.unstep(start, stop)
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
        kept: Kept,
        grads: OptionalLeaves,
        retain: bool,
        rows: int,
    ) -> None:
        self.run, self.p, self.kept, self.retain = run, p, kept, retain
        self.times: Leaves | None = None
        if landings is not None:  # leaves, for graphs that are made here
            self.times = tuple(x.detach().requires_grad_() for x in landings)
        self.clock = Clock(run.accepted_grid, self.times or run.times)
        self.start = run.times[0] if self.times is None else self.times[0]
        self.y0, self.n_leaves, self.current = y0, len(y0), kept.current()
        self.grad_y: Leaves = tuple(torch.zeros_like(leaf) for leaf in y0)
        self.grad_carry: Leaves | None = None
        self.grad_p = Total(len(p))
        self.grad_times: list[Tensor | None] = [None] * len(run.times)
        self.timed = landings is not None
        self.labels = direct(run, p, grads, self.grad_p)
        self.below = kept.end  # the state after the step whose turn it is, if the labels need it
        self.first, self.spare, self.rows = kept.tape, None, rows
        self.meter = Meter(p)

    # Getting states.

    def restore(self, i: int) -> None:
        state, snapshot = self.kept.store.get(i)
        if self.current is not None and self.current.i == i and self.current.rewound:
            self._measure(self.current.state, state)
        self.current = Current(i, state, snapshot)

    def _measure(self, found: Leaves, exact: Leaves) -> None:
        """Notes how far a reconstructed state is from the stored one."""
        error = rms_norm(tuple(a - b for a, b in zip(found, exact, strict=True)))
        size = float(rms_norm(exact)) or 1.0
        stats = self.run.stats
        stats.rewind_error = max(stats.rewind_error or 0.0, float(error) / size)

    def store(self, i: int, tier: Tier) -> None:
        state, snapshot = self._take(i)
        self.kept.store.put(i, state, snapshot, tier)
        self._note()

    def _take(self, i: int) -> tuple[Leaves, Snapshot | None]:
        """The current state, which has to be state i, and what belongs to it."""
        assert self.current is not None
        assert self.current.i == i, f"state {self.current.i} is current, not {i}"
        return self.current.state, self.current.snapshot

    def _note(self) -> None:
        self.run.stats.note(self.kept)

    def advance(self, start: int, stop: int, every: int | None, keep: Keep | None) -> None:
        state, snapshot = self._take(start)
        _restore(snapshot)
        run, kept, n, p = self.run, self.kept, self.n_leaves, self.p
        graphs, tape = None, None
        if keep is Keep.GRAPH:
            kept.tape = graphs = Graphs(p, self.times, run.monitor is not None, self.meter)
            state = graphs.open(state, self.clock.locate(start)[0])
        elif keep is not None:
            kept.tape = tape = self._tape(keep)
        end = (
            stop - 1 if keep is Keep.STATE else stop
        )  # a step on the tape by its state is not taken
        walk = steps(run, self.clock, start, end, state[:n], state[n:], p)
        sent: State | None = None
        with torch.set_grad_enabled(graphs is not None):
            for i in range(start, end):
                accepted = walk.send(sent)
                before, step = (*accepted.y, *accepted.carry), accepted.step
                if every is not None and (i - start) % every == 0:
                    kept.store.put(i, before, accepted.snapshot, Tier.DEVICE)
                if tape is not None:
                    tape.put(i, before, accepted.snapshot, step.dense)
                sent = (step.y, step.carry) if graphs is None else graphs.put(accepted)
        after = state if sent is None else (*sent[0], *sent[1])
        here = run.field.snapshot()
        if tape is not None and keep is Keep.STATE:
            tape.put(end, after, here, ())
        self.current = Current(stop, after, here) if keep is None else None
        run.stats.recomputed += stop - start - (keep is not None)
        self._note()

    def _tape(self, keep: Keep) -> Tape:
        """An empty tape: the last one again, if there was one."""
        tape, self.spare = self.spare, None
        if tape is None or tape.keep is not keep:
            tape = Tape(keep, self.rows)
        return tape

    def unstep(self, start: int, stop: int) -> None:
        state, _ = self._take(start)
        y, carry = state[: self.n_leaves], state[self.n_leaves :]
        with torch.no_grad():
            for n in reversed(range(stop, start)):
                t, dt = self.clock.step(n)
                y, carry = self.run.scheme.unstep(self.run.field, t, dt, y, carry, self.p)
        self.current = Current(stop, (*y, *carry), None, rewound=True)

    # Transposing steps.

    def transpose(self, start: int, stop: int) -> None:
        tape = self.kept.tape
        if tape is None:
            assert stop == start + 1
            state, snapshot = self._take(start)
            self._step(start, state, snapshot, None)
            return
        if isinstance(tape, Graphs):
            for stretch in tape.backwards(self.retain and tape is self.first):
                if stretch.steps:  # the last one may have been opened at the very end
                    self._stretch(tape, stretch)
        else:
            assert isinstance(tape, Tape)
            for n in reversed(range(start, stop)):
                self._step(n, *tape.get(n, self.n_leaves))
            tape.clear()
            self.spare = tape
        self.kept.tape = None

    def _step(
        self, n: int, state: Leaves, snapshot: Snapshot | None, slopes: list[Leaves] | None
    ) -> None:
        run = self.run
        _restore(snapshot)
        landing = self.clock.landing(n)
        if landing is not None:
            self._inject(landing, self.below)
        t, dt = self.clock.step(n)
        y, carry = state[: self.n_leaves], state[self.n_leaves :]
        # One stage at a time, from the last: not in the order in which f drew random numbers.
        known = slopes if snapshot is None else None
        grads = run.scheme.step_vjp(
            run.field, t, dt, y, carry, self.p, self.grad_y, self.grad_carry, kept=known
        )
        self.grad_y, self.grad_carry = grads.y, grads.carry
        self.grad_p.add(grads.p)
        if self.timed:
            self.clock.step_vjp(n, grads.t, grads.dt, self.grad_times)
        if self.labels.needs_states:
            self.below = y
        if run.monitor is not None:
            run.monitor.step("backward", n, number(t), number(dt), y, run.stats)

    def _stretch(self, graphs: Graphs, stretch: Stretch) -> None:
        """Transposes the steps of a stretch at once."""
        run, n = self.run, self.n_leaves
        grad = (*self.grad_y, *(self.grad_carry or ()))
        last, retain = len(run.times) - 1, self.retain and graphs is self.first
        found = pull(graphs, stretch, grad, self.labels, last, retain)
        run.field.transposes += stretch.evaluations
        filled = tuple(
            torch.zeros_like(x) if g is None else g
            for x, g in zip(stretch.inputs, found.state, strict=True)
        )
        self.grad_y, self.grad_carry = filled[:n], filled[n:] or None
        self.grad_p.add(found.p)
        for j, g in found.times.items():
            if g is not None:
                old = self.grad_times[j]
                self.grad_times[j] = g if old is None else old + g
        self.below = tuple(x.detach() for x in stretch.inputs[:n])
        if run.monitor is not None:
            run.count()
            for i, t, dt, y in reversed(stretch.watched):
                run.monitor.step("backward", i, t, dt, y, run.stats)

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
        self._inject(0, self.y0)
        return Cotangents(self.grad_y, self.grad_p.result(), self.grad_times)

    def _inject(self, j: int, y: Leaves) -> None:
        """Adds the cotangent of the state y at landing j."""
        direct = self.labels.at(j, y)
        self.grad_y = tuple(
            a if g is None else a + g for a, g in zip(self.grad_y, direct, strict=True)
        )


def _restore(snapshot: Snapshot | None) -> None:
    if snapshot is not None:
        snapshot.restore()
