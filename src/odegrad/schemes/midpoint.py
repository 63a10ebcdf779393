"""The explicit midpoint rule, also called modified Euler or Runge's second-order scheme.

Not to be confused with the implicit midpoint rule, nor with the two-step (leapfrog) midpoint rule.

Reference: C. Runge, *Ueber die numerische Auflösung von Differentialgleichungen*, Math. Ann. 46
(1895).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["Midpoint"]


@dataclass(frozen=True)
class Midpoint(ExplicitRungeKutta):
    """The explicit midpoint rule: order 2, two stages."""

    tableau = Tableau(
        a=((), (1 / 2,)),
        b=(0.0, 1.0),
        c=(0.0, 1 / 2),
        order=2,
    )
