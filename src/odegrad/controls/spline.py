"""The natural cubic spline.

Its second derivatives M_k at the knots are linear in its values v: M_0 = M_K = 0 and, for 0 < k < K,

    h_{k−1} M_{k−1} + 2 (h_{k−1} + h_k) M_k + h_k M_{k+1}
        = 6 ((v_{k+1} − v_k) / h_k − (v_k − v_{k−1}) / h_{k−1}).

The system depends on the knots alone, so that M = R v with a matrix R that is found once. It is dense:
8 (K + 1)² bytes, and one evaluation reads two of its rows.

Reference: de Boor, *A Practical Guide to Splines*, Springer 1978, chapter IV, eqs. (8)–(15).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from odegrad.controls.base import spread, take
from odegrad.controls.initial import Guess, initial, sample
from odegrad.controls.piecewise import Piecewise

__all__ = ["NaturalSpline"]


class NaturalSpline(Piecewise):
    """The natural cubic spline through values v at the knots, linear outside of them.

    With r = 1 − s and (·)₊ = max(·, 0), which changes nothing between the knots,

        u(t) = r v_k + s v_{k+1} + h_k² ((r₊³ − r) M_k + (s₊³ − s) M_{k+1}) / 6.

    Arguments:
        knots: The times t_0 < … < t_K: fixed numbers, K ≥ 1.
        shape: The shape of u at one time.
        init: The initial `values`: a tensor [K + 1, *shape] or a function t ↦ u(t), which is sampled
            at the knots; zeros by default.

    Raises:
        InvalidTypeError: If an argument has an unusable type.
        InvalidValueError: If knots do not increase, or init has another shape.

    Reference: de Boor, *A Practical Guide to Splines*, Springer 1978, chapter IV.

    Example:
        >>> import torch
        >>> from odegrad.controls import NaturalSpline
        >>> u = NaturalSpline([0.0, 1.0, 2.0], init=torch.tensor([0.0, 1.0, 0.0]))
        >>> u(torch.tensor([0.5, 1.0, 3.0])).tolist()
        [0.6875, 1.0, -1.5]
    """

    _second: Tensor

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
        k, s, h = self._local(self._time(t, v), v)
        r = 1 - s
        linear = spread(r, v) * take(v, k) + spread(s, v) * take(v, k + 1)
        left = (h * h * (r.relu() ** 3 - r) / 6).unsqueeze(-1) * take(self._second, k).to(s.dtype)
        right = h * h * (s.relu() ** 3 - s) / 6
        right = right.unsqueeze(-1) * take(self._second, k + 1).to(s.dtype)
        return linear + torch.tensordot((left + right).to(v.dtype), v, dims=1)

    def _constants(self) -> dict[str, Tensor]:
        constants = super()._constants()
        return constants | {"_second": _second_derivatives(constants["_widths"])}


def _second_derivatives(h: Tensor) -> Tensor:
    """R, of shape [K + 1, K + 1], for widths h of shape [K]."""
    n = len(h) + 1
    second = torch.zeros(n, n, dtype=h.dtype, device=h.device)
    if n > 2:
        before, after = h[:-1], h[1:]
        system = 2 * torch.diag(before + after)
        system += torch.diag(after[:-1], 1) + torch.diag(after[:-1], -1)
        slope = torch.diff(torch.eye(n, dtype=h.dtype, device=h.device), dim=0) / h.unsqueeze(-1)
        second[1:-1] = torch.linalg.solve(system, 6 * slope.diff(dim=0))
    return second
