"""`odeint` and `odeint_adjoint`: from a checked call to `odegrad.solve` and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odegrad.compat.torchdiffeq.adjoint import check_adjoint
from odegrad.compat.torchdiffeq.callbacks import Watch, backward_callback
from odegrad.compat.torchdiffeq.errors import as_upstream
from odegrad.compat.torchdiffeq.field import Landing, field, within
from odegrad.compat.torchdiffeq.grids import Reader, grid_of
from odegrad.compat.torchdiffeq.inputs import Call, checked
from odegrad.compat.torchdiffeq.options import AdaptiveOptions, FixedOptions
from odegrad.gradients import Discrete, Tape
from odegrad.schemes.restarted import Restarted
from odegrad.solve import solve

__all__ = ["odeint", "odeint_adjoint"]

BACKPROPAGATION = Tape()
"""The gradient of `odeint`: autograd through the steps, as there. What func reads need not be found."""


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
) -> Any:
    """Solves dy/dt = func(t, y), y(t[0]) = y0, differentiably, in the memory of backpropagation.

    Arguments:
        func: Maps (t, y) to the derivative of y; t is a 0-dim tensor in the real dtype of y. It may carry
            callbacks, see `odegrad.compat.torchdiffeq.callbacks`.
        y0: The initial state, a floating-point or complex tensor or a tuple of such tensors.
        t: The times, a floating-point tensor of shape [T], strictly ascending or descending.
        rtol: The relative tolerance: a number, a tensor, or one per tensor of the tuple.
        atol: The absolute tolerance, likewise.
        method: The name of a method of torchdiffeq; None is ``"dopri5"``.
        options: Its options, see docs/migrating.md; unknown ones warn.
        event_fn: Maps (t, y) to a tensor: the solve ends where an entry of it changes its sign.

    Returns:
        The states at t, shape [T, *y0.shape], or a tuple of such. With `event_fn`, the time of the event,
        and the states at t[0] and at it; both are differentiable.

    Raises:
        AssertionError: If t, y0 or a tolerance is unusable, or if the solve fails.
        TypeError: If t is not of a floating-point dtype.
        ValueError: If there is no such method, or an option is unusable.
        NotImplementedError: If odegrad does not have the method.

    Example:
        >>> import torch
        >>> from odegrad.compat.torchdiffeq import odeint
        >>> t = torch.linspace(0.0, 1.0, 3, dtype=torch.float64)
        >>> ys = odeint(lambda t, y: -y, torch.ones(1, dtype=torch.float64), t)
        >>> [f"{y:.6f}" for y in ys.flatten().tolist()]
        ['1.000000', '0.606531', '0.367879']
    """
    call = checked(
        func,
        y0,
        t,
        rtol,
        atol,
        method,
        options,
        BACKPROPAGATION,
        # One that requires grad: so the steps are on the graph, whatever func turns out to read.
        params=(torch.zeros((), requires_grad=True, device="cpu"),)
        if torch.is_grad_enabled()
        else (),
        records=torch.is_grad_enabled(),
        events=event_fn is not None,
    )
    return _run(call, event_fn)


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """`odeint`, with the same gradient in less memory: the states are kept, and steps evaluated again.

    The gradient is not that of torchdiffeq's `odeint_adjoint`, which solves another equation backwards:
    it is the transpose of the very steps that were taken. So nothing about a backward solve has a
    meaning here, and what differs from the forward solve draws one warning.

    Arguments:
        func: As for `odeint`; a module, or `adjoint_params` has to be given.
        y0: As for `odeint`.
        t: As for `odeint`.
        rtol: As for `odeint`.
        atol: As for `odeint`.
        method: As for `odeint`.
        options: As for `odeint`.
        event_fn: As for `odeint`.
        adjoint_rtol: Has no meaning.
        adjoint_atol: Has no meaning.
        adjoint_method: Has no meaning.
        adjoint_options: Have no meaning; ``{"norm": "seminorm"}`` is passed over in silence.
        adjoint_params: Tensors that get a gradient beside all those that func is found to read.

    Returns:
        As `odeint`.

    Raises:
        ValueError: As `odeint`; if func is no module and `adjoint_params` is None; if `adjoint_method`
            differs from `method`, and there are options but no adjoint options.
        AssertionError: As `odeint`.
        TypeError: As `odeint`.
        NotImplementedError: As `odeint`.

    Example:
        >>> import torch
        >>> from odegrad.compat.torchdiffeq import odeint_adjoint as odeint
        >>> class Decay(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rate = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        ...
        ...     def forward(self, t, y):
        ...         return -self.rate * y
        >>> decay, t = Decay(), torch.tensor([0.0, 1.0])
        >>> odeint(decay, torch.ones(1, dtype=torch.float64), t)[-1].sum().backward()
        >>> f"{decay.rate.grad.item():.6f}"  # -exp(-2)
        '-0.135335'
    """
    given = (adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options)
    params = check_adjoint(func, (rtol, atol, method, options), given, adjoint_params)
    call = checked(
        func,
        y0,
        t,
        rtol,
        atol,
        method,
        options,
        Discrete(),
        params=params,
        callback=partial(backward_callback, func),
        events=event_fn is not None,
    )
    return _run(call, event_fn)


def _run(call: Call, event_fn: Callable[..., Tensor] | None) -> Any:
    if event_fn is not None:
        from odegrad.compat.torchdiffeq.events import solve_event

        with as_upstream():
            return solve_event(call, event_fn)
    with as_upstream():
        return _adaptive(call) if call.method.adaptive else _fixed(call)


def _adaptive(call: Call) -> Any:
    """A solve with adaptive steps, which times inside are read off; the last is stepped onto."""
    options = AdaptiveOptions.read(
        call.options, call.method, call.rtol, call.atol, call.packed, call.t
    )
    landing = Landing(options.step_t) if options.step_t else None
    watch = Watch(call.func, call.method, call.packed)
    limit = options.max_num_steps
    solution = solve(
        field(call.reading, call.func, landing, call.params),
        call.y0,
        call.t,
        scheme=watch.over(call.method.make()),
        stepsize=options.control,
        gradient=call.gradient,
        breakpoints=options.jump_t,
        max_steps=None if limit is None else limit * max(1, len(call.t) - 1),
        callback=call.callback,
    )
    watch.close()
    return solution.ys


def _fixed(call: Call) -> Any:
    """A solve on a fixed grid, read off at the times of t."""
    options = FixedOptions.read(call.options, call.method)
    grid = grid_of(options, call.func, call.y0, call.t)
    reader = Reader(grid, call.t, options.interp == "cubic")
    scheme, reading = call.method.make(**options.own), call.reading
    if options.perturb and len(grid) > 1:
        first, second = float(grid[0].detach()), float(grid[1].detach())
        scheme = Restarted(scheme, call.margin)
        reading = within(reading, first, second, call.margin)
    watch = Watch(call.func, call.method, call.packed)
    f = field(reading, call.func, None, call.params)
    ys = solve(
        f,
        call.y0,
        reader.ts,
        scheme=watch.over(scheme),
        stepsize=reader.stepsize,
        gradient=call.gradient,
        callback=call.callback,
    ).ys
    watch.close()

    def slope(time: Tensor, leaves: list[Tensor]) -> Any:
        k = f(time.to(call.time_dtype), tuple(leaves) if call.packed else leaves[0])
        return k if call.packed else (k,)

    leaves = reader.read(ys if call.packed else (ys,), slope)
    return tuple(leaves) if call.packed else leaves[0]
