"""Checks of the numbers that a scheme is made with."""

from __future__ import annotations

from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = ["check_between", "check_whole"]


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


def check_whole(name: str, value: object, low: int, high: int | None, hint: str) -> None:
    """Whether a value is a whole number from `low` to `high`.

    Arguments:
        name: What the value is called.
        value: The value.
        low: The least.
        high: The most, or None.
        hint: What else the message says about another number.

    Raises:
        InvalidTypeError: If it is not an int.
        InvalidValueError: If it is outside.

    Example:
        >>> from odegrad.schemes.checks import check_whole
        >>> check_whole("order", 13, 1, 12, "take 4")
        Traceback (most recent call last):
        odegrad.errors.InvalidValueError: order must be from 1 to 12, received 13; take 4
    """
    span = f"at least {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{name} must be an int, {span}, received {value!r}; {hint}")
    if value < low or (high is not None and value > high):
        raise InvalidValueError(f"{name} must be {span}, received {value!r}; {hint}")
