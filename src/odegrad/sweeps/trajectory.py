"""A trajectory between its stored nodes: Hermite interpolation of values and slopes.

Through the m nodes around t, with L_i the Lagrange polynomials of these nodes,

    y(t) ≈ Σ_i (1 − 2 (t − t_i) L_i'(t_i)) L_i(t)² y_i + (t − t_i) L_i(t)² ẏ_i,

which is exact for polynomials of degree 2m − 1, so that its error is O(h^2m).

Reference: J. Stoer & R. Bulirsch, *Introduction to Numerical Analysis*, 2.1.5.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch import Tensor

from odegrad.state import Leaves

__all__ = ["Trajectory"]


class Trajectory:
    """States at nodes in time, and what lies between.

    Arguments:
        times: The times of the nodes, in the order in which they were passed (up or down).
        state: i ↦ the state at node i.
        slope: (i, n) ↦ its derivative there, as step n (from node n on) sees it; evaluated when it is
            first needed.
        order: The interpolation error is O(h^order), or smaller.
        kinks: The nodes across which the trajectory is not smooth.
    """

    def __init__(
        self,
        times: Sequence[float],
        state: Callable[[int], Leaves],
        slope: Callable[[int, int], Leaves],
        order: int,
        kinks: Sequence[int] = (),
    ) -> None:
        sign = -1.0 if times[-1] < times[0] else 1.0
        self._times = list(times)
        self._rising = [sign * t for t in times]
        self._sign, self._width = sign, max(2, (order + 1) // 2)
        self._state, self._slope = state, slope
        self._known: dict[tuple[int, int], Leaves] = {}
        same = {k for i in range(len(times) - 1) if times[i] == times[i + 1] for k in (i, i + 1)}
        self._kinks = sorted({0, len(times) - 1, *kinks, *same})

    def __call__(self, t: float) -> Leaves:
        """The state at time t."""
        place = bisect_right(self._rising, self._sign * t) - 1
        place = min(max(place, 0), len(self._times) - 2)
        if self._times[place] == t:
            return self._state(place)
        nodes = self._around(place)
        times = [self._times[i] for i in nodes]
        result: list[Tensor] | None = None
        for i, (value, slope) in zip(nodes, hermite(times, t), strict=True):
            terms = [
                a * value + b * slope
                for a, b in zip(self._state(i), self._slopes(i, nodes), strict=True)
            ]
            result = (
                terms if result is None else [a + b for a, b in zip(result, terms, strict=True)]
            )
        assert result is not None
        return tuple(result)

    def _around(self, place: int) -> range:
        """The nodes nearest to the interval from node `place` on, in its smooth piece."""
        k = bisect_right(self._kinks, place)
        first, last = self._kinks[k - 1], self._kinks[k]
        start = place - (self._width - 2) // 2
        start = max(first, min(start, last + 1 - self._width))
        return range(start, min(start + self._width, last + 1))

    def _slopes(self, i: int, nodes: range) -> Leaves:
        """The slope at node i, from the side on which the other nodes are."""
        n = min(i, nodes[-1] - 1)
        if (i, n) not in self._known:
            self._known[i, n] = self._slope(i, n)
            for old in [k for k in self._known if abs(k[0] - i) > 2 * self._width]:
                del self._known[old]  # a sweep passes but once
        return self._known[i, n]


def hermite(nodes: Sequence[float], t: float) -> list[tuple[float, float]]:
    """The weights of value and slope at each node.

    Example:
        >>> from odegrad.sweeps.trajectory import hermite
        >>> hermite([0.0, 1.0], 0.5)
        [(0.5, 0.125), (0.5, -0.125)]
    """
    weights: list[tuple[float, float]] = []
    for i, a in enumerate(nodes):
        lagrange, slope = 1.0, 0.0
        for k, b in enumerate(nodes):
            if k != i:
                lagrange *= (t - b) / (a - b)
                slope += 1.0 / (a - b)
        square = lagrange * lagrange
        weights.append(((1.0 - 2.0 * (t - a) * slope) * square, (t - a) * square))
    return weights
