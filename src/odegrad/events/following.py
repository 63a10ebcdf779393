"""The stretch after a jump."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from odegrad.assemble import Problem
from odegrad.events.march import Marched
from odegrad.grid import Stops
from odegrad.state import Leaves

__all__ = ["following"]


def following(marched: Marched, time: Tensor, y: Leaves) -> Problem | None:
    """The solve from (time, y) through the times that were not reached, or None if there is none left.

    The steps of its first segment are at fixed fractions of the span from `time` on.

    Arguments:
        marched: The stretch before the jump.
        time: When, 0-dim, on the graph.
        y: The state after it, on the graph.
    """
    problem, start = marched.problem, marched.stop
    run = problem.run
    sign = -1.0 if run.times[-1] < run.times[0] else 1.0
    j = next((j for j, t in enumerate(run.times) if sign * (t - start) > 0.0), None)
    if j is None:
        return None
    shift = j - 1
    times = (start, *run.times[j:])
    ts = torch.cat([time.reshape(1), problem.ts[j:]])
    stops = None
    if run.stops is not None:
        stops = Stops(times, [0, *(k - shift for k in run.landed if k >= j)])
    kinks = tuple(k - shift for k in run.kinks if k >= j)
    ahead = dataclasses.replace(
        run, times=times, stops=stops, kinks=kinks, labels=None, grid=None, initial=None, fingerprints={}
    )  # fmt: skip
    wanted = any(x.requires_grad for x in (*y, *problem.p, ts))
    return dataclasses.replace(
        problem,
        run=ahead,
        y=y,
        ts=ts,
        places=tuple(k - shift for k in problem.places if k >= j),
        differentiated=torch.is_grad_enabled() and wanted,
    )
