"""What a caller passes: checked as torchdiffeq checks it, and with its types of exceptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.compat.torchdiffeq.controller import Tolerance
from odegrad.compat.torchdiffeq.errors import AssertedTypeError, AssertedValueError
from odegrad.compat.torchdiffeq.field import Reading
from odegrad.compat.torchdiffeq.methods import Method, method_named
from odegrad.compat.torchdiffeq.options import checked_tolerance
from odegrad.errors import InvalidTypeError, InvalidValueError, warn
from odegrad.gradients import Gradient
from odegrad.state import is_half, widest_real_dtype

__all__ = ["Call", "checked"]


@dataclass(frozen=True)
class Call:
    """A call of `odeint` or `odeint_adjoint`, checked.

    Attributes:
        func: The user's function.
        y0: The initial state, a tensor or a tuple of tensors.
        t: The times, shape [T], T ≥ 1, strictly monotone, on the device of the state.
        rtol: The relative tolerance.
        atol: The absolute tolerance.
        method: The method.
        options: Its options.
        gradient: How the solve is differentiated.
        params: Tensors that are inputs of the solve beside those that func holds.
        callback: Called after each step of both sweeps, or None.
        records: Whether func is always evaluated with gradients enabled.
    """

    func: Callable[..., Any]
    y0: Tensor | tuple[Tensor, ...]
    t: Tensor
    rtol: Tolerance
    atol: Tolerance
    method: Method
    options: dict[str, Any]
    gradient: Gradient
    params: tuple[Tensor, ...]
    callback: Callable[[Any], None] | None
    records: bool

    @property
    def packed(self) -> bool:
        """Whether the state is a tuple."""
        return isinstance(self.y0, tuple)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors of the state."""
        return self.y0 if isinstance(self.y0, tuple) else (self.y0,)

    @property
    def reading(self) -> Reading:
        """How func is evaluated."""
        shapes = tuple(x.shape for x in self.leaves) if self.packed else None
        return Reading(shapes, self.records)

    @property
    def margin(self) -> float:
        """How far, relative to the time, func keeps from the ends of steps at which it may jump."""
        return 4.0 * max(torch.finfo(x).eps for x in (self.t.dtype, self.time_dtype))

    @property
    def time_dtype(self) -> torch.dtype:
        """The dtype in which func gets the time."""
        return widest_real_dtype(self.leaves)


def checked(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    gradient: Gradient,
    params: tuple[Tensor, ...] = (),
    callback: Callable[[Method], Callable[[Any], None] | None] | None = None,
    records: bool = False,
    events: bool = False,
) -> Call:
    """Checks a call.

    Raises:
        AssertedTypeError: If y0 is neither a tensor nor a tuple of tensors, or t no tensor.
        AssertedValueError: If t is not 1-D and strictly monotone, or a tolerance is unusable.
        InvalidTypeError: If t is not of a floating-point dtype.
        InvalidValueError: If there is no such method, or t has not two entries with an event function.
    """
    if events and isinstance(t, Tensor) and t.ndim == 1 and len(t) != 2:
        raise InvalidValueError(
            f"We require len(t) == 2 when in event handling mode, but got len(t)={len(t)}."
        )
    whole = y0 if isinstance(y0, tuple) else (y0,)
    if not all(isinstance(leaf, Tensor) for leaf in whole):
        raise AssertedTypeError(
            f"y0 must be either a torch.Tensor or a tuple of them, received {_kind(y0)}; odegrad.solve "
            "takes any pytree"
        )
    given = {} if options is None else dict(options)
    chosen = method_named(method, given)
    times = _checked_times(t, whole[0].device if whole else torch.device("cpu"))
    relative = checked_tolerance("rtol", rtol, y0)
    if chosen.adaptive:
        relative = _above_rounding(relative, whole)
    return Call(
        func,
        y0,
        times,
        relative,
        checked_tolerance("atol", atol, y0),
        chosen,
        given,
        gradient,
        params,
        None if callback is None else callback(chosen),
        records,
    )


def _kind(y0: Any) -> str:
    """What y0 is, and of a tuple which entry is no tensor."""
    if isinstance(y0, tuple):
        for i, leaf in enumerate(y0):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            if not isinstance(leaf, Tensor):
                return f"a tuple with {type(leaf).__name__} {leaf!r} as its entry {i}"  # pyright: ignore[reportUnknownArgumentType]
    return type(y0).__name__


def _above_rounding(rtol: Tolerance, leaves: tuple[Tensor, ...]) -> Tolerance:
    """The tolerance, raised to the round-off of states in half precision: steps would be lost in it."""
    units = [torch.finfo(x.dtype).eps / 2 if is_half(x) else 0.0 for x in leaves]
    parts = rtol if isinstance(rtol, tuple) else (rtol,) * len(leaves)
    pairs = list(zip(parts, units, strict=True))
    if all(bool(torch.as_tensor(part >= unit).all()) for part, unit in pairs):
        return rtol
    warn(
        f"rtol={rtol} is below the round-off of the state ({max(units):.2g} of a number), and is raised "
        f"to it. Pass rtol={max(units):.0e} or more, or solve in a wider dtype"
    )
    return tuple(
        part.clamp(min=unit) if isinstance(part, Tensor) else max(part, unit)
        for part, unit in pairs
    )


def _checked_times(t: Any, device: torch.device) -> Tensor:
    if not isinstance(t, Tensor):
        raise AssertedTypeError(
            f"t must be a torch.Tensor, received {type(t).__name__}; write torch.tensor(t)"
        )
    if not t.is_floating_point():
        raise InvalidTypeError(f"`t` must be a floating point Tensor but is a {t.type()}")
    if t.ndim != 1 or len(t) == 0:
        raise AssertedValueError(f"t must be one dimensional, received shape {list(t.shape)}")
    if bool(t.isnan().any()):
        raise AssertedValueError(
            f"t must be strictly increasing or decreasing: t[{int(t.isnan().nonzero()[0])}] is NaN"
        )
    rises = t[1:] > t[:-1]
    falls = t[1:] < t[:-1]
    if not bool(rises.all() | falls.all()):
        raise AssertedValueError(
            "t must be strictly increasing or decreasing"
            + ("" if t.dtype.itemsize > 2 else f"; times are close to each other in {t.dtype}")
        )
    if t.device != device:
        warn("t is not on the same device as y0. Coercing to y0.device.")
        t = t.to(device)
    return t
