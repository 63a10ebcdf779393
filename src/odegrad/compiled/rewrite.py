"""Rewriting small operations, on which a call into a library costs more than the work.

Three rewrites, each equal to the original up to rounding, applied while a step is traced for the CPU:

* `addmm` becomes `mm` and a subtraction of −c, which fuses with what follows;
* a matrix product with a very short dimension becomes a broadcast product and a sum, which fuse too;
* tanh in float32 becomes a rational function, which vectorizes inside fused loops (`rational_tanh`).

``python -m benchmarks products`` measures what that gains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["REWRITES", "rational_tanh"]

aten = torch.ops.aten

_SHORT = 4
"""A product is rewritten if its inner or outer dimension is at most this …"""
_FEW = 1 << 14
"""… and it takes at most this many multiplications."""


def _mm(a: Tensor, b: Tensor) -> Tensor:
    (m, k), n = a.shape, b.shape[1]
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64) or m * k * n > _FEW:
        return NotImplemented
    if k <= _SHORT:
        return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)
    if n <= _SHORT or m <= _SHORT:
        return (a.unsqueeze(1) * b.t().unsqueeze(0)).sum(2)
    return NotImplemented


def _addmm(c: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    if a.device.type != "cpu" or beta != 1 or alpha != 1:
        return NotImplemented
    return torch.mm(a, b) - (-c)  # Inductor would turn mm(a, b) + c back into addmm


# tanh(x) = x P(x²) / Q(x²) for |x| ≤ 9.02, beyond which float32's tanh is ±1. The coefficients minimise
# the largest relative error (2.1e-8 in exact arithmetic) by Lawson's weighted least squares on the
# linearised problem; tests/test_rewrite.py computes them anew.
TANH_RANGE = 9.02
TANH_P = (0.999999979, 0.1337971381, 0.00349402964, 2.058340081e-05, 1.331896341e-08)
TANH_Q = (1.0, 0.4671302906, 0.02587105451, 0.0003283084801, 7.761974303e-07)


def rational_tanh(x: Tensor) -> Tensor:
    """tanh in float32 within 4e-7, and within 6 units in the last place."""
    x = x.clamp(-TANH_RANGE, TANH_RANGE)
    s = x * x
    p, q = s * TANH_P[-1] + TANH_P[-2], s * TANH_Q[-1] + TANH_Q[-2]
    for a, b in zip(TANH_P[-3::-1], TANH_Q[-3::-1], strict=True):
        p, q = p * s + a, q * s + b
    return (x * p / q).clamp(-1.0, 1.0)


def _tanh(x: Tensor) -> Tensor:
    if x.device.type != "cpu" or x.dtype is not torch.float32:
        return NotImplemented
    return rational_tanh(x)


REWRITES: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.tanh.default: _tanh,
}
"""Replacements by operation, for a tracer; NotImplemented keeps the original."""
