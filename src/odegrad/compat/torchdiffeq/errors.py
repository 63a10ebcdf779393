"""Exceptions that are both odegrad's and what torchdiffeq raises: mostly AssertionError.

Programs catch the latter. Unlike torchdiffeq's assertions these stay under ``python -O``.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from odegrad.errors import (
    InvalidTypeError,
    InvalidValueError,
    MaxStepsError,
    NonFiniteDerivativeError,
    NonFiniteInputError,
    NonFiniteStateError,
    OdegradError,
    RejectStep,
    SolveError,
    StepTooSmallError,
)

__all__ = [
    "AssertedMaxStepsError",
    "AssertedTypeError",
    "AssertedValueError",
    "MethodNotAvailableError",
    "as_upstream",
]


class MethodNotAvailableError(OdegradError, NotImplementedError):
    """A method of torchdiffeq that odegrad does not have."""


class AssertedValueError(InvalidValueError, AssertionError):
    """An argument has a value that cannot be used."""


class AssertedTypeError(InvalidTypeError, AssertionError):
    """An argument has a type that cannot be used."""


class _NonFiniteInput(NonFiniteInputError, AssertionError):
    """The initial state or the times contain NaN or infinity."""


class _NonFiniteDerivative(NonFiniteDerivativeError, AssertionError):
    """The vector field keeps returning NaN or infinity, however small the step."""


class _NonFiniteState(NonFiniteStateError, AssertionError):
    """A solve on a fixed grid produced NaN or infinity."""


class _StepTooSmall(StepTooSmallError, AssertionError):
    """The step-size controller asked for a step below the resolution of time."""


class AssertedMaxStepsError(MaxStepsError, AssertionError):
    """The solve did not reach its end within the steps that it was allowed."""


class _Rejected(RejectStep, AssertionError):
    """The vector field rejected a step of a fixed grid."""


class _Failed(SolveError, AssertionError):
    """The solve failed."""


_TWINS: dict[type[OdegradError], type[OdegradError]] = {
    NonFiniteInputError: _NonFiniteInput,
    NonFiniteDerivativeError: _NonFiniteDerivative,
    NonFiniteStateError: _NonFiniteState,
    StepTooSmallError: _StepTooSmall,
    MaxStepsError: AssertedMaxStepsError,
    RejectStep: _Rejected,
    SolveError: _Failed,
}

_HINTS = {
    MaxStepsError: "Here the limit is options={'max_num_steps': n}, per interval of t.",
    StepTooSmallError: "(torchdiffeq calls this underflow in dt. dt0, dt_min and breakpoints are "
    "options first_step, min_step and jump_t here.)",
}


@contextmanager
def as_upstream() -> Generator[None]:
    """Turns the failures of a solve into their twins, which are AssertionError, too."""
    try:
        yield
    except (SolveError, NonFiniteInputError) as error:
        twin = _TWINS.get(type(error))
        if twin is None:
            raise
        message = " ".join([str(error), *(_HINTS[kind] for kind in _HINTS if type(error) is kind)])
        raise twin(message) from error
