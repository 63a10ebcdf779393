"""What a user passes to make a control: checks, and parameters from an initial guess."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odegrad.controls.base import Shape
from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = [
    "Guess",
    "checked_count",
    "checked_interval",
    "checked_knots",
    "checked_shape",
    "initial",
    "least_squares",
    "sample",
]

Guess: TypeAlias = Tensor | Sequence[Tensor] | Callable[[Tensor], Any] | None
"""Nothing (zeros), the parameters, or a function t ↦ u(t)."""


def checked_knots(knots: Any) -> tuple[float, ...]:
    """The knots as Python floats.

    Raises:
        InvalidTypeError: If they are not numbers, or would need a gradient.
        InvalidValueError: If they are fewer than two, not finite or not increasing.
    """
    if isinstance(knots, Tensor) and knots.requires_grad:
        raise InvalidTypeError(
            "knots are fixed numbers, received a tensor that requires grad; pass knots.detach()"
        )
    try:
        times = tuple(float(x) for x in knots)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"knots must be a sequence of numbers, received {knots!r}; write knots=[0.0, 0.5, 1.0]"
        ) from error
    if len(times) < 2:
        raise InvalidValueError(
            f"knots must be at least two, received {len(times)}; for one piece pass its two ends"
        )
    for i, x in enumerate(times):
        if not math.isfinite(x):
            raise InvalidValueError(f"knots must be finite, received {x} at index {i}")
        if i and x <= times[i - 1]:
            raise InvalidValueError(
                f"knots must increase, received {times[i - 1]} followed by {x} at index {i}; "
                "sort them and drop repeated ones"
            )
    return times


def checked_interval(start: Any, stop: Any) -> tuple[float, float]:
    """The ends of an interval as Python floats, by the rules of `checked_knots`."""
    try:
        ends = float(start), float(stop)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"start and stop must be numbers, received {start!r} and {stop!r}"
        ) from error
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]):
        raise InvalidValueError(
            f"start and stop must be finite and start < stop, received {ends[0]} and {ends[1]}; "
            "also for a solve with descending times start is the smaller one"
        )
    return ends


def checked_count(name: str, n: Any, least: int) -> int:
    """A whole number, at least `least`.

    Raises:
        InvalidTypeError: If it is not an int.
        InvalidValueError: If it is smaller.
    """
    if not isinstance(n, int) or isinstance(n, bool):
        raise InvalidTypeError(f"{name} must be an int, received {n!r}")
    if n < least:
        raise InvalidValueError(f"{name} must be at least {least}, received {n}")
    return n


def checked_shape(shape: Any) -> Shape:
    """The shape as a tuple of ints.

    Raises:
        InvalidTypeError: If it is not a sequence of ints.
        InvalidValueError: If an entry is negative.
    """
    if not isinstance(shape, tuple | list) or not all(type(n) is int for n in shape):
        raise InvalidTypeError(
            f"shape must be a tuple of ints, received {shape!r}; write shape=(2,) for a vector and "
            "shape=() for one number per time"
        )
    if any(n < 0 for n in shape):
        raise InvalidValueError(f"shape must not be negative, received {shape!r}")
    return tuple(shape)


def initial(
    guess: Guess, shapes: dict[str, Shape], fit: Callable[[Callable[[Tensor], Any]], Any]
) -> list[Tensor]:
    """The initial parameters, in the order of `shapes`.

    Arguments:
        guess: None gives zeros. Tensors are copied and keep their dtype and device; there is one for
            each parameter (one by itself need not be in a tuple). A function t ↦ u(t) is sampled at
            0-dim float64 times, and the parameters get torch's default dtype.
        shapes: The name and shape of each parameter.
        fit: Makes parameters from such a function.

    Raises:
        InvalidTypeError: If the guess is none of these.
        InvalidValueError: If there is a wrong number of tensors or one has a wrong shape.
    """
    if guess is None:
        return [torch.zeros(shape) for shape in shapes.values()]
    if callable(guess):
        with torch.no_grad():
            return [_default(x) for x in fit(guess)]
    tensors = [guess] if isinstance(guess, Tensor) else guess
    wanted = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    if not isinstance(tensors, (tuple, list)) or not all(isinstance(x, Tensor) for x in tensors):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidTypeError(
            f"init must be a function of time or tensors ({wanted}), received {guess!r}"
        )
    if [x.shape for x in tensors] != [torch.Size(shape) for shape in shapes.values()]:
        raise InvalidValueError(
            f"init must have the shape of the parameters ({wanted}), received "
            f"{', '.join(str(list(x.shape)) for x in tensors)}"
        )
    for x in tensors:
        if not (x.dtype.is_floating_point or x.dtype.is_complex):
            raise InvalidTypeError(
                f"init must be floating-point or complex, received {x.dtype}; pass init.double()"
            )
    return [x.detach().clone() for x in tensors]


def sample(u: Callable[[Tensor], Any], times: Sequence[float], shape: Shape) -> Tensor:
    """u at each time, of shape [len(times), *shape].

    Raises:
        InvalidValueError: If u(t) has another shape.
    """
    values = [torch.as_tensor(u(torch.tensor(t, dtype=torch.float64))) for t in times]
    for x in values:
        if x.shape != torch.Size(shape):
            raise InvalidValueError(
                f"init(t) must have the control's shape {list(shape)}, it returned shape "
                f"{list(x.shape)}"
            )
    return torch.stack(values)


def least_squares(basis: Tensor, values: Tensor) -> Tensor:
    """argmin_c ‖Φ c − v‖, for Φ of shape [n, m] and v of shape [n, *shape]."""
    wide = torch.promote_types(values.dtype, torch.float64)
    flat = values.reshape(len(values), -1).to(wide)
    return torch.linalg.lstsq(basis.to(wide), flat).solution.reshape(-1, *values.shape[1:])


def _default(x: Tensor) -> Tensor:
    dtype = torch.get_default_dtype()
    return x.to(dtype.to_complex() if x.is_complex() else dtype)
