"""Checks of what a schedule is given."""

from __future__ import annotations

from odegrad.checkpoints.actions import Keep
from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = ["check_count", "check_keep"]


def check_count(where: str, value: object, least: int = 1) -> None:
    """Whether `value` is a whole number, and not too small.

    Arguments:
        where: What it is, for the message, such as ``"Binomial: slots"``.
        value: What was received.
        least: The least value allowed.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidTypeError(f"{where} must be a whole number, received {value!r}")
    if value < least:
        raise InvalidValueError(f"{where} must be at least {least}, received {value}")


def check_keep(name: str, keep: object) -> None:
    """Whether `keep` is a `Keep`."""
    if not isinstance(keep, Keep):
        raise InvalidTypeError(
            f"{name}: keep must be Keep.STATE, Keep.STAGES or Keep.GRAPH, received {keep!r}"
        )
