"""Callbacks: attributes of the function by which it is told of each step.

``callback_step(t0, y0, dt)`` before an attempt, then ``callback_accept_step`` or
``callback_reject_step``, which only adaptive methods have. The same with ``_adjoint`` in the backward
pass of `odeint_adjoint`: each step is transposed once, and none is rejected.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odegrad.compat.torchdiffeq.methods import ADAPTIVE, Method
from odegrad.errors import warn
from odegrad.field import VectorField
from odegrad.schemes.base import Scheme, Step
from odegrad.state import Leaves, Time
from odegrad.sweeps import StepInfo

__all__ = ["Watch", "backward_callback"]


class Watch:
    """Tells the function of the attempted steps of one forward sweep.

    Arguments:
        func: The function, with callbacks or without.
        method: The method; it warns of callbacks that it never calls.
        packed: Whether the state is a tuple.
    """

    def __init__(self, func: Any, method: Method, packed: bool) -> None:
        found: dict[str, Any] = {name: getattr(func, name, None) for name in sorted(ADAPTIVE)}
        given = {name for name, callback in found.items() if callback is not None}
        if given - method.callbacks:
            warn(
                f"Solver {method.solver} does not support callbacks {sorted(given - method.callbacks)}"
            )
        called = given & method.callbacks
        self._calls: dict[str, Callable[..., Any]] = {name: found[name] for name in called}
        self._packed = packed
        self._last: tuple[Tensor, Any, Tensor] | None = None
        self._open = bool(self._calls)

    def over(self, scheme: Scheme) -> Scheme:
        """The scheme, watched, if there is anyone to tell."""
        if not self._open:
            return scheme
        fields: Any = dataclasses.fields(scheme) if dataclasses.is_dataclass(scheme) else ()
        own = {item.name: getattr(scheme, item.name) for item in fields if item.init}
        watched = _watched(type(scheme))(**own)
        object.__setattr__(watched, "watch", self)
        return watched

    def attempt(self, t: Time, dt: Time, y: Leaves) -> None:
        """Takes note of an attempt: the one before was rejected iff it began at the same time."""
        if not self._open:
            return
        start = torch.as_tensor(t, dtype=torch.float64, device="cpu").detach()
        self._settle(rejected=self._last is not None and bool(self._last[0] == start))
        length = torch.as_tensor(dt, dtype=torch.float64, device="cpu").detach().abs()
        state = tuple(x.detach() for x in y)
        self._last = (start, state if self._packed else state[0], length)
        self._tell("callback_step")

    def close(self) -> None:
        """The sweep is through: its last attempt was accepted."""
        if self._open:
            self._settle(rejected=False)
            self._open = False

    def _settle(self, rejected: bool) -> None:
        if self._last is not None:
            self._tell("callback_reject_step" if rejected else "callback_accept_step")

    def _tell(self, name: str) -> None:
        if name in self._calls and self._last is not None:
            self._calls[name](*self._last)


@functools.cache
def _watched(base: type[Any]) -> type[Any]:
    """The class of a scheme that tells its `watch` of each step that it is asked for."""

    def step(
        self: Any, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        self.watch.attempt(t, dt, y)
        return base.step(self, field, t, dt, y, carry, p)

    return type(f"Watched{base.__name__}", (base,), {"step": step, "__module__": base.__module__})


def backward_callback(func: Any, method: Method) -> Callable[[StepInfo], None] | None:
    """What to call after each step of both sweeps, for the function's callbacks in the backward one."""
    step = getattr(func, "callback_step_adjoint", None)
    accept = getattr(func, "callback_accept_step_adjoint", None) if method.adaptive else None
    if step is None and accept is None:
        return None

    def after(info: StepInfo) -> None:
        if info.phase != "backward":
            return
        t, dt = torch.tensor(info.t + info.dt), torch.tensor(abs(info.dt))
        for callback in (step, accept):
            if callback is not None:
                callback(t, info.y, dt)

    return after
