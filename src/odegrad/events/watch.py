"""Which events occur in a step: the signs of g at its ends, and the root in between.

Each event has a *side*, the sign that g has, or is about to take. It occurs where g leaves it. A g that
is zero up to rounding at the start of a stretch has the side to which its slope leads; the rounding error
of g is taken to be, with Y_j the size of y_j in the step before,

    64 ( Σ_j ε_j |∂g/∂y_j| Y_j  +  ε_t |∂g/∂t| T  +  ε |dg/ds| T ),     T = max(|ts[0]|, |ts[-1]|),

that of the state, of the time as g receives it, and of the time of the event; where g has no finite
derivative, as a norm at zero, what is not finite counts as nothing. But an event that was on
its way to zero when another one jumped keeps its side, so that of several at the same time all occur.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from odegrad.errors import EventError
from odegrad.events.curve import Curve
from odegrad.events.functions import Functions
from odegrad.root import root
from odegrad.state import Leaves, inner

__all__ = ["Root", "Watch"]

_UNITS = 64.0
"""How many rounding errors are no number."""

_GRAZING = 8.0
"""A slope of G below this many √ε of its size, per step, is no crossing."""


@dataclass(frozen=True)
class Root:
    """Where an event occurs.

    Attributes:
        event: The number of the event.
        time: When.
        curve: The dense output of the step.
        rate: du/ds there; empty, as the two below, if derivatives are not wanted.
        slope: dG/ds there.
        grazing: Whether that is zero up to rounding.
    """

    event: int
    time: float
    curve: Curve
    rate: Leaves
    slope: float
    grazing: bool


class Watch:
    """The events of a solve, step by step.

    Arguments:
        functions: The event functions.
        start: The start of the solve.
        stop: Its end.
        wanted: Whether slopes are wanted.
    """

    def __init__(self, functions: Functions, start: float, stop: float, wanted: bool) -> None:
        n = len(functions.events)
        self._functions, self._wanted = functions, wanted
        self._sign, self._far = 1.0 if stop >= start else -1.0, max(abs(start), abs(stop))
        self._sides, self._values, self._ends = [0.0] * n, [0.0] * n, [0.0] * n
        self._noise, self._fresh = [0.0] * n, [False] * n
        self._own: int | None = None
        self.counts = [0] * n

    def begin(
        self, t: float, y: Leaves, sizes: Leaves, slope: Callable[[], Leaves], own: int | None
    ) -> None:
        """Begins a stretch.

        Arguments:
            t: Its start.
            y: The state there.
            sizes: |y| in the step before, or there.
            slope: f(t, y).
            own: The event whose jump it is after, or None.
        """
        self._own = own
        for i in range(len(self.counts)):
            if self._done(i):
                continue
            value = self._functions.number(i, t, y)
            noise, rate = self._rounding(i, t, y, sizes, slope, value)
            if abs(value) > noise:
                self._sides[i], self._fresh[i] = math.copysign(1.0, value), False
            elif own is None or i == own or not self._sides[i]:
                self._sides[i] = math.copysign(1.0, rate * self._sign) if rate else 0.0
                self._fresh[i] = True
            self._values[i], self._noise[i] = value, noise

    def occurring(
        self,
        start: float,
        stop: float,
        y: Leaves,
        curve: Callable[[], Curve],
        rate: Callable[[float], Leaves],
    ) -> list[Root]:
        """The events that occur in a step, in the order of the solve.

        Arguments:
            start: Its start.
            stop: Its end.
            y: The state after it.
            curve: Its dense output.
            rate: The derivative of that at a time.
        """
        found: list[tuple[float, int]] = []
        for i, event in enumerate(self._functions.events):
            if self._done(i):
                continue
            side, value = self._sides[i], self._functions.number(i, stop, y)
            self._ends[i] = value
            if side and side * value <= 0.0 and event.direction in (0, -side):
                time = self._located(i, start, stop, curve())
                if time is not None:
                    found.append((self._sign * time, i))
        return [self._root(i, self._sign * x, stop, y, curve(), rate) for x, i in sorted(found)]

    def count(self, i: int) -> bool:
        """Counts an occurrence; whether it ends the solve."""
        self.counts[i] += 1
        self._sides[i] = -self._sides[i]
        return self.counts[i] == self._functions.events[i].ends

    def jumps(self, i: int) -> bool:
        """Whether an event has a jump."""
        return self._functions.events[i].jump is not None

    def go_on(self) -> None:
        """The step is over: what held at its end holds at the start of the next one."""
        for i, value in enumerate(self._ends):
            zero = value == 0.0 or (not self._sides[i] and abs(value) <= self._noise[i])
            self._sides[i] = 0.0 if zero else math.copysign(1.0, value)
            self._values[i], self._fresh[i] = value, False

    def _done(self, i: int) -> bool:
        """Whether an event has occurred as often as it is to be counted."""
        most = self._functions.events[i].max_count
        return most is not None and self.counts[i] >= most

    def _rounding(
        self,
        i: int,
        t: float,
        y: Leaves,
        sizes: Leaves,
        slope: Callable[[], Leaves],
        value: float,
    ) -> tuple[float, float]:
        """The rounding error of g, and dg/ds along the solution; that only if g is small."""
        g_t, g_y = self._functions.derivative(i, t, y)
        n, noise = len(g_y), 0.0
        for g, size in zip(g_y, sizes[:n], strict=True):
            if g is not None:
                product = (g.abs() * size).nan_to_num(0.0, 0.0, 0.0)
                noise += torch.finfo(size.dtype).eps * float(product.sum())
        eps = max((torch.finfo(x.dtype).eps for x in y[:n]), default=0.0)
        noise += eps * abs(g_t) * self._far if math.isfinite(g_t) else 0.0
        f = slope()[:n]
        like = torch.zeros((), dtype=torch.float64, device="cpu")
        zeros = tuple(torch.zeros_like(k) if g is None else g for g, k in zip(g_y, f, strict=True))
        rate = g_t + float(inner(zeros, f, like))
        if math.isfinite(rate):
            noise += torch.finfo(torch.float64).eps * abs(rate) * self._far
        return _UNITS * noise, 0.0 if math.isnan(rate) else rate

    def _located(self, i: int, start: float, stop: float, curve: Curve) -> float | None:
        """Where g leaves its side, or None if it is not on it anywhere."""
        side, a, ga = self._sides[i], start, self._values[i]

        def g(s: float) -> float:
            return self._functions.number(i, s, curve(s))

        if self._fresh[i]:  # from zero: the bracket begins where g has become a number
            first = curve.span.times[0] - start
            inside = [*curve.span.times, *(start + first * 0.5**k for k in range(1, 60))]
            away = ((s, value) for s in inside if side * (value := g(s)) > self._noise[i])
            found = next(away, None)
            if found is None:
                self._check_own(i, start)
                return None
            a, ga = found
        elif side * ga <= 0.0:
            return start
        return root(g, a, stop, ga, self._ends[i])

    def _check_own(self, i: int, t: float) -> None:
        """Refuses to go on if g has not left zero since the event's own jump."""
        if i == self._own:
            raise EventError(
                f"the jumps of events[{i}] follow each other faster than time resolves, at t = {t:.9g} "
                f"after {self.counts[i]} of them, as those of a ball that comes to rest: end the solve "
                "before, with max_count or a terminal event"
            )

    def _root(
        self,
        i: int,
        time: float,
        stop: float,
        y: Leaves,
        curve: Curve,
        rate: Callable[[float], Leaves],
    ) -> Root:
        if not self._wanted:
            return Root(i, time, curve, (), 0.0, False)
        functions, span, slopes = self._functions, curve.span, rate(time)
        slope = functions.slope(i, time, curve(time), slopes)
        sizes = [functions.number(i, s, curve(s)) for s in span.times]
        sizes.append(functions.number(i, stop, y))
        size = max((abs(x) for x in sizes if math.isfinite(x)), default=0.0)
        eps = max(torch.finfo(x.dtype).eps for x in y)
        grazing = abs(slope * span.dt) <= _GRAZING * math.sqrt(eps) * size
        return Root(i, time, curve, slopes, slope, grazing)
