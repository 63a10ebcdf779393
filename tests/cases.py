"""Solves to take gradients of: one function per kind of vector field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import odegrad
from odegrad.schemes import SCHEMES

TIMES = (0.1, 0.4, 1.1)

GRAPHS = odegrad.Discrete(odegrad.StoreAll(keep=odegrad.Keep.GRAPH))
"""The exact gradient that keeps the graph of every step."""


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest ‖found − expected‖ / ‖expected‖ over pairs of tensors."""
    assert len(found) == len(expected)
    return max(
        float((a - b).norm() / b.norm().clamp_min(1e-300))
        for a, b in zip(found, expected, strict=True)
    )


def mlp(width: int = 8, dim: int = 3) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, dim)).double()


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


@dataclass
class Case:
    """A vector field with everything that a gradient may be taken of."""

    f: Callable[..., Any]
    y0: Any
    y0_leaves: list[Tensor]
    args: tuple[Any, ...] = ()
    others: tuple[Tensor, ...] = ()

    def gradient(
        self,
        gradient: Any,
        scheme: Any,
        stepsize: Any,
        times: tuple[float, ...] = TIMES,
        land: bool | None = True,
    ) -> tuple[list[Tensor], odegrad.Solution]:
        """Gradients of a loss of all outputs w.r.t. y0, parameters, args and ts."""
        ts = torch.tensor(times, dtype=torch.float64, requires_grad=True)
        sol = odegrad.solve(
            self.f, self.y0, ts, self.args,
            scheme=scheme, stepsize=stepsize, gradient=gradient, land=land,
        )  # fmt: skip
        inputs = [*self.y0_leaves, *self.others, ts]
        return list(torch.autograd.grad(loss(sol.ys), inputs, retain_graph=True)), sol


def loss(ys: Any) -> Tensor:
    """A loss of every entry of every output, with another weight each."""
    total = torch.zeros((), dtype=torch.float64)
    for y in torch.utils._pytree.tree_leaves(ys):
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).reshape(y.shape)
        total = total + (weights * y.square()).sum() + (weights * y).sin().sum()
    return total


def autonomous() -> Case:
    net, y0 = mlp(), leaf(4, 3)
    return Case(lambda t, y: net(y), y0, [y0], (), tuple(net.parameters()))


def time_dependent() -> Case:
    """Reads t, a tensor in args, a captured leaf and a captured tensor with a history."""
    net, y0, rate, shift, code = mlp(), leaf(4, 3), leaf(seed=1), leaf(3, seed=2), leaf(3, seed=3)
    encoded = code.exp()

    def f(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return net(y) * torch.cos(rate * t) + shift * t.square() - 0.1 * encoded * y

    return Case(f, y0, [y0], (rate,), (rate, shift, code, *net.parameters()))


def structured() -> Case:
    """A dict that holds a tuple; one leaf is not fed back, one is of another shape."""
    net, q, v, s = mlp(dim=2), leaf(4, 2), leaf(4, 2, seed=1), leaf(4, seed=2)

    def f(t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
        q, v = y["qv"]
        return {"qv": (v, net(q) - 0.3 * v), "s": (q * v).sum(-1) * torch.exp(-t)}

    y0 = {"qv": (q, v), "s": s}
    return Case(f, y0, [q, v, s], (), tuple(net.parameters()))


def fast_weights() -> Case:
    """A model called by functional_call with weights that are not its own."""
    net, y0 = mlp(), leaf(4, 3)
    weights = {name: (1.2 * p.detach()).requires_grad_() for name, p in net.named_parameters()}

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.func.functional_call(net, weights, (y,)) * (1 + t)

    return Case(f, y0, [y0], (), tuple(weights.values()))


CASES = [autonomous, time_dependent, structured, fast_weights]

STEPSIZES = [odegrad.Steps(3), odegrad.Fixed(0.13), odegrad.PID(rtol=1e-4, atol=1e-6)]

SCHEME_STEPS = [
    (scheme, stepsize)
    for scheme in SCHEMES
    for stepsize in STEPSIZES
    if scheme().error_order is not None or not isinstance(stepsize, odegrad.PID)
]
