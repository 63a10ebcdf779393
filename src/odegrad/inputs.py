"""Checks of what a user passes to `odegrad.solve`: what is wrong, what was received, what to do."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odegrad.errors import (
    InvalidTypeError,
    InvalidValueError,
    NonFiniteInputError,
    NonFiniteStateError,
    warn,
)
from odegrad.gradients import Gradient
from odegrad.grid import Grid, Leading
from odegrad.schemes import SCHEMES
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, Structure, widest_real_dtype
from odegrad.stepsize import PID, AdaptiveStepSize, Fixed, FixedStepSize, StepSize

__all__ = [
    "check_choices",
    "check_loss",
    "check_result",
    "checked_state",
    "checked_stepsize",
    "checked_times",
    "ordinary",
]


_PIECE = 1 << 16
"""How many numbers to look at at once."""


def check_choices(
    f: object, scheme: object, stepsize: object, gradient: object, max_steps: object
) -> None:
    """Whether each argument is an object of its kind."""
    if not callable(f):
        raise InvalidTypeError(f"f must be callable as f(t, y), received {type(f).__name__}")
    names = [cls.__name__ for cls in SCHEMES]
    if isinstance(scheme, str):
        close = difflib.get_close_matches(scheme.lower(), [n.lower() for n in names])
        found = [n for n in names if n.lower() in close] or names
        raise InvalidTypeError(
            f"scheme must be an object, received the string {scheme!r}; "
            f"write scheme=odegrad.{found[0]}(), one of: {', '.join(found)}"
        )
    kinds: list[tuple[str, object, Any, str]] = [
        ("scheme", scheme, Scheme, "Tsit5()"),
        ("stepsize", stepsize, (FixedStepSize, AdaptiveStepSize), "PID(rtol=1e-6) or Fixed(0.1)"),
        ("gradient", gradient, Gradient, "Discrete()"),
    ]
    for name, value, kind, example in kinds:
        if isinstance(value, type):
            raise InvalidTypeError(
                f"{name} must be an object, received the class {value.__name__}; "
                f"write {name}={value.__name__}(…)"
            )
        if not isinstance(value, kind):
            raise InvalidTypeError(
                f"{name} must be an object such as {example}, received {value!r}"
            )
    if (
        isinstance(stepsize, AdaptiveStepSize)
        and isinstance(scheme, Scheme)
        and scheme.error_order is None
    ):
        raise InvalidValueError(
            f"{type(scheme).__name__} has no error estimate, so {type(stepsize).__name__} cannot "
            "choose its steps; pass stepsize=Fixed(dt) or Steps(n), or an adaptive scheme such as "
            "Tsit5()"
        )
    whole = isinstance(max_steps, int) and not isinstance(max_steps, bool)
    if max_steps is not None and not (whole and max_steps > 0):  # pyright: ignore[reportOperatorIssue]
        raise InvalidValueError(f"max_steps must be a positive int or None, received {max_steps!r}")


def checked_state(y0: Any, check_finite: bool) -> tuple[Leaves, Structure]:
    """The leaves of y0 and their structure."""
    structure = Structure(y0)
    leaves = structure.flatten(y0) or []
    names = structure.leaf_names()
    if not leaves:
        raise InvalidValueError(f"y0 holds no tensor: received {y0!r}")
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise InvalidTypeError(
                f"y0{name} must be a tensor, received {type(leaf).__name__}; "
                "wrap numbers in torch.tensor(…)"
            )
        if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
            raise InvalidTypeError(
                f"y0{name} is {leaf.dtype}; a state is floating-point or complex: pass y0.float()"
            )
        if leaf.device != leaves[0].device:
            raise InvalidValueError(
                f"y0{name} is on {leaf.device}, y0{names[0]} on {leaves[0].device}; "
                "put the whole state on one device"
            )
        if leaf.is_meta:
            raise InvalidValueError(
                f"y0{name} is on the meta device, which holds no numbers; give it values, as in "
                "torch.zeros_like(y0, device='cpu')"
            )
        if check_finite and not bool(torch.isfinite(leaf).all()):
            bad = torch.nonzero(~torch.isfinite(leaf.detach()))
            raise NonFiniteInputError(
                f"y0{name} has {len(bad)} values that are NaN or infinite, the first at index "
                f"{bad[0].tolist()}"
            )
    return tuple(map(ordinary, leaves)), structure


def ordinary(x: Any) -> Any:
    """x, or a copy of it if it is a tensor made under inference mode, which autograd does not save."""
    inference = isinstance(x, Tensor) and x.is_inference()
    return x.clone() if inference and not torch.is_inference_mode_enabled() else x


def checked_stepsize(
    stepsize: StepSize, leaves: Leaves, times: tuple[float, ...], look: bool
) -> StepSize:
    """Step sizes that these states can follow: a relative tolerance below round-off is raised.

    Arguments:
        stepsize: The step sizes.
        leaves: The initial state.
        times: The landing times.
        look: Whether numbers may be looked at.
    """
    if isinstance(stepsize, Grid) and any(isinstance(s, Leading) for s in stepsize.segments):
        raise InvalidValueError(
            "the recorded grid is that of a solve which an event ended or interrupted: replay it with "
            "the same events"
        )
    span = abs(times[-1] - times[0])
    if isinstance(stepsize, Fixed) and 0.0 < span * (1.0 + 1e-6) < stepsize.dt:
        warn(
            f"Fixed(dt={stepsize.dt}) is longer than the whole solve, which is {span:.6g} long and takes "
            f"{len(times) - 1} steps; dt is in units of time"
        )
    if not (isinstance(stepsize, PID) and look):
        return stepsize
    dtype = max((x.dtype for x in leaves), key=lambda dtype: torch.finfo(dtype).eps)
    unit = torch.finfo(dtype).eps / 2
    if stepsize.rtol >= unit:
        return stepsize
    sizes = [float(x.detach().abs().max()) for x in leaves if x.dtype == dtype and x.numel()]
    if stepsize.atol >= unit * max(sizes, default=0.0):
        return stepsize
    warn(
        f"rtol={stepsize.rtol}, atol={stepsize.atol} are below the round-off of {dtype} "
        f"({unit:.2g} of a number), where error estimates are noise; rtol is raised to {unit:.2g}. "
        f"Pass PID(rtol={unit:.0e}) or more, or solve in a wider dtype"
    )
    return dataclasses.replace(stepsize, rtol=unit)


def checked_times(ts: Any) -> tuple[Tensor, tuple[float, ...]]:
    """The landing times as a tensor and as floats."""
    if not isinstance(ts, Tensor):
        try:
            if any(isinstance(t, Tensor) for t in ts):
                ts = torch.stack(
                    [torch.as_tensor(t, dtype=torch.float64, device="cpu") for t in ts]
                )
            ts = torch.as_tensor(ts, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidTypeError(
                f"ts must be a 1-D tensor or a sequence of floats, received {type(ts).__name__}"
            ) from error
    if ts.ndim != 1 or ts.numel() == 0:
        raise InvalidValueError(
            f"ts must have shape [T] with T ≥ 1, received shape {list(ts.shape)}"
        )
    if ts.dtype.is_complex or ts.dtype is torch.bool:
        raise InvalidTypeError(f"ts must be real, received {ts.dtype}")
    if not ts.dtype.is_floating_point:
        ts = ts.to(torch.float64)
    ts = ordinary(ts)
    try:
        times = tuple(float(t) for t in ts.detach().to("cpu", torch.float64).tolist())
    except RuntimeError as error:
        raise InvalidValueError(
            "the values of ts cannot be read here; under torch.func.vmap all samples share the times: "
            "map over y0 and args alone, with in_dims=None for ts"
        ) from error
    for i, t in enumerate(times):
        if not abs(t) < float("inf"):
            raise NonFiniteInputError(f"ts[{i}] is {t}; times must be finite")
    sign = 1.0 if times[-1] >= times[0] else -1.0
    for i in range(len(times) - 1):
        if sign * (times[i + 1] - times[i]) < 0:
            raise InvalidValueError(
                f"ts must not change direction: ts[{i}] = {times[i]}, ts[{i + 1}] = {times[i + 1]}; "
                "sort the times"
            )
    return ts, times


def check_times_fit(times: tuple[float, ...], y: Leaves) -> None:
    """Whether f can be given the times, which it gets in the real dtype of the state."""
    dtype = widest_real_dtype(y)
    for i, t in enumerate(times):
        if abs(t) > torch.finfo(dtype).max:
            raise InvalidValueError(
                f"ts[{i}] = {t:.6g} is beyond {dtype}, the precision of the state, in which f gets the "
                "time: measure the time in a larger unit, or pass a state of a wider dtype"
            )


def check_result(ys: Leaves, times: tuple[float, ...], names: Sequence[str]) -> None:
    """Whether a solution on a fixed grid is finite; the leaves have names."""
    for i, leaf in enumerate(ys):
        if leaf.numel() == 0:
            continue
        rows = leaf.detach().reshape(len(times), -1)
        # Piece by piece: what `isfinite` takes on the way is as large as what it is given.
        pieces = rows.split(max(1, _PIECE // rows.shape[1]))
        finite = torch.cat([torch.isfinite(piece).all(dim=1) for piece in pieces])
        if not bool(finite.all()):
            j = int(torch.nonzero(~finite)[0])
            raise NonFiniteStateError(
                f"the solution is NaN or infinite at ts[{j}] = {times[j]:.6g}"
                f"{f', in leaf {i}{names[i]}' if i < len(names) else ', in the running cost'}. "
                f"{_range(leaf)}"
                "The steps may be too large for stability, or the solution may blow up: take smaller "
                "steps, or adaptive ones, which find the place. (check_finite=False returns such "
                "numbers.)"
            )


def _range(leaf: Tensor) -> str:
    """What to know of a dtype of few exponents."""
    if leaf.dtype not in (torch.float16, torch.complex32):
        return ""
    name, most = str(leaf.dtype).removeprefix("torch."), torch.finfo(torch.float16).max
    return f"A {name} ends at {most:g}: rather keep the state in float32, with f under autocast. "


def check_loss(loss: Tensor, times: tuple[float, ...]) -> None:
    """Whether the loss that the sweeps evaluated is finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteStateError(
            f"the sum of loss_at over the {len(times)} times is {value}. The solution may blow up "
            "(take smaller steps, or adaptive ones), or loss_at leaves its domain. "
            "(check_finite=False returns such numbers.)"
        )
