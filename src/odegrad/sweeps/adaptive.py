"""The walk with adaptive steps: attempt, judge, accept or try again.

Only accepted steps are yielded; a rejected attempt leaves no trace, not even in the random generators.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from torch import Tensor

from odegrad.errors import (
    MaxStepsError,
    NonFiniteDerivativeError,
    RejectStep,
    StepTooSmallError,
)
from odegrad.grid import Grid, Nodes, Segment
from odegrad.schemes.base import Step
from odegrad.state import Leaves, axpy, rms_norm
from odegrad.stepsize import (
    AdaptiveStepSize,
    History,
    LenientStepSize,
    shared_number,
    starting_step,
)
from odegrad.sweeps.run import Run
from odegrad.sweeps.steps import Accepted, Landings, Walk, number, take

__all__ = ["DEFAULT_MAX_STEPS", "adaptive_steps", "check_count", "check_size", "first_size"]

DEFAULT_MAX_STEPS = 100_000

_CAUTIOUS = 1e-3
"""The first attempt as a part of the whole, if f rejects the step by which it is estimated."""


def adaptive_steps(run: Run, y: Leaves, carry: Leaves, p: Leaves, landings: Landings) -> Walk:
    """Takes steps as the controller says, each landing time being stepped onto."""
    control, order = run.stepsize, run.scheme.error_order
    assert isinstance(control, AdaptiveStepSize)
    assert order is not None
    times, field = run.times, run.field
    history, n, segments = History(), 0, list[Segment]()
    h = first_size(run, control, y, p)
    for k, (j, end) in enumerate(itertools.pairwise(run.landed)):
        length, fractions = abs(times[end] - times[j]), [0.0]
        while fractions[-1] < 1.0:
            sigma = fractions[-1]
            size, left = min(h, control.dt_max), length * (1.0 - sigma)
            lands = size >= left * (1.0 - 1e-10)
            following = 1.0 if lands else sigma + size / length
            # The span anew for each step, so that no two graphs share a part of it.
            span = landings[end] - landings[j]
            t, dt = landings[j] + span * sigma, span * (following - sigma)
            snapshot, before = field.snapshot(), field.evaluations
            taken, step = length * (following - sigma), None
            try:
                step = take(run, n, t, dt, y, carry, p)
            except RejectStep:
                ratio = math.inf
            else:
                ratio = _error_ratio(control, field.n_state, y, step)
            decision = control.decide(ratio, history, order)
            if not decision.accept and _smallest_of_all(control, min(size, taken), ratio):
                decision = dataclasses.replace(decision, accept=True)
            if step is None or not decision.accept:
                if snapshot is not None:
                    snapshot.restore()
                run.stats.rejected += 1
                history, h = decision.history, taken * decision.factor
                # The smallest step allowed gets its try; `taken` may exceed it by rounding.
                if min(size, taken) > control.dt_min:
                    h = max(h, control.dt_min)
                if step is None:
                    _check_rejected(run, control, number(t), taken, h)
                check_count(run, number(t), taken)
                check_size(run, control, number(t), taken, h, ratio, y, p)
                continue
            if taken > 0.0:
                # A step cut short by a landing time says little about the size to go on with.
                cut = lands and left < h and not history.rejected
                h = max(h, taken * decision.factor) if cut else taken * decision.factor
                h = max(h, control.dt_min)
                history = decision.history
            fractions.append(following)
            count, landing = field.evaluations - before, end if following == 1.0 else None
            inside = run.stops.inside(k, sigma, following) if run.stops else ()
            reads = tuple((i, landings[i]) for i in inside)
            sent = yield Accepted(
                n, t, dt, y, carry, snapshot, step, count, landing, reads, following
            )
            y, carry = sent or (step.y, step.carry)
            n += 1
            if following < 1.0 or end != run.landed[-1]:
                check_count(run, number(t), taken)
            if following < 1.0:
                check_size(run, control, number(t), taken, h, ratio, y, p)
        segments.append(Nodes(tuple(fractions)))
    run.grid = Grid(tuple(segments))


def first_size(run: Run, control: AdaptiveStepSize, y: Leaves, p: Leaves) -> float:
    """The size of the first attempt; estimating it leaves no trace in generators and buffers."""
    if control.dt0 is not None:
        return control.dt0
    if len(run.times) < 2:
        return 1.0
    direction = -1.0 if run.times[-1] < run.times[0] else 1.0
    snapshot, order = run.field.snapshot(), run.scheme.order
    if isinstance(control, LenientStepSize):
        order = control.starting_order(order)
    try:
        h = starting_step(run.field, control, order, run.times[0], direction, y, p)
    except RejectStep:
        h = _CAUTIOUS * abs(run.times[-1] - run.times[0])
    if snapshot is not None:
        snapshot.restore()
    return max(h, control.dt_min)


def _smallest_of_all(control: AdaptiveStepSize, size: float, ratio: float) -> bool:
    """Whether a step of this size is accepted whatever its error, which is finite."""
    lenient = isinstance(control, LenientStepSize) and math.isfinite(ratio)
    return lenient and 0.0 < size <= control.dt_min


def _error_ratio(control: AdaptiveStepSize, n: int, y: Leaves, step: Step) -> float:
    """The scaled error of an attempt: the only place where a sweep waits for the device."""
    if step.ok is False:
        return math.inf
    assert step.error is not None
    error = tuple(x.detach() for x in step.error[:n])
    return shared_number(control.scaled_norm(error, y[:n], step.y[:n]))


def _smallest(run: Run, control: AdaptiveStepSize, t: float) -> float:
    """The smallest step that the controller or the resolution of time allow."""
    return max(control.dt_min, 16.0 * math.ulp(max(abs(t), abs(run.times[-1] - run.times[0]))))


def _check_rejected(run: Run, control: AdaptiveStepSize, t: float, taken: float, h: float) -> None:
    """Refuses to go on if f rejected the smallest of steps."""
    if h < _smallest(run, control, t):
        raise StepTooSmallError(
            f"f rejects every step (it raises RejectStep) from t = {t:.6g} on, after "
            f"{run.stats.accepted} accepted steps, even one of {taken:.3g}. The solution may leave the "
            "domain of f here"
        )


def check_size(
    run: Run,
    control: AdaptiveStepSize,
    t: float,
    taken: float,
    h: float,
    ratio: float,
    y: Leaves,
    p: Leaves,
) -> None:
    """Refuses to go on with steps too small, after an attempt at `t` from `y` that took `taken`."""
    smallest = _smallest(run, control, t)
    if h >= smallest:
        return
    where = f"at t = {t:.6g} after {run.stats.accepted} accepted steps"
    leaf, growth = _look(run, t, taken, y, p)
    if not math.isfinite(ratio):
        raise NonFiniteDerivativeError(
            f"f gives NaN or infinity near the solution {where}{leaf}, even for a step of {taken:.3g}. "
            "The solution may blow up here, or leave the domain of f; check f at this point"
        )
    hint = (
        "f may be stiff here, or jump (name the time in breakpoints); or the tolerances are below "
        "what f can resolve: raise rtol and atol"
    )
    if growth > 1e-4:
        hint = (
            f"The solution grows by {growth:.2g} of itself in a step of {taken:.3g}: "
            f"the solution may be singular near t = {t:.6g}. End before, or change the model"
        )
    raise StepTooSmallError(
        f"the error control asks for a step of {h:.3g}, below {smallest:.3g}, {where} "
        f"(error / tolerance = {ratio:.3g}). {hint}"
    )


def _look(run: Run, t: float, taken: float, y: Leaves, p: Leaves) -> tuple[str, float]:
    """Where a solve fails: the first leaf in which f is not finite, and by which part of itself y grows.

    Both are for a message only, so that nothing is said if f cannot be evaluated there.
    """
    field, n, y = run.field, run.field.n_state, tuple(x.detach() for x in y)
    direction = math.copysign(taken, run.times[-1] - run.times[0])
    snapshot = field.snapshot()
    try:
        with torch.no_grad():
            slope = field(t, y, p)
            after = axpy(y, direction, (1.0,), (slope,))
            slopes: list[Leaves] = [slope, field(t + direction, after, p)]
        bad = [i for k in slopes for i in range(n) if not _finite(k[i])]
        growth = float(rms_norm(after[:n]) / rms_norm(y[:n])) - 1.0
    except Exception:  # whatever f raises here, it is not what the solve failed by
        return "", 0.0
    finally:
        if snapshot is not None:
            snapshot.restore()
    return (f", in leaf {field.leaf(bad[0])}" if bad else ""), growth


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def check_count(run: Run, t: float, taken: float) -> None:
    """Refuses to go on after too many attempts."""
    limit = DEFAULT_MAX_STEPS if run.max_steps is None else run.max_steps
    attempts = run.stats.accepted + run.stats.rejected
    if attempts >= limit:
        raise MaxStepsError(
            f"{attempts} steps attempted ({run.stats.rejected} rejected) and only t = {t:.6g} of "
            f"{run.times[-1]:.6g} reached; the last step was {taken:.3g}. Raise max_steps or the "
            "tolerances; if the steps are tiny, the problem may be stiff"
        )
