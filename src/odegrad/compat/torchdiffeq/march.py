"""Steps without gradients, one by one, until something happens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.assemble import Problem, assemble
from odegrad.compat.torchdiffeq.callbacks import Watch
from odegrad.compat.torchdiffeq.errors import AssertedValueError
from odegrad.compat.torchdiffeq.field import Landing, field
from odegrad.compat.torchdiffeq.inputs import Call
from odegrad.compat.torchdiffeq.options import AdaptiveOptions, FixedOptions
from odegrad.errors import MaxStepsError, NonFiniteStateError
from odegrad.gradients import Discrete
from odegrad.grid import Clock
from odegrad.schemes.base import Scheme
from odegrad.schemes.restarted import Restarted
from odegrad.state import Leaves
from odegrad.stepsize import Steps
from odegrad.sweeps.adaptive import adaptive_steps, first_size
from odegrad.sweeps.steps import Accepted, fixed_grid, number, steps

__all__ = ["Crossing", "March", "cross", "march_of"]

MOST_FIXED = 20_000
"""The most fixed steps towards an event."""

_FIRST_SPAN = 1e3
"""The first landing, in first steps: beyond it the landings are further and further apart."""


@dataclass(frozen=True)
class March:
    """A solve without an end.

    Attributes:
        problem: It, as far as its last landing, which nobody means to reach.
        scheme: How steps are taken.
        watch: Who is told of them.
    """

    problem: Problem
    scheme: Scheme
    watch: Watch

    def steps(self) -> Iterator[Accepted]:
        """The accepted steps; ends only with the limit of steps."""
        run, y, p = self.problem.run, self.problem.y, self.problem.p
        y = tuple(leaf.detach().clone() for leaf in y)
        carry = run.scheme.init(run.field, run.times[0], y, p)
        if run.grid is not None:
            return steps(run, Clock(run.grid, run.times), 0, run.grid.n_steps, y, carry, p)
        return adaptive_steps(run, y, carry, p, run.times)


@dataclass(frozen=True)
class Crossing:
    """A step in which g changes its sign.

    Attributes:
        nodes: The times of the steps up to its start.
        time: The time of the event in it.
        state: Φ: the state after a step from its start to some time.
    """

    nodes: tuple[float, ...]
    time: float
    state: Callable[[float], Leaves]


def march_of(call: Call) -> March:
    """Prepares the steps of a call, from t[0] in the direction of t[1]."""
    start, other = (float(x) for x in call.t.detach())
    direction = 1.0 if other > start else -1.0
    watch = Watch(call.func, call.method, call.packed)
    landing, jumps, limit = None, (), None
    if call.method.adaptive:
        options = AdaptiveOptions.read(
            call.options, call.method, call.rtol, call.atol, call.packed, call.t
        )
        landing = Landing(options.step_t) if options.step_t else None
        scheme, stepsize, limit = call.method.make(), options.control, options.max_num_steps
        jumps, times = options.jump_t, [start, start + direction]
    else:
        fixed = FixedOptions.read(call.options, call.method)
        if fixed.step_size is None:
            raise AssertedValueError(
                "Event handling for fixed step solvers currently requires `step_size` to be provided in "
                "options."
            )
        scheme, stepsize = call.method.make(**fixed.own), Steps(MOST_FIXED)
        if fixed.perturb:
            scheme = Restarted(scheme, call.margin)
        times = [start, start + direction * fixed.step_size * MOST_FIXED]
    f = field(call.reading, call.func, landing, call.params)

    def assembled(landings: list[float]) -> Problem:
        return assemble(
            f,
            call.y0,
            landings,
            (),
            scheme=watch.over(scheme),
            stepsize=stepsize,
            gradient=Discrete(),
            compile=False,
            breakpoints=jumps,
            max_steps=limit,
        )

    problem = assembled(times)
    if call.method.adaptive:
        run = problem.run
        h = run.field.bound(problem.p, lambda: first_size(run, run.stepsize, problem.y, problem.p))
        problem = assembled(list(_landings(start, direction * h * _FIRST_SPAN)))
    else:
        problem.run.grid = fixed_grid(problem.run, stepsize)  # pyright: ignore[reportArgumentType]
    # The restart at jumps goes with the scheme, so that it also is in solves that know of no jump.
    plain = Restarted(scheme, call.margin) if isinstance(problem.run.scheme, Restarted) else scheme
    return March(problem, plain, watch)


def _landings(start: float, span: float) -> Iterator[float]:
    """start, and times ever further ahead, as far as floats go."""
    yield start
    for k in itertools.count():
        time = start + span * 8.0**k
        if not abs(time) < 1e30:
            return
        yield time


def cross(march: March, g: Callable[[float, Leaves], float]) -> Crossing | None:
    """Steps until g, which is positive at the start, is no longer; None if it is zero there.

    Raises:
        MaxStepsError: If that does not come within the steps allowed.
        NonFiniteStateError: If g is NaN.
    """
    run, p = march.problem.run, march.problem.p
    return run.field.bound(p, lambda: _cross(march, g))


def _cross(march: March, g: Callable[[float, Leaves], float]) -> Crossing | None:
    run, p, n = march.problem.run, march.problem.p, len(march.problem.y)
    start = run.times[0]
    before = g(start, march.problem.y)
    if before == 0.0:
        return None
    nodes = [start]
    for accepted in march.steps():
        t, dt = number(accepted.t), number(accepted.dt)
        after = g(t + dt, accepted.step.y[:n])
        if math.isnan(after):
            raise NonFiniteStateError(f"event_fn is NaN at t = {t + dt:.6g}")
        run.stats.accepted += 1
        if after <= 0.0:
            march.watch.close()

            def state(time: float, last: Accepted = accepted, begin: float = t) -> Leaves:
                if time == begin:
                    return last.y
                return run.scheme.step(
                    run.field, begin, time - begin, last.y, last.carry, p
                ).y

            time = _root(lambda s: g(s, state(s)), t, t + dt, before, after)
            final = tuple(x.clone() for x in state(time))
            return Crossing(tuple(nodes), time, lambda _: final)
        before = after
        nodes.append(t + dt)
    raise MaxStepsError(
        f"Reached maximum number of iterations {len(nodes) - 1} at t = {nodes[-1]:.6g} without an event"
    )


def _root(g: Callable[[float], float], a: float, b: float, ga: float, gb: float) -> float:
    """The root of g between a and b, where its signs differ, to the resolution of floats.

    Regula falsi, in which the value at an end that stays is halved (the Illinois rule), with a bisection
    whenever that has not halved the bracket in three steps.

    Reference: M. Dowell, P. Jarratt, *A modified regula falsi method for computing the root of an
    equation*, BIT 11 (1971).
    """
    best, width, side = (a, abs(ga)) if abs(ga) < abs(gb) else (b, abs(gb)), abs(b - a), 0
    for k in range(200):
        if best[1] == 0.0 or abs(b - a) <= 2.0 * math.ulp(max(abs(a), abs(b))):
            break
        middle = 0.5 * (a + b)
        x = middle
        if k % 4 < 3 and math.isfinite(ga) and math.isfinite(gb) and ga != gb:
            x = a - ga * (b - a) / (gb - ga)
            if not min(a, b) < x < max(a, b):
                x = middle
        gx = g(x)
        if abs(gx) <= best[1]:
            best = (x, abs(gx))
        if gx > 0.0:
            a, ga = x, gx
            gb, side = (0.5 * gb, 1) if side == 1 else (gb, 1)
        else:
            b, gb = x, gx
            ga, side = (0.5 * ga, -1) if side == -1 else (ga, -1)
        if k % 4 == 3 and abs(b - a) > 0.5 * width:
            side = 0
        width = abs(b - a)
    return best[0]
