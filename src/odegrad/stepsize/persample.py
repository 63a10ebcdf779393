"""`PID` for a batch in which every sample has steps of its own: its decisions on tensors of shape [B].

The order of the operations is that of `odegrad.stepsize.pid`, so that a sample in a batch takes, up to
rounding, the steps that it takes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.state import Leaves, Time, align, number, wide
from odegrad.stepsize.pid import PID, SMALLEST_RATIO, power

__all__ = ["Judged", "judge", "sample_norms", "scaled_norms"]


def sample_norms(control: PID, x: Leaves, y0: Leaves, y1: Leaves) -> Tensor:
    """‖x / (atol + rtol max(|y0|, |y1|))‖ of each sample, shape [B]; see `PID.scaled_norm`."""
    with torch.no_grad():
        return scaled_norms(x, y0, y1, control.rtol, control.atol, control.norm)


def scaled_norms(
    x: Leaves,
    y0: Leaves,
    y1: Leaves,
    rtol: Time,
    atol: Time,
    norm: Callable[[Leaves], Tensor] | None,
) -> Tensor:
    """`sample_norms` for tolerances that are floats or 0-dim tensors."""
    scaled: list[Tensor] = []
    for e, a, b in zip(map(wide, x), map(wide, y0), map(wide, y1), strict=True):
        s = e / (align(atol, a) + align(rtol, a) * torch.maximum(a.abs(), b.abs()))
        if isinstance(atol, Tensor) or atol == 0.0:  # 0/0 is 0
            s = torch.where(e == 0, torch.zeros_like(s), s)
        scaled.append(s)
    if norm is not None:
        found: Tensor = torch.func.vmap(norm)(tuple(scaled))
        return found
    return _rms(tuple(scaled))


def _rms(leaves: Leaves) -> Tensor:
    """The root mean square of each sample over all elements of all leaves."""
    total, count = None, 0
    for x in leaves:
        squares = x.abs().square() if x.is_complex() else x.square()
        own = squares.flatten(1).sum(1) if squares.ndim > 1 else squares
        total = own if total is None else total + own
        count += x.shape[1:].numel()
    assert total is not None
    return (total / count).sqrt() if count else total


class Judged(NamedTuple):
    """Decisions; each entry of shape [B].

    Attributes:
        accept: Whether the step is accepted.
        factor: The factor from its size to the next one's.
        last: The error ratio as the history keeps it of an accepted step, never zero.
    """

    accept: Tensor
    factor: Tensor
    last: Tensor


def judge(
    control: PID, ratio: Tensor, last: Tensor, before: Tensor, rejected: Tensor, order: int
) -> Judged:
    """`PID.decide` for each sample.

    Arguments:
        control: The controller.
        ratio: The error ratios of the attempts, float64.
        last: Those of the last accepted steps.
        before: Those of the steps before them.
        rejected: Whether the last attempt was rejected, bool.
        order: The order of the error estimate.

    Example:
        >>> import odegrad, torch
        >>> from odegrad.stepsize.persample import judge
        >>> one, no = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.bool)
        >>> ratio = torch.tensor([0.25, 4.0], dtype=torch.float64)
        >>> judge(odegrad.PID(rtol=1e-6, safety=1.0), ratio, one, one, no, 2)[:2]
        (tensor([ True, False]), tensor([2.0000, 0.5000], dtype=torch.float64))
    """
    e = ratio.clamp(min=SMALLEST_RATIO)
    p, i, d = control.p, control.i, control.d
    factor = power(e, -(p + i + d) / order)
    if p + 2 * d != 0.0:
        factor = factor * power(last, (p + 2 * d) / order)
    if d != 0.0:
        factor = factor * power(before, -d / order)
    factor = control.safety * factor
    accept = ratio <= 1.0
    largest = torch.where(rejected, number(1.0), number(control.factor_max))
    largest = torch.where(accept, largest, number(control.safety))
    factor = torch.minimum(factor.clamp(min=control.factor_min), largest)
    finite = ratio < math.inf  # and not NaN
    return Judged(accept, torch.where(finite, factor, number(control.factor_min)), e)
