"""A solve inside a program that torch.compile or torch.export traces: equal steps as plain operations.

With `Steps(n)` the number of steps is known without a look at any number, so that a solve is part of one
graph, with n·s evaluations of f per interval. Its gradient is that of the graph: exact, in the memory of
`Tape` or what the compiler makes of it. Every other solve runs as it does without a compiler, at the cost
of one graph break.

In a graph numbers cannot be looked at: whether times go in one direction, and whether states are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odegrad.controls import Control
from odegrad.errors import FieldOutputError, InvalidValueError
from odegrad.grid import Grid, Uniform, step_time
from odegrad.schemes.base import Scheme
from odegrad.solution import Solution, Status
from odegrad.state import Leaves, Time, widest_real_dtype
from odegrad.sweeps import Stats

__all__ = ["has_breakpoints", "solve_traced"]


def has_breakpoints(f: object) -> bool:
    """Whether f is a module, or a method of one, with controls that declare breakpoints.

    In a graph nothing else can be searched for them: a control that f captures is not found.
    """
    module = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
    if not isinstance(module, nn.Module):
        return False
    return any(isinstance(m, Control) and len(m.breakpoints) > 0 for m in module.modules())


def solve_traced(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float],
    args: tuple[Any, ...],
    scheme: Scheme,
    n: int,
    running: Callable[..., Any] | None,
) -> Solution:
    """n equal steps between any two consecutive times, traced by whoever traces.

    Arguments:
        f: As for `odegrad.solve`, like all that is not named here.
        y0: As for `odegrad.solve`.
        ts: As for `odegrad.solve`.
        args: As for `odegrad.solve`.
        scheme: As for `odegrad.solve`.
        n: The number of steps.
        running: As for `odegrad.solve`.

    Raises:
        InvalidValueError: If ts is not one-dimensional.
        FieldOutputError: If f returns something that is not shaped like the state.
    """
    leaves, spec = pytree.tree_flatten(y0)
    if isinstance(ts, Tensor):
        if ts.dim() != 1:
            raise InvalidValueError(f"ts must have shape [T] with T ≥ 1, received {list(ts.shape)}")
        times: Sequence[Time] = ts.to(torch.float64).unbind()
    else:
        times = [float(t) for t in ts]
        ts = torch.tensor(times, dtype=torch.float64)
    field: Any = _Field(f, spec, tuple(leaves), args, running)
    y: Leaves = tuple(leaves)
    if running is not None:
        y = (*y, torch.zeros_like(field(times[0], y, ())[-1]))
    rows = [y]
    carry = scheme.init(field, times[0], y, ()) if len(times) > 1 else ()
    for j in range(len(times) - 1):
        for i in range(n):
            t, dt = step_time(Uniform(n), i, times[j], times[j + 1])
            step = scheme.step(field, t, dt, y, carry, ())
            y, carry = step.y, step.carry
        rows.append(y)
    outputs = [torch.stack(column) for column in zip(*rows, strict=True)]
    m = len(leaves)
    accepted = n * (len(times) - 1)
    return Solution(
        ys=pytree.tree_unflatten(outputs[:m], spec),
        ts=ts,
        stats=Stats(accepted=accepted),
        status=Status.SUCCESS,
        grid=Grid(tuple([Uniform(n)] * (len(times) - 1))),
        landings=(),
        running=outputs[m] if running is not None else None,
    )


class _Field:
    """f on flat leaves, with what a scheme needs of `VectorField`."""

    def __init__(
        self,
        f: Callable[..., Any],
        spec: Any,
        y0: Leaves,
        args: tuple[Any, ...],
        running: Callable[..., Any] | None,
    ) -> None:
        self._f, self._spec, self._args, self._running = f, spec, args, running
        self._shapes = [x.shape for x in y0]
        self._dtypes = [x.dtype for x in y0]
        self._dtype, self._device = widest_real_dtype(y0), y0[0].device

    def __call__(self, t: Time, y: Leaves, p: Leaves) -> Leaves:
        del p  # read by f itself
        n = len(self._shapes)
        if isinstance(t, Tensor):
            time = t.to(self._dtype).to(self._device)
        else:
            time = torch.full((), t, dtype=self._dtype, device=self._device)
        state = pytree.tree_unflatten(list(y[:n]), self._spec)
        slopes, _ = pytree.tree_flatten(self._f(time, state, *self._args))
        if [x.shape for x in slopes] != self._shapes:
            raise FieldOutputError(
                f"f returned shapes {[list(x.shape) for x in slopes]} where the state has "
                f"{[list(shape) for shape in self._shapes]}"
            )
        result = [x.to(dtype) for x, dtype in zip(slopes, self._dtypes, strict=True)]
        if self._running is not None:
            result.append(self._running(time, state, *self._args))
        return tuple(result)
