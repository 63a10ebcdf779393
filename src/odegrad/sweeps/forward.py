"""The forward sweep: steps from the first landing time to the last.

The same loop runs without gradients (storing states as a schedule says) and under autograd (`Tape`).
Only accepted steps are yielded; a rejected attempt leaves no trace, not even in the random generators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from odegrad.checkpoints import Advance, Checkpoints, Drop, Store
from odegrad.errors import MaxStepsError, NonFiniteDerivativeError, StepTooSmallError
from odegrad.grid import Clock, Grid, Nodes, Segment
from odegrad.replay import Snapshot
from odegrad.schemes.base import Step
from odegrad.state import Leaves, Time
from odegrad.stepsize import AdaptiveStepSize, FixedStepSize, History, starting_step
from odegrad.sweeps.run import Run
from odegrad.sweeps.slab import Slab

__all__ = ["Accepted", "forward", "number", "replay", "steps"]

DEFAULT_MAX_STEPS = 100_000

Landings: TypeAlias = tuple[float, ...] | Tensor
"""Landing times: floats, or a float64 tensor on whose graph the times of the steps then are."""


class Accepted(NamedTuple):
    """An accepted step: its number, where it began, and what came out."""

    n: int
    t: Time
    dt: Time
    y: Leaves
    carry: Leaves
    snapshot: Snapshot | None
    step: Step
    landing: int | None


def forward(
    run: Run,
    y: Leaves,
    p: Leaves,
    landings: Landings,
    checkpoints: Checkpoints | None = None,
) -> tuple[Leaves, Slab]:
    """Solves, and returns the states at the landing times and the stored states.

    Arguments:
        run: The solve; its grid and statistics are filled in.
        y: The initial state.
        p: The tensors that f reads; they have to be bound (see `VectorField.bound`).
        landings: The landing times: floats, or a float64 tensor on whose graph the times then are.
        checkpoints: Which states to store; None stores nothing.

    Returns:
        One tensor of shape [len(landings), *leaf.shape] per leaf, and the slab.
    """
    y = tuple(leaf.clone() for leaf in y)  # the caller's tensors are never handed to f
    outputs = _Outputs(y, len(run.times))
    walk = _Walk(run, y, p, landings, outputs)
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
    run.stats.kept_bytes = max(run.stats.kept_bytes, slab.nbytes)
    return outputs.stacked(), slab


def replay(run: Run, clock: Clock, y: Leaves, p: Leaves, start: Time) -> Leaves:
    """The states at the landing times, along the accepted grid, on the autograd graph.

    What `forward` computed, as an ordinary differentiable program of y, p and the clock's times.
    """
    here = run.field.snapshot()
    try:
        if here is not None and run.initial is not None:
            run.initial.restore()
        outputs = _Outputs(y, len(run.times))
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
    ) -> None:
        self._run, self._outputs, self._n = run, outputs, 0
        run.initial = run.field.snapshot()
        outputs.put(0, y)
        if isinstance(run.stepsize, FixedStepSize):
            run.grid = fixed_grid(run, run.stepsize)
        start: Time = landings[0]
        carry = run.scheme.init(run.field, start, y, p) if len(run.times) > 1 else ()
        self._state = (y, carry)
        if run.grid is not None:
            self._march = steps(run, Clock(run.grid, landings), 0, run.grid.n_steps, y, carry, p)
        else:
            self._march = _adaptive(run, y, carry, p, landings)

    def advance(self, stop: int | None, every: int | None, slab: Slab) -> None:
        """Takes steps until state `stop`, or the end."""
        run, start = self._run, self._n
        while stop is None or self._n < stop:
            accepted = next(self._march, None)
            if accepted is None:
                return
            if every is not None and (accepted.n - start) % every == 0:
                slab.put(accepted.n, (*accepted.y, *accepted.carry), accepted.snapshot)
            step = accepted.step
            self._state, self._n = (step.y, step.carry), accepted.n + 1
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

    def __init__(self, y: Leaves, count: int) -> None:
        self._on_graph = torch.is_grad_enabled()
        self._list: list[Leaves] = []
        self._buffers: Leaves = ()
        if not self._on_graph:
            self._buffers = tuple(leaf.new_empty((count, *leaf.shape)) for leaf in y)

    def put(self, j: int, y: Leaves) -> None:
        if self._on_graph:
            self._list.append(y)
        for buffer, leaf in zip(self._buffers, y, strict=False):
            buffer[j].copy_(leaf)

    def stacked(self) -> Leaves:
        if self._on_graph:
            return tuple(torch.stack(leaf) for leaf in zip(*self._list, strict=True))
        return self._buffers


def fixed_grid(run: Run, stepsize: FixedStepSize) -> Grid:
    """The grid of step sizes that do not depend on the solution.

    Raises:
        MaxStepsError: If it has more than `run.max_steps` steps.
    """
    times = run.times
    stepsize.check(len(times) - 1)
    segments: list[Segment] = [
        stepsize.segment(j, times[j], times[j + 1], run.eps) for j in range(len(times) - 1)
    ]
    grid = Grid(tuple(segments))
    if run.max_steps is not None and grid.n_steps > run.max_steps:
        raise MaxStepsError(
            f"the grid has {grid.n_steps} steps, max_steps is {run.max_steps}; "
            "raise max_steps or take larger steps"
        )
    return grid


def steps(
    run: Run, clock: Clock, start: int, stop: int, y: Leaves, carry: Leaves, p: Leaves
) -> Iterator[Accepted]:
    """Takes the steps start … stop − 1 of a known grid from the state before step `start`."""
    for n in range(start, stop):
        t, dt = clock.step(n)
        snapshot = run.field.snapshot()
        step = run.scheme.step(run.field, t, dt, y, carry, p)
        yield Accepted(n, t, dt, y, carry, snapshot, step, clock.landing(n))
        y, carry = step.y, step.carry


def _adaptive(
    run: Run, y: Leaves, carry: Leaves, p: Leaves, landings: Landings
) -> Iterator[Accepted]:
    """Takes steps as the controller says, each landing time being stepped onto."""
    control, order = run.stepsize, run.scheme.error_order
    assert isinstance(control, AdaptiveStepSize)
    assert order is not None
    times, field = run.times, run.field
    history, n, segments = History(), 0, list[Segment]()
    h = _first_size(run, control, y, p)
    for j in range(len(times) - 1):
        span, start = landings[j + 1] - landings[j], landings[j]
        length, fractions = abs(times[j + 1] - times[j]), [0.0]
        while fractions[-1] < 1.0:
            sigma = fractions[-1]
            size, left = min(h, control.dt_max), length * (1.0 - sigma)
            lands = size >= left * (1.0 - 1e-10)
            following = 1.0 if lands else sigma + size / length
            t, dt = start + span * sigma, span * (following - sigma)
            snapshot = field.snapshot()
            step = run.scheme.step(field, t, dt, y, carry, p)
            taken = length * (following - sigma)
            ratio = _error_ratio(control, field.n_state, y, step)
            decision = control.decide(ratio, history, order)
            if not decision.accept:
                if snapshot is not None:
                    snapshot.restore()
                run.stats.rejected += 1
                history, h = decision.history, taken * decision.factor
                _check_size(run, control, number(t), taken, h, ratio)
                _check_count(run, number(t), taken)
                continue
            if taken > 0.0:
                # A step cut short by a landing time says little about the size to go on with.
                cut = lands and left < h and not history.rejected
                h = max(h, taken * decision.factor) if cut else taken * decision.factor
                history = decision.history
            fractions.append(following)
            yield Accepted(n, t, dt, y, carry, snapshot, step, j + 1 if following == 1.0 else None)
            y, carry, n = step.y, step.carry, n + 1
            if following < 1.0:
                _check_count(run, number(t), taken)
        segments.append(Nodes(tuple(fractions)))
    run.grid = Grid(tuple(segments))


def number(t: Time) -> float:
    """A time as a float, off the graph."""
    return float(t.detach()) if isinstance(t, Tensor) else t


def _first_size(run: Run, control: AdaptiveStepSize, y: Leaves, p: Leaves) -> float:
    """The size of the first attempt; estimating it leaves no trace in generators and buffers."""
    if control.dt0 is not None:
        return control.dt0
    if len(run.times) < 2:
        return 1.0
    direction = -1.0 if run.times[-1] < run.times[0] else 1.0
    snapshot = run.field.snapshot()
    h = starting_step(run.field, control, run.scheme.order, run.times[0], direction, y, p)
    if snapshot is not None:
        snapshot.restore()
    return max(h, control.dt_min)


def _error_ratio(control: AdaptiveStepSize, n: int, y: Leaves, step: Step) -> float:
    """The scaled error of an attempt: the only place where a sweep waits for the device."""
    if step.ok is False:
        return math.inf
    assert step.error is not None
    error = tuple(x.detach() for x in step.error[:n])
    return float(control.scaled_norm(error, y[:n], step.y[:n]))


def _check_size(
    run: Run, control: AdaptiveStepSize, t: float, taken: float, h: float, ratio: float
) -> None:
    smallest = max(control.dt_min, 16.0 * math.ulp(max(abs(t), abs(run.times[-1] - run.times[0]))))
    if h >= smallest:
        return
    where = f"at t = {t:.6g} after {run.stats.accepted} accepted steps"
    if not math.isfinite(ratio):
        raise NonFiniteDerivativeError(
            f"f gives NaN or infinity near the solution {where}, even for a step of {taken:.3g}. "
            "The solution may blow up here, or leave the domain of f; check f at this point"
        )
    raise StepTooSmallError(
        f"the error control asks for a step of {h:.3g}, below {smallest:.3g}, {where} "
        f"(error / tolerance = {ratio:.3g}). The solution may be singular or stiff here, f may jump "
        "(put the jump into ts), or the tolerances are below round-off: raise rtol and atol"
    )


def _check_count(run: Run, t: float, taken: float) -> None:
    limit = DEFAULT_MAX_STEPS if run.max_steps is None else run.max_steps
    attempts = run.stats.accepted + run.stats.rejected
    if attempts >= limit:
        raise MaxStepsError(
            f"{attempts} steps attempted ({run.stats.rejected} rejected) and only t = {t:.6g} of "
            f"{run.times[-1]:.6g} reached; the last step was {taken:.3g}. Raise max_steps or the "
            "tolerances; if the steps are tiny, the problem may be stiff"
        )
