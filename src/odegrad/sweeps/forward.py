"""The forward sweep: steps from the first landing time to the last.

The same loop runs without gradients (keeping what a schedule says) and under autograd (`Tape`).
"""

from __future__ import annotations

import sys
from itertools import chain

import torch
from torch import Tensor

from odegrad.checkpoints import Advance, Checkpoints, Drop, Hold, Keep, Store, Tier
from odegrad.grid import Clock
from odegrad.state import Leaves, Time
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.adaptive import adaptive_steps
from odegrad.sweeps.fingerprint import Fingerprint
from odegrad.sweeps.graphs import Graphs
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.labels import Sink, salvaging, sink
from odegrad.sweeps.run import Landings, Run
from odegrad.sweeps.steps import Accepted, fixed_grid, number, read, steps
from odegrad.sweeps.store import StateStore
from odegrad.sweeps.tape import Tape

__all__ = ["forward", "replay"]


def forward(
    run: Run,
    y: Leaves,
    p: Leaves,
    landings: Landings,
    checkpoints: Checkpoints | None = None,
) -> tuple[Leaves, Kept | None]:
    """Solves, and returns the outputs and what is kept for the backward sweep.

    Arguments:
        run: The solve; its grid and statistics are filled in.
        y: The initial state.
        p: The tensors that f reads; they have to be bound (see `VectorField.bound`).
        landings: The landing times: floats, or a float64 tensor on whose graph the times then are, or,
            with a schedule that keeps graphs, their entries as leaves that get a cotangent.
        checkpoints: What to keep; None keeps nothing, and the outputs are on the graph if autograd
            records one.

    Returns:
        One tensor of shape [len(landings), *leaf.shape] per leaf, or what a streamed loss comes to; and
        what was kept.
    """
    y = tuple(leaf.clone() for leaf in y)  # the caller's tensors are never handed to f
    outputs = sink(run, y, p, checkpoints is None and torch.is_grad_enabled())
    if run.monitor is not None:
        run.monitor.start("forward")
    try:
        with salvaging(run, outputs, y):
            walk = _Walk(run, y, p, landings, outputs, checkpoints)
            if checkpoints is None or len(run.times) < 2:
                walk.advance(0, None, None, None)
            else:
                walk.follow(checkpoints)
    finally:
        run.count()
        run.stats.forward_evaluations = run.stats.f_evaluations
        if run.monitor is not None:
            run.monitor.stop()
    return outputs.result(), walk.kept


def replay(run: Run, clock: Clock, y: Leaves, p: Leaves, start: Time) -> Leaves:
    """The outputs, along the accepted grid, on the autograd graph.

    What `forward` computed, as an ordinary differentiable program of y, p and the clock's times.
    """
    here = run.field.snapshot()
    try:
        if here is not None and run.initial is not None:
            run.initial.restore()
        outputs = sink(run, y, p, on_graph=True)
        outputs.put(0, y)
        if clock.n_steps:
            carry = run.scheme.init(run.field, start, y, p)
            for accepted in steps(run, clock, 0, clock.n_steps, y, carry, p):
                for j, inside in read(run, accepted, p):
                    outputs.put(j, inside)
                if accepted.landing is not None:
                    outputs.put(accepted.landing, accepted.step.y)
        return outputs.result()
    finally:
        if here is not None:
            here.restore()
        run.count()


class _Walk:
    """The resumable march of a forward sweep."""

    def __init__(
        self,
        run: Run,
        y: Leaves,
        p: Leaves,
        landings: Landings,
        outputs: Sink,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._run, self._p, self._outputs = run, p, outputs
        self._n, self._landed = 0, 0
        self._times = landings if isinstance(landings, tuple) else ()
        self._graphs: Graphs | None = None
        self.kept: Kept | None = None
        self._rows: int | None = None
        run.initial = run.field.snapshot()
        outputs.put(0, y)
        if isinstance(run.stepsize, FixedStepSize):
            run.grid = fixed_grid(run, run.stepsize)
        self._known = None if run.grid is None else run.grid.n_steps
        if checkpoints is not None:
            y, carry = self._open(y, landings[0], checkpoints)
        else:
            carry = run.scheme.init(run.field, landings[0], y, p) if len(run.times) > 1 else ()
        self._state = (y, carry)
        if run.grid is not None:
            self._march = steps(run, run.clock(landings), 0, run.grid.n_steps, y, carry, p)
        else:
            self._march = adaptive_steps(run, y, carry, p, landings)

    def _open(self, y: Leaves, start: Time, checkpoints: Checkpoints) -> tuple[Leaves, Leaves]:
        """Makes room for what is kept; begins with a graph if the first steps are kept so."""
        run, known = self._run, self._known
        carry: Leaves = ()
        if len(run.times) > 1:
            first = next(a for a in checkpoints.forward(known) if isinstance(a, Advance))
            before = run.field.evaluations
            if first.keep is Keep.GRAPH:
                self._graphs = self._new_graphs()
                y = self._graphs.open(y, 0)
                with torch.enable_grad():
                    carry = run.scheme.init(run.field, start, y, self._p)
                self._graphs.count(run.field.evaluations - before)
            else:
                carry = run.scheme.init(run.field, start, y, self._p)
        bounds = checkpoints.bounds(
            sys.maxsize if known is None else max(1, known), known is not None
        )
        self.kept = Kept(StateStore(bounds, (*y, *carry), known is not None))
        self._rows = None if known is None else bounds.tape
        return y, carry

    def _new_graphs(self) -> Graphs:
        timed = any(isinstance(t, Tensor) for t in self._times)
        times = tuple(t for t in self._times if isinstance(t, Tensor)) if timed else None
        run = self._run
        return Graphs(self._p, times, run.landed, run.monitor is not None, run.field.autocast[2])

    def follow(self, checkpoints: Checkpoints) -> None:
        """Does what the schedule says, as far as the solve goes."""
        kept, field = self.kept, self._run.field
        assert kept is not None
        actions = checkpoints.forward(self._known)
        self._run.fingerprints = {}
        while not self._through:
            match next(actions):
                case Advance(start, stop, every, keep):
                    if (
                        keep is Keep.GRAPH and start
                    ):  # these steps are not taken again, but those before
                        self._remember()
                    if checkpoints.holds is Hold.LAST:
                        kept.held = Current(start, self._flat(), field.snapshot())
                    self.advance(start, stop, every, keep)
                case Store(i, tier):
                    assert i == self._n, f"state {self._n} is current, not {i}"
                    kept.store.put(i, self._flat(), field.snapshot(), tier)
                case Drop(i):
                    kept.store.drop(i)
                case action:
                    raise AssertionError(f"{action} has no place in a forward sweep")
        if checkpoints.holds is Hold.END:
            kept.held = Current(self._n, self._flat(), field.snapshot())
        kept.settle()
        self._remember()
        if self._run.loss is not None:
            kept.end = tuple(x.detach().clone() for x in self._state[0])
        self._run.stats.note(kept)

    def _remember(self) -> None:
        """Takes the fingerprint of the current state."""
        run, field = self._run, self._run.field
        if run.replay_check:
            dtype = field.autocast[1] if field.autocast[2] else None
            state = self._state[0][: field.n_state]
            run.fingerprints[self._n] = Fingerprint.of(state, self._p, dtype)

    @property
    def _through(self) -> bool:
        return self._landed == len(self._run.times) - 1

    def _flat(self) -> Leaves:
        return tuple(x.detach() for x in chain(*self._state))

    def advance(self, start: int, stop: int | None, every: int | None, keep: Keep | None) -> None:
        """Takes steps until state `stop`, or the end."""
        kept = self.kept
        assert start == self._n, f"state {self._n} is current, not {start}"
        assert kept is not None or (every is None and keep is None)
        tape: Tape | None = None
        graphs = self._graph() if keep is Keep.GRAPH else None
        if graphs is None and keep is not None:
            tape = Tape(keep, self._rows)
        if kept is not None and keep is not None:
            kept.tape = graphs or tape
        with torch.set_grad_enabled(
            graphs is not None or (kept is None and torch.is_grad_enabled())
        ):
            while not self._through and (stop is None or self._n < stop):
                accepted = self._march.send(self._state if self._n else None)
                state = (*accepted.y, *accepted.carry)
                if kept is not None and every is not None and (accepted.n - start) % every == 0:
                    kept.store.put(accepted.n, state, accepted.snapshot, Tier.DEVICE)
                if tape is not None:
                    tape.put(accepted.n, state, accepted.snapshot, accepted.step.dense)
                self._accept(accepted, graphs)
            if self._through:
                next(self._march, None)  # completes the grid

    def _graph(self) -> Graphs:
        """The graphs of the next steps, begun."""
        if self._n or self._graphs is None:
            self._graphs = self._new_graphs()
            leaves, n = self._graphs.open(self._flat(), self._landed), len(self._state[0])
            self._state = (leaves[:n], leaves[n:])
        return self._graphs

    def _accept(self, accepted: Accepted, graphs: Graphs | None) -> None:
        run, step = self._run, accepted.step
        self._state, self._n = (step.y, step.carry), accepted.n + 1
        before = run.field.evaluations
        inside = read(run, accepted, self._p)
        if graphs is not None:
            graphs.count(run.field.evaluations - before)
            self._state = graphs.put(accepted, inside)
        for j, y in inside:
            self._outputs.put(j, y)
        run.stats.accepted += 1
        if accepted.landing is not None:
            self._landed = accepted.landing
            self._outputs.put(accepted.landing, step.y)
        if run.monitor is not None:
            t, dt = number(accepted.t), number(accepted.dt)
            run.monitor.step("forward", accepted.n, t, dt, step.y, run.stats)
