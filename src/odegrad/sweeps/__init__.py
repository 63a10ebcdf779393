"""The loops over steps: forward, and backward through a checkpoint schedule."""

from odegrad.sweeps.backward import Cotangents, backward
from odegrad.sweeps.forward import forward
from odegrad.sweeps.run import Monitor, Run, Stats, StepInfo
from odegrad.sweeps.slab import Slab

__all__ = ["Cotangents", "Monitor", "Run", "Slab", "Stats", "StepInfo", "backward", "forward"]
