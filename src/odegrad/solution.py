"""What a solve returns."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from odegrad.errors import (
    EventError,
    GrazingEventError,
    InvalidValueError,
    MaxStepsError,
    NonFiniteDerivativeError,
    NonFiniteStateError,
    RejectStep,
    SolveError,
    StepTooSmallError,
)
from odegrad.grid import Grid
from odegrad.sweeps import Stats

__all__ = ["Occurrences", "Solution", "Status", "status_of"]


class Status(enum.Enum):
    """How a solve ended. One that fails raises, unless `on_failure` says otherwise.

    `SUCCESS` is to have come to ts[-1], `EVENT` to have come to a terminal event.
    """

    SUCCESS = "success"
    EVENT = "a terminal event ended it"
    MAX_STEPS = "too many steps"
    STEP_TOO_SMALL = "the step became too small"
    NON_FINITE_DERIVATIVE = "f gave NaN or infinity"
    NON_FINITE_STATE = "the solution became NaN or infinite"
    STEP_REJECTED = "f rejected a step of a fixed grid"
    EVENT_FAILED = "an event has no number, no derivative, or no end"
    FAILED = "the solve failed"


_STATUS: dict[type[SolveError], Status] = {
    MaxStepsError: Status.MAX_STEPS,
    StepTooSmallError: Status.STEP_TOO_SMALL,
    NonFiniteDerivativeError: Status.NON_FINITE_DERIVATIVE,
    NonFiniteStateError: Status.NON_FINITE_STATE,
    RejectStep: Status.STEP_REJECTED,
    EventError: Status.EVENT_FAILED,
    GrazingEventError: Status.EVENT_FAILED,
}


def status_of(error: SolveError) -> Status:
    """How a solve ended that failed by `error`."""
    return _STATUS.get(type(error), Status.FAILED)


@dataclass(frozen=True)
class Occurrences:
    """When an event occurred, K times, and where: exact derivatives of the numbers, like `Solution.ys`.

    Attributes:
        times: The times in the order of the solve, shape [K].
        states: The states there, before a jump, shaped like y0 with leaves of shape [K, *leaf.shape].
        after: Those after the jumps, if the event has one, else None.
        running: ∫ ℓ dt from ts[0] to each of the times, shape [K, …], if there is a running cost.
    """

    times: Tensor
    states: Any
    after: Any = None
    running: Tensor | None = None


@dataclass(frozen=True)
class Solution:
    """The result of `odegrad.solve`.

    Attributes:
        ys: The states at `ts`, shaped like y0 with leaves of shape [len(ts), *leaf.shape]; None with
            `loss_at`, where they are never put together.
        ts: The times, shape [len(ts)]; with events, those up to where a terminal one ended the solve.
        stats: What the solve did; the backward sweep adds its share when it runs.
        status: How it ended.
        grid: The accepted steps; ``stepsize=sol.grid`` replays them exactly. It may be empty if the solve
            failed. With events it has the steps of each stretch between jumps, and is replayed with the
            same events.
        landings: The times that steps had to end at: the first and the last, breakpoints between, and
            all of `ts` if they were stepped onto. The times of all steps are ``grid.times(landings)``.
        running: ∫ ℓ dt from ts[0] to each time of `ts` if a running cost was given, else None. With
            `loss_at`, that to ts[-1] alone.
        loss: Σ_j loss_at(j, y(ts[j])), a 0-dim tensor, if `loss_at` was given, else None.
        events: For each of the `events`, when and where it occurred; if the solve failed, no occurrence.
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
    events: tuple[Occurrences, ...] = ()
    reason: str = ""
    _read: Callable[[object], Any] | None = field(default=None, repr=False, compare=False)

    def __call__(self, t: Tensor | float | Sequence[float]) -> Any:
        """The state at any time between the first and the last.

        The accepted steps are taken once more, and the state is read off the scheme's dense output: that
        costs a forward sweep, keeps nothing, and is differentiable like `ys`, with respect to t, too.

        Arguments:
            t: One time, or several, shape [T], in any order.

        Returns:
            The state in the structure of y0: leaves of its shape, or of shape [T, *leaf.shape].

        Raises:
            InvalidTypeError: If t is neither a number, a tensor nor a sequence of numbers.
            InvalidValueError: If t lies outside of the solve, the solve failed, or the gradient mode
                starts anew at every time.
            ChangedTensorError: If what f reads was changed since the solve.

        Example:
            >>> import torch, odegrad
            >>> sol = odegrad.solve(lambda t, y: -y, torch.ones(1, dtype=torch.float64), [0.0, 1.0])
            >>> sol(0.5)  # exp(−1/2)
            tensor([0.6065], dtype=torch.float64)
        """
        if self._read is None:
            raise InvalidValueError(f"sol(t) needs a solve that succeeded; this one: {self.reason}")
        return self._read(t)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is needed to read it again, which has the functions of the user."""
        return {**self.__dict__, "_read": None}
