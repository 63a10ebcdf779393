"""Adaptive quadrature of a function whose values are lists of tensors.

On every interval the Kronrod rule with 15 nodes, whose difference to the Gauss rule with 7 of them
estimates the error; an interval whose error is too large is halved. The Gauss rule is exact for
polynomials of degree 13, the Kronrod rule for those of degree 22.

Reference: A. S. Kronrod, *Nodes and Weights of Quadrature Formulas* (1965); R. Piessens et al.,
*QUADPACK* (1983), whose table of nodes and weights is used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.errors import InvalidValueError, OdegradWarning
from odegrad.state import OptionalLeaves

__all__ = ["NODES", "GaussKronrod"]

_HALF = (
    # node, Kronrod weight, Gauss weight
    (0.991455371120812639206854697526329, 0.022935322010529224963732008058970, 0.0),
    (0.949107912342758524526189684047851, 0.063092092629978553290700663189204,
     0.129484966168869693270611432679082),
    (0.864864423359769072789712788640926, 0.104790010322250183839876322541518, 0.0),
    (0.741531185599394439863864773280788, 0.140653259715525918745189590510238,
     0.279705391489276667901467771423780),
    (0.586087235467691130294144691258480, 0.169004726639267902826583426598550, 0.0),
    (0.405845151377397166906606412076961, 0.190350578064785409913256402421014,
     0.381830050505118944950369775488975),
    (0.207784955007898467600689403773245, 0.204432940075298892414161999234649, 0.0),
)  # fmt: skip

NODES: tuple[tuple[float, float, float], ...] = (
    *((-x, k, g) for x, k, g in _HALF),
    (0.0, 0.209482141084727828012999174891714, 0.417959183673469387755102040816327),
    *((x, k, g) for x, k, g in reversed(_HALF)),
)
"""(node in (−1, 1), weight of the Kronrod rule, weight of the Gauss rule)."""

_MOST = 2000
"""The most intervals."""


@dataclass(frozen=True)
class GaussKronrod:
    """Adaptive Gauss–Kronrod quadrature with 7 and 15 nodes.

    An interval [a, b] of [A, B] is done when its estimated error, as the root mean square over all
    numbers, is at most (b − a) / (B − A) of atol + rtol times the size of the integral so far.

    Arguments:
        rtol: The relative tolerance.
        atol: The absolute tolerance.

    Raises:
        InvalidValueError: If one is negative or both are zero.
    """

    rtol: float = 1e-6
    atol: float = 1e-9

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and 0 < self.rtol + self.atol < math.inf):
            raise InvalidValueError(
                "GaussKronrod: tolerances must be ≥ 0 and not both zero, "
                f"received rtol={self.rtol!r}, atol={self.atol!r}"
            )

    def integrate(
        self, function: Callable[[float], OptionalLeaves], start: float, stop: float
    ) -> list[Tensor | None]:
        """∫ function dt from `start` to `stop`; None is zero."""
        intervals, total, taken = [(start, stop)], list[Tensor | None](), 0
        if start == stop:
            return total
        while intervals:
            a, b = intervals.pop()
            taken += 1
            value, error = _interval(function, a, b)
            share = abs(b - a) / abs(stop - start)
            # Rounding cannot be made smaller by halving.
            size = _rms(value)
            allowed = self.atol + self.rtol * max(size, _rms(_plus(total, value)))
            middle = 0.5 * (a + b)
            splits = error > max(share * allowed, 50.0 * _eps(value) * size) and a != middle != b
            if splits and taken + len(intervals) < _MOST:
                intervals += [(middle, b), (a, middle)]
                continue
            if splits:
                warnings.warn(
                    f"GaussKronrod took {_MOST} intervals between {start:.6g} and {stop:.6g} and "
                    f"does not reach its tolerance: the error near {middle:.6g} is about {error:.3g}. "
                    "Raise rtol and atol, or solve more accurately",
                    OdegradWarning,
                    stacklevel=2,
                )
            total = _plus(total, value)
        return total


def _interval(
    function: Callable[[float], OptionalLeaves], a: float, b: float
) -> tuple[list[Tensor | None], float]:
    """The Kronrod rule on one interval, and its estimated error."""
    kronrod, difference = list[Tensor | None](), list[Tensor | None]()
    middle, half = 0.5 * (a + b), 0.5 * (b - a)
    for x, k, g in NODES:
        value = function(middle + half * x)
        kronrod = _plus(kronrod, [None if v is None else (half * k) * v for v in value])
        difference = _plus(difference, [None if v is None else (half * (k - g)) * v for v in value])
    return kronrod, _rms(difference)


def _plus(x: list[Tensor | None], y: list[Tensor | None]) -> list[Tensor | None]:
    if not x:
        return list(y)
    return [b if a is None else a if b is None else a + b for a, b in zip(x, y, strict=True)]


def _eps(x: list[Tensor | None]) -> float:
    """The coarsest machine epsilon among the numbers."""
    return max((torch.finfo(v.dtype).eps for v in x if v is not None), default=0.0)


def _rms(x: list[Tensor | None]) -> float:
    """The root mean square of all numbers."""
    present = [v for v in x if v is not None and v.numel()]
    if not present:
        return 0.0
    squares = torch.stack(
        [v.detach().abs().square().sum().to("cpu", torch.float64) for v in present]
    )
    return math.sqrt(float(squares.sum()) / sum(v.numel() for v in present))
