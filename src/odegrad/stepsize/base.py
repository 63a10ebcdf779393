"""What a choice of step sizes is: a fixed grid, or a controller that judges each step.

Neither is differentiated. A controller is pure: it maps numbers to a decision and keeps nothing, so
that its decisions can be tested as exact numbers without any differential equation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from odegrad.grid import Segment
from odegrad.state import Leaves

__all__ = [
    "AdaptiveStepSize",
    "Decision",
    "FixedStepSize",
    "History",
    "LenientStepSize",
    "StepSize",
]


@runtime_checkable
class FixedStepSize(Protocol):
    """Steps that are known before the solve: `Steps`, `Fixed`, a recorded `Grid`."""

    def segment(self, j: int, start: float, stop: float, eps: float) -> Segment:
        """The steps of segment j from time `start` to `stop`.

        `eps` is the machine epsilon of the dtype in which the times were given.
        """
        ...

    def check(self, n_segments: int) -> None:
        """Raises `InvalidValueError` if the grid cannot serve a solve of `n_segments` segments."""
        ...


@dataclass(frozen=True)
class History:
    """What a controller remembers: the error ratios of the last two accepted steps, latest first."""

    ratios: tuple[float, float] = (1.0, 1.0)
    rejected: bool = False


@dataclass(frozen=True)
class Decision:
    """Whether to accept an attempted step, and the factor from its size to the next one's."""

    accept: bool
    factor: float
    history: History


@runtime_checkable
class AdaptiveStepSize(Protocol):
    """Steps that follow an error estimate: `PID`."""

    @property
    def dt0(self) -> float | None:
        """The size of the first attempt, or None to estimate it."""
        ...

    @property
    def dt_min(self) -> float:
        """The smallest step allowed."""
        ...

    @property
    def dt_max(self) -> float:
        """The largest step allowed."""
        ...

    def scaled_norm(self, x: Leaves, y0: Leaves, y1: Leaves) -> Tensor:
        """‖x / (atol + rtol max(|y0|, |y1|))‖ as a 0-dim tensor."""
        ...

    def decide(self, ratio: float, history: History, order: int) -> Decision:
        """Judges an attempted step by its error ratio (1 is at tolerance)."""
        ...


@runtime_checkable
class LenientStepSize(AdaptiveStepSize, Protocol):
    """Adaptive steps that accept a step of the smallest size allowed, whatever its error."""

    def starting_order(self, order: int) -> int:
        """The order by which the first step is estimated, for a scheme of this order."""
        ...


StepSize: TypeAlias = FixedStepSize | AdaptiveStepSize
