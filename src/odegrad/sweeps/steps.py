"""Single steps of a sweep, and the walk along a known grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from torch import Tensor

from odegrad.errors import MaxStepsError
from odegrad.grid import Clock, Grid, Segment
from odegrad.replay import Snapshot
from odegrad.schemes.base import Step
from odegrad.state import Leaves, Time
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.run import Run

__all__ = ["Accepted", "Landings", "fixed_grid", "number", "steps"]

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


def number(t: Time) -> float:
    """A time as a float, off the graph."""
    return float(t.detach()) if isinstance(t, Tensor) else t
