"""The dense output of one step, as a polynomial.

Dense output is a polynomial in x = (s − t) / h, whose degree is at most the order of the scheme, and at
most 3 for lower orders. It is known by its values U_i at m Chebyshev points x_i of the step: with
ξ = 2x − 1,

    u(t + x h) = Σ_i w_i(x) U_i,     w_i(x) = (1 + 2 Σ_{0<k<m} T_k(ξ) T_k(ξ_i)) / m.

So a sweep has to read a step at m fixed times, and whatever happens inside of it, roots and derivatives
of any order, needs no sweep of its own. Only the first derivative is taken from the scheme's formula, by
`rate`: differences of the U_i have their rounding errors, divided by h.

Reference: L. N. Trefethen, *Approximation Theory and Approximation Practice*, chapters 3 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, align, rounded, wide

__all__ = ["Curve", "Span", "points", "rate"]


@dataclass(frozen=True)
class Span:
    """A step in time.

    Arguments:
        start: Its start.
        dt: Its signed length, not zero.
        m: At how many points its dense output is known.
    """

    start: float
    dt: float
    m: int

    @property
    def times(self) -> tuple[float, ...]:
        """These points, from its start to its end."""
        return tuple(self.start + x * self.dt for x in _nodes(self.m))


@dataclass(frozen=True)
class Curve:
    """s ↦ u(s) over a step, differentiable in s and in the values.

    Arguments:
        span: The step.
        values: u at its points, leaves of shape [m, *leaf.shape].
    """

    span: Span
    values: Leaves

    def __call__(self, s: Tensor | float) -> Leaves:
        """u(s); s is a float or a 0-dim tensor."""
        span = self.span
        time = torch.as_tensor(s, dtype=torch.float64, device="cpu")
        xi = (time - span.start) * (2.0 / span.dt) - 1.0
        powers = [torch.ones_like(xi), xi]
        while len(powers) < span.m:
            powers.append(2.0 * xi * powers[-1] - powers[-2])
        weights = _table(span.m) @ torch.stack(powers)
        found: list[Tensor] = []
        for leaf in map(wide, self.values):
            w = align(weights, leaf)
            assert isinstance(w, Tensor)
            found.append((leaf * w).sum(dim=0))
        return rounded(found, self.values)


def rate(u: Callable[[Tensor], Leaves], t: float) -> Leaves:
    """du/ds at s = t, leaf by leaf, for any u that autograd differentiates."""
    with torch.enable_grad():
        s = torch.tensor(t, dtype=torch.float64, device="cpu", requires_grad=True)
        leaves = u(s)
        # What ⟨v, u̇⟩ is linear in gives all of u̇ at once, where there is reverse mode only.
        weights = [torch.zeros_like(x, requires_grad=True) for x in leaves]
        (pulled,) = torch.autograd.grad(leaves, s, weights, create_graph=True)
    found = torch.autograd.grad(pulled, weights)
    return tuple(x.detach() for x in found)


def points(scheme: Scheme) -> int:
    """How many points determine the dense output of a scheme."""
    return scheme.read_degree + 1


@cache
def _nodes(m: int) -> tuple[float, ...]:
    return tuple(0.5 - 0.5 * math.cos((2 * i + 1) * math.pi / (2 * m)) for i in range(m))


@cache
def _table(m: int) -> Tensor:
    """c_k T_k(ξ_i) / m, shape [m, m], rows for i, with c_0 = 1 and c_k = 2."""
    angles = [(2 * i + 1) * math.pi / (2 * m) for i in range(m)]
    rows = [
        [(2.0 if k else 1.0) * (-1.0) ** k * math.cos(k * a) / m for k in range(m)] for a in angles
    ]
    with torch.inference_mode(False):  # or it would serve in no other mode
        return torch.tensor(rows, dtype=torch.float64, device="cpu")
