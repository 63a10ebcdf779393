"""The forward sweep: steps from the first landing time to the last.

The same loop runs without gradients (storing states as a schedule says) and under autograd (`Tape`).
"""

from __future__ import annotations

import torch

from odegrad.checkpoints import Advance, Checkpoints, Drop, Store
from odegrad.grid import Clock
from odegrad.state import Leaves, Time
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.adaptive import adaptive_steps
from odegrad.sweeps.graphs import Graphs
from odegrad.sweeps.run import Run
from odegrad.sweeps.slab import Slab
from odegrad.sweeps.steps import Landings, fixed_grid, number, steps

__all__ = ["forward", "replay"]


def forward(
    run: Run,
    y: Leaves,
    p: Leaves,
    landings: Landings,
    checkpoints: Checkpoints | None = None,
    graphs: Graphs | None = None,
) -> tuple[Leaves, Slab]:
    """Solves, and returns the states at the landing times and the stored states.

    Arguments:
        run: The solve; its grid and statistics are filled in.
        y: The initial state.
        p: The tensors that f reads; they have to be bound (see `VectorField.bound`).
        landings: The landing times: floats, or a float64 tensor on whose graph the times then are.
        checkpoints: Which states to store; None stores nothing.
        graphs: Takes in the graphs of the steps; the outputs are then off the graph.

    Returns:
        One tensor of shape [len(landings), *leaf.shape] per leaf, and the slab.
    """
    y = tuple(leaf.clone() for leaf in y)  # the caller's tensors are never handed to f
    if graphs is not None:
        y = graphs.open(y)
    outputs = _Outputs(y, len(run.times), graphs is None and torch.is_grad_enabled())
    walk = _Walk(run, y, p, landings, outputs, graphs)
    slab = Slab()
    if run.grid is not None and checkpoints is not None:
        slab = Slab(checkpoints.slots(run.grid.n_steps))
    if run.monitor is not None:
        run.monitor.start("forward")
    try:
        for action in checkpoints.forward() if checkpoints else (Advance(0, None),):
            match action:
                case Advance(_, stop, every):
                    walk.advance(stop, every, slab)
                case Store(i):
                    walk.store(i, slab)
                case Drop(i):
                    slab.drop(i)
                case _:
                    raise AssertionError(f"{action} has no place in a forward sweep")
    finally:
        run.count()
        if run.monitor is not None:
            run.monitor.stop()
    held = slab.nbytes if graphs is None else graphs.nbytes
    run.stats.kept_bytes = max(run.stats.kept_bytes, held)
    return outputs.stacked(), slab


def replay(run: Run, clock: Clock, y: Leaves, p: Leaves, start: Time) -> Leaves:
    """The states at the landing times, along the accepted grid, on the autograd graph.

    What `forward` computed, as an ordinary differentiable program of y, p and the clock's times.
    """
    here = run.field.snapshot()
    try:
        if here is not None and run.initial is not None:
            run.initial.restore()
        outputs = _Outputs(y, len(run.times), on_graph=True)
        outputs.put(0, y)
        if clock.n_steps:
            carry = run.scheme.init(run.field, start, y, p)
            for accepted in steps(run, clock, 0, clock.n_steps, y, carry, p):
                if accepted.landing is not None:
                    outputs.put(accepted.landing, accepted.step.y)
        return outputs.stacked()
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
        outputs: _Outputs,
        graphs: Graphs | None,
    ) -> None:
        self._run, self._outputs, self._graphs, self._n = run, outputs, graphs, 0
        run.initial = run.field.snapshot()
        outputs.put(0, y)
        if isinstance(run.stepsize, FixedStepSize):
            run.grid = fixed_grid(run, run.stepsize)
        start: Time = landings[0]
        before = run.field.evaluations
        carry = run.scheme.init(run.field, start, y, p) if len(run.times) > 1 else ()
        if graphs is not None:
            graphs.count(run.field.evaluations - before)
        self._state = (y, carry)
        if run.grid is not None:
            self._march = steps(run, Clock(run.grid, landings), 0, run.grid.n_steps, y, carry, p)
        else:
            self._march = adaptive_steps(run, y, carry, p, landings)

    def advance(self, stop: int | None, every: int | None, slab: Slab) -> None:
        """Takes steps until state `stop`, or the end."""
        run, start = self._run, self._n
        while stop is None or self._n < stop:
            try:
                accepted = self._march.send(self._state if self._n else None)
            except StopIteration:
                return
            if every is not None and (accepted.n - start) % every == 0:
                slab.put(accepted.n, (*accepted.y, *accepted.carry), accepted.snapshot)
            step = accepted.step
            self._state, self._n = (step.y, step.carry), accepted.n + 1
            if self._graphs is not None:
                self._state = self._graphs.put(accepted)
            run.stats.accepted += 1
            if accepted.landing is not None:
                self._outputs.put(accepted.landing, step.y)
            if run.monitor is not None:
                t, dt = number(accepted.t), number(accepted.dt)
                run.monitor.step("forward", accepted.n, t, dt, step.y, run.stats)

    def store(self, i: int, slab: Slab) -> None:
        """Stores the current state."""
        assert i == self._n, f"state {self._n} is current, not {i}"
        y, carry = self._state
        slab.put(i, (*y, *carry), self._run.field.snapshot())


class _Outputs:
    """The states at the landing times: written into one buffer, or stacked on the graph."""

    def __init__(self, y: Leaves, count: int, on_graph: bool) -> None:
        self._on_graph = on_graph
        self._list: list[Leaves] = []
        self._buffers: Leaves = ()
        if not self._on_graph:
            self._buffers = tuple(leaf.new_empty((count, *leaf.shape)) for leaf in y)

    def put(self, j: int, y: Leaves) -> None:
        if self._on_graph:
            self._list.append(y)
        for buffer, leaf in zip(self._buffers, y, strict=False):
            buffer[j].copy_(leaf.detach())

    def stacked(self) -> Leaves:
        if self._on_graph:
            return tuple(torch.stack(leaf) for leaf in zip(*self._list, strict=True))
        return self._buffers
