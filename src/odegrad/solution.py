"""What a solve returns."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from odegrad.grid import Grid
from odegrad.sweeps import Stats

__all__ = ["Solution", "Status"]


class Status(enum.Enum):
    """How a solve ended. A solve that fails raises."""

    SUCCESS = "success"


@dataclass(frozen=True)
class Solution:
    """The result of `odegrad.solve`.

    Attributes:
        ys: The states at `ts`, shaped like y0 with leaves of shape [len(ts), *leaf.shape]; None with
            `loss_at`, where they are never put together.
        ts: The times, shape [len(ts)].
        stats: What the solve did; the backward sweep adds its share when it runs.
        status: How it ended.
        grid: The accepted steps; ``stepsize=sol.grid`` replays them exactly.
        landings: The times that steps had to end at: `ts`, and the breakpoints between. The times of all
            steps are ``grid.times(landings)``.
        running: ∫ ℓ dt from ts[0] to each time of `ts` if a running cost was given, else None. With
            `loss_at`, that to ts[-1] alone.
        loss: Σ_j loss_at(j, y(ts[j])), a 0-dim tensor, if `loss_at` was given, else None.
    """

    ys: Any
    ts: Tensor
    stats: Stats
    status: Status
    grid: Grid
    landings: tuple[float, ...]
    running: Tensor | None = None
    loss: Tensor | None = None
