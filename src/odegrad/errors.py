"""Every exception and warning that odegrad raises on purpose.

Each message says what is wrong, what was received, and what to do about it. All exceptions derive
from `OdegradError` and from the built-in exception that a Python user would expect.
"""

from __future__ import annotations

import inspect
import sys
import warnings

__all__ = [
    "ChangedTensorError",
    "CheckpointStorageError",
    "DistributedError",
    "EventError",
    "FieldOutputError",
    "FieldOutputTypeError",
    "GradientUnavailableError",
    "GrazingEventError",
    "InvalidTypeError",
    "InvalidValueError",
    "MaxStepsError",
    "MemoryBudgetError",
    "MissingDependencyError",
    "NonDeterministicFieldError",
    "NonFiniteDerivativeError",
    "NonFiniteInputError",
    "NonFiniteStateError",
    "OdegradError",
    "OdegradWarning",
    "RandomFieldError",
    "RejectStep",
    "SolveError",
    "StepTooSmallError",
    "UnreachableTensorError",
]


class OdegradError(Exception):
    """Base class of all exceptions raised by odegrad."""


class OdegradWarning(UserWarning):
    """Base class of all warnings issued by odegrad."""


class InvalidValueError(OdegradError, ValueError):
    """An argument has the right type but a value that cannot be used."""


class InvalidTypeError(OdegradError, TypeError):
    """An argument has a type that cannot be used."""


class FieldOutputError(OdegradError, ValueError):
    """The vector field returned something that is not a derivative of the state."""


class FieldOutputTypeError(FieldOutputError, TypeError):
    """The vector field returned something that is not made of tensors like the state."""


class NonFiniteInputError(InvalidValueError):
    """The initial state or the times contain NaN or infinity."""


class MemoryBudgetError(InvalidValueError):
    """A solve does not fit into the memory that was allowed."""


class UnreachableTensorError(OdegradError, RuntimeError):
    """The vector field used a tensor that requires grad and that no gradient would reach."""


class ChangedTensorError(OdegradError, RuntimeError):
    """A tensor that the vector field reads was changed between a solve and its backward pass."""


class CheckpointStorageError(OdegradError, OSError):
    """States could not be stored outside of the device's memory, or not be read back as they were."""


class DistributedError(OdegradError, RuntimeError):
    """The vector field calls what several processes cannot call inside a solve."""


class RandomFieldError(OdegradError, RuntimeError):
    """The vector field drew random numbers in a way that cannot be repeated exactly."""


class NonDeterministicFieldError(OdegradError, RuntimeError):
    """The vector field, evaluated again, gave something else than in the forward sweep."""


class GradientUnavailableError(OdegradError, RuntimeError):
    """The derivative that was asked for does not exist for the chosen gradient."""


class MissingDependencyError(OdegradError, ImportError):
    """A feature needs a package that is not installed."""


class SolveError(OdegradError, RuntimeError):
    """The solve itself failed; the base of the errors below."""


class NonFiniteDerivativeError(SolveError):
    """The vector field keeps returning NaN or infinity, however small the step."""


class NonFiniteStateError(SolveError):
    """A solve on a fixed grid produced NaN or infinity."""


class RejectStep(SolveError):
    """Raised by a vector field to ask for a smaller step: adaptive steps try again, others fail."""


class StepTooSmallError(SolveError):
    """The step-size controller asked for a step below the resolution of time."""


class MaxStepsError(SolveError):
    """The solve did not reach its end within `max_steps` attempted steps."""


class EventError(SolveError):
    """An event function is not a number along the solution, or jumps follow each other without end."""


class GrazingEventError(EventError):
    """The solution touches an event without crossing it, so that the event has no derivative."""


SPENT = (
    "an earlier backward pass through this solve was interrupted after it had used up some of what was "
    "kept; solve again, or call backward with retain_graph=True"
)
"""What a `GradientUnavailableError` says in this case."""


def annotate(error: BaseException, note: str) -> None:
    """Adds a note to an exception that passes through, where Python has notes (from 3.11 on)."""
    if sys.version_info >= (3, 11):
        error.add_note(f"odegrad: {note}")


def warn(message: str) -> None:
    """Warns the first caller outside of odegrad and torch."""
    frame, depth = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, OdegradWarning, stacklevel=depth)


_INSIDE = ("odegrad", "torch")
