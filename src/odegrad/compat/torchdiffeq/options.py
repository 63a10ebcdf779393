"""The dictionary of options: what each key means here, and what of it is unknown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.compat.torchdiffeq.controller import Controller, Tolerance
from odegrad.compat.torchdiffeq.errors import AssertedTypeError, AssertedValueError
from odegrad.compat.torchdiffeq.methods import Method
from odegrad.errors import InvalidTypeError, InvalidValueError, warn

__all__ = ["AdaptiveOptions", "FixedOptions", "checked_tolerance"]

_CONTROL = ("first_step", "safety", "ifactor", "dfactor", "min_step", "max_step")


@dataclass(frozen=True)
class AdaptiveOptions:
    """The options of adaptive methods.

    Attributes:
        control: The step-size control.
        step_t: Times that steps end at.
        jump_t: Times at which f jumps.
        max_num_steps: The most attempted steps per interval of t, or None for odegrad's own limit.
    """

    control: Controller
    step_t: tuple[float, ...] = ()
    jump_t: tuple[float, ...] = ()
    max_num_steps: int | None = None

    @staticmethod
    def read(
        options: dict[str, Any],
        method: Method,
        rtol: Tolerance,
        atol: Tolerance,
        packed: bool,
        t: Tensor,
    ) -> AdaptiveOptions:
        """Reads the options, and warns of unknown ones.

        Arguments:
            options: As given.
            method: The method, for the warning.
            rtol: The relative tolerance.
            atol: The absolute tolerance.
            packed: Whether the state is a tuple.
            t: The times, shape [T].

        Raises:
            InvalidTypeError: If an option has an unusable type.
            InvalidValueError: If one has an unusable value.
        """
        options = dict(options)
        given = {key: _number(key, options.pop(key, None)) for key in _CONTROL}
        known = {key: value for key, value in given.items() if value is not None}
        names = {"first_step": "dt0", "min_step": "dt_min", "max_step": "dt_max"}
        for key, value in known.items():
            positive, finite = value > 0, abs(value) < math.inf
            rules = {
                "dfactor": (positive and value < 1, "in (0, 1)"),
                "min_step": (value >= 0 and finite, "at least 0 and finite"),
                "max_step": (value > known.get("min_step", 0.0), "above min_step"),
            }
            holds, rule = rules.get(key, (positive and finite, "positive and finite"))
            if not holds:
                raise InvalidValueError(f"options[{key!r}] must be {rule}, received {value!r}")
        norm = options.pop("norm", None)
        if norm is not None and not callable(norm):
            raise InvalidTypeError(
                f"options['norm'] must be a function of the state, received {norm!r}; leave it out for "
                "the root mean square, or write a function such as lambda y: y.abs().max()"
            )
        dtype = options.pop("dtype", torch.float64)  # the time is in double precision here
        if not isinstance(dtype, torch.dtype):
            raise InvalidTypeError(f"options['dtype'] must be a torch.dtype, received {dtype!r}")
        most = _number("max_num_steps", options.pop("max_num_steps", None))
        if most is not None and not 1 <= most < math.inf:
            raise InvalidValueError(
                f"options['max_num_steps'] must be at least 1 and finite, received {most}"
            )
        step_t = _times("step_t", options.pop("step_t", None), t)
        jump_t = _times("jump_t", options.pop("jump_t", None), t)
        if len({*step_t, *jump_t}) < len(step_t) + len(jump_t):
            raise InvalidValueError(
                "`step_t` and `jump_t` must not have any repeated elements between them."
            )
        _warn_of_rest(method, options)
        control = Controller(
            rtol, atol, norm, packed, **{names.get(key, key): value for key, value in known.items()}
        )
        return AdaptiveOptions(control, step_t, jump_t, None if most is None else int(most))


@dataclass(frozen=True)
class FixedOptions:
    """The options of methods on fixed grids.

    Attributes:
        step_size: The size of the steps in units of time, or None.
        grid_constructor: Maps (func, y0, t) to the grid, or None.
        interp: How outputs between the nodes are read off, ``"linear"`` or ``"cubic"``.
        perturb: Whether f is evaluated strictly inside of the steps.
        own: The options that belong to the method alone.
    """

    step_size: float | None
    grid_constructor: Callable[..., Tensor] | None
    interp: str
    perturb: bool
    own: dict[str, Any]

    @staticmethod
    def read(options: dict[str, Any], method: Method) -> FixedOptions:
        """Reads the options, and warns of unknown ones.

        Raises:
            InvalidTypeError: If an option has an unusable type.
            InvalidValueError: If one has an unusable value.
        """
        options = dict(options)
        options.pop("norm", None)  # there is no error to measure
        step_size = _number("step_size", options.pop("step_size", None))
        constructor = options.pop("grid_constructor", None)
        if step_size is not None and constructor is not None:
            raise InvalidValueError(
                "step_size and grid_constructor are mutually exclusive arguments."
            )
        if step_size is not None and not 0 < step_size < math.inf:
            raise InvalidValueError(
                f"options['step_size'] must be positive and finite, received {step_size}; it stays "
                "positive if t descends"
            )
        interp = options.pop("interp", "linear")
        if interp not in ("linear", "cubic"):
            raise InvalidValueError(
                f"Unknown interpolation method {interp}; write 'linear' or 'cubic'"
            )
        perturb = bool(options.pop("perturb", False))
        own = {key: options.pop(key) for key in sorted(method.keys) if key in options}
        _warn_of_rest(method, options)
        return FixedOptions(step_size, constructor, interp, perturb, own)


def checked_tolerance(name: str, value: Any, y0: Tensor | tuple[Tensor, ...]) -> Tolerance:
    """A tolerance: a number or tensor for all, or a sequence with one per tensor of a tuple state.

    Raises:
        AssertedTypeError: If it is anything else.
        AssertedValueError: If it requires grad, is negative or NaN, or has the wrong length.
    """
    parts: list[Any] = [value]
    sequence = isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim > 0)
    if sequence and isinstance(y0, tuple):
        parts = list(value)
        if len(parts) != len(y0):
            raise AssertedValueError(
                f"If using tupled {name} it must have the same length as the tuple y0: received "
                f"{len(parts)} for {len(y0)}"
            )
    for i, part in enumerate(parts):
        try:
            tensor = part if isinstance(part, Tensor) else torch.tensor(part, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise AssertedTypeError(
                f"{name} must be a number, a tensor, or a tuple of them with one for each tensor of a "
                f"tuple y0, received {part!r}" + _hint(part)
            ) from error
        if tensor.requires_grad:
            raise AssertedValueError(f"{name} cannot require gradient; pass {name}.detach()")
        if not bool((tensor >= 0).all()):
            raise AssertedValueError(f"{name} must be at least 0, received {part!r}")
        parts[i] = tensor if tensor.ndim else float(tensor)
    return tuple(parts) if sequence and isinstance(y0, tuple) else parts[0]


def _hint(value: Any) -> str:
    if isinstance(value, str):
        return "; write a number: YAML reads 1e-3 as text, and 1.0e-3 as a number"
    return "; leave it out for the default" if value is None else ""


def _number(key: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(f"options[{key!r}] must be a number, received {value!r}") from error


def _times(key: str, value: Any, t: Tensor) -> tuple[float, ...]:
    """The times from t[0] on, in the direction of t."""
    if value is None:
        return ()
    try:
        found = [
            float(x) for x in torch.as_tensor(value).detach().cpu().double().reshape(-1).tolist()
        ]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(f"options[{key!r}] must be times, received {value!r}") from error
    sign = -1.0 if len(t) > 1 and bool(t[0] > t[-1]) else 1.0
    start = float(t[0].detach())
    return tuple(x for x in found if sign * x >= sign * start)


def _warn_of_rest(method: Method, options: dict[str, Any]) -> None:
    if options:
        warn(f"{method.solver}: Unexpected arguments {options}")
