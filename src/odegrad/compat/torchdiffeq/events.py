"""Events: a solve that ends where g(t, y) = 0, differentiably.

Steps are taken until the sign of g has changed at the end of one. That step, from (t_n, y_n), is made
shorter, so that it ends on the event: with Φ(s) the state after a step from t_n to s, t* is the root of

    G(s) = g(s, Φ(s)),     y* = Φ(t*).

So t* and y* solve an equation between computed numbers, and their gradient is exact by the implicit
function theorem: dt* = −(∂G/∂s)⁻¹ dG. With τ the root, off the graph, and c = ∂G/∂s there, it comes from
two steps of the chord iteration on the graph,

    s ← s − G(s) / c,     from s = τ,

of which each adds an order of derivatives: the first derivative is exact, and the second one; higher ones
are refused. Whatever g reads gets a gradient. t_n and the grid before it are held.

Reference: E. Hairer, S. P. Nørsett, G. Wanner, *Solving Ordinary Differential Equations I*, II.6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odegrad.compat.torchdiffeq.field import field, within
from odegrad.compat.torchdiffeq.grids import Through
from odegrad.compat.torchdiffeq.inputs import Call
from odegrad.compat.torchdiffeq.march import Crossing, cross
from odegrad.errors import GradientUnavailableError, GrazingEventError, InvalidTypeError
from odegrad.gradients.node import Rule, apply
from odegrad.schemes.restarted import Restarted
from odegrad.solve import solve
from odegrad.state import Leaves, OptionalLeaves
from odegrad.stepsize import Steps

__all__ = ["odeint_event", "solve_event"]

_ORDERS = 2  # of the derivatives of the time of an event


def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solves from t0 until `event_fn` changes its sign.

    Arguments:
        func: As for `odeint`.
        y0: The state at t0.
        t0: The start, a floating-point tensor with one entry.
        event_fn: Maps (t, y) to a tensor; the first entry to change its sign ends the solve. What it
            reads gets gradients, wherever it comes from.
        reverse_time: Whether to solve backwards in time.
        odeint_interface: `odeint` (the default) or `odeint_adjoint`.
        kwargs: Further arguments of that; fixed steps need a `step_size` among the options.

    Returns:
        The time of the event, 0-dim, and the states at t0 and at it, shape [2, *y0.shape] each.

    Raises:
        AssertionError: As `odeint`; if there is no step size for fixed steps; if no event comes within
            the steps allowed (RuntimeError, too).

    Example:
        >>> import torch
        >>> from odegrad.compat.torchdiffeq import odeint_event
        >>> height = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> fall = lambda t, y: torch.stack([y[1], -9.81 * torch.ones_like(y[1])])
        >>> t, ys = odeint_event(fall, height, torch.tensor(0.0), event_fn=lambda t, y: y[0])
        >>> f"{t.item():.4f}"  # sqrt(2 / 9.81)
        '0.4515'
    """
    if odeint_interface is None:
        from odegrad.compat.torchdiffeq.interface import odeint

        odeint_interface = odeint
    start = torch.as_tensor(t0).reshape(-1)
    ahead = start.detach() + (-1.0 if reverse_time else 1.0)
    return odeint_interface(func, y0, torch.cat([start, ahead]), event_fn=event_fn, **kwargs)


def solve_event(call: Call, event_fn: Callable[..., Tensor]) -> tuple[Tensor, Any]:
    """The time of the event, and the states at t[0] and at it.

    Arguments:
        call: The solve; of t[1] only the direction counts.
        event_fn: g.
    """
    event = _Event(call, event_fn)
    with torch.no_grad():
        crossing = cross(call, event.number)
    if crossing is None:
        return call.t[0], _stacked(call, call.leaves)
    solves = _Solves(call, crossing, event)
    if torch.is_grad_enabled():
        time, leaves = solves.differentiable()
    else:
        time = torch.tensor(crossing.time, dtype=torch.float64, device="cpu")
        leaves = crossing.state
    return time.to(call.t), _stacked(call, leaves)


class _Event:
    """g, its entries made positive at the start, and the least of them taken.

    Arguments:
        call: The solve.
        event_fn: The user's g.
    """

    def __init__(self, call: Call, event_fn: Callable[..., Tensor]) -> None:
        self._call, self._event_fn = call, event_fn
        with torch.no_grad():
            self._signs = torch.sign(self._values(call.t[0].detach(), call.leaves))

    def __call__(self, t: Tensor, leaves: tuple[Tensor, ...]) -> Tensor:
        """The least entry of ±g(t, y), 0-dim."""
        return torch.min(self._values(t, leaves) * self._signs)

    def number(self, t: float, leaves: tuple[Tensor, ...]) -> float:
        """The same as a float."""
        return float(self(torch.tensor(t, dtype=torch.float64, device="cpu"), leaves))

    def _values(self, t: Tensor, leaves: tuple[Tensor, ...]) -> Tensor:
        call = self._call
        time = t.to(device=leaves[0].device, dtype=call.time_dtype)
        value: Any = self._event_fn(time, leaves if call.packed else leaves[0])
        if not isinstance(value, Tensor) or not value.numel():
            raise InvalidTypeError(
                f"event_fn must return a tensor with at least one entry, it returned {value!r}"
            )
        return value


@dataclasses.dataclass(frozen=True)
class _Solves:
    """The solves that put the event on the graph.

    Arguments:
        call: The call.
        crossing: Where the event is, off the graph.
        event: g.
    """

    call: Call
    crossing: Crossing
    event: _Event

    def differentiable(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The time of the event, and the state at it."""
        start, before = self._before()
        tau = torch.tensor(self.crossing.time, dtype=torch.float64, device="cpu")
        slack = self._slope(start.detach(), tuple(x.detach() for x in before), tau)
        time = tau
        for _ in range(_ORDERS):
            value = self.event(time, self._last(start, before, time)).to("cpu", torch.float64)
            if slack == 0.0:  # g touches zero, or jumps over it: the event has no derivative
                for leaf in self._last(start, before, time):  # g may be a constant on both sides
                    real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
                    value = value + real.sum().to("cpu", torch.float64)
                value = value - value.detach()
                if value.requires_grad:
                    value.register_hook(self._no_derivative)
                time = time - value
            else:
                time = time - value / slack
        (time,) = apply(_LIMITED, (time,))
        return time, self._last(start, before, time)

    def _before(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(t_n, y_n), on the graph."""
        first, nodes = self.call.t[0].to("cpu", torch.float64), self.crossing.nodes
        if len(nodes) == 1:
            return first, self.call.leaves
        start = torch.tensor(nodes[-1], dtype=torch.float64, device="cpu")
        return start, self._solved(self.call.y0, first, start, Through(nodes))

    def _last(self, start: Tensor, before: tuple[Tensor, ...], stop: Tensor) -> tuple[Tensor, ...]:
        """Φ(stop)."""
        state = before if self.call.packed else before[0]
        return self._solved(state, start, stop, Steps(1))

    def _solved(self, y: Any, start: Tensor, stop: Tensor, steps: Any) -> tuple[Tensor, ...]:
        call, reading, scheme = self.call, self.call.reading, self.crossing.scheme
        if isinstance(scheme, Restarted):
            reading = within(reading, float(start.detach()), float(stop.detach()), call.margin)
        ys = solve(
            field(reading, call.func, None, call.params),
            y,
            torch.stack([start, stop]),
            scheme=scheme,
            stepsize=steps,
            gradient=call.gradient,
            callback=call.callback,
        ).ys
        return tuple(leaf[-1] for leaf in (ys if call.packed else (ys,)))

    def _slope(self, start: Tensor, before: tuple[Tensor, ...], tau: Tensor) -> float:
        """∂G/∂s at τ, 0 if g does not depend on it."""
        with torch.enable_grad():
            stop = tau.clone().requires_grad_()
            value = self.event(stop, self._last(start, before, stop))
            if not value.requires_grad:
                return 0.0
            grads = torch.autograd.grad(value, stop, allow_unused=True, materialize_grads=True)
            return float(grads[0])

    def _no_derivative(self, grad: Tensor) -> Tensor:
        if not bool(grad != 0):
            return grad
        raise GrazingEventError(
            f"the event at t = {self.crossing.time:.9g} has no derivative: the slope of event_fn along "
            "the solution is zero there. It touches zero without crossing it, or jumps over it, as "
            "torch.where(y > c, a, -a) does: write one that crosses zero, such as y - c, or solve under "
            "torch.no_grad() for the numbers alone"
        )


def _keep(inputs: Leaves) -> tuple[Leaves, Leaves]:
    return tuple(x.clone() for x in inputs), ()


def _pass_on(inputs: Leaves, kept: Leaves, grads: OptionalLeaves, *rest: object) -> OptionalLeaves:
    del inputs, kept, rest
    return tuple(None if g is None else g.clone() for g in grads)


def _replay(inputs: Leaves, highest: int) -> Leaves:
    if highest > _ORDERS:
        raise GradientUnavailableError(
            f"odeint_event has derivatives up to order {_ORDERS}, the one of order {highest} was asked "
            "for. odegrad.solve(…, events=[odegrad.Event(…)]) has those of every order"
        )
    return tuple(x.clone() for x in inputs)


_LIMITED = Rule(_keep, _pass_on, _replay, "the time of odeint_event")  # the identity


def _stacked(call: Call, leaves: tuple[Tensor, ...]) -> Any:
    """The states at the start and at the event."""
    pairs = tuple(torch.stack([a, b]) for a, b in zip(call.leaves, leaves, strict=True))
    return pairs if call.packed else pairs[0]
