"""Kutta's 3/8 rule, a fourth-order scheme with smaller error constants than the classical one.

It is what ``method="rk4"`` of torchdiffeq runs. Not to be confused with `odegrad.RK4`, nor with
schemes of order 8.

Reference: W. Kutta, *Beitrag zur näherungsweisen Integration totaler Differentialgleichungen*, Z.
Math. Phys. 46 (1901). The dense output is its natural continuous extension, the only one of order 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.interpolant import Interpolant
from odegrad.schemes.tableau import Tableau

__all__ = ["RK38"]


@dataclass(frozen=True)
class RK38(ExplicitRungeKutta):
    """Kutta's 3/8 rule: order 4, four stages."""

    tableau = Tableau(
        a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
        c=(0.0, 1 / 3, 2 / 3, 1.0),
        order=4,
    )
    interpolant = Interpolant(
        beta=(
            (1.0, -15 / 8, 1.0),
            (0.0, 15 / 8, -3 / 2),
            (0.0, 3 / 8, 0.0),
            (0.0, -3 / 8, 1 / 2),
        ),
        order=3,
    )
