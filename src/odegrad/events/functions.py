"""The event functions and jumps of a solve, on flat leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odegrad.capture import version
from odegrad.errors import (
    EventError,
    InvalidTypeError,
    InvalidValueError,
    NonFiniteStateError,
    annotate,
)
from odegrad.events.event import Event
from odegrad.events.reads import Reads
from odegrad.field import VectorField
from odegrad.state import Leaves, Structure, axpy

__all__ = ["Functions"]


class Functions:
    """g and Δ of each event.

    Arguments:
        events: The events.
        field: The vector field, which says how times are passed.
        structure: The structure of the state.
        args: What the functions get beside t and y.
        t: A time at which g can be evaluated.
        y: A state at which it can.

    Attributes:
        reads: What each g reads.
    """

    def __init__(
        self,
        events: Sequence[Event],
        field: VectorField,
        structure: Structure,
        args: tuple[Any, ...],
        t: float,
        y: Leaves,
    ) -> None:
        self.events = tuple(events)
        self._field, self._structure, self._args = field, structure, args
        known = tuple(x.detach().clone() for x in y)
        self.reads = [
            Reads(
                f"events[{i}].fn",
                event.fn,
                args,
                partial(self.value, i, t, known),
                known,
                field.autocast,
            )
            for i, event in enumerate(self.events)
        ]

    def value(self, i: int, t: Tensor | float, y: Leaves, p: Leaves | None = None) -> Tensor:
        """g_i(t, y), a 0-dim float64 tensor on the CPU.

        Arguments:
            i: The number of the event.
            t: The time, a float or a 0-dim tensor.
            y: The state; quadratures may follow.
            p: What it reads instead of ``reads[i].tensors``, if not None.

        Raises:
            InvalidTypeError: If it is not one real number.
        """
        call = partial(self._call, self.events[i].fn, f"events[{i}].fn", t, y)
        value = call(self._args) if p is None else self.reads[i].bound(p, call)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = f"{value!r}"
            if isinstance(value, Tensor):
                got = f"{value.dtype} of shape {list(value.shape)}"
            raise InvalidTypeError(
                f"events[{i}].fn must return one real number, a tensor of shape [] or [1]; it returned "
                f"{got}. Events of several functions are several events"
            )
        return value.reshape(()).to("cpu", torch.float64)

    def number(self, i: int, t: float, y: Leaves) -> float:
        """g_i(t, y) as a float.

        Raises:
            NonFiniteStateError: If it is NaN, and the state is not finite.
            EventError: If it is NaN, and the state is finite.
        """
        value = float(self.value(i, t, y))
        if not math.isnan(value):
            return value
        if not all(bool(torch.isfinite(x).all()) for x in y):
            raise NonFiniteStateError(
                f"the solution is NaN or infinite at t = {t:.6g}, where events are looked for. Take "
                "smaller steps, or adaptive ones, which find the place"
            )
        raise EventError(
            f"events[{i}].fn is NaN at t = {t:.6g}, where the state is finite: make it a number along "
            "the solution"
        )

    def derivative(self, i: int, t: float, y: Leaves) -> tuple[float, tuple[Tensor | None, ...]]:
        """∂g_i/∂t, and ∂g_i/∂y leaf by leaf, at numbers; None is zero."""
        n = self._field.n_state
        # A graph is made under inference mode, too.
        with torch.inference_mode(False), torch.enable_grad():
            time = torch.tensor(t, dtype=torch.float64, device="cpu", requires_grad=True)
            leaves = tuple(x.detach().clone().requires_grad_() for x in y[:n])
            value = self.value(i, time, leaves)
            if not value.requires_grad:
                return 0.0, (None,) * n
            g_t, *g_y = _pulled(value, [time, *leaves])
        return (0.0 if g_t is None else float(g_t)), tuple(g_y)

    def slope(self, i: int, t: float, y: Leaves, rate: Leaves) -> float:
        """dG/ds at s = t, with G(s) = g_i(s, u(s)), where u(t) = y and du/ds = rate."""
        with torch.enable_grad():
            time = torch.tensor(t, dtype=torch.float64, device="cpu", requires_grad=True)
            value = self.value(i, time, axpy(y, 1.0, (time - t,), (rate,)))
            if not value.requires_grad:
                return 0.0
            (found,) = _pulled(value, [time])
        return 0.0 if found is None else float(found)

    def jumped(self, i: int, t: Tensor, y: Leaves, check_finite: bool) -> Leaves:
        """Δ_i(t, y), with the quadratures as they are.

        Raises:
            InvalidTypeError: If it has not the structure of the state.
            InvalidValueError: If its leaves are not like those of the state.
            NonFiniteStateError: If it is NaN or infinite.
        """
        jump = self.events[i].jump
        assert jump is not None
        n, name = self._field.n_state, f"events[{i}].jump"
        result = self._call(jump, name, t, y, self._args)
        leaves = self._structure.flatten(result)
        if leaves is None or not all(isinstance(x, Tensor) for x in leaves):
            raise InvalidTypeError(
                f"{name} must return the structure of the state, {self._structure!r}, made of tensors; "
                f"it returned {type(result).__name__}: {Structure(result)!r}"
            )
        for new, old, leaf in zip(leaves, y[:n], self._structure.leaf_names(), strict=True):
            if (new.shape, new.dtype, new.device) != (old.shape, old.dtype, old.device):
                raise InvalidValueError(
                    f"{name} returned {new.dtype} of shape {list(new.shape)} on {new.device}, where the "
                    f"state{leaf} is {old.dtype} of shape {list(old.shape)} on {old.device}"
                )
            if check_finite and not bool(torch.isfinite(new.detach()).all()):
                raise NonFiniteStateError(
                    f"{name} made the state{leaf} NaN or infinite at t = {float(t.detach()):.6g}"
                )
        return (*leaves, *y[n:])

    def _call(
        self,
        function: Callable[..., Any],
        name: str,
        t: Tensor | float,
        y: Leaves,
        args: tuple[Any, ...],
    ) -> Any:
        """function(t, y, *args), which must not change y."""
        field, leaves = self._field, y[: self._field.n_state]
        time = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        time = time.to(field.time_dtype).to(field.device)
        versions = [version(x) for x in leaves]
        try:
            result = function(time, self._structure.unflatten(leaves), *args)
        except Exception as error:
            annotate(error, f"{name} was evaluated at t = {float(time.detach())}")
            raise
        if [version(x) for x in leaves] != versions:
            raise InvalidValueError(
                f"{name} changed its argument y in place, which would make the solve wrong; begin with "
                "y = y.clone()"
            )
        return result


def _pulled(value: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The derivative of a number with respect to the inputs; None is zero."""
    return torch.autograd.grad(value, inputs, allow_unused=True)
