"""The classical Runge–Kutta scheme, also called "the" Runge–Kutta method.

Not to be confused with the 3/8 rule (`odegrad.RK38`), which is what ``method="rk4"`` of
torchdiffeq runs, nor with the embedded pairs `odegrad.RKF45` and `odegrad.Dopri5`.

Reference: W. Kutta, *Beitrag zur näherungsweisen Integration totaler Differentialgleichungen*, Z.
Math. Phys. 46 (1901). The dense output is its natural continuous extension: M. Zennaro, Math. Comp. 46
(1986).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.interpolant import Interpolant
from odegrad.schemes.tableau import Tableau

__all__ = ["RK4"]


@dataclass(frozen=True)
class RK4(ExplicitRungeKutta):
    """The classical Runge–Kutta scheme: order 4, four stages."""

    tableau = Tableau(
        a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 1 / 2, 1 / 2, 1.0),
        order=4,
    )
    interpolant = Interpolant(
        beta=(
            (1.0, -3 / 2, 2 / 3),
            (0.0, 1.0, -2 / 3),
            (0.0, 1.0, -2 / 3),
            (0.0, -1 / 2, 2 / 3),
        ),
        order=3,
    )
