"""Step sizes: `Steps`, `Fixed`, `PID`, and any recorded `odegrad.grid.Grid`."""

from odegrad.stepsize.base import AdaptiveStepSize, Decision, FixedStepSize, History, StepSize
from odegrad.stepsize.fixed import Fixed, Steps
from odegrad.stepsize.pid import PID, starting_step

__all__ = [
    "PID",
    "AdaptiveStepSize",
    "Decision",
    "Fixed",
    "FixedStepSize",
    "History",
    "StepSize",
    "Steps",
    "starting_step",
]
