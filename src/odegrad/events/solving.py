"""A solve with events: stretch after stretch, each a solve of its own, joined on the autograd graph."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor

from odegrad.assemble import Problem
from odegrad.dense import Reader
from odegrad.errors import EventError, InvalidValueError, MaxStepsError, SolveError
from odegrad.events.following import following
from odegrad.events.functions import Functions
from odegrad.events.implicit import located
from odegrad.events.march import Marched, march
from odegrad.events.occurred import Occurred
from odegrad.events.placed import Solver, placed
from odegrad.events.reading import read_stretches
from odegrad.events.watch import Watch
from odegrad.gradients.failed import failed
from odegrad.grid import Grid, Uniform
from odegrad.inputs import check_result
from odegrad.solution import Solution, Status, status_of
from odegrad.state import Leaves
from odegrad.stepsize import AdaptiveStepSize
from odegrad.sweeps import Stats

__all__ = ["MOST_JUMPS", "solve_events"]

MOST_JUMPS = 100_000
"""The most jumps of a solve."""

_STUCK = 16.0
"""A stretch of fewer units in the last place does not count as progress."""


def solve_events(
    problem: Problem,
    functions: Functions,
    recorded: Grid | None,
    solver: Solver,
    on_failure: str,
) -> Solution:
    """Solves what was assembled, with events.

    Arguments:
        problem: The solve as it would be without events.
        functions: The events.
        recorded: The grid of an earlier such solve, to be replayed, or None.
        solver: Runs a stretch whose steps are known.
        on_failure: As for `odegrad.solve`.

    Raises:
        SolveError: If it fails and `on_failure` is "raise".
        InvalidValueError: If a recorded grid does not fit.
    """
    given = problem.ts
    problem = dataclasses.replace(problem, ts=given.to("cpu", torch.float64))
    problem.run.salvage = on_failure != "raise"
    solve = _Solve(problem, functions, recorded, solver)
    status, reason = Status.SUCCESS, ""
    try:
        ended = solve.through()
        status = Status.EVENT if ended else status
        outputs = solve.outputs()
        _check(problem, outputs)
    except SolveError as error:
        if on_failure == "raise":
            raise
        outputs = failed(
            solve.salvaged(on_failure), (*problem.y, *problem.p, given), problem.differentiated
        )
        status, reason = status_of(error), str(error)
        solve.occurred.clear()
    good, run, n = not reason, problem.run, problem.run.field.n_state
    stretches = solve.stretches
    grid = Grid(tuple(s for marched in stretches for s in marched.segments))
    reached = outputs[0].shape[0]
    stop, sign = stretches[-1].stop, _direction(problem)
    return Solution(
        ys=problem.structure.unflatten(outputs[:n]),
        ts=given[list(problem.places[:reached])],
        stats=solve.counted(),
        status=status,
        grid=grid if good else Grid(()),
        landings=tuple(run.times[j] for j in run.landed if sign * (run.times[j] - stop) <= 0.0),
        running=outputs[n] if len(outputs) > n else None,
        events=solve.occurred.records(given.dtype, given.device),
        reason=reason,
        _read=_reader(stretches, solver) if good and len(run.times) > 1 else None,
    )


def _reader(stretches: list[Marched], solver: Solver) -> Reader:
    read = partial(read_stretches, stretches, solver)
    return Reader([marched.problem for marched in stretches], read)


def _direction(problem: Problem) -> float:
    times = problem.run.times
    return -1.0 if times[-1] < times[0] else 1.0


def _check(problem: Problem, outputs: Leaves) -> None:
    """Whether the outputs are finite, where steps did not see to it."""
    run = problem.run
    if problem.check_finite and not isinstance(run.stepsize, AdaptiveStepSize):
        times = tuple(run.times[j] for j in problem.places[: outputs[0].shape[0]])
        check_result(outputs, times, problem.structure.leaf_names())


class _Solve:
    """The loop over the stretches."""

    def __init__(
        self, problem: Problem, functions: Functions, recorded: Grid | None, solver: Solver
    ) -> None:
        self._problem, self._functions, self._solver = problem, functions, solver
        self._recorded, self._used = recorded, 0
        self._outputs: list[Leaves] = []
        self._stats = Stats()
        self._stuck = 0
        self.stretches: list[Marched] = []
        self.occurred = Occurred(functions, problem)

    def through(self) -> bool:
        """Solves; whether a terminal event ended it."""
        stretch: Problem | None = self._with_grid(self._problem)
        start, stop = stretch.run.times[0], stretch.run.times[-1]
        watch = Watch(self._functions, start, stop, torch.is_grad_enabled())
        own, sizes = None, tuple(x.detach().abs() for x in stretch.y)
        while stretch is not None:
            marched = Marched(stretch)
            self.stretches.append(marched)
            self._march(marched, watch, own, sizes)
            self._used += len(marched.segments)
            stretch = self._joined(marched)
            if stretch is not None:
                root = marched.jumping
                assert root is not None
                own, after = root.event, (x.detach().abs() for x in stretch.y)
                sizes = tuple(map(torch.maximum, marched.sizes, after))
                self._check_progress(marched, own)
        if self._recorded is not None and self._used != len(self._recorded.segments):
            raise InvalidValueError(
                f"the recorded grid has {len(self._recorded.segments)} segments, and the solve ended "
                f"after {self._used}: replay it with the times and the events that it was recorded with"
            )
        return self.stretches[-1].ended

    def outputs(self) -> Leaves:
        """The states at all of the user's times that were reached."""
        return tuple(torch.cat(x) for x in zip(*self._outputs, strict=True))

    def salvaged(self, on_failure: str) -> Leaves:
        """The states at all of the user's times: those reached with "return", else NaN."""
        problem = self._problem
        parts = [x.detach() for x in self.outputs()] if self._outputs else []
        done, last = len(self._outputs), self.stretches[-1] if self.stretches else None
        if last is not None and done < len(self.stretches):
            rows = [last.rows[j] for j in last.problem.places if j in last.rows]
            for y in rows:
                new = [x.detach()[None] for x in y]
                parts = [torch.cat(pair) for pair in zip(parts, new, strict=True)] if parts else new
        total = len(problem.places)
        found: list[Tensor] = []
        for i, leaf in enumerate(problem.y):
            buffer = leaf.detach().new_full((total, *leaf.shape), float("nan"))
            if parts and on_failure == "return":
                buffer[: len(parts[i])] = parts[i]
            found.append(buffer)
        return tuple(found)

    def counted(self) -> Stats:
        """What all stretches did."""
        searched, stats = self._problem.run.stats, self._stats
        if not any(marched.problem.differentiated for marched in self.stretches):
            return searched
        stats.accepted, stats.rejected = searched.accepted, searched.rejected
        stats.f_evaluations = stats.forward_evaluations = self._problem.run.field.evaluations
        return stats

    def _march(self, marched: Marched, watch: Watch, own: int | None, sizes: Leaves) -> None:
        try:
            march(marched, watch, own, sizes)
        except MaxStepsError as error:
            jumps = len(self.stretches) - 1
            if not jumps:
                raise
            raise MaxStepsError(
                f"{error}. There were {jumps} jumps before: if they follow each other faster and faster, "
                "as those of a ball that comes to rest, end the solve before, with max_count or a "
                "terminal event"
            ) from error

    def _joined(self, marched: Marched) -> Problem | None:
        """Puts a stretch on the graph; the stretch that follows, or None."""
        stretch = placed(marched, self._solver, self._stats)
        self._outputs.append(stretch.outputs)
        functions, time, after = self._functions, None, None
        for root in marched.roots:
            time, y = located(root, stretch.curves[root.curve.span], functions)
            after = None
            if functions.events[root.event].jump is not None:
                after = functions.jumped(root.event, time, y, self._problem.check_finite)
            self.occurred.add(root.event, time, y, after)
        if marched.jumping is None:
            return None
        assert time is not None
        assert after is not None
        stretch_after = following(marched, time, after)
        return None if stretch_after is None else self._with_grid(stretch_after)

    def _with_grid(self, stretch: Problem) -> Problem:
        """A stretch with its part of the recorded grid, if there is one."""
        if self._recorded is not None:
            m = len(stretch.run.landed) - 1
            segments = self._recorded.segments[self._used : self._used + m]
            # What a stretch does not reach may be anything.
            rest = (Uniform(1),) * (m - len(segments))
            stretch.run.stepsize = Grid((*segments, *rest))
        return stretch

    def _check_progress(self, marched: Marched, i: int) -> None:
        """Refuses to go on if jumps follow each other at one time."""
        start, stop = marched.problem.run.times[0], marched.stop
        unit = torch.finfo(torch.float64).eps * max(abs(start), abs(stop))
        self._stuck = self._stuck + 1 if abs(stop - start) <= _STUCK * unit else 0
        if self._stuck > 8 * len(self._functions.events):
            raise EventError(
                f"{self._stuck} jumps in a row at t = {stop:.9g}, the last one of events[{i}]: time does "
                "not go on. Let the jumps lead away from the events, or end the solve there"
            )
        if len(self.stretches) > MOST_JUMPS:
            raise EventError(
                f"{MOST_JUMPS} jumps, and only t = {stop:.9g} reached, the last one of events[{i}]: end "
                "the solve before, with max_count or a terminal event"
            )
