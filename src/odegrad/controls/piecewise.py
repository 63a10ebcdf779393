"""Controls that are polynomials between knots.

With knots t_0 < … < t_K and t in [t_k, t_{k+1}), where the first and the last piece go on outside,

    s = (t − t_k) / h_k,    h_k = t_{k+1} − t_k.

Reference: de Boor, *A Practical Guide to Splines*, Springer 1978, chapter IV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odegrad.controls.base import Control, spread, take, wide_dtype
from odegrad.controls.initial import Guess, checked_knots, checked_shape, initial, sample

__all__ = ["CubicHermite", "Piecewise", "PiecewiseConstant", "PiecewiseLinear"]


class Piecewise(Control):
    """The base of controls with knots.

    Arguments:
        knots: The times t_0 < … < t_K.
        shape: The shape of u at one time.
    """

    _knots: Tensor
    _widths: Tensor

    def __init__(self, knots: Sequence[float], shape: Sequence[int]) -> None:
        super().__init__(checked_shape(shape))
        self.knots = checked_knots(knots)
        self._hold_constants()

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The knots."""
        return self.knots

    def extra_repr(self) -> str:
        """The knots and the shape, for repr."""
        first, last = self.knots[0], self.knots[-1]
        return f"{len(self.knots)} knots from {first} to {last}, shape={self.shape}"

    def _constants(self) -> dict[str, Tensor]:
        knots = torch.tensor(self.knots, dtype=torch.float64)
        return {"_knots": knots, "_widths": knots.diff()}

    def _piece(self, t: Tensor) -> Tensor:
        """k, compared in the dtype of t."""
        return torch.bucketize(t, self._knots[1:-1].to(t.dtype), right=True)

    def _local(self, t: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(k, s, h_k)."""
        k, dtype = self._piece(t), wide_dtype(t, parameter)
        h = take(self._widths, k).to(dtype)
        return k, (t.to(dtype) - take(self._knots, k).to(dtype)) / h, h


class PiecewiseConstant(Piecewise):
    """A control that is constant between knots: u(t) = v_k for t_k ≤ t < t_{k+1}.

    The last piece includes its end. The derivative with respect to t is zero (autograd says None).

    Arguments:
        knots: The times t_0 < … < t_K: fixed numbers, K ≥ 1.
        shape: The shape of u at one time.
        init: The initial `values`: a tensor [K, *shape] or a function t ↦ u(t), which is sampled in
            the middle of each piece; zeros by default.

    Raises:
        InvalidTypeError: If an argument has an unusable type.
        InvalidValueError: If knots do not increase, or init has another shape.

    Example:
        >>> import torch
        >>> from odegrad.controls import PiecewiseConstant
        >>> u = PiecewiseConstant([0.0, 1.0, 3.0], init=torch.tensor([5.0, 7.0]))
        >>> u(torch.tensor([-1.0, 0.5, 1.0, 3.0, 9.0])).tolist()
        [5.0, 5.0, 7.0, 7.0, 7.0]
    """

    def __init__(
        self, knots: Sequence[float], shape: Sequence[int] = (), *, init: Guess = None
    ) -> None:
        super().__init__(knots, shape)
        middles = [(a + b) / 2 for a, b in zip(self.knots[:-1], self.knots[1:], strict=True)]
        (values,) = initial(
            init,
            {"values": (len(middles), *self.shape)},
            lambda u: [sample(u, middles, self.shape)],
        )
        self.values = nn.Parameter(values)

    @property
    def continuous(self) -> bool:
        """False: u jumps at the knots."""
        return False

    def forward(self, t: Tensor | float) -> Tensor:
        """u(t), of shape [*t.shape, *shape]."""
        return take(self.values, self._piece(self._time(t, self.values)))


class PiecewiseLinear(Piecewise):
    """A control that is linear between knots: u(t) = (1 − s) v_k + s v_{k+1}.

    Arguments:
        knots: The times t_0 < … < t_K: fixed numbers, K ≥ 1.
        shape: The shape of u at one time.
        init: The initial `values`: a tensor [K + 1, *shape] or a function t ↦ u(t), which is sampled
            at the knots; zeros by default.

    Raises:
        InvalidTypeError: If an argument has an unusable type.
        InvalidValueError: If knots do not increase, or init has another shape.

    Example:
        >>> import torch
        >>> from odegrad.controls import PiecewiseLinear
        >>> u = PiecewiseLinear([0.0, 1.0, 3.0], init=lambda t: t * t)
        >>> u(torch.tensor([0.5, 1.0, 2.0, 4.0])).tolist()
        [0.5, 1.0, 5.0, 13.0]
    """

    def __init__(
        self, knots: Sequence[float], shape: Sequence[int] = (), *, init: Guess = None
    ) -> None:
        super().__init__(knots, shape)
        (values,) = initial(
            init,
            {"values": (len(self.knots), *self.shape)},
            lambda u: [sample(u, self.knots, self.shape)],
        )
        self.values = nn.Parameter(values)

    def forward(self, t: Tensor | float) -> Tensor:
        """u(t), of shape [*t.shape, *shape]."""
        v = self.values
        k, s, _ = self._local(self._time(t, v), v)
        return spread(1 - s, v) * take(v, k) + spread(s, v) * take(v, k + 1)


class CubicHermite(Piecewise):
    """A control that is cubic between knots, with given values v and slopes m at the knots.

    u(t) = (1 − s)² (1 + 2 s) v_k + s² (3 − 2 s) v_{k+1} + h_k s (1 − s) ((1 − s) m_k − s m_{k+1}).

    Arguments:
        knots: The times t_0 < … < t_K: fixed numbers, K ≥ 1.
        shape: The shape of u at one time.
        init: The initial `values` and `slopes`: two tensors [K + 1, *shape] or a function t ↦ u(t)
            of torch operations, which is sampled and differentiated at the knots; zeros by default.

    Raises:
        InvalidTypeError: If an argument has an unusable type.
        InvalidValueError: If knots do not increase, or init has another shape.

    Example:
        >>> import torch
        >>> from odegrad.controls import CubicHermite
        >>> u = CubicHermite([0.0, 1.0, 3.0], init=lambda t: t**3)
        >>> u(torch.tensor([0.5, 1.0, 2.0])).tolist()
        [0.125, 1.0, 8.0]
    """

    def __init__(
        self, knots: Sequence[float], shape: Sequence[int] = (), *, init: Guess = None
    ) -> None:
        super().__init__(knots, shape)
        size = (len(self.knots), *self.shape)
        values, slopes = initial(init, {"values": size, "slopes": size}, self._sample)
        self.values = nn.Parameter(values)
        self.slopes = nn.Parameter(slopes)

    def forward(self, t: Tensor | float) -> Tensor:
        """u(t), of shape [*t.shape, *shape]."""
        v, m = self.values, self.slopes
        k, s, h = self._local(self._time(t, v), v)
        r = 1 - s
        left = spread(r * r * (1 + 2 * s), v) * take(v, k) + spread(h * s * r * r, m) * take(m, k)
        k = k + 1
        right = spread(s * s * (3 - 2 * s), v) * take(v, k) - spread(h * s * s * r, m) * take(m, k)
        return left + right

    def _sample(self, u: Callable[[Tensor], Any]) -> list[Tensor]:
        slope = torch.func.jacrev(u)
        return [sample(u, self.knots, self.shape), sample(slope, self.knots, self.shape)]
