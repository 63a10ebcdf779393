"""Fehlberg's pair 4(5), also called RKF4(5) or Runge–Kutta–Fehlberg.

Advances the solution of order 4, as Fehlberg meant it. Not to be confused with SciPy's RK45 and
MATLAB's ode45, which are `odegrad.Dopri5` and advance order 5, nor with `odegrad.CashKarp`.

Reference: E. Fehlberg, *Low-order classical Runge–Kutta formulas with stepsize control and their
application to some heat transfer problems*, NASA TR R-315 (1969).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["RKF45"]


@dataclass(frozen=True)
class RKF45(ExplicitRungeKutta):
    """Fehlberg's pair: order 4 with an error estimate from order 5, six stages."""

    tableau = Tableau(
        a=(
            (),
            (1 / 4,),
            (3 / 32, 9 / 32),
            (1932 / 2197, -7200 / 2197, 7296 / 2197),
            (439 / 216, -8.0, 3680 / 513, -845 / 4104),
            (-8 / 27, 2.0, -3544 / 2565, 1859 / 4104, -11 / 40),
        ),
        b=(25 / 216, 0.0, 1408 / 2565, 2197 / 4104, -1 / 5, 0.0),
        c=(0.0, 1 / 4, 3 / 8, 12 / 13, 1.0, 1 / 2),
        order=4,
        b_embedded=(16 / 135, 0.0, 6656 / 12825, 28561 / 56430, -9 / 50, 2 / 55),
        embedded_order=5,
    )
