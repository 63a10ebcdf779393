"""The pair 3(2) of Bogacki and Shampine, also called BS3, BS23, ode23 or (in SciPy) RK23.

Advances the solution of order 3; the last stage is the next step's first. Not to be confused with
the pair 5(4) of the same authors (BS5).

Reference: P. Bogacki, L. F. Shampine, *A 3(2) pair of Runge–Kutta formulas*, Appl. Math. Lett. 2
(1989).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["Bosh3"]


@dataclass(frozen=True)
class Bosh3(ExplicitRungeKutta):
    """Bogacki and Shampine's pair: order 3 with an estimate from order 2, four stages, FSAL."""

    tableau = Tableau(
        a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        b=(2 / 9, 1 / 3, 4 / 9, 0.0),
        c=(0.0, 1 / 2, 3 / 4, 1.0),
        order=3,
        b_embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
        embedded_order=2,
    )
