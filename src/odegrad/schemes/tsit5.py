"""The pair 5(4) of Tsitouras, also called Tsitouras 5 or RK54.

Advances the solution of order 5; the last stage is the next step's first. The coefficients solve
the order conditions with only the first column simplifying assumption and have no short rational
form: they are given to 16 digits. The paper's table prints b − b̂ in the place of b̂; here are the
weights b̂ themselves.

Reference: Ch. Tsitouras, *Runge–Kutta pairs of order 5(4) satisfying only the first column
simplifying assumption*, Comput. Math. Appl. 62 (2011); its dense output, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.interpolant import Interpolant
from odegrad.schemes.tableau import Tableau

__all__ = ["Tsit5"]


@dataclass(frozen=True)
class Tsit5(ExplicitRungeKutta):
    """Tsitouras' pair: order 5 with an estimate from order 4, seven stages, FSAL."""

    tableau = Tableau(
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
            (
                0.09646076681806523,
                0.01,
                0.4798896504144996,
                1.379008574103742,
                -3.290069515436081,
                2.324710524099774,
            ),
        ),
        b=(
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
            0.0,
        ),
        c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        order=5,
        b_embedded=(
            0.09468075576583945,
            0.009183565540343254,
            0.4877705284247616,
            1.234297566930479,
            -2.7077123499835256,
            1.866628418170587,
            1 / 66,
        ),
        embedded_order=4,
    )
    interpolant = Interpolant(
        beta=(
            (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
            (0.0, 0.1317, -0.2234, 0.1017),
            (0.0, 3.930296236894751, -5.941033872131505, 2.490627285651253),
            (0.0, -12.411077166933676, 30.338188630282318, -16.548102889244902),
            (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
            (0.0, -27.896526289197286, 65.09189467479368, -34.87065786149661),
            (0.0, 1.5, -4.0, 2.5),
        ),
        order=4,
    )
