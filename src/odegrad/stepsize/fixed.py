"""Steps that do not depend on the solution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from odegrad.errors import InvalidTypeError, InvalidValueError
from odegrad.grid import Uniform

__all__ = ["Fixed", "Steps"]


@dataclass(frozen=True)
class Steps:
    """n equal steps between every two consecutive times of ``ts``.

    Arguments:
        n: The number of steps per segment, at least 1.

    Raises:
        InvalidTypeError: If n is not an int.
        InvalidValueError: If n < 1.

    Example:
        >>> import odegrad
        >>> odegrad.Steps(4)
        Steps(n=4)
    """

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                f"Steps needs a whole number of steps, received {self.n!r}; "
                "for a step size in units of time use Fixed(dt)"
            )
        if self.n < 1:
            raise InvalidValueError(f"Steps needs at least one step, received {self.n}")

    def segment(self, j: int, start: float, stop: float, eps: float) -> Uniform:
        """n equal steps, whatever the segment."""
        del j, start, stop, eps
        return Uniform(self.n)

    def check(self, n_segments: int) -> None:
        """Any number of segments is fine."""


@dataclass(frozen=True)
class Fixed:
    """Equal steps between consecutive times of ``ts``, as few as keep each at most `dt` long.

    A segment from T_0 to T_1 takes n = max(1, ⌈(|T_1 − T_0| − 4 ε max(|T_0|, |T_1|)) / dt − 1e-9⌉)
    steps, where ε is the machine epsilon of the dtype in which the times were given: without that
    slack, times that were rounded to float32 would take one step too many at random.

    Arguments:
        dt: The largest step, in units of time, positive (also for descending times).

    Raises:
        InvalidTypeError: If dt is not a number.
        InvalidValueError: If dt is not positive and finite.

    Example:
        >>> import odegrad
        >>> odegrad.Fixed(0.1).segment(0, 0.0, 1.0, eps=2.2e-16)
        Uniform(n=10)
    """

    dt: float

    def __post_init__(self) -> None:
        if not isinstance(self.dt, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                f"Fixed needs a step as a number, received {type(self.dt).__name__}; no gradient flows "
                "to a step size"
            )
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise InvalidValueError(
                f"Fixed needs a positive step in units of time, received dt={self.dt!r}; "
                "for descending times dt stays positive"
            )

    def segment(self, j: int, start: float, stop: float, eps: float) -> Uniform:
        """The equal steps of one segment."""
        del j
        slack = 4.0 * eps * max(abs(start), abs(stop))
        return Uniform(max(1, math.ceil((abs(stop - start) - slack) / self.dt - 1e-9)))

    def check(self, n_segments: int) -> None:
        """Any number of segments is fine."""
