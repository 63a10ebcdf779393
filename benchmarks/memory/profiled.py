"""The peak of what torch allocates, from the events of its profiler.

`odegrad.plan` predicts from what `odegrad.allocations` counts. This counts in another way, so that an
error there does not hide itself: kineto reports every allocation with its size and every release with
its negative, and the peak is the largest of their running sums.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ["profiled_peak"]


def profiled_peak(work: Callable[[], object]) -> int:
    """The most bytes that work() has allocated on the CPU and not yet released at any moment.

    The profiler keeps all events of all operations: some gigabytes for a million steps' worth of them.

    Arguments:
        work: What to run; once, and warm.

    Example:
        >>> import torch
        >>> profiled_peak(lambda: torch.zeros(1000).sum())  # and the sum
        4004
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results: Any = profiler.profiler
    held = most = 0
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
