"""Adaptive steps inside a compiled loop: `PID.decide` and the march of `sweeps.adaptive` on tensors.

Every number that those keep in Python is a 0-dim float64 tensor here, and every `if` a `torch.where`.
The order of the operations is the same, so that in float64 the two engines accept the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.schemes.base import Step
from odegrad.state import Leaves, choose
from odegrad.stepsize import PID
from odegrad.stepsize.pid import CONSTANTS, SMALLEST_RATIO, scaled_norm

__all__ = ["Attempt", "March", "attempt", "constants", "decide"]


def constants(control: PID, device: torch.device | None = None) -> Tensor:
    """The numbers of a controller, so that other tolerances need no other program."""
    return torch.tensor(
        [getattr(control, name) for name in CONSTANTS], dtype=torch.float64, device=device
    )


def decide(
    c: Mapping[str, Tensor],
    ratio: Tensor,
    last: Tensor,
    before: Tensor,
    rejected: Tensor,
    order: int,
) -> tuple[Tensor, Tensor]:
    """`PID.decide`: whether to accept, and the factor."""
    finite = torch.isfinite(ratio)
    e = ratio.clamp(min=SMALLEST_RATIO)
    factor = c["safety"] * (
        e ** (-(c["p"] + c["i"] + c["d"]) / order)
        * last ** ((c["p"] + 2 * c["d"]) / order)
        * before ** (-c["d"] / order)
    )
    accept = finite & (ratio <= 1.0)
    largest = torch.where(rejected, torch.ones_like(factor), c["factor_max"])
    largest = torch.where(accept, largest, c["safety"])
    factor = torch.minimum(torch.maximum(factor, c["factor_min"]), largest)
    return accept, torch.where(finite, factor, c["factor_min"])


class March(NamedTuple):
    """Where the walk is: what a loop carries beside state and carry.

    All are 0-dim; with steps for each sample, all but the row are of shape [B].

    Attributes:
        row: How many steps of this chunk are accepted; with steps for each sample, how many were
            attempted (int64).
        segment: Between which landing times it is (int64).
        attempts: Attempted steps of the whole solve (int64).
        stuck: Whether Python has to look: the step is very small, or there were many (bool).
        sigma: The fraction of the segment that is done.
        h: The size of the next attempt.
        last: The error ratio of the last accepted step.
        before: That of the one before it.
        rejected: Whether the last attempt was rejected (bool).
        t: The start of the last attempt.
        taken: Its length.
        ratio: Its error ratio.
    """

    row: Tensor
    segment: Tensor
    attempts: Tensor
    stuck: Tensor
    sigma: Tensor
    h: Tensor
    last: Tensor
    before: Tensor
    rejected: Tensor
    t: Tensor
    taken: Tensor
    ratio: Tensor

    @staticmethod
    def start(h: Tensor) -> March:
        """Before the first step, of size h, 0-dim or of shape [B]."""
        zero, one = torch.zeros_like(h), torch.ones_like(h)
        count, no = zero.to(torch.int64), zero.to(torch.bool)
        row = count.new_zeros(())
        return March(row, count, count, no, zero, h, one, one, no, zero, zero, zero)


class Attempt(NamedTuple):
    """One attempted step: the march after it, the accepted state, and what to note in its row."""

    march: March
    y: Leaves
    carry: Leaves
    following: Tensor


def attempt(
    take: Callable[[Tensor, Tensor], Step],
    march: March,
    y: Leaves,
    carry: Leaves,
    times: Tensor,
    segments: Tensor,
    vector: Tensor,
    limit: Tensor,
    order: int,
    n_state: int,
    norm: Callable[[Leaves], Tensor] | None,
) -> Attempt:
    """Attempts a step.

    Arguments:
        take: The step of the scheme, from (t, dt).
        march: Where the walk is.
        y: The state.
        carry: The carry.
        times: The landing times, float64.
        segments: How many segments there are between them; times may go on.
        vector: `constants` of the controller.
        limit: The most attempts.
        order: The order of the error estimate.
        n_state: How many leaves count in the error norm.
        norm: The controller's norm.
    """
    c: dict[str, Tensor] = dict(zip(CONSTANTS, vector.unbind(), strict=True))
    one = torch.ones_like(march.sigma)
    start, stop = _at(times, march.segment), _at(times, march.segment + 1)
    span, length = stop - start, (stop - start).abs()
    size, left = torch.minimum(march.h, c["dt_max"]), length * (1.0 - march.sigma)
    lands = size >= left * (1.0 - 1e-10)
    following = torch.where(lands, one, march.sigma + size / length)
    t, dt = start + span * march.sigma, span * (following - march.sigma)
    step = take(t, dt)
    taken = length * (following - march.sigma)
    assert step.error is not None
    norms = scaled_norm(
        step.error[:n_state], y[:n_state], step.y[:n_state], c["rtol"], c["atol"], norm
    )
    ratio = norms.to(torch.float64)
    accept, factor = decide(c, ratio, march.last, march.before, march.rejected, order)

    proposed = taken * factor
    smallest = torch.maximum(proposed, c["dt_min"])
    after_reject = torch.where(torch.minimum(size, taken) > c["dt_min"], smallest, proposed)
    cut = lands & (left < march.h) & ~march.rejected
    grown = torch.where(cut, torch.maximum(march.h, proposed), proposed)
    after_accept = torch.where(taken > 0.0, torch.maximum(grown, c["dt_min"]), march.h)
    moved = accept & (taken > 0.0)
    h = torch.where(accept, after_accept, after_reject)
    # A little larger than what `sweeps.adaptive` calls too small: Python looks at it exactly.
    extent = torch.maximum(t.abs(), (times[-1] - times[0]).abs())
    tiny = torch.maximum(c["dt_min"], extent * (16.0 * torch.finfo(torch.float64).eps))
    landed = accept & lands
    done = landed & (march.segment + 1 >= segments)
    attempts = march.attempts + 1
    e = ratio.clamp(min=SMALLEST_RATIO)
    return Attempt(
        March(
            row=march.row + accept.to(torch.int64),
            segment=march.segment + landed.to(torch.int64),
            attempts=attempts,
            stuck=(~landed & (h < tiny)) | (~done & (attempts >= limit)),
            sigma=torch.where(accept, torch.where(lands, 0.0 * one, following), march.sigma),
            h=h,
            last=torch.where(moved, e, march.last),
            before=torch.where(moved, march.last, march.before),
            rejected=torch.where(accept, march.rejected & (taken <= 0.0), ~accept),
            t=t,
            taken=taken,
            ratio=ratio,
        ),
        choose(accept, step.y, y),
        choose(accept, step.carry, carry),
        following,
    )


def _at(x: Tensor, i: Tensor) -> Tensor:
    return x.index_select(0, i.reshape(1)).squeeze(0)
