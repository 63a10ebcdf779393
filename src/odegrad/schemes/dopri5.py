"""The pair 5(4) of Dormand and Prince, also called DP5, RKDP, DOPRI5, ode45 or (in SciPy) RK45.

Advances the solution of order 5; the last stage is the next step's first. Not to be confused with
`odegrad.RKF45`, nor with the other pairs of the same paper.

Reference: J. R. Dormand, P. J. Prince, *A family of embedded Runge–Kutta formulae*, J. Comput.
Appl. Math. 6 (1980). The dense output is that of the code DOPRI5: E. Hairer, S. P. Nørsett, G. Wanner,
*Solving Ordinary Differential Equations I*, II.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.interpolant import Interpolant
from odegrad.schemes.tableau import Tableau

__all__ = ["Dopri5"]


@dataclass(frozen=True)
class Dopri5(ExplicitRungeKutta):
    """Dormand and Prince's pair: order 5 with an estimate from order 4, seven stages, FSAL."""

    tableau = Tableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        order=5,
        b_embedded=(
            5179 / 57600,
            0.0,
            7571 / 16695,
            393 / 640,
            -92097 / 339200,
            187 / 2100,
            1 / 40,
        ),
        embedded_order=4,
    )
    interpolant = Interpolant(
        beta=(
            (
                1.0,
                -8048581381 / 2820520608,
                8663915743 / 2820520608,
                -12715105075 / 11282082432,
            ),
            (0.0, 0.0, 0.0, 0.0),
            (
                0.0,
                131558114200 / 32700410799,
                -68118460800 / 10900136933,
                87487479700 / 32700410799,
            ),
            (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (
                0.0,
                127303824393 / 49829197408,
                -318862633887 / 49829197408,
                701980252875 / 199316789632,
            ),
            (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
        order=4,
    )
