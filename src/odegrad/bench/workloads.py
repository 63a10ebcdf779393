"""What is solved and differentiated: small neural ODEs of the kinds that people train.

Every workload integrates y' = f(t, y) from 0 to t1 and differentiates the sum of the squares of the
final state with respect to the initial state and all parameters. Weights, initial states and noise come
from fixed seeds. The flow is in float64: in float32 its tolerances are below the rounding of f.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from odegrad.schemes import RK4, Dopri5, Tsit5
from odegrad.schemes.base import Scheme
from odegrad.stepsize import PID, Steps

__all__ = ["WORKLOADS", "ContinuousFlow", "ConvBlock", "Mlp", "Problem", "VanDerPol", "Workload"]

State = Tensor | tuple[Tensor, ...]


class Mlp(nn.Module):
    """f(t, y) = W_L σ(… σ(W_1 y + b_1) …) + b_L, without t; `sizes` are those between the layers.

    Weights are N(0, 1.5² / fan-in): with smaller ones f hardly bends, and adaptive solvers take a
    handful of steps.
    """

    def __init__(self, *sizes: int, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        for size, layer in zip(sizes, self.layers, strict=False):
            nn.init.normal_(layer.weight, std=1.5 / math.sqrt(size))  # pyright: ignore[reportArgumentType]
        self.activation = activation

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative at y of shape [batch, sizes[0]]."""
        del t
        *hidden, last = self.layers
        for layer in hidden:
            y = self.activation(layer(y))
        return last(y)


class ConvBlock(nn.Module):
    """f(t, y) = conv(tanh(conv(y))) with 3×3 kernels, as in ODE-nets, without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative at y of shape [batch, channels, height, width]."""
        del t
        return self.second(torch.tanh(self.first(y)))


class ContinuousFlow(nn.Module):
    """A continuous normalising flow, z' = g(z) and (log p)' = −εᵀ(∂g/∂z)ε with fixed noise ε.

    Reference: W. Grathwohl et al., *FFJORD*, ICLR 2019, for the trace estimate.
    """

    noise: Tensor

    def __init__(self, batch: int, size: int, width: int) -> None:
        super().__init__()
        self.net = Mlp(size, width, width, size, activation=nn.functional.softplus)
        self.register_buffer("noise", torch.randint(0, 2, (batch, size)) * 2.0 - 1.0)

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The derivatives of z, shape [batch, size], and log p, shape [batch]."""
        pair: Any = torch.func.vjp(partial(self.net, t), y[0])  # pyright: ignore[reportPrivateImportUsage]
        dz, pull = pair
        (row,) = pull(self.noise)
        return dz, -(row * self.noise).sum(dim=1)


class VanDerPol(nn.Module):
    """x' = v, v' = μ (1 − x²) v − x with one learnable μ, or one for each sample."""

    def __init__(self, mu: float | Tensor) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.as_tensor(mu))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative at y of shape [batch, 2]."""
        del t
        x, v = y.unbind(dim=1)
        return torch.stack((v, self.mu * (1 - x * x) * v - x), dim=1)


@dataclass(frozen=True)
class Problem:
    """A field and where to start.

    Arguments:
        field: f, called as field(t, y).
        y0: The initial state; its tensors require grad.
    """

    field: nn.Module
    y0: State

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the gradient is taken with respect to: the initial state, then the parameters."""
        y0 = self.y0 if isinstance(self.y0, tuple) else (self.y0,)
        return (*y0, *self.field.parameters())


@dataclass(frozen=True)
class Workload:
    """A gradient to compute.

    Arguments:
        name: How the command line calls it.
        description: One line for people.
        make: Makes the field and the initial state, under a fixed seed.
        t1: The final time; the initial one is 0.
        scheme: The scheme.
        stepsize: Equal steps or tolerances.
        dtype: Of the state and the parameters.
    """

    name: str
    description: str
    make: Callable[[], tuple[nn.Module, State]]
    t1: float
    scheme: Scheme
    stepsize: Steps | PID
    dtype: torch.dtype = torch.float32

    def build(self) -> Problem:
        """The problem, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            field, y0 = self.make()
        field = field.to(self.dtype)
        leaves = tuple(
            x.to(self.dtype).requires_grad_() for x in (y0 if isinstance(y0, tuple) else (y0,))
        )
        return Problem(field, leaves if isinstance(y0, tuple) else leaves[0])

    def short(self) -> Workload:
        """The same with hardly any steps, to warm up with."""
        if isinstance(self.stepsize, Steps):
            return dataclasses.replace(self, stepsize=Steps(2))
        return dataclasses.replace(self, t1=1e-3 * self.t1)


def _tiny() -> tuple[nn.Module, State]:
    return Mlp(2, 50, 50, 2), torch.randn(20, 2)


def _medium() -> tuple[nn.Module, State]:
    return Mlp(64, 256, 256, 64), torch.randn(256, 64)


def _conv() -> tuple[nn.Module, State]:
    return ConvBlock(16), torch.randn(32, 16, 16, 16)


def _flow() -> tuple[nn.Module, State]:
    return ContinuousFlow(100, 43, 128), (torch.randn(100, 43), torch.zeros(100))


def _oscillators() -> tuple[nn.Module, State]:
    return VanDerPol(1.0), torch.randn(64, 2)


def _unlike_oscillators() -> tuple[nn.Module, State]:
    return VanDerPol(torch.logspace(-1.0, math.log10(25.0), 64)), 2.0 * torch.randn(64, 2)


_LOOSE = PID(rtol=1e-5, atol=1e-5)
_TINY = "MLP 2-50-50-2 tanh, batch 20"
_MEDIUM = "MLP 64-256-256-64 tanh, batch 256"

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("tiny-rk4-100", f"{_TINY}, RK4, 100 steps", _tiny, 1.0, RK4(), Steps(100)),
        Workload("tiny-rk4-1000", f"{_TINY}, RK4, 1000 steps", _tiny, 10.0, RK4(), Steps(1000)),
        Workload("tiny-dopri5", f"{_TINY}, Dopri5 at 1e-5", _tiny, 10.0, Dopri5(), _LOOSE),
        Workload("medium-rk4", f"{_MEDIUM}, RK4, 50 steps", _medium, 1.0, RK4(), Steps(50)),
        Workload("medium-dopri5", f"{_MEDIUM}, Dopri5 at 1e-5", _medium, 2.0, Dopri5(), _LOOSE),
        Workload(
            "conv-rk4",
            "3×3 conv-tanh-conv, 16 channels of 16×16, batch 32, RK4, 10 steps",
            _conv, 1.0, RK4(), Steps(10),
        ),
        Workload(
            "cnf-dopri5",
            "continuous flow in 43 dimensions, width 128 softplus, batch 100, Dopri5 at 1e-6 / 1e-8",
            _flow, 1.0, Dopri5(), PID(rtol=1e-6, atol=1e-8), torch.float64,
        ),
        Workload(
            "vdp-dopri5",
            "Van der Pol oscillators, one learnable μ = 1, batch 64, Dopri5 at 1e-5",
            _oscillators, 5.0, Dopri5(), _LOOSE,
        ),
        Workload(
            "vdp-tsit5",
            "Van der Pol oscillators, 64 learnable μ from 0.1 to 25, Tsit5 at 1e-5",
            _unlike_oscillators, 5.0, Tsit5(), _LOOSE,
        ),
    )
}  # fmt: skip
