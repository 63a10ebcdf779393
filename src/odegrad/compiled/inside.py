"""Times inside of the steps of a chunk, and how they pick from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Inside", "SampleInside"]


@dataclass(frozen=True)
class Inside:
    """Times inside of the steps of a chunk.

    Attributes:
        numbers: The numbers of the times, int64, shape [R], on the CPU, as all of these.
        rows: The row of the step that each lies in, int64, shape [R].
        x: The part of the step before it, float64, shape [R].
    """

    numbers: Tensor
    rows: Tensor
    x: Tensor

    def pieces(self, size: int) -> Sequence[Inside]:
        """The same, no more times at once than so many steps have states."""
        parts = zip(*(x.split(size) for x in (self.numbers, self.rows, self.x)), strict=True)
        return [Inside(*part) for part in parts]

    def take(self, steps: Tensor) -> Tensor:
        """What belongs to the steps of the times; `steps` has one row for each of the chunk."""
        return steps.index_select(0, self.rows.to(steps.device))

    def add(self, steps: Tensor, values: Tensor) -> None:
        """The transpose of `take`, in place."""
        steps.index_add_(0, self.rows.to(steps.device), values)

    def nodes(self, rows: Tensor) -> Tensor:
        """Rows of values at nodes of steps, as `take` and `add` want them: with the nodes behind."""
        return rows

    def outputs(self, every: Tensor) -> Tensor:
        """Those of the times, shape [R, …]; `every` has one row for each time of the solve."""
        return every[self.numbers.to(every.device)]

    def zeros(self, y: Tensor) -> Tensor:
        """Zeros for each time, like a leaf of the state."""
        return y.new_zeros((len(self.numbers), *y.shape))

    def add_times(self, grads: Tensor, values: Tensor) -> None:
        """Adds cotangents of these times to those of all."""
        grads[self.numbers] += values


@dataclass(frozen=True)
class SampleInside(Inside):
    """Times of single samples inside of rounds: rows and outputs have a dimension of samples behind.

    Attributes:
        samples: Whose times they are, int64, shape [R].
        size: B.
    """

    samples: Tensor
    size: int

    def pieces(self, size: int) -> Sequence[SampleInside]:
        """The same, no more times at once than so many steps of the batch have states."""
        every, size = (self.numbers, self.rows, self.x, self.samples), size * self.size
        parts = zip(*(x.split(size) for x in every), strict=True)
        return [SampleInside(j, r, x, b, self.size) for j, r, x, b in parts]

    def take(self, steps: Tensor) -> Tensor:
        """What belongs to the steps of the times, from rows of shape [rows, B, …]."""
        return steps[self._at(steps)]

    def add(self, steps: Tensor, values: Tensor) -> None:
        """The transpose of `take`, in place."""
        steps.index_put_(self._at(steps), values, accumulate=True)

    def nodes(self, rows: Tensor) -> Tensor:
        """[rows, nodes, B, …] ↦ [rows, B, nodes, …]."""
        return rows.transpose(1, 2)

    def outputs(self, every: Tensor) -> Tensor:
        """Those of the times, from outputs of shape [T, B, …]."""
        return every[self.numbers.to(every.device), self.samples.to(every.device)]

    def zeros(self, y: Tensor) -> Tensor:
        """Zeros for each time, like the row of a sample in a leaf of the state."""
        return y.new_zeros((len(self.numbers), *y.shape[1:]))

    def add_times(self, grads: Tensor, values: Tensor) -> None:
        """Adds cotangents of these times to those of all, shape [B, T]."""
        grads[self.samples, self.numbers] += values

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows.to(x.device), self.samples.to(x.device)
