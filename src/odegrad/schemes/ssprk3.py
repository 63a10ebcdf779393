"""The strong-stability-preserving scheme of Shu and Osher, also SSPRK(3,3) or TVD-RK3.

A convex combination of Euler steps: what one Euler step of size h does not increase (a total
variation, a maximum), a step of size h of this scheme does not increase either. Not to be confused
with `odegrad.Kutta3`, nor with SSP schemes of order 3 with four or more stages.

Reference: C.-W. Shu, S. Osher, *Efficient implementation of essentially non-oscillatory
shock-capturing schemes*, J. Comput. Phys. 77 (1988).
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["SSPRK3"]


@dataclass(frozen=True)
class SSPRK3(ExplicitRungeKutta):
    """Shu and Osher's strong-stability-preserving scheme: order 3, three stages."""

    tableau = Tableau(
        a=((), (1.0,), (1 / 4, 1 / 4)),
        b=(1 / 6, 1 / 6, 2 / 3),
        c=(0.0, 1.0, 1 / 2),
        order=3,
    )
