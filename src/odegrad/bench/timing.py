"""Timing several functions against each other, sample by sample in turn.

A disturbance of the machine that lasts longer than one round hits all of them alike, so that ratios of
medians mean more than the medians themselves.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Timing", "ratio", "time_in_turn"]

SHORTEST_SAMPLE = 0.02
"""Seconds: work that is faster is repeated within a sample."""


@dataclass(frozen=True)
class Timing:
    """How long something took.

    Arguments:
        calls: How often it was called within one sample.
        samples: Seconds per call, one entry per sample.
    """

    calls: int
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the samples, in seconds per call."""
        return statistics.median(self.samples)


def time_in_turn(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    shortest: float = SHORTEST_SAMPLE,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times functions in rounds, after two calls to warm up: one sample of each per round.

    Arguments:
        works: What to time, by name.
        repeats: The number of rounds.
        shortest: The least duration of a sample, in seconds.
        clock: Tells the time, in seconds.

    Example:
        >>> ticks = iter(range(100))
        >>> timings = time_in_turn({"a": list, "b": dict}, 3, 0.0, lambda: next(ticks))
        >>> timings["a"].samples
        (1.0, 1.0, 1.0)
    """

    def seconds(work: Callable[[], object], calls: int) -> float:
        start = clock()
        for _ in range(calls):
            work()
        return (clock() - start) / calls

    for work in works.values():
        work()  # may compile
    warm = {name: seconds(work, 1) for name, work in works.items()}
    calls = {name: max(1, math.ceil(shortest / max(t, 1e-9))) for name, t in warm.items()}
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            gc.collect()  # so that nobody pays for the garbage of another
            samples[name].append(seconds(work, calls[name]))
    return {name: Timing(calls[name], tuple(samples[name])) for name in works}


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """ours / theirs, or None where one of them is missing or nothing.

    Example:
        >>> ratio(1.0, 4.0), ratio(1.0, None), ratio(1.0, 0.0)
        (0.25, None, None)
    """
    return ours / theirs if ours is not None and theirs else None
