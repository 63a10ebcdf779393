"""Time grids: segments between landing times, and steps as fixed fractions of them.

A *segment* joins two consecutive landing times T_j and T_{j+1}. The steps inside it are stored as
fractions 0 = σ_0 < … < σ_N = 1, so that step n has

    t_n = T_j + σ_n (T_{j+1} − T_j),     h_n = δ_n (T_{j+1} − T_j),     δ_n = σ_{n+1} − σ_n.

This is what gives the derivative with respect to the landing times a meaning (convention B of the
usual three: interior grid times move with the ends of their segment), and what makes a recorded grid
replay to the last bit. Its transpose, for cotangents t̄_n and h̄_n, is

    T̄_j += (1 − σ_n) t̄_n − δ_n h̄_n,     T̄_{j+1} += σ_n t̄_n + δ_n h̄_n.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor

from odegrad.errors import InvalidValueError
from odegrad.state import Time

__all__ = ["Clock", "Grid", "Leading", "Nodes", "Segment", "Stops", "Uniform"]


@dataclass(frozen=True)
class Uniform:
    """A segment cut into equal steps.

    Arguments:
        n: The number of steps, at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InvalidValueError(f"a segment needs at least one step, received n={self.n}")

    def __len__(self) -> int:
        return self.n

    def start(self, i: int) -> float:
        """σ_i."""
        return i / self.n

    def width(self, i: int) -> float:
        """δ_i, the same number for every i."""
        return 1.0 / self.n


@dataclass(frozen=True)
class Nodes:
    """A segment cut at given fractions.

    Arguments:
        fractions: σ, strictly increasing from 0.0 to 1.0.
    """

    fractions: tuple[float, ...]

    def __post_init__(self) -> None:
        s = self.fractions
        if len(s) < 2 or s[0] != 0.0 or s[-1] != 1.0:
            raise InvalidValueError(
                f"fractions must run from 0.0 to 1.0, received {len(s)} of them: {s[:3]} … {s[-1:]}"
            )
        for i in range(len(s) - 1):
            if not s[i] < s[i + 1]:
                raise InvalidValueError(
                    f"fractions must increase: fractions[{i}] = {s[i]}, "
                    f"fractions[{i + 1}] = {s[i + 1]}"
                )

    def __len__(self) -> int:
        return len(self.fractions) - 1

    def start(self, i: int) -> float:
        """σ_i."""
        return self.fractions[i]

    def width(self, i: int) -> float:
        """δ_i = σ_{i+1} − σ_i."""
        return self.fractions[i + 1] - self.fractions[i]


@dataclass(frozen=True)
class Leading:
    """The first steps of a segment whose others are not taken: an event ended it.

    Arguments:
        whole: The segment.
        n: How many of its steps are taken, at least 1.
    """

    whole: Uniform | Nodes
    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= len(self.whole):
            raise InvalidValueError(
                f"a segment of {len(self.whole)} steps cannot end after {self.n} of them"
            )

    def __len__(self) -> int:
        return self.n

    def start(self, i: int) -> float:
        """σ_i."""
        return self.whole.start(i)

    def width(self, i: int) -> float:
        """δ_i."""
        return self.whole.width(i)


Segment: TypeAlias = Uniform | Nodes | Leading


@dataclass(frozen=True)
class Grid:
    """The accepted steps of a solve; as ``stepsize=`` it replays them exactly.

    Arguments:
        segments: One entry per pair of consecutive landing times.

    Example:
        >>> from odegrad.grid import Grid, Nodes, Uniform
        >>> grid = Grid((Uniform(2), Nodes((0.0, 0.25, 1.0))))
        >>> grid.n_steps
        4
        >>> grid.times([0.0, 1.0, 3.0])
        [0.0, 0.5, 1.0, 1.5, 3.0]
    """

    segments: tuple[Segment, ...]

    @cached_property
    def n_steps(self) -> int:
        """The number of steps in all segments."""
        return sum(len(segment) for segment in self.segments)

    def segment(self, j: int, start: float, stop: float, eps: float) -> Segment:
        """The steps of segment j (the protocol of `odegrad.stepsize.FixedStepSize`)."""
        del start, stop, eps
        if j >= len(self.segments):
            raise InvalidValueError(
                f"the recorded grid has {len(self.segments)} segments, the solve has more: "
                "replay it with as many times in `ts` as it was recorded with"
            )
        return self.segments[j]

    def check(self, n_segments: int) -> None:
        """Raises `InvalidValueError` unless the grid has `n_segments` segments."""
        if n_segments != len(self.segments):
            raise InvalidValueError(
                f"the recorded grid has {len(self.segments)} segments but ts has {n_segments}: "
                "replay it with as many times in `ts` as it was recorded with"
            )

    def times(self, landings: Sequence[float]) -> list[float]:
        """All step times, starts of steps and the end, for the given landing times.

        Raises:
            InvalidValueError: If the grid is that of a solve which an event ended or interrupted.
        """
        if any(isinstance(segment, Leading) for segment in self.segments):
            raise InvalidValueError(
                "the steps of a solve that an event ended or interrupted do not fill the spans between "
                "its landing times; a callback is told the time of each step"
            )
        clock = Clock(self, landings)
        starts = [float(clock.step(n)[0]) for n in range(self.n_steps)]
        return [*starts, float(landings[-1])]


class Stops:
    """Which times steps land on; the others are read inside steps.

    Arguments:
        times: All times at which there are outputs, in one direction.
        at: The numbers of those that steps land on, the first and the last among them.
    """

    def __init__(self, times: Sequence[float], at: Sequence[int]) -> None:
        self.at = tuple(at)
        self._fractions: list[list[float]] = []
        for first, last in itertools.pairwise(self.at):
            span = times[last] - times[first]
            inner = [times[j] - times[first] for j in range(first + 1, last)]
            # What lies outside by rounding is at an end.
            self._fractions.append([min(1.0, max(0.0, x / span)) if span else 0.0 for x in inner])

    def inside(self, k: int, start: float, stop: float) -> range:
        """The times inside a step of segment k from one fraction of it to another.

        Those at the end of a step are in it, those at the beginning of a segment in its first step.
        """
        fractions, first = self._fractions[k], self.at[k] + 1
        low = bisect_right(fractions, start) if start > 0.0 else 0
        return range(first + low, first + bisect_right(fractions, stop))


class Clock:
    """The steps of a grid in time, numbered through all segments, and the times read inside them.

    Arguments:
        grid: The grid.
        times: The times at which there are outputs: floats, or a float64 tensor of shape [J + 1], or
            its entries, in which case times and steps are 0-dim tensors on its graph.
        stops: Which of them steps land on, and which are read inside steps; None: steps land on all.
    """

    def __init__(
        self, grid: Grid, times: Sequence[Time] | Tensor, stops: Stops | None = None
    ) -> None:
        self._segments = grid.segments
        self._ends = list(accumulate(len(segment) for segment in grid.segments))
        self._times = tuple(times.unbind()) if isinstance(times, Tensor) else times
        self._stops, self._inner = range(len(self._times)) if stops is None else stops.at, stops

    @property
    def n_steps(self) -> int:
        """The number of steps."""
        return self._ends[-1] if self._ends else 0

    def locate(self, n: int) -> tuple[int, int]:
        """The segment k of step n, and the index of step n inside it."""
        k = bisect_right(self._ends, n)
        return k, n - self.node(k)

    def segment(self, k: int) -> Segment:
        """Segment k."""
        return self._segments[k]

    def before(self, n: int) -> int:
        """The time that the segment of step n begins at."""
        return self._stops[self.locate(n)[0]]

    def node(self, k: int) -> int:
        """The number of the first step of segment k (or of the one behind the last)."""
        return self._ends[k - 1] if k else 0

    def step(self, n: int) -> tuple[Time, Time]:
        """(t_n, h_n) of step n."""
        k, i = self.locate(n)
        start, stop = (self._times[j] for j in self._stops[k : k + 2])
        return step_time(self._segments[k], i, start, stop)

    def landing(self, n: int) -> int | None:
        """The time that step n ends on, or None if it ends inside a segment."""
        k, i = self.locate(n)
        return self._stops[k + 1] if i + 1 == len(self._segments[k]) else None

    def reads(self, n: int) -> tuple[tuple[int, Time], ...]:
        """The times that are read inside step n, with their numbers."""
        if self._inner is None:
            return ()
        k, i = self.locate(n)
        segment = self._segments[k]
        stop = 1.0 if i + 1 == len(segment) else segment.start(i + 1)
        return tuple((j, self._times[j]) for j in self._inner.inside(k, segment.start(i), stop))

    def step_vjp(
        self, n: int, grad_t: Tensor | None, grad_dt: Tensor | None, grads: list[Tensor | None]
    ) -> None:
        """Adds the cotangents of the landing times of step n to `grads`, one entry per landing."""
        k, i = self.locate(n)
        start, width = self._segments[k].start(i), self._segments[k].width(i)
        weights = (1.0 - start, -width), (start, width)
        for j, (t_weight, dt_weight) in zip(self._stops[k : k + 2], weights, strict=True):
            for weight, grad in ((t_weight, grad_t), (dt_weight, grad_dt)):
                if grad is not None and weight != 0.0:
                    term, old = grad * weight, grads[j]
                    grads[j] = term if old is None else old + term


def step_time(segment: Segment, i: int, start: Time, stop: Time) -> tuple[Time, Time]:
    """(t, h) of step i of a segment from `start` to `stop`."""
    span = stop - start
    return start + span * segment.start(i), span * segment.width(i)


def stack_times(grads: list[Tensor | None], like: Tensor) -> Tensor:
    """The cotangents of the landing times as one tensor with the shape, dtype and device of `like`."""
    zero = like.new_zeros(())
    return torch.stack([zero if g is None else g.to(like) for g in grads])
