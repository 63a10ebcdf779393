"""The pair 5(4) of Cash and Karp, also called RKCK.

Advances the solution of order 5. The embedded solutions of orders 1 to 3 of the same paper are not
used. Not to be confused with `odegrad.RKF45`, which has the same number of stages.

Reference: J. R. Cash, A. H. Karp, *A variable order Runge–Kutta method for initial value problems
with rapidly varying right-hand sides*, ACM Trans. Math. Softw. 16 (1990).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["CashKarp"]


@dataclass(frozen=True)
class CashKarp(ExplicitRungeKutta):
    """Cash and Karp's pair: order 5 with an error estimate from order 4, six stages."""

    tableau = Tableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (3 / 10, -9 / 10, 6 / 5),
            (-11 / 54, 5 / 2, -70 / 27, 35 / 27),
            (1631 / 55296, 175 / 512, 575 / 13824, 44275 / 110592, 253 / 4096),
        ),
        b=(37 / 378, 0.0, 250 / 621, 125 / 594, 0.0, 512 / 1771),
        c=(0.0, 1 / 5, 3 / 10, 3 / 5, 1.0, 7 / 8),
        order=5,
        b_embedded=(2825 / 27648, 0.0, 18575 / 48384, 13525 / 55296, 277 / 14336, 1 / 4),
        embedded_order=4,
    )
