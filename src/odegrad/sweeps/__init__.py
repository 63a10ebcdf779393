"""The loops over steps: forward, and backward through a checkpoint schedule."""

from odegrad.sweeps.backward import backward
from odegrad.sweeps.cotangents import Cotangents
from odegrad.sweeps.forward import forward
from odegrad.sweeps.graphs import Graphs, pull
from odegrad.sweeps.run import Monitor, Run, Stats, StepInfo
from odegrad.sweeps.slab import Slab

__all__ = [
    "Cotangents",
    "Graphs",
    "Monitor",
    "Run",
    "Slab",
    "Stats",
    "StepInfo",
    "backward",
    "forward",
    "pull",
]
