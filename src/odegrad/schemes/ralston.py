"""Ralston's second-order scheme: of all two-stage schemes, the one with the least error bound.

Not to be confused with Ralston's third- and fourth-order schemes of the same paper. Some books
call it Heun's scheme.

Reference: A. Ralston, *Runge–Kutta methods with minimum error bounds*, Math. Comp. 16 (1962).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["Ralston"]


@dataclass(frozen=True)
class Ralston(ExplicitRungeKutta):
    """Ralston's scheme of minimal error bound: order 2, two stages."""

    tableau = Tableau(
        a=((), (2 / 3,)),
        b=(1 / 4, 3 / 4),
        c=(0.0, 2 / 3),
        order=2,
    )
