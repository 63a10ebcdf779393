"""Kutta's third-order scheme, the one whose weights are those of Simpson's rule; often just RK3.

Not to be confused with Heun's third-order scheme, with Ralston's, with `odegrad.SSPRK3`, or with
the third-order scheme of Bogacki and Shampine (`odegrad.Bosh3`).

Reference: W. Kutta, *Beitrag zur näherungsweisen Integration totaler Differentialgleichungen*, Z.
Math. Phys. 46 (1901).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["Kutta3"]


@dataclass(frozen=True)
class Kutta3(ExplicitRungeKutta):
    """Kutta's third-order scheme: order 3, three stages."""

    tableau = Tableau(
        a=((), (1 / 2,), (-1.0, 2.0)),
        b=(1 / 6, 2 / 3, 1 / 6),
        c=(0.0, 1 / 2, 1.0),
        order=3,
    )
