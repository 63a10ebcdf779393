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
degree 4, in error by O(h⁵), and so on, until the degree is that of the order. (With w the product of
(x − x_i) over the points at which slopes are known, there is one polynomial with these slopes and both
values iff ∫ w ≠ 0, which rules out an odd number of points that lie symmetrically.) For the large steps
of orders above 5, a step of half the length gives a value in the middle, too.

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
from typing import Any, TypeAlias

import torch
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore

from odegrad.errors import InvalidValueError
from odegrad.schemes.tableau import Tableau, density, trees
from odegrad.state import Leaves, Time, axpy

__all__ = ["Ends", "Interpolant", "bootstrapped", "default_interpolant", "through_middle"]

Field: TypeAlias = Callable[[Time, Leaves, Leaves], Leaves]

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

    def fits(self, tableau: Tableau) -> bool:
        """Whether it belongs to a tableau, as `check` says."""
        try:
            self.check(tableau)
        except InvalidValueError:
            return False
        return True

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


Curve: TypeAlias = Callable[[Time], Leaves]
"""x ↦ u(t + x h)."""


@dataclass(frozen=True)
class Ends:
    """A step as its ends are known.

    Attributes:
        t: Its start.
        dt: Its length.
        y: The state before it.
        end: The state after it.
        first: f before it.
        last: f after it.
    """

    t: Time
    dt: Time
    y: Leaves
    end: Leaves
    first: Leaves
    last: Leaves


def bootstrapped(f: Field, p: Leaves, step: Ends, order: int) -> Curve:
    """The polynomial of degree max(3, order) through both ends with their slopes and some inside.

    Arguments:
        f: The vector field.
        p: The tensors that it reads.
        step: The step.
        order: The order of the scheme.
    """
    values, slopes = {1.0: step.end}, {0.0: step.first, 1.0: step.last}
    curve = _hermite(step, values, slopes)
    for degree in range(4, order + 1):
        curve = _hermite(step, values, {**slopes, **_slopes(f, p, step, curve, _inner(degree))})
    return curve


def through_middle(f: Field, p: Leaves, step: Ends, middle: Leaves) -> Curve:
    """The polynomial of degree 7 through both ends and the middle of a step, with five slopes.

    The state in the middle is that of a step of half the length. Slopes at 0.3 and 0.7 are taken twice:
    on the quintic Hermite interpolant, and on the polynomial of degree 7 that they give.

    Arguments:
        f: The vector field.
        p: The tensors that it reads.
        step: The step.
        middle: The state in its middle.
    """
    values = {0.5: middle, 1.0: step.end}
    half = f(step.t + step.dt * 0.5, middle, p)
    slopes = {0.0: step.first, 0.5: half, 1.0: step.last}
    curve = _hermite(step, values, slopes)
    for _ in range(2):
        curve = _hermite(step, values, {**slopes, **_slopes(f, p, step, curve, (0.3, 0.7))})
    return curve


def _slopes(
    f: Field, p: Leaves, step: Ends, curve: Curve, at: Sequence[float]
) -> dict[float, Leaves]:
    return {x: f(step.t + step.dt * x, curve(x), p) for x in at}


def _hermite(step: Ends, values: dict[float, Leaves], slopes: dict[float, Leaves]) -> Curve:
    """The polynomial with given values (and that of the start) and slopes at parts of a step."""
    rows = _basis(tuple(values), tuple(slopes))
    y, n = step.y, len(values)
    chords = [tuple(b - a for a, b in zip(y, value, strict=True)) for value in values.values()]

    def curve(x: Time) -> Leaves:
        weights = [polynomial(row, x) for row in rows]
        return axpy(axpy(y, 1.0, weights[:n], chords), step.dt, weights[n:], list(slopes.values()))

    return curve


def _inner(degree: int) -> tuple[float, ...]:
    """The points inside the step whose slopes a polynomial of a degree takes, beside the ends'."""
    n = degree - 3
    skew = 1.2 if n % 2 else 1.0
    return tuple((j / (n + 1)) ** skew for j in range(1, n + 1))


@cache
def _basis(values: tuple[float, ...], slopes: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """The polynomials c_1 x + … that are 1 in one of the given values and slopes, and 0 in the others."""
    powers = range(1, len(values) + len(slopes) + 1)
    rows = [[x**m for m in powers] for x in values]
    rows += [[m * x ** (m - 1) for m in powers] for x in slopes]
    with _disable_current_modes():  # numbers are wanted, also where a step is being traced
        inverse: Any = torch.linalg.inv(torch.tensor(rows, dtype=torch.float64, device="cpu"))
        return tuple(map(tuple, inverse.T.tolist()))
