"""Dense output of compiled steps: the state at some parts of each, and the polynomial through them.

Whatever a scheme reads a state from, its slopes or further evaluations of f, what it evaluates in a
step is a polynomial in x = (t − t_n) / h_n of a degree d that is known. A program gives its values u_j
at 0 < x_1 < … < x_d = 1, with u_0 = y_n at x_0 = 0. All times inside the steps of a chunk are then read
at once,

    u(x) = Σ_j L_j(x) u_j,     L_j(x) = Π_{i≠j} (x − x_i) / (x_j − x_i),

and the transpose is, for cotangents ū_r of the states read at x_r in step n,

    ū_j += L_j(x_r) ū_r,     x̄_r = Σ_j L_j′(x_r) Re⟨u_j, ū_r⟩,
    T̄_r += x̄_r / h_n,     t̄_n −= x̄_r / h_n,     h̄_n −= x_r x̄_r / h_n,

where the cotangents ū_j go through the transposed step. The x_j are the extrema of a Chebyshev
polynomial, between which no L_j exceeds 1, so that this is as good as reading each time alone.

With steps for each sample, a step n is one of a sample (`SampleInside`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from odegrad.compiled.inside import Inside
from odegrad.field import VectorField
from odegrad.schemes.base import Scheme, Step
from odegrad.schemes.dense import Part, Read
from odegrad.state import Leaves, Time, inner, real_dtype, wide

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """What states inside of steps are read from.

    Arguments:
        degree: The degree of the polynomial that the scheme reads them off.
    """

    degree: int

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """x_0, …, x_d."""
        d = self.degree
        return tuple(0.5 - 0.5 * math.cos(math.pi * j / d) for j in range(d + 1))

    def values(
        self,
        scheme: Scheme,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        step: Step,
        p: Leaves,
    ) -> list[Tensor]:
        """u_1, …, u_d of a step, one tensor of shape [d, *leaf.shape] per leaf."""
        parts = [Part(x) for x in self.nodes[1:]]
        found = scheme.read(field, t, dt, y, step, p, parts)
        return [torch.stack(leaf) for leaf in zip(*found, strict=True)]

    def reads(self, grads: Leaves) -> list[Read]:
        """The cotangents of u_1, …, u_d; `grads` has shape [d + 1, *leaf.shape] per leaf."""
        nodes = enumerate(self.nodes[1:], start=1)
        return [Read(Part(x), tuple(g[j] for g in grads)) for j, x in nodes]

    def states(self, at: Inside, y: Leaves, inside: Leaves) -> Leaves:
        """The states at the times, shape [R, *leaf.shape].

        Arguments:
            at: The times.
            y: The states before the steps, one row each.
            inside: u_1, …, u_d, one row each.
        """
        weights = self._weights(at.x)
        return tuple(
            _combined(weights, before, within, at).to(before.dtype)
            for before, within in zip(y, inside, strict=True)
        )

    def states_vjp(self, at: Inside, grads: Leaves, into: Leaves) -> None:
        """Adds the cotangents of u_0, …, u_d to the rows of `into`, given those of the states."""
        weights = self._weights(at.x)
        for g, rows in zip(grads, into, strict=True):
            g = g.to(rows.device)
            at.add(at.nodes(rows), _spread(weights, g) * g.unsqueeze(1))

    def rates(self, at: Inside, y: Leaves, inside: Leaves, grads: Leaves) -> Tensor:
        """x̄, shape [R], given the cotangents of the states."""
        slopes = self._slopes(at.x)
        rates = tuple(
            _combined(slopes, before, within, at) for before, within in zip(y, inside, strict=True)
        )
        return inner(rates, grads, at.x)

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x − x_i) / (x_j − x_i) and the derivatives of that, both with 1 and 0 where i = j."""
        nodes = torch.tensor(self.nodes, dtype=x.dtype, device=x.device)
        gaps = nodes[:, None] - nodes
        slopes = torch.where(gaps == 0.0, 0.0, 1.0 / gaps)
        ones = torch.eye(len(nodes), dtype=x.dtype, device=x.device)
        return (x[:, None] - nodes)[:, None, :] * slopes + ones, slopes

    def _weights(self, x: Tensor) -> Tensor:
        """L_j(x), shape [R, d + 1]."""
        return self._factors(x)[0].prod(-1)

    def _slopes(self, x: Tensor) -> Tensor:
        """L_j′(x), shape [R, d + 1]."""
        factors, slopes = self._factors(x)
        total = torch.zeros_like(factors[..., 0])
        for i in range(len(self.nodes)):
            changed = factors.clone()
            changed[..., i] = slopes[:, i]
            total += changed.prod(-1)
        return total


def _spread(weights: Tensor, like: Tensor) -> Tensor:
    """Weights of shape [R, J] as factors of tensors of shape [R, J, *leaf.shape]."""
    weights = weights.to(dtype=real_dtype(wide(like[:0]).dtype), device=like.device)
    return weights.reshape(*weights.shape, *(1 for _ in like.shape[1:]))


def _combined(weights: Tensor, before: Tensor, inside: Tensor, at: Inside) -> Tensor:
    """Σ_j w_j u_j for each time, with w_0 for the state before the step."""
    first, others = at.take(before), at.take(at.nodes(inside))
    spread = _spread(weights, first)
    return spread[:, 0] * first + (spread[:, 1:] * others).sum(1)
