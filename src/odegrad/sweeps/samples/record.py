"""The steps that a search accepts, as they are found: little more memory than those of the grid take."""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.errors import MemoryBudgetError
from odegrad.samplegrid import SampleGrid

__all__ = ["StepRecord", "record_bytes"]

_BLOCK = 8
"""How many attempts to gather before what was accepted is put into place."""
_ROOM = 32
"""How many rounds to make room for at first."""
_ROW = 8 + 8 + 8
"""The bytes of a step: segment, start, width."""
_ATTEMPT = 2 * (_ROW + 1) + 5 * 8
"""Those of an attempt that is gathered, of a copy of it, and of where it goes."""


def record_bytes(n: int, size: int) -> int:
    """The most bytes that the record of a search takes which ends with n rounds of so many samples.

    Room for 3/2 of the rounds, while a column is made longer or shorter.
    """
    room = max(_ROOM, -(-3 * n // 2))
    return size * (room * _ROW + max(n, _ROOM) * 8 + _BLOCK * _ATTEMPT)


class StepRecord:
    """The accepted steps of each sample.

    Arguments:
        size: B.
        n_segments: The number of segments.
        most: The most rounds that there is memory for, or None.
    """

    def __init__(self, size: int, n_segments: int, most: int | None) -> None:
        self._n_segments, self._most = n_segments, most
        self._all = torch.arange(size, device="cpu")
        self._counts = torch.zeros(size, dtype=torch.int64, device="cpu")
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._columns = [
            torch.zeros((0, size), dtype=dtype, device="cpu")
            for dtype in (torch.int64, torch.float64, torch.float64)
        ]

    def put(self, accept: Tensor, segment: Tensor, start: Tensor, width: Tensor) -> None:
        """Takes in an attempt of all samples, tensors of shape [B], and which accept it."""
        self._rows.append((accept, segment, start, width))
        if len(self._rows) == _BLOCK:
            self._settle()

    def grid(self) -> SampleGrid:
        """The accepted steps; the record is empty then."""
        self._settle()
        n = int(self._counts.max()) if len(self._counts) else 0
        columns, parts = self._columns[::-1], list[Tensor]()
        self._columns = []
        while columns:
            column = columns.pop()
            parts.append(column if len(column) == n else column[:n].clone())
        segments, starts, widths = parts
        return SampleGrid(segments, starts, widths, self._counts, self._n_segments)

    def _settle(self) -> None:
        """Puts into place what was gathered."""
        if not self._rows:
            return
        accept, *gathered = (torch.stack(x) for x in zip(*self._rows, strict=True))
        self._rows = []
        number = self._counts + accept.cumsum(0) - 1
        self._counts = self._counts + accept.sum(0)
        self._make_room(int(self._counts.max()) if len(self._counts) else 0)
        place = (number[accept], self._all.expand_as(accept)[accept])
        for part, column in zip(self._columns, gathered, strict=True):
            part[place] = column[accept]

    def _make_room(self, n: int) -> None:
        """Makes the columns long enough for n rounds.

        Raises:
            MemoryBudgetError: If there is no memory for so many.
        """
        old, most = len(self._columns[0]), self._most
        if n <= old:
            return
        if most is not None and n > most:
            raise MemoryBudgetError(
                f"memory is too little for the steps of each sample: after {n} rounds the search for "
                f"them is not at the end, and {most} are what there is room for, whatever the schedule. "
                "Raise memory or the tolerances, or split the batch"
            )
        more = max(n, _ROOM, 3 * old // 2)
        more = more if most is None else max(n, min(more, most))
        for i, column in enumerate(self._columns):
            longer = column.new_zeros((more, column.shape[1]))
            longer[:old] = column
            self._columns[i] = longer
            del column, longer
