"""Adaptive steps of each sample of a batch inside a compiled loop: `sweeps.samples.search` on tensors.

An attempt is a step of the whole batch, of which each sample decides for itself. The numbers of
`compiled.controller` are tensors of shape [B] here. The order of the operations is that of the eager
search, so that in float64 the two engines accept, up to rounding, the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.compiled.controller import March, decide
from odegrad.schemes.base import Step
from odegrad.state import Leaves, choose
from odegrad.stepsize.persample import scaled_norms
from odegrad.stepsize.pid import CONSTANTS, SMALLEST_RATIO

__all__ = ["SampleAttempt", "attempt_each"]


class SampleAttempt(NamedTuple):
    """One attempted step: the march after it, the state, and what to note in its row."""

    march: March
    y: Leaves
    carry: Leaves
    noted: tuple[Tensor, Tensor, Tensor, Tensor]


def attempt_each(
    take: Callable[[Tensor, Tensor], Step],
    march: March,
    y: Leaves,
    carry: Leaves,
    times: Tensor,
    segments: Tensor,
    active: Tensor,
    vector: Tensor,
    limit: Tensor,
    order: int,
    n_state: int,
    norm: Callable[[Leaves], Tensor] | None,
) -> SampleAttempt:
    """Attempts a step of all samples that are under way.

    Arguments:
        take: The step of the scheme, from (t, dt), dt being NaN for the others.
        march: Where the samples are.
        y: The state.
        carry: The carry.
        times: The landing times, float64 of shape [T, B].
        segments: How many segments each sample has, of shape [B].
        active: Which samples are under way, bool of shape [B].
        vector: `constants` of the controller.
        limit: The most attempts of a sample.
        order: The order of the error estimate.
        n_state: How many leaves count in the error norm.
        norm: The controller's norm.

    Returns:
        What is noted: which samples accept, their segments, σ and δ.
    """
    c: dict[str, Tensor] = dict(zip(CONSTANTS, vector.unbind(), strict=True))
    start = _at(times, march.segment)
    span = _at(times, (march.segment + 1).clamp(max=len(times) - 1)) - start
    length = span.abs()
    size, left = torch.minimum(march.h, c["dt_max"]), length * (1.0 - march.sigma)
    lands = size >= left * (1.0 - 1e-10)
    following = torch.where(lands, 1.0, march.sigma + size / length)
    width = following - march.sigma
    t, dt, taken = start + span * march.sigma, span * width, length * width
    step = take(t, torch.where(active, dt, float("nan")))
    assert step.error is not None
    norms = scaled_norms(
        step.error[:n_state], y[:n_state], step.y[:n_state], c["rtol"], c["atol"], norm
    )
    ratio = norms.to(torch.float64)
    accept, factor = decide(c, ratio, march.last, march.before, march.rejected, order)
    accept = accept & active
    moved, landed = accept & (taken > 0.0), accept & lands
    h = _size(c, march, accept, taken, taken * factor, size, lands & (left < march.h))
    done = landed & (march.segment + 1 >= segments)
    attempts = march.attempts + active.to(torch.int64)
    small = h < _smallest(c, times)
    return SampleAttempt(
        March(
            row=march.row + 1,
            segment=march.segment + landed.to(torch.int64),
            attempts=attempts,
            stuck=active & ((small & ~landed) | ((attempts >= limit) & ~done)),
            sigma=torch.where(accept, torch.where(lands, 0.0, following), march.sigma),
            h=h,
            last=torch.where(moved, ratio.clamp(min=SMALLEST_RATIO), march.last),
            before=torch.where(moved, march.last, march.before),
            rejected=(active & ~accept) | (march.rejected & accept & ~moved),
            t=t,
            taken=taken,
            ratio=ratio,
        ),
        choose(accept, step.y, y),
        choose(accept, step.carry, carry),
        (accept, march.segment, march.sigma, width),
    )


def _size(
    c: Mapping[str, Tensor],
    march: March,
    accept: Tensor,
    taken: Tensor,
    proposed: Tensor,
    size: Tensor,
    cut: Tensor,
) -> Tensor:
    """The sizes of the next attempts; `cut` are the samples whose step a landing time cut short."""
    floor = torch.maximum(proposed, c["dt_min"])
    retried = torch.where(torch.minimum(size, taken) > c["dt_min"], floor, proposed)
    grown = torch.where(cut & ~march.rejected, torch.maximum(march.h, floor), floor)
    h = torch.where(accept, grown, retried)
    return torch.where(accept & (taken <= 0.0), march.h, h)


def _smallest(c: Mapping[str, Tensor], times: Tensor) -> Tensor:
    """A little more than what is too small, which Python looks at exactly."""
    extent = torch.maximum(times.abs().amax(0), (times[-1] - times[0]).abs())
    return torch.maximum(c["dt_min"], extent * (16.0 * torch.finfo(torch.float64).eps))


def _at(times: Tensor, segment: Tensor) -> Tensor:
    return times.gather(0, segment.unsqueeze(0)).squeeze(0)
