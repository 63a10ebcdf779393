"""What a backward sweep gathers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.state import Leaves, OptionalLeaves, is_legacy_batched, wide

__all__ = ["Cotangents", "Total"]


class Cotangents(NamedTuple):
    """Cotangents of the inputs of a solve; `times` has one entry per landing time."""

    y0: Leaves
    p: OptionalLeaves
    times: list[Tensor | None]


class Total:
    """A sum of cotangents of several tensors, in place on buffers that belong to it.

    The buffers are in single precision at least: in half precision a sum of n like terms stands still
    when n reaches some hundreds.

    Arguments:
        n: The number of tensors.
    """

    def __init__(self, n: int) -> None:
        self._sums: list[Tensor | None] = [None] * n

    def add(self, more: OptionalLeaves) -> None:
        """Adds `more`, one cotangent per tensor; None is zero."""
        old: list[Tensor] = []
        new: list[Tensor] = []
        for i, grad in enumerate(more):
            if grad is None:
                continue
            total = self._sums[i]
            if total is None:
                own = wide(grad)  # what autograd returns may be seen elsewhere, too
                self._sums[i] = own.clone() if own is grad else own
            elif is_legacy_batched(grad) or is_legacy_batched(total):
                self._sums[i] = total + grad
            else:
                old.append(total)
                new.append(grad)
        if old:
            torch._foreach_add_(old, new)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

    def result(self) -> OptionalLeaves:
        """The sums; None where nothing was added."""
        return tuple(self._sums)
