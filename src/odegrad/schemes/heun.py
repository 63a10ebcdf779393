"""Heun's second-order scheme, also the explicit trapezoidal rule, improved Euler or SSPRK(2,2).

Not to be confused with Heun's third-order scheme, nor with Ralston's scheme, which some books call
Heun's. With an error estimate it is `odegrad.AdaptiveHeun`.

Reference: K. Heun, *Neue Methoden zur approximativen Integration der Differentialgleichungen einer
unabhängigen Veränderlichen*, Z. Math. Phys. 45 (1900).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun(ExplicitRungeKutta):
    """Heun's scheme, the explicit trapezoidal rule: order 2, two stages."""

    tableau = Tableau(
        a=((), (1.0,)),
        b=(1 / 2, 1 / 2),
        c=(0.0, 1.0),
        order=2,
    )
