"""How the gradient of a solve is obtained: one object per way, the same one-argument switch."""

from odegrad.gradients.backsolve import Backsolve
from odegrad.gradients.base import Gradient
from odegrad.gradients.discrete import Discrete
from odegrad.gradients.kronrod import GaussKronrod
from odegrad.gradients.mismatched import Mismatched
from odegrad.gradients.planning import Plan
from odegrad.gradients.quadrature import Quadrature
from odegrad.gradients.tangent import Tangent
from odegrad.gradients.tape import Tape

__all__ = [
    "Backsolve",
    "Discrete",
    "GaussKronrod",
    "Gradient",
    "Mismatched",
    "Plan",
    "Quadrature",
    "Tangent",
    "Tape",
]
