"""Single steps of a sweep, and the walk along a known grid."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, TypeAlias

from torch import Tensor

from odegrad.errors import MaxStepsError, annotate
from odegrad.grid import Clock, Grid, Segment
from odegrad.replay import Snapshot
from odegrad.schemes.base import Step
from odegrad.state import Leaves, Time
from odegrad.stepsize import FixedStepSize, shared_number
from odegrad.sweeps.run import Landings, Run

__all__ = ["Accepted", "Landings", "State", "Walk", "fixed_grid", "number", "read", "steps", "take"]

State: TypeAlias = tuple[Leaves, Leaves]
"""A state and the carry with it."""


class Accepted(NamedTuple):
    """An accepted step: its number, where it began, what came out, and where it is read inside.

    `part` is the part of its segment at which it ends, where that is decided step by step.
    """

    n: int
    t: Time
    dt: Time
    y: Leaves
    carry: Leaves
    snapshot: Snapshot | None
    step: Step
    evaluations: int
    landing: int | None
    reads: tuple[tuple[int, Time], ...] = ()
    part: float | None = None


Walk: TypeAlias = Generator[Accepted, State | None, None]
"""Accepted steps one by one. It may be sent the state to go on from, where that is not the step's own."""


def fixed_grid(run: Run, stepsize: FixedStepSize) -> Grid:
    """The grid of step sizes that do not depend on the solution.

    Raises:
        MaxStepsError: If it has more than `run.max_steps` steps.
    """
    times = [run.times[j] for j in run.landed]
    stepsize.check(len(times) - 1)
    segments: list[Segment] = [
        stepsize.segment(k, times[k], times[k + 1], run.eps) for k in range(len(times) - 1)
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
) -> Walk:
    """Takes the steps start … stop − 1 of a known grid from the state before step `start`."""
    field = run.field
    for n in range(start, stop):
        t, dt = clock.step(n)
        snapshot, before = field.snapshot(), field.evaluations
        step = take(run, n, t, dt, y, carry, p)
        count = field.evaluations - before
        sent = yield Accepted(
            n, t, dt, y, carry, snapshot, step, count, clock.landing(n), clock.reads(n)
        )
        y, carry = sent or (step.y, step.carry)


def take(run: Run, n: int, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves) -> Step:
    """Step n of the scheme; an exception of f learns where it was raised."""
    try:
        return run.scheme.step(run.field, t, dt, y, carry, p)
    except Exception as error:
        start, length = (shared_number(x) if isinstance(x, Tensor) else x for x in (t, dt))
        annotate(error, f"at t = {start:.6g}, step {n}, which is {length:.3g} long")
        raise


def read(run: Run, accepted: Accepted, p: Leaves) -> list[tuple[int, Leaves]]:
    """The states at the times inside an accepted step, with their numbers."""
    if not accepted.reads:
        return []
    numbers, times = zip(*accepted.reads, strict=True)
    found = run.scheme.read(run.field, accepted.t, accepted.dt, accepted.y, accepted.step, p, times)
    return list(zip(numbers, found, strict=True))


def number(t: Time) -> float:
    """A time as a float, off the graph."""
    return float(t.detach()) if isinstance(t, Tensor) else t
