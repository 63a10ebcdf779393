"""Weights of integrals of interpolation polynomials, on any nodes and differentiable in them.

For nodes τ_0, …, τ_{k−1} and the Lagrange basis ℓ_i on them,

    w_i = ∫_0^h ℓ_i(τ) dτ = h Σ_q ω_q Π_{j≠i} (x_q h − τ_j) / (τ_i − τ_j),

by the Gauss–Legendre rule (x, ω) on [0, 1] with ⌈k/2⌉ points, which is exact for these polynomials.
Nothing divides by h, and outside of the nodes each ℓ_i keeps its sign: no terms of a sum cancel.

Reference: E. Hairer, S. P. Nørsett & G. Wanner, *Solving Ordinary Differential Equations I*, III.1 and,
for unequal steps, III.5.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

__all__ = ["gauss_legendre", "interpolatory_weights"]


def interpolatory_weights(nodes: Tensor, h: Tensor) -> Tensor:
    """w, with the shape of the nodes; see the head of this module.

    Arguments:
        nodes: τ along the last axis, shape [..., k]; no two are equal.
        h: The end of the integral, shape [...].

    Example:
        >>> import torch
        >>> from odegrad.schemes.interpolatory import interpolatory_weights
        >>> nodes = torch.tensor([0.0, -1.0, -2.0], dtype=torch.float64)
        >>> 12 * interpolatory_weights(nodes, torch.tensor(1.0, dtype=torch.float64))
        tensor([ 23.0000, -16.0000,   5.0000], dtype=torch.float64)
    """
    k = nodes.shape[-1]
    if k == 1:
        return h[..., None]
    points, weights = gauss_legendre((k + 1) // 2)
    x = torch.tensor(points, dtype=nodes.dtype, device=nodes.device)
    omega = torch.tensor(weights, dtype=nodes.dtype, device=nodes.device)
    same = torch.eye(k, dtype=torch.bool, device=nodes.device)
    gaps = (nodes[..., :, None] - nodes[..., None, :]).masked_fill(same, 1.0)
    reach = (h[..., None] * x)[..., :, None] - nodes[..., None, :]
    factors = (reach[..., :, None, :] / gaps[..., None, :, :]).masked_fill(same, 1.0)
    basis = factors.prod(dim=-1)
    return h[..., None] * (omega[:, None] * basis).sum(dim=-2)


@cache
def gauss_legendre(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Points and weights of the Gauss–Legendre rule on [0, 1], by Newton's method on P_n.

    Arguments:
        n: The number of points; the rule is exact up to degree 2n − 1.

    Example:
        >>> from odegrad.schemes.interpolatory import gauss_legendre
        >>> gauss_legendre(1)
        ((0.5,), (1.0,))
    """
    points, weights = [0.0] * n, [0.0] * n
    for i in range((n + 1) // 2):
        x = math.cos(math.pi * (i + 0.75) / (n + 0.5))
        for _ in range(8):  # it starts so close that it converges from there
            value, slope = _legendre(n, x)
            x -= value / slope
        _, slope = _legendre(n, x)
        weight = 1.0 / ((1.0 - x * x) * slope * slope)
        points[i], points[n - 1 - i] = 0.5 * (1.0 - x), 0.5 * (1.0 + x)
        weights[i] = weights[n - 1 - i] = weight
    if n % 2:
        points[n // 2] = 0.5
    return tuple(points), tuple(weights)


def _legendre(n: int, x: float) -> tuple[float, float]:
    """(P_n(x), P_n'(x)) for −1 < x < 1."""
    before, value = 1.0, x
    for i in range(2, n + 1):
        before, value = value, ((2 * i - 1) * x * value - (i - 1) * before) / i
    return value, n * (before - x * value) / (1.0 - x * x)
