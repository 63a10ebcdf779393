"""Euler's scheme, also called explicit or forward Euler, or RK1.

Not to be confused with implicit (backward) Euler or semi-implicit (symplectic) Euler.

Reference: L. Euler, *Institutionum calculi integralis* I (1768), sect. 2, ch. 7.
"""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler(ExplicitRungeKutta):
    """Euler's scheme: order 1, one stage."""

    tableau = Tableau(
        a=((),),
        b=(1.0,),
        c=(0.0,),
        order=1,
    )
