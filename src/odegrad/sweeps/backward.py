"""The backward sweep: the transposes of the accepted steps, from the last to the first.

A schedule says how the states before the steps are had; `odegrad.sweeps.costate` says what is done with
them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.checkpoints import Checkpoints, Keep, Tier
from odegrad.replay import Snapshot
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, OptionalLeaves, rms_norm
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.costate import Costate
from odegrad.sweeps.cotangents import Cotangents
from odegrad.sweeps.graphs import Graphs
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.run import Run
from odegrad.sweeps.saved import Meter
from odegrad.sweeps.steps import State, read, steps
from odegrad.sweeps.tape import Tape
from odegrad.sweeps.transposing import transposed

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
    scheme: Scheme | None = None,
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
        scheme: The scheme whose steps are transposed, if it is not that of the solve; it has no carry.
    """
    n, known = run.accepted_grid.n_steps, isinstance(run.stepsize, FixedStepSize)
    rows = checkpoints.bounds(n, known).tape if n else 0
    engine = _Engine(run, y0, p, landings, kept, grads, retain, rows, scheme)
    return transposed(run, p, kept, checkpoints.backward(n, known) if n else (), engine)


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
        scheme: Scheme | None,
    ) -> None:
        self.run, self.p, self.kept, self.retain = run, p, kept, retain
        self.times: Leaves | None = None
        if landings is not None:  # leaves, for graphs that are made here
            self.times = tuple(x.detach().requires_grad_() for x in landings)
        self.clock = run.clock(self.times)
        self.costate = Costate(run, y0, p, self.clock, self.times, grads, kept.end, scheme)
        self.n_leaves, self.current = len(y0), kept.current()
        self.first, self.spare, self.rows = kept.tape, None, rows
        self.meter = Meter(p)

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

    def advance(self, start: int, stop: int, keep: Keep | None) -> None:
        state, snapshot = self._take(start)
        _restore(snapshot)
        run, kept, n, p = self.run, self.kept, self.n_leaves, self.p
        graphs, tape = None, None
        if keep is Keep.GRAPH:
            kept.tape = graphs = Graphs(
                p,
                self.times,
                run.landed,
                run.monitor is not None,
                run.field.autocast[2],
                self.meter,
            )
            state = graphs.open(state, self.clock.before(start))
        elif keep is not None:
            kept.tape = tape = self._tape(keep)
        # Of a step that is on the tape by its state, nothing else is needed.
        end = stop - 1 if keep is Keep.STATE else stop
        walk = steps(run, self.clock, start, end, state[:n], state[n:], p)
        sent: State | None = None
        with torch.set_grad_enabled(graphs is not None):
            for i in range(start, end):
                accepted = walk.send(sent)
                step = accepted.step
                if tape is not None:
                    before = (*accepted.y, *accepted.carry)
                    tape.put(i, before, accepted.snapshot, step.dense)
                if graphs is None:
                    sent = step.y, step.carry
                else:
                    before = run.field.evaluations
                    inside = read(run, accepted, p)
                    graphs.count(run.field.evaluations - before)
                    sent = graphs.put(accepted, inside)
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

    def transpose(self, start: int, stop: int) -> None:
        tape = self.kept.tape
        if tape is None:
            assert stop == start + 1
            self.costate.pull_step(start, *self._take(start), None)
            return
        if isinstance(tape, Graphs):
            retain = self.retain and tape is self.first
            last = tape is not self.first
            for stretch in tape.backwards(retain):
                if stretch.steps:  # the last one may have been opened at the very end
                    if last:
                        self.costate.check(stretch, stop)
                        last = False
                    self.costate.pull_stretch(tape, stretch, retain)
        else:
            assert isinstance(tape, Tape)
            for n in reversed(range(start, stop)):
                self.costate.pull_step(n, *tape.get(n, self.n_leaves))
            tape.clear()
            self.spare = tape
        self.kept.tape = None

    def finish(self) -> Cotangents:
        return self.costate.finish()


def _restore(snapshot: Snapshot | None) -> None:
    if snapshot is not None:
        snapshot.restore()
