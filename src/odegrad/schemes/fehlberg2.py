"""Fehlberg's pair RKF1(2), also called RKF12.

Advances the solution of order 2, as ``method="fehlberg2"`` of torchdiffeq does; Fehlberg advanced
the one of order 1, which would make the last stage the next step's first. Not to be confused with
`odegrad.RKF45`.

Reference: E. Fehlberg, *Low-order classical Runge–Kutta formulas with stepsize control and their
application to some heat transfer problems*, NASA TR R-315 (1969).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["Fehlberg2"]


@dataclass(frozen=True)
class Fehlberg2(ExplicitRungeKutta):
    """Fehlberg's pair RKF1(2): order 2 with an error estimate from order 1, three stages."""

    tableau = Tableau(
        a=((), (1 / 2,), (1 / 256, 255 / 256)),
        b=(1 / 512, 255 / 256, 1 / 512),
        c=(0.0, 1 / 2, 1.0),
        order=2,
        b_embedded=(1 / 256, 255 / 256, 0.0),
        embedded_order=1,
    )
