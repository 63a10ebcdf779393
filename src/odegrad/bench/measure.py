"""Measuring systems on one workload."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from odegrad.bench.systems import Counts, Prepared, System
from odegrad.bench.timing import SHORTEST_SAMPLE, Timing, time_in_turn
from odegrad.bench.workloads import Workload

__all__ = ["Result", "Results", "measure"]

_FRAMES = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*")
"""Of a traceback within a message, as JAX writes of its callbacks: the line after them says why."""


@dataclass(frozen=True)
class Result:
    """What one system did on one workload.

    Arguments:
        exact: Whether its gradient is the derivative of the numbers that it computes.
        timing: Of one gradient, warm.
        first: Seconds of the first gradient, in which those who compile compile.
        counts: What one solve does.
        gradient: The cotangents of `Problem.inputs`.
    """

    exact: bool
    timing: Timing
    first: float
    counts: Counts
    gradient: tuple[Tensor, ...]

    @property
    def preparation(self) -> float:
        """What the first gradient cost beyond a warm one, in seconds."""
        return max(0.0, self.first - self.timing.median)


@dataclass(frozen=True)
class Results:
    """What was measured on one workload.

    Arguments:
        workload: The workload.
        found: By system, for those that could do it.
        missing: By system, why there is no result.
    """

    workload: Workload
    found: dict[str, Result]
    missing: dict[str, str]

    def median(self, system: str) -> float | None:
        """The median time of a system in seconds, or None."""
        result = self.found.get(system)
        return None if result is None else result.timing.median


@dataclass(frozen=True)
class _Ready:
    system: System
    prepared: Prepared
    first: float
    counts: Counts
    gradient: tuple[Tensor, ...]


def measure(
    workload: Workload,
    systems: Sequence[System],
    repeats: int,
    shortest: float = SHORTEST_SAMPLE,
    say: Callable[[str], object] = lambda _: None,
) -> Results:
    """Times one gradient of each system, in turn.

    A system that fails is left out, with its message: it must not spoil the measurement of the others.

    Arguments:
        workload: What to solve.
        systems: Who is measured.
        repeats: How many samples of each.
        shortest: The least duration of a sample, in seconds.
        say: Is told what happens.
    """
    missing: dict[str, str] = {}
    ready: dict[str, _Ready] = {}
    for system in systems:
        obstacle = system.obstacle(workload)
        if obstacle is not None:
            missing[system.name] = obstacle
            continue
        say(f"{workload.name}: {system.name} warms up")
        try:
            ready[system.name] = _warmed(workload, system)
        except Exception as error:
            missing[system.name] = _one_line(error)
    say(f"{workload.name}: {len(ready)} systems in turn, {repeats} samples each")
    works = {name: x.prepared.gradient for name, x in ready.items()}
    timings = time_in_turn(works, repeats, shortest)
    found = {
        name: Result(x.system.exact, timings[name], x.first, x.counts, x.gradient)
        for name, x in ready.items()
    }
    return Results(workload, found, missing)


def _warmed(workload: Workload, system: System) -> _Ready:
    prepared = system.prepare(workload)
    start = time.perf_counter()
    gradient = prepared.gradient()
    first = time.perf_counter() - start
    return _Ready(system, prepared, first, prepared.count(), prepared.as_tensors(gradient))


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {_FRAMES.sub('', str(error))}".split())
    return text if len(text) <= 120 else f"{text[:120]}…"
