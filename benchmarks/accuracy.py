"""How far a gradient is from the derivative that it should be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.bench import TAPE, System, Workload, differentiate, last
from odegrad.grid import Grid
from odegrad.stepsize import Steps

__all__ = ["References", "relative_error"]


class References:
    """The gradients of a workload by `odegrad.Tape` in float64, one per scheme.

    On equal steps they are taken on the same grid as everyone's. On adaptive steps they are taken on
    the grid that odegrad accepts in the dtype of the workload, so that the error of odegrad's engines is
    rounding, while that of others contains the difference between two accepted grids.

    Arguments:
        workload: The workload.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._grid: Grid | None = None
        if not isinstance(workload.stepsize, Steps):
            with torch.no_grad():
                self._grid = TAPE.solve(workload, workload.build()).grid
        self._found: dict[type, tuple[Tensor, ...]] = {}

    def of(self, system: System) -> tuple[Tensor, ...]:
        """The reference for the scheme that a system runs."""
        scheme = system.scheme(self._workload)
        if type(scheme) not in self._found:
            exact = dataclasses.replace(self._workload, scheme=scheme, dtype=torch.float64)
            problem = exact.build()
            ys = TAPE.solve(exact, problem, self._grid).ys
            self._found[type(scheme)] = differentiate(last(ys), problem)
        return self._found[type(scheme)]


def relative_error(gradient: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """max |g − r| / max |r| over all entries of all tensors together."""
    largest = max(float(r.abs().max()) for r in reference)
    difference = max(
        float((g.detach().to(r) - r).abs().max()) for g, r in zip(gradient, reference, strict=True)
    )
    return difference / largest
