"""Linear combinations of slopes for a step per sample, formed slope by slope.

The rows of weights w_i of a step are those of its stages, of its end, and of its error estimate. Each is
wanted as

    z_i = y + (Σ_j h w_ij k_j),

the sum from left to right, zero weights skipped, as `odegrad.state.axpy` sums. As soon as k_j is known
its products with h w_ij for all i are formed by one multiplication, and a row is a sum of such products:
the same numbers to the last bit, in a fraction of the operations, which for small batches are what a step
costs. The transpose, which autograd takes, saves as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor

from odegrad.state import Leaves, column, is_stand_in, real_dtype, rounded, wide

__all__ = ["Columns", "suits"]

Rows = tuple[tuple[float, ...], ...]


_LARGE = 1 << 14
"""Elements of a state beyond which an operation takes longer than to call it."""


def suits(h: Tensor, y: Leaves) -> bool:
    """Whether steps h of a state y are quicker taken column by column: per sample, of a small state.

    A compiler forms the sums in a loop of its own, for which plain numbers are best.
    """
    return h.ndim == 1 and not is_stand_in(h) and sum(x.numel() for x in y) <= _LARGE


class Columns:
    """The products of slopes with rows of weights.

    Arguments:
        rows: w, of any lengths; a missing weight is zero.
        h: The steps, shape [B].
        like: The state.
    """

    def __init__(self, rows: Rows, h: Tensor, like: Leaves) -> None:
        weights, self._places, sizes = _weights(rows, h.dtype, h.device)
        table = weights * h
        self._tables: list[Sequence[Tensor]] = []
        for leaf in like:
            dtype = real_dtype(wide(leaf).dtype)
            steps = table.to(device=leaf.device, dtype=dtype)
            steps = steps.reshape(*table.shape, *[1] * (leaf.ndim - 1))
            self._tables.append(steps.split(sizes))
        self._terms: list[list[list[Tensor]]] = [[[] for _ in like] for _ in rows]
        self._like, self._n = like, 0

    def put(self, slope: Leaves) -> None:
        """Takes in the next slope."""
        j, self._n = self._n, self._n + 1
        places = self._places[j] if j < len(self._places) else []
        if not places:
            return
        for leaf, (k, tables) in enumerate(zip(slope, self._tables, strict=True)):
            for i, term in zip(places, (wide(k) * tables[j]).unbind(), strict=True):
                self._terms[i][leaf].append(term)

    def at(self, i: int, y: Leaves) -> Leaves:
        """y + Σ_j h w_ij k_j over the slopes so far."""
        if not self._terms[i][0]:
            return y
        sums = [reduce(torch.add, terms) for terms in self._terms[i]]
        return rounded([wide(x) + total for x, total in zip(y, sums, strict=True)], y)

    def alone(self, i: int) -> Leaves:
        """Σ_j h w_ij k_j over the slopes so far, one of them at least."""
        return rounded([reduce(torch.add, terms) for terms in self._terms[i]], self._like)


@lru_cache(maxsize=1 << 8)
def _weights(
    rows: Rows, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[list[int]], list[int]]:
    """The weights that are not zero, column by column, shape [n, 1]; their rows; how many they are."""
    width = max(map(len, rows))
    places = [[i for i, row in enumerate(rows) if j < len(row) and row[j]] for j in range(width)]
    weights = [rows[i][j] for j, those in enumerate(places) for i in those]
    return (column(tuple(weights), dtype, device), places, [len(x) for x in places])
