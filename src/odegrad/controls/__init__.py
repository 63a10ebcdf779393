"""Controls θ(t): trainable functions of time, as modules for use inside a vector field."""

from __future__ import annotations

from odegrad.controls.base import Control
from odegrad.controls.piecewise import CubicHermite, PiecewiseConstant, PiecewiseLinear
from odegrad.controls.series import Chebyshev, Fourier
from odegrad.controls.spline import NaturalSpline

__all__ = [
    "Chebyshev",
    "Control",
    "CubicHermite",
    "Fourier",
    "NaturalSpline",
    "PiecewiseConstant",
    "PiecewiseLinear",
]
