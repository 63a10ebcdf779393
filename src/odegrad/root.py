"""The root of a function of one number, between two places where its signs differ."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["root"]


def root(g: Callable[[float], float], a: float, b: float, ga: float, gb: float) -> float:
    """The root of g between a and b, to the resolution of floats.

    Regula falsi, in which the value at an end that stays is halved (the Illinois rule), with a bisection
    whenever that has not halved the bracket in three steps.

    Arguments:
        g: The function.
        a: One end of the bracket.
        b: The other; it may be less than a.
        ga: g(a), not zero.
        gb: g(b), zero or of the other sign.

    Reference: M. Dowell, P. Jarratt, *A modified regula falsi method for computing the root of an
    equation*, BIT 11 (1971).

    Example:
        >>> from odegrad.root import root
        >>> f"{root(lambda x: x * x - 2.0, 1.0, 2.0, -1.0, 2.0):.12f}"
        '1.414213562373'
    """
    sign = math.copysign(1.0, ga)
    ga, gb = sign * ga, sign * gb
    best, width, side = (a, abs(ga)) if abs(ga) < abs(gb) else (b, abs(gb)), abs(b - a), 0
    for k in range(200):
        if best[1] == 0.0 or abs(b - a) <= 2.0 * math.ulp(max(abs(a), abs(b))):
            break
        middle = 0.5 * (a + b)
        x = middle
        if k % 4 < 3 and math.isfinite(ga) and math.isfinite(gb) and ga != gb:
            x = a - ga * (b - a) / (gb - ga)
            if not min(a, b) < x < max(a, b):
                x = middle
        gx = sign * g(x)
        if abs(gx) <= best[1]:
            best = (x, abs(gx))
        if gx > 0.0:
            a, ga = x, gx
            gb, side = (0.5 * gb, 1) if side == 1 else (gb, 1)
        else:
            b, gb = x, gx
            ga, side = (0.5 * ga, -1) if side == -1 else (ga, -1)
        if k % 4 == 3 and abs(b - a) > 0.5 * width:
            side = 0
        width = abs(b - a)
    return best[0]
