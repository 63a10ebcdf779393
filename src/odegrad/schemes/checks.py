"""Checks of the numbers that a scheme is made with."""

from __future__ import annotations

from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = ["check_between"]


def check_between(name: str, value: object, low: float, hint: str) -> None:
    """Whether a value is a number in (low, 1].

    Arguments:
        name: What the value is called.
        value: The value.
        low: The lower end, which is left out.
        hint: What else the message says about such a number.

    Raises:
        InvalidTypeError: If it is not an int or a float.
        InvalidValueError: If it is outside.

    Example:
        >>> from odegrad.schemes.checks import check_between
        >>> check_between("coupling", 1.5, 0.0, "take 0.999")
        Traceback (most recent call last):
        odegrad.errors.InvalidValueError: coupling must be in (0, 1], received 1.5; take 0.999
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTypeError(
            f"{name} must be a number in ({low:g}, 1], received {value!r}; pass a float"
        )
    if not low < value <= 1.0:
        raise InvalidValueError(f"{name} must be in ({low:g}, 1], received {value!r}; {hint}")
