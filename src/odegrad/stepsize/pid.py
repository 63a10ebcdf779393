"""Adaptive steps: error-proportional, PI and PID control, and the starting step.

With the error ratio e_n = ‖err_n / (atol + rtol max(|y_n|, |y_{n+1}|))‖ and k the order of the error
estimate, the next step is

    h_{n+1} = h_n · clip(safety · e_n^(−β₁/k) · e_{n−1}^(−β₂/k) · e_{n−2}^(−β₃/k), factor_min, factor_max)

    β₁ = p + i + d,     β₂ = −(p + 2 d),     β₃ = d,

where p, i and d are the proportional, integral and derivative gains. i = 1 alone is the classical
controller; PI gains such as p = 0.4, i = 0.3 give smoother step sequences on mildly stiff problems.
A step is accepted iff e_n ≤ 1. After a rejection the next accepted step does not grow.

References:
    G. Söderlind, *Digital filters in adaptive time-stepping*, ACM Trans. Math. Softw. 29 (2003).
    E. Hairer, S. P. Nørsett, G. Wanner, *Solving Ordinary Differential Equations I*, II.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.errors import InvalidTypeError, InvalidValueError, warn
from odegrad.field import VectorField
from odegrad.state import Leaves, Time, align, axpy, rms_norm, wide
from odegrad.stepsize.base import AdaptiveStepSize, Decision, History
from odegrad.stepsize.shared import shared_number

__all__ = ["PID", "starting_step"]

CONSTANTS = (
    "rtol",
    "atol",
    "p",
    "i",
    "d",
    "safety",
    "factor_min",
    "factor_max",
    "dt_min",
    "dt_max",
)
"""The fields of `PID` that are always numbers."""

SMALLEST_RATIO = 1e-10  # an error of exactly zero must not make the factor infinite


@dataclass(frozen=True)
class PID:
    """A proportional–integral–derivative step-size controller; the default is purely integral.

    Arguments:
        rtol: Relative tolerance, ≥ 0, dimensionless.
        atol: Absolute tolerance, ≥ 0, in units of the state; not both zero.
        p: Proportional gain.
        i: Integral gain.
        d: Derivative gain.
        safety: Fraction of the predicted step to take, in (0, 1].
        factor_min: Smallest ratio of one step to the one before, in (0, 1).
        factor_max: Largest ratio, > 1.
        dt0: Size of the first attempt in units of time, positive; None estimates it from two
            evaluations of the vector field.
        dt_min: Smallest step allowed; a smaller one raises `StepTooSmallError`.
        dt_max: Largest step allowed.
        norm: Maps the scaled leaves (a tuple of tensors) to a 0-dim tensor; None is the root mean
            square over all elements.

    Raises:
        InvalidValueError: If an argument is out of its range.
        InvalidTypeError: If a tolerance is a tensor.

    Example:
        >>> import odegrad
        >>> from odegrad.stepsize import History
        >>> odegrad.PID(rtol=1e-6, safety=1.0).decide(0.25, History(), order=2)
        Decision(accept=True, factor=2.0, history=History(ratios=(0.25, 1.0), rejected=False))
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0
    dt0: float | None = None
    dt_min: float = 0.0
    dt_max: float = math.inf
    norm: Callable[[Leaves], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in (*CONSTANTS, *(["dt0"] if self.dt0 is not None else [])):
            value = getattr(self, name)
            if not isinstance(value, (int, float, Tensor)):
                raise InvalidTypeError(f"PID: {name} must be a number, received {value!r}")
            if isinstance(value, Tensor):
                raise InvalidTypeError(
                    f"{name} must be a float, received a tensor: no gradient flows to a tolerance; "
                    f"pass {name}.item()"
                )
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise InvalidValueError(
                "tolerances must be ≥ 0 and not both zero, "
                f"received rtol={self.rtol!r}, atol={self.atol!r}"
            )
        if self.norm is not None and not callable(self.norm):  # pyright: ignore[reportUnnecessaryComparison]
            raise InvalidTypeError(f"PID: norm must be callable or None, received {self.norm!r}")
        rules = [
            ("rtol", self.rtol < math.inf, "finite"),
            ("atol", self.atol < math.inf, "finite"),
            *((name, math.isfinite(getattr(self, name)), "finite") for name in ("p", "i", "d")),
            ("factor_max", math.isfinite(self.factor_max), "finite"),
            ("safety", 0 < self.safety <= 1, "in (0, 1]"),
            ("factor_min", 0 < self.factor_min < 1, "in (0, 1)"),
            ("factor_max", self.factor_max > 1, "above 1"),
            ("dt0", self.dt0 is None or 0 < self.dt0 < math.inf, "positive and finite, or None"),
            ("dt_min", 0 <= self.dt_min < math.inf, "at least 0"),
            ("dt_max", self.dt_max > self.dt_min, "above dt_min"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise InvalidValueError(
                    f"PID: {name} must be {rule}, received {getattr(self, name)!r}"
                )
        if self.rtol >= 1:
            warn(f"PID: rtol={self.rtol} of 1 or more allows errors as large as the state")

    def scaled_norm(self, x: Leaves, y0: Leaves, y1: Leaves) -> Tensor:
        """‖x / (atol + rtol max(|y0|, |y1|))‖, a 0-dim tensor; never on an autograd graph."""
        with torch.no_grad():
            return scaled_norm(x, y0, y1, self.rtol, self.atol, self.norm)

    def decide(self, ratio: float, history: History, order: int) -> Decision:
        """Judges a step attempt.

        Arguments:
            ratio: The scaled norm of its error estimate; accepted iff ≤ 1. NaN and infinity reject.
            history: What earlier decisions left.
            order: k, the order of the error estimate: err = O(h^k).
        """
        if not math.isfinite(ratio):
            return Decision(False, self.factor_min, History(history.ratios, rejected=True))
        last, before = history.ratios
        e = max(ratio, SMALLEST_RATIO)
        factor = self.safety * (
            e ** (-(self.p + self.i + self.d) / order)
            * last ** ((self.p + 2 * self.d) / order)
            * before ** (-self.d / order)
        )
        accept = ratio <= 1.0
        largest = 1.0 if history.rejected else self.factor_max
        if not accept:
            largest = self.safety
        factor = min(max(factor, self.factor_min), largest)
        ratios = (e, last) if accept else history.ratios
        return Decision(accept, factor, History(ratios, rejected=not accept))


def scaled_norm(
    x: Leaves,
    y0: Leaves,
    y1: Leaves,
    rtol: Time,
    atol: Time,
    norm: Callable[[Leaves], Tensor] | None,
) -> Tensor:
    """`PID.scaled_norm` for tolerances that are floats or 0-dim tensors."""
    scaled: list[Tensor] = []
    for e, a, b in zip(map(wide, x), map(wide, y0), map(wide, y1), strict=True):
        s = e / (align(atol, a) + align(rtol, a) * torch.maximum(a.abs(), b.abs()))
        if isinstance(atol, Tensor) or atol == 0.0:
            # An entry that is and stays zero has no error: 0/0 is 0.
            s = torch.where(e == 0, torch.zeros_like(s), s)
        scaled.append(s)
    return (norm or rms_norm)(tuple(scaled))


def power(x: Tensor, exponent: float) -> Tensor:
    """x to a power, whatever the number of its entries to the same last digit.

    Of numbers that do not lie side by side torch takes powers one by one, as of single numbers and as
    Python does; else by a function that may differ in the last place.
    """
    if x.ndim == 0:
        return x**exponent
    return torch.stack([x, x], dim=-1)[..., 0] ** torch.full_like(x, exponent)


def starting_step(
    field: VectorField,
    control: AdaptiveStepSize,
    order: int,
    t: float,
    direction: float,
    y: Leaves,
    p: Leaves,
) -> float:
    """The first step size, from the sizes of y, y' and an estimate of y'' (two evaluations).

    Arguments:
        field: The vector field.
        control: The controller whose tolerances scale the norms.
        order: The order of the scheme.
        t: The starting time.
        direction: +1 or −1.
        y: The initial state.
        p: Parameters.

    Reference: Hairer, Nørsett & Wanner, *Solving Ordinary Differential Equations I*, II.4, p. 169.
    """
    norm = control.scaled_norm
    with torch.no_grad():
        time = torch.tensor(t, dtype=torch.float64, device="cpu")
        return -shared_number(-starting_size(field, norm, order, time, direction, y, p))


def starting_size(
    field: VectorField,
    norm: Callable[[Leaves, Leaves, Leaves], Tensor],
    order: int,
    t: Tensor,
    direction: Time,
    y: Leaves,
    p: Leaves,
) -> Tensor:
    """`starting_step` as a 0-dim float64 tensor, without a look at any value."""
    n = field.n_state

    def size(x: Leaves) -> Tensor:
        return norm(x[:n], y[:n], y[:n]).to(device=t.device, dtype=torch.float64)

    f0 = field(t, y, p)
    d0, d1 = size(y), size(f0)
    small = torch.full_like(t, 1e-6)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), small, 0.01 * d0 / d1)
    usable = (h0 > 0.0) & torch.isfinite(h0)
    h0 = torch.where(usable, h0, small)
    f1 = field(t + h0 * direction, axpy(y, h0 * direction, (1.0,), (f0,)), p)
    d2 = size(tuple(b - a for a, b in zip(f0[:n], f1[:n], strict=True))) / h0
    largest = torch.maximum(d1, d2)
    flat = torch.maximum(small, h0 * 1e-3)
    h1 = torch.where(largest <= 1e-15, flat, power(0.01 / largest, 1.0 / (order + 1)))
    chosen = torch.minimum(100.0 * h0, h1)
    return torch.where(usable & torch.isfinite(largest), chosen, h0)
