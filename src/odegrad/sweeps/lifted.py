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

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from odegrad.field import VectorField
from odegrad.linearization import Linearization
from odegrad.state import Leaves, OptionalLeaves, Time

__all__ = ["LiftedField"]


class LiftedField:
    """A vector field on states (y, ẏ); in all else it is the field that it lifts.

    Arguments:
        field: The field.
        n: The number of leaves of y.
        directions: ṗ, one per tensor that f reads; None is zero.

    Raises:
        NotImplementedError: When called, if f does something that has no forward-mode derivative.
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
        """(f, f_y ẏ + f_p ṗ) at (t, (y, ẏ))."""
        n = self._n
        # A sweep runs inside of a Function, where torch switches forward mode off.
        switched_on = forward_ad._set_fwd_grad_enabled(True)  # pyright: ignore
        with switched_on, forward_ad.dual_level():
            dual_y = tuple(forward_ad.make_dual(a, b) for a, b in zip(y[:n], y[n:], strict=True))
            dual_p = tuple(
                x if d is None else forward_ad.make_dual(x, d)
                for x, d in zip(p, self._directions, strict=True)
            )
            slopes = self._field.bound(dual_p, lambda: self._field(t, dual_y, dual_p))
            pairs = [forward_ad.unpack_dual(x) for x in slopes]
            values = tuple(pair.primal for pair in pairs)
            tangents = tuple(
                torch.zeros_like(x) if pair.tangent is None else pair.tangent
                for x, pair in zip(values, pairs, strict=True)
            )
        return (*values, *tangents)

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
