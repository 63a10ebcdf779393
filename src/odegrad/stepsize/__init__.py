"""Step sizes: `Steps`, `Fixed`, `PID`, and any recorded `odegrad.grid.Grid`."""

from odegrad.stepsize.base import (
    AdaptiveStepSize,
    Decision,
    FixedStepSize,
    History,
    LenientStepSize,
    StepSize,
)
from odegrad.stepsize.fixed import Fixed, Steps
from odegrad.stepsize.pid import PID, starting_step
from odegrad.stepsize.shared import shared_number

__all__ = [
    "PID",
    "AdaptiveStepSize",
    "Decision",
    "Fixed",
    "FixedStepSize",
    "History",
    "LenientStepSize",
    "StepSize",
    "Steps",
    "shared_number",
    "starting_step",
]
