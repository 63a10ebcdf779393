"""The Heun–Euler pair 2(1): Heun's scheme with Euler's as the one to compare with.

Advances the solution of order 2. It is ``method="adaptive_heun"`` of torchdiffeq. Not to be
confused with `odegrad.Heun`, the same scheme without an error estimate.

Reference: Hairer, Nørsett & Wanner, *Solving Ordinary Differential Equations I*, II.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["AdaptiveHeun"]


@dataclass(frozen=True)
class AdaptiveHeun(ExplicitRungeKutta):
    """The Heun–Euler pair: order 2 with an error estimate from order 1, two stages."""

    tableau = Tableau(
        a=((), (1.0,)),
        b=(1 / 2, 1 / 2),
        c=(0.0, 1.0),
        order=2,
        b_embedded=(1.0, 0.0),
        embedded_order=1,
    )
