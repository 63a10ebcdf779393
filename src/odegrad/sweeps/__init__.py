"""The loops over steps: forward, and backward through a checkpoint schedule."""

from odegrad.sweeps.backward import backward
from odegrad.sweeps.cotangents import Cotangents
from odegrad.sweeps.forward import forward
from odegrad.sweeps.kept import Kept
from odegrad.sweeps.run import Monitor, Run
from odegrad.sweeps.stats import Stats, StepInfo
from odegrad.sweeps.steps import Landings

__all__ = [
    "Cotangents",
    "Kept",
    "Landings",
    "Monitor",
    "Run",
    "Stats",
    "StepInfo",
    "backward",
    "forward",
]
