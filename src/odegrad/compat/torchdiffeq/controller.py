"""The step-size control of torchdiffeq, as an object.

With the error ratio e = ‖err / (atol + rtol max(|y_n|, |y_{n+1}|))‖ and k the order of the error
estimate, a step is accepted iff e ≤ 1, or if it is as small as `dt_min`, and the next size is

    h · min(ifactor, max(safety · e^(−1/k), 1 if e < 1 else dfactor)),     h · ifactor if e = 0.

The norm is the root mean square of a tensor; of a tuple, the largest of those of its tensors. The first
step is Hairer's with exponent 1/p in the place of 1/(p + 1) for a scheme of order p.

Reference: E. Hairer, S. P. Nørsett, G. Wanner, *Solving Ordinary Differential Equations I*, II.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odegrad.state import Leaves, wide
from odegrad.stepsize import Decision, History

__all__ = ["Controller", "Tolerance"]

Tolerance: TypeAlias = float | Tensor | tuple[float | Tensor, ...]
"""One for all, or one per leaf of a tuple; a tensor broadcasts against the state or leaf."""


@dataclass(frozen=True, eq=False)
class Controller:
    """Adaptive steps as torchdiffeq chooses them.

    Arguments:
        rtol: The relative tolerance, dimensionless.
        atol: The absolute tolerance, in units of the state.
        norm: Maps the scaled error, a tensor or a tuple like the state, to a number; None is the default.
        packed: Whether the state is a tuple.
        safety: The fraction of the predicted step to take.
        ifactor: The largest ratio of one step to the one before.
        dfactor: The smallest.
        dt0: The first attempt in units of time, or None to estimate it.
        dt_min: The smallest step; it is accepted whatever its error.
        dt_max: The largest.

    Example:
        >>> from odegrad.stepsize import History
        >>> from odegrad.compat.torchdiffeq.controller import Controller
        >>> Controller(rtol=1e-6, atol=1e-8).decide(0.81, History(), order=2).factor
        1.0
    """

    rtol: Tolerance = 1e-7
    atol: Tolerance = 1e-9
    norm: Callable[[Any], Any] | None = None
    packed: bool = False
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    dt0: float | None = None
    dt_min: float = 0.0
    dt_max: float = math.inf

    def scaled_norm(self, x: Leaves, y0: Leaves, y1: Leaves) -> Tensor:
        """‖x / (atol + rtol max(|y0|, |y1|))‖, a 0-dim tensor; never on an autograd graph."""
        with torch.no_grad():
            scaled: list[Tensor] = []
            for i, (e, a, b) in enumerate(
                zip(map(wide, x), map(wide, y0), map(wide, y1), strict=True)
            ):
                size = torch.maximum(a.abs(), b.abs())
                s = e / (_of_leaf(self.atol, i, size) + _of_leaf(self.rtol, i, size) * size)
                # An entry that is and stays zero has no error: 0/0 is 0.
                scaled.append(torch.where(e == 0, torch.zeros_like(s), s))
            if self.norm is None:
                return torch.stack([_rms(s) for s in scaled]).amax()
            given = tuple(scaled) if self.packed else scaled[0]
            return torch.as_tensor(self.norm(given)).abs()

    def decide(self, ratio: float, history: History, order: int) -> Decision:
        """Judges a step attempt by its error ratio; NaN rejects."""
        if not math.isfinite(ratio):
            return Decision(False, self.dfactor, History(history.ratios, rejected=True))
        accept = ratio <= 1.0
        if ratio == 0.0:
            factor = self.ifactor
        else:
            smallest = 1.0 if ratio < 1.0 else self.dfactor
            factor = min(self.ifactor, max(self.safety * ratio ** (-1.0 / order), smallest))
        return Decision(accept, factor, History(history.ratios, rejected=not accept))

    def starting_order(self, order: int) -> int:
        """One less than that of the scheme."""
        return order - 1


def _of_leaf(tolerance: Tolerance, i: int, leaf: Tensor) -> float | Tensor:
    """The tolerance of leaf i, in a form that broadcasts against it without changing its dtype."""
    value = tolerance[i] if isinstance(tolerance, tuple) else tolerance
    if not isinstance(value, Tensor):
        return value
    value = value.to(leaf)
    flat = isinstance(tolerance, tuple) and value.numel() == leaf.numel()
    return value.reshape(leaf.shape) if flat else value


def _rms(x: Tensor) -> Tensor:
    """The root mean square of the entries, in double precision; 0 of none."""
    if x.numel() == 0:
        return x.new_zeros((), dtype=torch.float64)
    return x.abs().square().mean().sqrt().double()
