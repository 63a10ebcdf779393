"""The tangent-lifted vector field: f together with its derivative along a direction.

    d/dt (y, ẏ) = (f(t, y, p), f_y ẏ + f_p ṗ).

A Runge–Kutta step of the lifted field is the step and its tangent, so that every sweep that serves f
serves the tangent, too. The transposed steps of the lifted field give second derivatives: for the
solution operator S, weights g and a direction u,

    ∇_x ⟨g, S'(x) u⟩ = S''(x)[u]ᵀ g,

in the memory of a schedule, as for first derivatives.

Reference: A. Griewank & A. Walther, *Evaluating Derivatives* (2008), 5.4 (second-order adjoints).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.linearization import Linearization
from odegrad.reach import check_reachable, formal
from odegrad.state import Leaves, OptionalLeaves, Time

__all__ = ["LiftedField"]


class LiftedField:
    """A vector field on states (y, ẏ); in all else it is the field that it lifts.

    Arguments:
        field: The field.
        n: The number of leaves of y.
        directions: ṗ, one per tensor that f reads; None is zero. Those that move have to require grad
            where they are read.
    """

    def __init__(self, field: VectorField, n: int, directions: OptionalLeaves) -> None:
        self._field, self._n, self._directions = field, n, directions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._field, name)

    @property
    def transposes(self) -> int:
        """Vector–Jacobian products so far."""
        return self._field.transposes

    @transposes.setter
    def transposes(self, count: int) -> None:
        self._field.transposes = count

    def __call__(self, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """(f, f_y ẏ + f_p ṗ) at (t, (y, ẏ)).

        The tangent is the transpose of w ↦ (f_yᵀ w, f_pᵀ w): what f takes off the graph stays off it, as
        in first derivatives (torch's forward mode would go through ``torch.no_grad``).
        """
        n, on_graph = self._n, torch.is_grad_enabled()
        moving = [i for i, d in enumerate(self._directions) if d is not None]
        with torch.enable_grad():
            point = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in y[:n])
            if any(x.grad_fn is not None for x in point):
                # The state may depend on p: f gets aliases of both, for its partial derivatives.
                point = tuple(x.view_as(x) for x in point)
                read = tuple(x.view_as(x) if i in moving else x for i, x in enumerate(p))
                values = self._field.bound(read, lambda: self._field(t, point, read))
                check_reachable(values, [*point, *read])  # f may have read what is no alias
            else:
                read, values = p, self._field(t, point, p)
            weights = [formal(torch.zeros_like(x).requires_grad_()) for x in values]
            pairs = [(x, w) for x, w in zip(values, weights, strict=True) if x.requires_grad]
            inputs = [*point, *(read[i] for i in moving)]
            directions = [*y[n:], *(d for d in self._directions if d is not None)]
            tangents: Sequence[Tensor | None] = [None] * n
            if pairs:
                pulled = torch.autograd.grad(
                    [x for x, _ in pairs],
                    inputs,
                    [w for _, w in pairs],
                    create_graph=True,
                    allow_unused=True,
                )
                paired: list[tuple[Tensor | None, Tensor]] = list(
                    zip(pulled, directions, strict=True)
                )
                linear = [(g, d) for g, d in paired if g is not None and g.requires_grad]
                if linear:
                    tangents = torch.autograd.grad(
                        [g for g, _ in linear],
                        weights,
                        [d for _, d in linear],
                        create_graph=on_graph,
                        allow_unused=True,
                    )
        found = (
            torch.zeros_like(x) if v is None else v for x, v in zip(values, tangents, strict=True)
        )
        result = (*values, *found)
        return result if on_graph else tuple(x.detach() for x in result)

    def linearize(self, t: Time, y: Leaves, p: Leaves) -> Linearization:
        """As `VectorField.linearize`."""
        with torch.enable_grad():
            leaves = tuple(leaf.detach().requires_grad_() for leaf in y)
            time = t.detach().requires_grad_() if isinstance(t, Tensor) else t
            slopes = self(time, leaves, p)
        return Linearization(self._field, time, leaves, p, slopes)

    def vjp(
        self, t: Time, y: Leaves, p: Leaves, grad: OptionalLeaves
    ) -> tuple[Tensor | None, Leaves, OptionalLeaves]:
        """As `VectorField.vjp`."""
        return self.linearize(t, y, p).vjp(grad)
