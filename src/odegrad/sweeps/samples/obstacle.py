"""Why a sample of a batch cannot go on."""

from __future__ import annotations

import math
from typing import NamedTuple

from odegrad.errors import (
    MaxStepsError,
    NonFiniteDerivativeError,
    SolveError,
    StepTooSmallError,
)
from odegrad.stepsize import PID

__all__ = ["Stuck", "obstacle"]


class Stuck(NamedTuple):
    """A sample after an attempt.

    Attributes:
        b: Its number.
        t: The time at which the attempt began.
        taken: The length of it.
        ratio: Its error ratio.
        h: The size of the next attempt.
        extent: The length of the whole solve.
        end: Where it ends.
        accepted: Steps accepted so far.
        rejected: Steps rejected.
    """

    b: int
    t: float
    taken: float
    ratio: float
    h: float
    extent: float
    end: float
    accepted: int
    rejected: int


def obstacle(at: Stuck, control: PID, limit: int) -> SolveError | None:
    """Why a sample cannot go on, if it cannot; `limit` is the most attempts."""
    where = f"sample {at.b} of the batch: at t = {at.t:.6g} after {at.accepted} accepted steps"
    smallest = max(control.dt_min, 16.0 * math.ulp(max(abs(at.t), at.extent)))
    if at.accepted + at.rejected >= limit:
        return MaxStepsError(
            f"{where} and {at.rejected} rejected ones, its end at t = {at.end:.6g} is not reached; the "
            f"last step was {at.taken:.3g}. Raise max_steps or the tolerances; if the steps are tiny, "
            "the problem may be stiff"
        )
    if at.h < smallest and not math.isfinite(at.ratio):
        return NonFiniteDerivativeError(
            f"{where}, f gives NaN or infinity near the solution, or raises RejectStep, even for a step "
            f"of {at.taken:.3g}. The solution may blow up here, or leave the domain of f; check f at "
            'this point, or go on without this sample: on_failure="nan"'
        )
    if at.h < smallest:
        return StepTooSmallError(
            f"{where}, the error control asks for a step of {at.h:.3g}, below {smallest:.3g} (error / "
            f"tolerance = {at.ratio:.3g}). f may be stiff or singular here, or the tolerances are below "
            'what it can resolve: raise them, or go on without this sample: on_failure="nan"'
        )
    return None
