"""Dense output: the state between the ends of a step.

Of a Runge–Kutta scheme with slopes k_i a *continuous extension* is, for x in [0, 1],

    u(t + x h) = y + h Σ_i β_i(x) k_i,     β_i(0) = 0,  β_i(1) = b_i,

of uniform order q iff for every rooted tree τ with at most q vertices

    Σ_i β_i(x) Φ_i(τ) = x^|τ| / γ(τ)     for all x,

which is checked when one is made, as the order conditions of a tableau are
(`odegrad.schemes.tableau`). Its error is O(h^(q+1)): that of a scheme of order p accumulates to O(h^p),
so that q = p − 1 is as good.

Where no such extension is at hand, f is evaluated in the step a few times more, *bootstrapping*: the
cubic Hermite interpolant of both ends is in error by O(h⁴); slopes at points on it, by O(h⁴), give one of
degree 4, in error by O(h⁵), and so on. With w the product of (x − x_i) over the points at which slopes
are known, there is one polynomial with these slopes and both values iff ∫ w ≠ 0, which rules out an odd
number of points that lie symmetrically.

References:
    E. Hairer, S. P. Nørsett, G. Wanner, *Solving Ordinary Differential Equations I*, II.6.
    M. Zennaro, *Natural continuous extensions of Runge–Kutta methods*, Math. Comp. 46 (1986).
    W. H. Enright, K. R. Jackson, S. P. Nørsett, P. G. Thomsen, *Interpolants for Runge–Kutta formulas*,
        ACM Trans. Math. Softw. 12 (1986).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from odegrad.errors import InvalidValueError
from odegrad.schemes.tableau import Tableau, density, trees
from odegrad.state import Leaves, Time, axpy

__all__ = ["Interpolant", "bootstrapped", "default_interpolant"]

_TOLERANCE = 1e-12  # published coefficients are rounded to 16 digits


@dataclass(frozen=True)
class Interpolant:
    """A continuous extension of a Runge–Kutta scheme.

    Arguments:
        beta: The coefficients of x, x², … in β_i, one row per slope.
        order: The uniform order q.
    """

    beta: tuple[tuple[float, ...], ...]
    order: int

    def check(self, tableau: Tableau) -> None:
        """Whether it belongs to a tableau.

        Raises:
            InvalidValueError: If an order condition fails, or β(1) is not b.
        """
        ends = [math.fsum(row) for row in self.beta]
        if len(ends) != tableau.stages or any(
            abs(x - b) > _TOLERANCE for x, b in zip(ends, tableau.b, strict=True)
        ):
            raise InvalidValueError(f"the interpolant ends with weights {ends}, b is {tableau.b}")
        degree = max(map(len, self.beta))
        for n in range(1, self.order + 1):
            for tree in trees(n):
                phi = tableau.elementary(tree)
                for m in range(1, degree + 1):
                    terms = [
                        row[m - 1] * x
                        for row, x in zip(self.beta, phi, strict=True)
                        if m <= len(row)
                    ]
                    wanted = 1.0 / density(tree) if m == n else 0.0
                    size = max(1.0, sum(map(abs, terms)))
                    if abs(math.fsum(terms) - wanted) > _TOLERANCE * size:
                        raise InvalidValueError(
                            f"the interpolant does not have order {self.order}: a condition with "
                            f"{n} vertices fails for x^{m}"
                        )

    def weights(self, x: Time) -> list[Time]:
        """β_i(x)."""
        return [polynomial(row, x) for row in self.beta]

    def slopes(self, x: Time) -> list[Time]:
        """β_i′(x)."""
        return [derivative(row, x) for row in self.beta]


def polynomial(coefficients: Sequence[float], x: Time) -> Time:
    """c_1 x + c_2 x² + …, at x."""
    if not any(coefficients):
        return 0.0
    total: Time = 0.0
    for c in reversed(coefficients):
        total = (total + c) * x
    return total


def derivative(coefficients: Sequence[float], x: Time) -> Time:
    """c_1 + 2 c_2 x + …, at x."""
    if not any(coefficients):
        return 0.0
    total: Time = 0.0
    for m in range(len(coefficients), 0, -1):
        total = total * x + m * coefficients[m - 1]
    return total


def default_interpolant(tableau: Tableau) -> Interpolant | None:
    """The continuous extension that needs nothing but a tableau's slopes, or None.

    Of order 1 it is the chord; of orders 2 and 3 the parabola through both ends with the first slope;
    with the last slope at hand, up to order 4, the cubic Hermite interpolant.
    """
    b, s = tableau.b, tableau.stages
    if tableau.fsal and tableau.order <= 4:
        rows = [[0.0, 3.0 * x, -2.0 * x] for x in b]
        rows[0] = [x + y for x, y in zip(rows[0], (1.0, -2.0, 1.0), strict=True)]
        rows[-1] = [x + y for x, y in zip(rows[-1], (0.0, -1.0, 1.0), strict=True)]
        return Interpolant(tuple(map(tuple, rows)), min(3, tableau.order))
    if tableau.order == 1:
        return Interpolant(tuple((x,) for x in b), 1)
    if tableau.order <= 3:
        return Interpolant(((1.0, b[0] - 1.0), *((0.0, b[i]) for i in range(1, s))), 2)
    return None


def bootstrapped(
    f: Callable[[Time, Leaves, Leaves], Leaves],
    p: Leaves,
    t: Time,
    dt: Time,
    ends: tuple[Leaves, Leaves],
    slopes: tuple[Leaves, Leaves],
    order: int,
) -> Callable[[Time], Leaves]:
    """x ↦ u(t + x h), in error by O(h^max(4, order)); evaluates f inside the step if order > 4.

    Arguments:
        f: The vector field.
        p: The tensors that it reads.
        t: The start of the step.
        dt: Its length.
        ends: The states at both ends.
        slopes: f there.
        order: The order of the scheme.
    """
    y, chord = ends[0], tuple(b - a for a, b in zip(*ends, strict=True))
    known: list[Leaves] = list(slopes)
    curve = _hermite(3, y, dt, chord, known)
    for degree in range(4, max(4, order)):
        nodes = _inner(degree)
        known = [*slopes, *(f(t + dt * x, curve(x), p) for x in nodes)]
        curve = _hermite(degree, y, dt, chord, known)
    return curve


def _hermite(
    degree: int, y: Leaves, dt: Time, chord: Leaves, slopes: Sequence[Leaves]
) -> Callable[[Time], Leaves]:
    rows = _basis(degree)

    def curve(x: Time) -> Leaves:
        weights = [polynomial(row, x) for row in rows]
        return axpy(axpy(y, 1.0, weights[:1], (chord,)), dt, weights[1:], slopes)

    return curve


def _inner(degree: int) -> tuple[float, ...]:
    """The points inside the step whose slopes a polynomial of a degree takes, beside the ends'."""
    n = degree - 3
    skew = 1.2 if n % 2 else 1.0
    return tuple((j / (n + 1)) ** skew for j in range(1, n + 1))


@cache
def _basis(degree: int) -> tuple[tuple[float, ...], ...]:
    """The polynomials c_1 x + … of chord and slopes (at 0, at 1, at the inner points): one row each."""
    points = [0.0, 1.0, *_inner(degree)]
    powers = range(1, degree + 1)
    rows = [[1.0 for _ in powers]]  # the value at the end
    rows += [[m * x ** (m - 1) for m in powers] for x in points]
    matrix = torch.tensor(rows, dtype=torch.float64)
    inverse: Any = torch.linalg.inv(matrix)
    return tuple(map(tuple, inverse.T.tolist()))
