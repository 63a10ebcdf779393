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
    """How a solve ended. One that fails raises, unless `on_failure` says otherwise."""

    SUCCESS = "success"
    MAX_STEPS = "too many steps"
    STEP_TOO_SMALL = "the step became too small"
    NON_FINITE_DERIVATIVE = "f gave NaN or infinity"
    NON_FINITE_STATE = "the solution became NaN or infinite"
    STEP_REJECTED = "f rejected a step of a fixed grid"
    FAILED = "the solve failed"


@dataclass(frozen=True)
class Solution:
    """The result of `odegrad.solve`.

    Attributes:
        ys: The states at `ts`, shaped like y0 with leaves of shape [len(ts), *leaf.shape]; None with
            `loss_at`, where they are never put together.
        ts: The times, shape [len(ts)].
        stats: What the solve did; the backward sweep adds its share when it runs.
        status: How it ended.
        grid: The accepted steps; ``stepsize=sol.grid`` replays them exactly. It may be empty if the solve
            failed.
        landings: The times that steps had to end at: `ts`, and the breakpoints between. The times of all
            steps are ``grid.times(landings)``.
        running: ∫ ℓ dt from ts[0] to each time of `ts` if a running cost was given, else None. With
            `loss_at`, that to ts[-1] alone.
        loss: Σ_j loss_at(j, y(ts[j])), a 0-dim tensor, if `loss_at` was given, else None.
        reason: What went wrong, if something did, as the exception would have said.
    """

    ys: Any
    ts: Tensor
    stats: Stats
    status: Status
    grid: Grid
    landings: tuple[float, ...]
    running: Tensor | None = None
    loss: Tensor | None = None
    reason: str = ""
