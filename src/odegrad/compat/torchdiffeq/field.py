"""The user's function, tolerated as torchdiffeq does, and the callbacks that hang on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Landing", "Reading", "field"]


class Landing(nn.Module):
    """Declares times that steps end at, f being smooth there; see `odegrad.breakpoints`."""

    continuous = True

    def __init__(self, times: tuple[float, ...]) -> None:
        super().__init__()
        self.breakpoints = times


@dataclass(frozen=True)
class Reading:
    """How to evaluate the function.

    Attributes:
        shapes: The shapes of the tensors of a tuple state, or None: a slope with as many entries as its
            tensor, or another sequence than a tuple, is fine.
        records: Whether it is to be evaluated with gradients enabled, as under the caller's `odeint`, so
            that it may differentiate inside; what it returns is detached where that is not so.
        start: The first time and the one after it, if f is not to be evaluated at the former.
    """

    shapes: tuple[torch.Size, ...] | None
    records: bool
    start: tuple[float, float] | None = None


def field(
    reading: Reading, func: Callable[..., Any], landing: Landing | None, params: Sequence[Tensor]
) -> Callable[..., Any]:
    """func as odegrad takes it.

    A partial, whose parts odegrad looks through for modules and tensors: so `params` become inputs of the
    solve, beside whatever func itself holds.
    """
    return functools.partial(_evaluate, reading, func, landing, *params)


def within(reading: Reading, first: float, second: float, margin: float) -> Reading:
    """The same, but that f is evaluated a relative margin inside of a step, not at its start."""
    away = margin * max(abs(first), abs(second))
    return replace(reading, start=(first, first + (away if second > first else -away)))


def _evaluate(reading: Reading, func: Callable[..., Any], *rest: Any) -> Any:
    t, y = rest[-2:]
    if reading.start is not None:
        first, inside = reading.start
        if t.item() == torch.tensor(first, dtype=t.dtype, device="cpu").item():
            t = t + (inside - first)
    here = torch.is_grad_enabled()
    if reading.records and not here:
        with torch.enable_grad():
            slope = func(t, y)
        return _shaped(slope, reading.shapes, detach=True)
    return _shaped(func(t, y), reading.shapes, detach=False)


def _shaped(slope: Any, shapes: tuple[torch.Size, ...] | None, detach: bool) -> Any:
    if shapes is None:
        return slope.detach() if detach and isinstance(slope, Tensor) else slope
    if isinstance(slope, Tensor):
        return slope  # which odegrad refuses, by name
    parts = tuple(slope)
    if len(parts) != len(shapes) or not all(isinstance(x, Tensor) for x in parts):
        return parts
    if detach:
        parts = tuple(x.detach() for x in parts)
    return tuple(
        x.reshape(shape) if x.shape != shape and x.numel() == shape.numel() else x
        for x, shape in zip(parts, shapes, strict=True)
    )
