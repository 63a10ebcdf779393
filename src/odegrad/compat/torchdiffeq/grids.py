"""Fixed grids: where the nodes are, and how outputs between them are read off.

With nodes s_0 … s_N and an output time t in (s_{i−1}, s_i], x = (t − s_{i−1}) / (s_i − s_{i−1}),

    linear:  y_{i−1} + x (y_i − y_{i−1}),
    cubic:   Hermite's cubic through y and f(s, y) at both nodes.

Reference: E. Hairer, S. P. Nørsett, G. Wanner, *Solving Ordinary Differential Equations I*, II.6.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.compat.torchdiffeq.errors import AssertedTypeError, AssertedValueError
from odegrad.compat.torchdiffeq.options import FixedOptions
from odegrad.grid import Nodes, Segment, Uniform

__all__ = ["Reader", "Through", "grid_of"]


@dataclass(frozen=True)
class Through:
    """Steps between given nodes, whatever times are landed on besides.

    Arguments:
        nodes: The times, in the order in which they are passed.
    """

    nodes: tuple[float, ...]

    def segment(self, j: int, start: float, stop: float, eps: float) -> Segment:
        """The steps from `start` to `stop`: through the nodes strictly between."""
        del j
        sign = 1.0 if stop >= start else -1.0
        near = 4.0 * min(eps, torch.finfo(torch.float64).eps) * max(abs(start), abs(stop))
        low = bisect_right(self.nodes, sign * start + near, key=lambda x: sign * x)
        high = bisect_left(self.nodes, sign * stop - near, key=lambda x: sign * x)
        inner = self.nodes[low:high]
        if not inner:
            return Uniform(1)
        return Nodes((0.0, *((x - start) / (stop - start) for x in inner), 1.0))

    def check(self, n_segments: int) -> None:
        """Any number of segments is fine."""


def grid_of(options: FixedOptions, func: Any, y0: Any, t: Tensor) -> Tensor:
    """The nodes, shape [N + 1], from t[0] to t[-1]: t itself, unless an option says otherwise.

    Raises:
        AssertedTypeError: If the grid constructor gives no tensor.
        AssertedValueError: If its nodes do not run from t[0] to t[-1], or are not in order.
    """
    if options.step_size is not None:
        return _equal_steps(t, options.step_size)
    if options.grid_constructor is None:
        return t
    grid: Any = options.grid_constructor(func, y0, t)
    if not isinstance(grid, Tensor):
        raise AssertedTypeError(
            f"grid_constructor must return a tensor of times, it returned {type(grid).__name__}"
        )
    grid = grid.to(t.device)
    if grid.ndim != 1 or not (grid[0] == t[0] and grid[-1] == t[-1]):
        raise AssertedValueError(
            f"the grid must run from t[0] = {float(t[0])} to t[-1] = {float(t[-1])}, received {grid}"
        )
    steps = (grid[1:] - grid[:-1]) * (1.0 if len(t) < 2 or t[-1] > t[0] else -1.0)
    if not bool((steps > 0).all()):
        raise AssertedValueError("the grid must be strictly monotone, like t")
    return grid


def _equal_steps(t: Tensor, step_size: float) -> Tensor:
    """t[0] ± k · step_size, on the graph of t[0], and t[-1], on that of t[-1]."""
    if t.dtype.itemsize < 4:  # nodes in half precision would collide
        t = t.double()
    sign = 1.0 if len(t) < 2 or bool(t[-1] > t[0]) else -1.0
    n = int(torch.ceil(sign * (t[-1] - t[0]).detach() / step_size + 1.0).item())
    nodes = t[0] + sign * (torch.arange(n - 1, dtype=t.dtype, device=t.device) * step_size)
    inside = (t[-1] - nodes.detach()) * sign > 0
    return torch.cat([nodes[inside], t[-1:]])


class Reader:
    """Reads outputs off a solution on a fixed grid.

    Arguments:
        grid: The nodes, shape [N + 1].
        t: The output times, shape [T].
        cubic: Whether by Hermite's cubic, for which f is evaluated at both nodes.

    Attributes:
        ts: The times to land on: the nodes that outputs are read off from; all of them, if a gradient
            reaches them.
        stepsize: The steps from one to the next.
    """

    def __init__(self, grid: Tensor, t: Tensor, cubic: bool) -> None:
        self._t, self._cubic, self._plain = t, cubic, grid is t
        nodes: list[float] = grid.detach().cpu().double().tolist()
        times: list[float] = t.detach().cpu().double().tolist()
        sign = 1.0 if nodes[-1] >= nodes[0] else -1.0
        after = [bisect_left(nodes, sign * x, key=lambda s: sign * s) for x in times]
        self._exact = [nodes[i] == x for i, x in zip(after, times, strict=True)]
        self._timed = t.requires_grad and not self._plain
        wanted = {0, len(nodes) - 1, *after}
        wanted |= {i - 1 for i, exact in zip(after, self._exact, strict=True) if i and not exact}
        if grid.requires_grad or (self._timed and cubic):
            wanted = set(range(len(nodes)))
        places = sorted(wanted)
        index = {i: place for place, i in enumerate(places)}
        self._after = [index[i] for i in after]
        self.ts = grid if len(places) == len(nodes) else grid[places]
        self.stepsize = Through(tuple(nodes))

    def read(self, ys: Sequence[Tensor], f: Callable[[Tensor, list[Tensor]], Any]) -> list[Tensor]:
        """The states at the output times, leaf by leaf.

        Arguments:
            ys: The states at `ts`, leaves of shape [len(ts), *leaf.shape].
            f: Maps the time and the leaves of the state to the leaves of the slope.
        """
        if self._plain:
            return list(ys)
        if all(self._exact) and not (self._timed and self._cubic):
            return [leaf[self._after] for leaf in ys]
        rows = [self._row(j, ys, f) for j in range(len(self._t))]
        return [torch.stack(leaf) for leaf in zip(*rows, strict=True)]

    def _row(self, j: int, ys: Sequence[Tensor], f: Callable[..., Any]) -> list[Tensor]:
        i = self._after[j]
        after = [leaf[i] for leaf in ys]
        if i == 0 or (self._exact[j] and not (self._timed and self._cubic)):
            return after
        before = [leaf[i - 1] for leaf in ys]
        start, stop = self.ts[i - 1], self.ts[i]
        dt = stop - start
        x = (self._t[j] - start) / dt
        if not self._cubic:
            return [a + x.to(a.real.dtype) * (b - a) for a, b in zip(before, after, strict=True)]
        f0, f1 = f(start, before), f(stop, after)
        weights = ((1 + 2 * x) * (1 - x) ** 2, x * (1 - x) ** 2 * dt, x * x * (3 - 2 * x))
        weights = (*weights, x * x * (x - 1) * dt)
        return [
            sum(w.to(a.real.dtype) * v for w, v in zip(weights, (a, k, b, m), strict=True))
            for a, k, b, m in zip(before, f0, after, f1, strict=True)
        ]  # pyright: ignore[reportReturnType]
