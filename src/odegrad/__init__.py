"""odegrad: the exact gradient of neural-ODE solves in PyTorch.

The gradient is the exact derivative of the numbers returned: of the map (y0, parameters, args, times) ↦
ys computed by the accepted steps, each interior grid time held at its fixed fraction of its segment.
"""

from importlib.metadata import PackageNotFoundError, version

from odegrad import controls, errors, schemes
from odegrad.audit import Audit, audit
from odegrad.batch import Samples, SampleSolution
from odegrad.budget import Share
from odegrad.checkpoints import (
    Binomial,
    Blockwise,
    Every,
    Keep,
    Online,
    Rewind,
    StoreAll,
    Tiered,
)
from odegrad.density import GradientDensity, gradient_density
from odegrad.errors import RejectStep
from odegrad.events import Event
from odegrad.gradients import (
    Backsolve,
    Discrete,
    GaussKronrod,
    Mismatched,
    Plan,
    Quadrature,
    Tangent,
    Tape,
)
from odegrad.grid import Grid
from odegrad.hvp import HessianProduct, hvp
from odegrad.nn import NeuralODE
from odegrad.plan import plan
from odegrad.schemes import (
    ALF,
    RK4,
    RK38,
    RKF45,
    SSPRK3,
    AdamsBashforth,
    AdamsBashforthMoulton,
    AdaptiveHeun,
    Bosh3,
    CashKarp,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    Heun,
    Kutta3,
    Midpoint,
    Ralston,
    Reversible,
    ReversibleHeun,
    Tsit5,
)
from odegrad.solution import Occurrences, Solution, Status
from odegrad.solve import solve
from odegrad.stepsize import PID, Fixed, Steps
from odegrad.sweeps import Stats, StepInfo

try:
    __version__ = version("odegrad")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"

__all__ = [
    "ALF",
    "Audit",
    "audit",
    "plan",
    "Share",
    "Rewind",
    "Plan",
    "Online",
    "Blockwise",
    "Binomial",
    "PID",
    "RK4",
    "RK38",
    "RKF45",
    "SSPRK3",
    "AdamsBashforth",
    "AdamsBashforthMoulton",
    "AdaptiveHeun",
    "Backsolve",
    "Bosh3",
    "CashKarp",
    "Discrete",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Event",
    "Every",
    "GaussKronrod",
    "GradientDensity",
    "gradient_density",
    "HessianProduct",
    "hvp",
    "Mismatched",
    "Quadrature",
    "RejectStep",
    "SampleSolution",
    "Samples",
    "Tangent",
    "Fehlberg2",
    "Fixed",
    "Grid",
    "Heun",
    "Keep",
    "Kutta3",
    "Midpoint",
    "NeuralODE",
    "Occurrences",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "Solution",
    "Stats",
    "Status",
    "StepInfo",
    "Steps",
    "StoreAll",
    "Tape",
    "Tiered",
    "Tsit5",
    "controls",
    "errors",
    "schemes",
    "solve",
]
