"""Steps without gradients, one by one, until something happens."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from odegrad.assemble import Problem, assemble
from odegrad.compat.torchdiffeq.callbacks import Watch
from odegrad.compat.torchdiffeq.controller import Controller
from odegrad.compat.torchdiffeq.errors import AssertedMaxStepsError, AssertedValueError
from odegrad.compat.torchdiffeq.field import Landing, field, within
from odegrad.compat.torchdiffeq.inputs import Call
from odegrad.compat.torchdiffeq.options import AdaptiveOptions, FixedOptions
from odegrad.errors import NonFiniteStateError
from odegrad.gradients import Discrete
from odegrad.grid import Clock
from odegrad.root import root
from odegrad.schemes.base import Scheme
from odegrad.schemes.restarted import Restarted
from odegrad.state import Leaves
from odegrad.stepsize import FixedStepSize, Steps, StepSize
from odegrad.sweeps.adaptive import DEFAULT_MAX_STEPS, adaptive_steps, first_size
from odegrad.sweeps.stats import Stats
from odegrad.sweeps.steps import Accepted, fixed_grid, number, steps

__all__ = ["Crossing", "cross"]

MOST_FIXED = 20_000
"""The most fixed steps towards an event."""

_FIRST_SPAN = 1e3
"""The first stretch, in first steps."""


@dataclass(frozen=True)
class Crossing:
    """A step in which g changes its sign.

    Attributes:
        nodes: The times of the steps up to its start.
        time: The time of the event in it.
        state: The state after a step from its start to that time.
        scheme: How steps were taken.
    """

    nodes: tuple[float, ...]
    time: float
    state: Leaves
    scheme: Scheme


def cross(call: Call, g: Callable[[float, Leaves], float]) -> Crossing | None:
    """Steps until g, which is positive at the start, is no longer; None if it is zero there.

    Adaptive steps are taken in stretches, each 8 times as long as the one before, whose ends are stepped
    onto; the first one is a thousand times as long as the first step.

    Arguments:
        call: The solve; of t[1] only the direction counts.
        g: Maps the time and the leaves of the state to a number.

    Raises:
        MaxStepsError: If that does not come within the steps allowed.
        NonFiniteStateError: If g is NaN.
    """
    march = _March(call, g)
    if march.value == 0.0:
        return None
    return march.adaptive() if call.method.adaptive else march.fixed()


class _March:
    """A solve without an end."""

    def __init__(self, call: Call, g: Callable[[float, Leaves], float]) -> None:
        self._call, self._g, self._reading = call, g, call.reading
        start, other = (float(x) for x in call.t.detach())
        self._direction = 1.0 if other > start else -1.0
        self._watch = Watch(call.func, call.method, call.packed)
        self._nodes = [start]
        self._y: Leaves = tuple(leaf.detach().clone() for leaf in call.leaves)
        self._carry: Leaves | None = None
        self._stats = Stats()  # of all stretches: the limit is one of all attempts
        self.value = g(start, self._y)

    def fixed(self) -> Crossing:
        """On equal steps."""
        call, start = self._call, self._nodes[0]
        options = FixedOptions.read(call.options, call.method)
        if options.step_size is None:
            raise AssertedValueError(
                "Event handling for fixed step solvers currently requires `step_size` to be provided in "
                "options."
            )
        scheme = call.method.make(**options.own)
        if options.perturb:
            scheme = Restarted(scheme, call.margin)
            second = start + self._direction * options.step_size
            self._reading = within(call.reading, start, second, call.margin)
        stop = start + self._direction * options.step_size * MOST_FIXED
        found = self._stretch(scheme, Steps(MOST_FIXED), stop, None, None)
        if found is None:
            raise AssertedMaxStepsError(
                f"Reached maximum number of iterations {MOST_FIXED} at t = {stop:.6g} without an event"
            )
        return found

    def adaptive(self) -> Crossing:
        """On adaptive steps."""
        call = self._call
        options = AdaptiveOptions.read(
            call.options, call.method, call.rtol, call.atol, call.packed, call.t
        )
        landing = Landing(options.step_t) if options.step_t else None
        limit = DEFAULT_MAX_STEPS if options.max_num_steps is None else options.max_num_steps
        scheme, control, span = call.method.make(), options.control, 0.0
        if options.jump_t:  # the restart goes with the scheme, also in solves that know of no jump
            scheme = Restarted(scheme, call.margin)
            landing = Landing((*options.step_t, *options.jump_t))
        while True:
            if control.dt0 is None:
                control = dataclasses.replace(control, dt0=self._first_size(scheme, control))
            span = 8.0 * span if span else _FIRST_SPAN * (control.dt0 or 1.0)
            stop = self._nodes[-1] + self._direction * span
            found = self._stretch(scheme, control, stop, landing, limit)
            if found is not None:
                return found
            attempts = self._stats.accepted + self._stats.rejected
            if attempts >= limit:
                raise AssertedMaxStepsError(
                    f"{attempts} steps attempted, and no event before t = {self._nodes[-1]:.6g}: "
                    "raise options['max_num_steps'], or check that the event comes in this direction"
                )
            sizes = [abs(b - a) for a, b in itertools.pairwise(self._nodes[-3:])]
            control = dataclasses.replace(control, dt0=max(sizes))

    def _first_size(self, scheme: Scheme, control: Controller) -> float:
        ahead = self._nodes[0] + self._direction
        problem = self._problem(scheme, control, ahead, None, None)
        run, y, p = problem.run, problem.y, problem.p
        return run.field.bound(p, lambda: first_size(run, control, y, p))

    def _problem(
        self,
        scheme: Scheme,
        stepsize: StepSize,
        stop: float,
        landing: Landing | None,
        limit: int | None,
    ) -> Problem:
        """A solve from the current state to a time ahead."""
        call = self._call
        return assemble(
            field(self._reading, call.func, landing, call.params),
            self._y if call.packed else self._y[0],
            [self._nodes[-1], stop],
            (),
            scheme=self._watch.over(scheme),
            stepsize=stepsize,
            gradient=Discrete(),
            compile=False,
            max_steps=limit,
        )

    def _stretch(
        self,
        scheme: Scheme,
        stepsize: StepSize,
        stop: float,
        landing: Landing | None,
        limit: int | None,
    ) -> Crossing | None:
        """The event, if it comes before some time; else the state is that at this time."""
        problem = self._problem(scheme, stepsize, stop, landing, limit)
        run, p = problem.run, problem.p
        run.stats = self._stats
        if isinstance(stepsize, FixedStepSize):
            run.grid = fixed_grid(run, stepsize)
        return run.field.bound(p, lambda: self._walk(problem, scheme))

    def _walk(self, problem: Problem, scheme: Scheme) -> Crossing | None:
        run, p = problem.run, problem.p
        carry = self._carry
        if carry is None:
            carry = run.scheme.init(run.field, run.times[0], self._y, p)
        if run.grid is not None:
            walk = steps(run, Clock(run.grid, run.times), 0, run.grid.n_steps, self._y, carry, p)
        else:
            walk = adaptive_steps(run, self._y, carry, p, run.times)
        for taken in walk:
            start, stop = number(taken.t), number(taken.t) + number(taken.dt)
            value = self._g(stop, taken.step.y)
            if math.isnan(value):
                raise NonFiniteStateError(f"event_fn is NaN at t = {stop:.6g}")
            run.stats.accepted += 1
            if value <= 0.0:
                self._watch.close()

                def state(time: float, last: Accepted = taken, start: float = start) -> Leaves:
                    if time == start:
                        return last.y
                    dt = time - start
                    return run.scheme.step(run.field, start, dt, last.y, last.carry, p).y

                time = root(lambda s: self._g(s, state(s)), start, stop, self.value, value)
                return Crossing(tuple(self._nodes), time, state(time), scheme)
            self.value = value
            self._nodes.append(stop)
            self._y, self._carry = taken.step.y, taken.step.carry
        return None
