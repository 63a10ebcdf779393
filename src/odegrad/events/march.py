"""Steps without gradients, from the start of a stretch until a jump, a terminal event, or the end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from odegrad.assemble import Problem
from odegrad.errors import InvalidValueError, MaxStepsError
from odegrad.events.curve import Curve, Span, points, rate
from odegrad.events.watch import Root, Watch
from odegrad.grid import Clock, Grid, Leading, Nodes, Segment
from odegrad.state import Leaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.adaptive import adaptive_steps, check_count
from odegrad.sweeps.run import Run
from odegrad.sweeps.steps import Accepted, Walk, fixed_grid, number, read, steps

__all__ = ["Marched", "march"]


@dataclass
class Marched:
    """What became of a stretch.

    Attributes:
        problem: The stretch.
        roots: The occurrences, in order.
        segments: The steps that were taken.
        stop: Where it ended.
        ended: Whether a terminal event ended it.
        rows: The states at the times reached, by the number of the time; empty if they are not wanted.
        sizes: |y| in its last step.
    """

    problem: Problem
    roots: list[Root] = field(default_factory=list[Root])
    segments: list[Segment] = field(default_factory=list[Segment])
    stop: float = 0.0
    ended: bool = False
    rows: dict[int, Leaves] = field(default_factory=dict[int, Leaves])
    sizes: Leaves = ()

    @property
    def grid(self) -> Grid:
        """These steps."""
        return Grid(tuple(self.segments))

    @property
    def jumping(self) -> Root | None:
        """The event whose jump comes next, or None."""
        interrupted = bool(self.segments) and isinstance(self.segments[-1], Leading)
        return self.roots[-1] if interrupted and not self.ended else None


def march(marched: Marched, watch: Watch, own: int | None, sizes: Leaves) -> None:
    """Takes the steps of a stretch; `marched` is filled in step by step.

    Arguments:
        marched: Where to.
        watch: The events.
        own: The event whose jump it is after, or None.
        sizes: |y| in the step before, or at the start.

    Raises:
        SolveError: If the steps fail.
        InvalidValueError: If a recorded grid ends with an event that does not come.
    """
    problem = marched.problem
    run, p = problem.run, problem.p
    y = tuple(leaf.detach().clone() for leaf in problem.y)  # the caller's are never handed out
    run.initial = run.field.snapshot()
    marched.stop, marched.rows[0], marched.sizes = run.times[0], y, sizes
    if len(run.times) < 2:
        return
    monitor = None if problem.differentiated else run.monitor
    if monitor is not None:
        monitor.start("forward")
    try:
        with torch.no_grad():
            run.field.bound(p, lambda: _March(marched, watch, own, y).go())
    finally:
        run.count()
        run.stats.forward_evaluations = run.stats.f_evaluations
        if monitor is not None:
            monitor.stop()


class _March:
    """The loop over the steps."""

    def __init__(self, marched: Marched, watch: Watch, own: int | None, y: Leaves) -> None:
        self._marched, self._watch, self._y = marched, watch, y
        self._run, self._p = marched.problem.run, marched.problem.p
        self._sign = -1.0 if self._run.times[-1] < self._run.times[0] else 1.0
        self._kept = self._run.salvage or not marched.problem.differentiated
        self._parts, self._clock = [0.0], None
        begin = self._run.times[0]
        watch.begin(begin, y, marched.sizes, lambda: _slope(self._run, begin, y, self._p), own)

    def go(self) -> None:
        """Takes steps until something ends them."""
        run = self._run
        for taken in self._walk():
            run.stats.accepted += 1
            root = self._occurred(taken)
            self._put_out(taken)
            if self._took(taken, root is not None):
                return

    def _walk(self) -> Walk:
        run, p = self._run, self._p
        if isinstance(run.stepsize, FixedStepSize):
            grid = fixed_grid(dataclasses.replace(run, max_steps=None), run.stepsize)
            attempts = run.stats.accepted + run.stats.rejected + grid.n_steps
            if run.max_steps is not None and attempts > run.max_steps:
                raise MaxStepsError(
                    f"the grid has {attempts} steps, max_steps is {run.max_steps}; raise max_steps or "
                    "take larger steps"
                )
            clock = self._clock = Clock(grid, run.times, run.stops)
            carry = run.scheme.init(run.field, run.times[0], self._y, p)
            return steps(run, clock, 0, grid.n_steps, self._y, carry, p)
        check_count(run, run.times[0], 0.0)
        carry = run.scheme.init(run.field, run.times[0], self._y, p)
        return adaptive_steps(run, self._y, carry, p, run.times)

    def _occurred(self, taken: Accepted) -> Root | None:
        """The event that ends the stretch in a step, if there is one; those before it are noted."""
        marched, run, watch = self._marched, self._run, self._watch
        start, dt = number(taken.t), number(taken.dt)
        landing = self._landing(taken)
        stop = start + dt if landing is None else run.times[landing]
        marched.stop = stop
        if dt == 0.0 or stop == start:
            return None
        found: list[Curve] = []

        def curve() -> Curve:
            if not found:
                found.append(_curve(run, taken, start, dt, self._p))
            return found[0]

        def slope(t: float) -> Leaves:
            return rate(partial(_inside, run, taken, start, dt, self._p), t)

        for root in watch.occurring(start, stop, taken.step.y, curve, slope):
            ends = watch.count(root.event)
            marched.roots.append(root)
            if ends or watch.jumps(root.event):
                marched.stop, marched.ended = root.time, ends
                marched.sizes = tuple(x.abs().amax(dim=0) for x in root.curve.values)
                return root
        watch.go_on()
        return None

    def _put_out(self, taken: Accepted) -> None:
        """Notes the states at the times in a step that were reached."""
        marched, run = self._marched, self._run
        inside = read(run, taken, self._p)
        landing = self._landing(taken)
        if landing is not None:
            inside.append((landing, taken.step.y))
        for j, y in inside:
            if self._sign * (run.times[j] - marched.stop) <= 0.0:
                marched.rows[j] = y if self._kept else ()
        monitor = run.monitor
        if monitor is not None and not marched.problem.differentiated:
            t, dt = number(taken.t), number(taken.dt)
            monitor.step("forward", taken.n, t, dt, taken.step.y, run.stats)

    def _landing(self, taken: Accepted) -> int | None:
        """The time that a step ends on; a recorded segment that an event ended has none at its end."""
        if self._clock is not None and taken.landing is not None:
            k, i = self._clock.locate(taken.n)
            segment = self._clock.segment(k)
            if isinstance(segment, Leading) and i + 1 < len(segment.whole):
                return None
        return taken.landing

    def _took(self, taken: Accepted, last: bool) -> bool:
        """Notes a step; whether it was the last one."""
        segments, clock = self._marched.segments, self._clock
        if clock is not None:
            k, i = clock.locate(taken.n)
            segment = clock.segment(k)
            whole = segment.whole if isinstance(segment, Leading) else segment
            if last:
                segments.append(Leading(whole, i + 1))
            elif taken.landing is not None:
                if isinstance(segment, Leading):
                    raise InvalidValueError(
                        "the recorded grid ends with an event in its step "
                        f"{taken.n}, which does not come there: solve anew with the step sizes that "
                        "the grid was recorded with"
                    )
                segments.append(segment)
            return last
        assert taken.part is not None
        self._parts.append(taken.part)
        if last:
            n, tail = len(self._parts) - 1, () if taken.part == 1.0 else (1.0,)
            segments.append(Leading(Nodes((*self._parts, *tail)), n))
        elif taken.landing is not None:
            segments.append(Nodes(tuple(self._parts)))
            self._parts = [0.0]
        return last


def _inside(run: Run, taken: Accepted, start: float, dt: float, p: Leaves, t: Tensor) -> Leaves:
    """The state inside a step."""
    return run.scheme.read(run.field, start, dt, taken.y, taken.step, p, [t])[0]


def _curve(run: Run, taken: Accepted, start: float, dt: float, p: Leaves) -> Curve:
    """The dense output of a step."""
    span = Span(start, dt, points(run.scheme))
    inside = run.scheme.read(run.field, start, dt, taken.y, taken.step, p, span.times)
    return Curve(span, tuple(torch.stack(x) for x in zip(*inside, strict=True)))


def _slope(run: Run, t: float, y: Leaves, p: Leaves) -> Leaves:
    """f at the start, which leaves no trace in generators and buffers."""
    snapshot = run.field.snapshot()
    try:
        return run.field(t, y, p)
    finally:
        if snapshot is not None:
            snapshot.restore()
