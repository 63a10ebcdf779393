"""Reading the samples of a batch at times inside of their steps, and the cotangents of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from odegrad.errors import RejectStep
from odegrad.samplestops import scattered
from odegrad.schemes.base import Step
from odegrad.schemes.dense import Read
from odegrad.schemes.persample import PerSample
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.samples.batch import SampleRun

__all__ = [
    "Found",
    "Place",
    "Wanted",
    "cotangents",
    "rejecting",
    "scattered_rows",
    "states_inside",
    "wanted_at",
]

Place: TypeAlias = tuple[Tensor, Tensor]
"""(j, b): samples b at their times j; int64, on the CPU."""

Wanted: TypeAlias = tuple[Place, Tensor]
"""Places, one for each of some samples, and these times, shape [B], NaN for other samples."""

Found: TypeAlias = tuple[Place, Leaves]
"""Places, and the states of the batch, which mean nothing for other samples."""


def states_inside(
    run: SampleRun,
    scheme: PerSample,
    wanted: Sequence[Wanted],
    t: Tensor,
    dt: Tensor,
    y: Leaves,
    step: Step,
    p: Leaves,
) -> list[Found]:
    """The states at times inside of a step from t and y."""
    if not wanted:
        return []
    times = [time for _, time in wanted]
    found = scheme.read(run.field, t, dt, y, step, p, times)
    return [(place, x) for (place, _), x in zip(wanted, found, strict=True)]


def cotangents(wanted: Sequence[Wanted], grads: OptionalLeaves, size: int) -> list[Read]:
    """The same for the transpose.

    Arguments:
        wanted: Where the state was read.
        grads: The cotangents of the outputs, leaves of shape [T, B, …]; None is zero.
        size: B.
    """
    return [Read(time, scattered_rows(place, grads, size)) for place, time in wanted]


def scattered_rows(place: Place, grads: OptionalLeaves, size: int) -> OptionalLeaves:
    """The rows at one place per sample, leaves of shape [B, …], 0 for other samples."""
    rows: list[Tensor | None] = []
    for g in grads:
        row = None
        if g is not None:
            j, b = (x.to(g.device) for x in place)
            row = g.new_zeros((size, *g.shape[2:])).index_copy(0, b, g[j, b])
        rows.append(row)
    return tuple(rows)


def wanted_at(times: Tensor, places: Sequence[Place]) -> list[Wanted]:
    """What is wanted at given places."""
    return [((j, b), scattered(times, j, b)) for j, b in places]


def rejecting(
    run: SampleRun,
    scheme: PerSample,
    wanted: Sequence[Wanted],
    t: Tensor,
    dt: Tensor,
    y: Leaves,
    step: Step,
    p: Leaves,
) -> tuple[list[Found], dict[int, RejectStep]]:
    """`states_inside`, and the samples for which f raises `RejectStep` there, who get no state."""
    try:
        return states_inside(run, scheme, wanted, t, dt, y, step, p), {}
    except RejectStep as error:
        everyone = torch.cat([b for (_, b), _ in wanted]).unique().tolist()
        if len(everyone) == 1:
            return [], {everyone[0]: error}
    found: list[Found] = []
    failed: dict[int, RejectStep] = {}
    for one in everyone:
        own = [((j[b == one], b[b == one]), time) for (j, b), time in wanted if one in b.tolist()]
        some = dt.masked_fill(torch.arange(len(dt), device="cpu") != one, float("nan"))
        more, bad = rejecting(run, scheme, own, t, some, y, step, p)
        found += more
        failed |= bad
    return found, failed
