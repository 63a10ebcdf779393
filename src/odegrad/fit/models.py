"""The two models of `odegrad fit`, each a vector field with a fitted initial state.

Both live in transformed values z = T(x) of the data x, on times measured from the first row:

    mlp:             dz/dt = MLP(z) / τ,                      τ a time scale read off the data;
    lotka-volterra:  dh/dt = α h − β h l,   dl/dt = −γ l + δ h l,   all four rates positive,
                     and for z = (log h, log l):  dz/dt = (α − β eˡᵒᵍ ˡ, −γ + δ eˡᵒᵍ ʰ).

References:
    R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, *Neural ordinary differential equations*,
        NeurIPS 2018.
    A. J. Lotka, *Elements of physical biology* (1925); V. Volterra, Nature 118 (1926).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from odegrad.fit.errors import OptionError

__all__ = ["MLP", "LotkaVolterra", "Model", "Transform"]


@dataclass(frozen=True)
class Transform:
    """z = (log x − mean) / std, where the logarithm may be left out.

    Arguments:
        log: Whether logarithms are taken.
        mean: One number per state, subtracted.
        std: One number per state, divided by.
    """

    log: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, name: str, values: Tensor) -> Transform:
        """The transform called `name`, its numbers read off `values`, shape [T, D]."""
        log = name.startswith("log")
        if name in ("log", "none"):
            n = values.shape[1]
            return cls(log, (0.0,) * n, (1.0,) * n)
        x = values.log() if log else values
        std = x.std(dim=0)
        std = torch.where(std > 0, std, torch.ones_like(std))  # a constant column
        return cls(log, tuple(x.mean(dim=0).tolist()), tuple(std.tolist()))

    def __call__(self, x: Tensor) -> Tensor:
        """z of x, shape [..., D]."""
        x = x.log() if self.log else x
        return (x - x.new_tensor(self.mean)) / x.new_tensor(self.std)

    def invert(self, z: Tensor) -> Tensor:
        """x of z, shape [..., D]."""
        x = z * z.new_tensor(self.std) + z.new_tensor(self.mean)
        return x.exp() if self.log else x


class Model(nn.Module, ABC):
    """A vector field f(t, z) and the state z0 at t = 0, all of it parameters.

    Arguments:
        z0: The first guess of the initial state, shape [D].
    """

    def __init__(self, z0: Tensor) -> None:
        super().__init__()
        self.z0 = nn.Parameter(z0.detach().clone())

    @abstractmethod
    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt at time t, shape like z."""


class MLP(Model):
    """dz/dt = MLP(z) / τ with tanh between the layers.

    Arguments:
        z0: The first guess of the initial state, shape [D].
        hidden: Widths of the hidden layers.
        tau: The time scale of the data, in units of time.
    """

    def __init__(self, z0: Tensor, hidden: Sequence[int], tau: float) -> None:
        super().__init__(z0)
        self.tau = tau
        widths = (len(z0), *hidden, len(z0))
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out, dtype=z0.dtype), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt, shape like z."""
        return cast(Tensor, self.net(z)) / self.tau

    @staticmethod
    def time_scale(ts: Tensor, zs: Tensor) -> float:
        """τ, the time in which z typically changes by one: 1 / rms(Δz / Δt)."""
        rate = float(slopes(ts, zs)[1].square().mean().sqrt())
        return 1.0 / rate if rate > 0 else float(ts[-1] - ts[0])


class LotkaVolterra(Model):
    """The predator–prey equations, with the rates kept positive as exponentials.

    Arguments:
        z0: The first guess of the initial state (prey, predator), shape [2].
        rates: The first guess of α, β, γ, δ, shape [4], positive.
        log: Whether the state is (log h, log l) instead of (h, l).
    """

    NAMES = ("alpha", "beta", "gamma", "delta")

    def __init__(self, z0: Tensor, rates: Tensor, log: bool) -> None:
        super().__init__(z0)
        self.log = log
        self.log_rates = nn.Parameter(rates.detach().log().to(z0.dtype))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt, shape like z."""
        # δ h and β l on either scale, and one stack: the field is called thousands of times.
        growth, eaten, death, gain = self.log_rates.exp().unbind()
        prey, predator = (z.exp() if self.log else z).unbind(-1)
        relative = torch.stack((growth - eaten * predator, gain * prey - death), dim=-1)
        return relative if self.log else z * relative

    @property
    def rates(self) -> tuple[float, ...]:
        """α, β, γ, δ."""
        return tuple(self.log_rates.detach().exp().tolist())

    @staticmethod
    def guess(ts: Tensor, values: Tensor) -> Tensor:
        """α, β, γ, δ by least squares on the differences of the logarithms.

            Δ log h / Δt ≈ α − β l,     Δ log l / Δt ≈ −γ + δ h,

        with l and h the geometric means over each interval. A rate that comes out negative is
        replaced by one that balances the other at the mean population.

        Arguments:
            ts: Times, shape [T].
            values: Prey and predator, shape [T, 2], positive.
        """
        middle, slope = slopes(ts, values.log())
        found: list[float] = []
        for i, sign in ((0, 1.0), (1, -1.0)):
            other = middle[:, 1 - i].exp()
            columns = torch.stack((torch.ones_like(other), -other), dim=1)
            # The normal equations, since they also have an answer for two intervals.
            rates = torch.linalg.pinv(columns) @ (sign * slope[:, i])
            size, mean = float(slope[:, i].square().mean().sqrt()) or 1.0, float(other.mean())
            own, cross = float(rates[0]), float(rates[1])
            if own <= 0 and cross <= 0:
                own, cross = size, size / mean
            found += [own if own > 0 else cross * mean, cross if cross > 0 else own / mean]
        return ts.new_tensor(found)


def slopes(ts: Tensor, zs: Tensor) -> tuple[Tensor, Tensor]:
    """The means and the difference quotients of z over each interval, both [T − 1, D]."""
    return (zs[1:] + zs[:-1]) / 2, (zs[1:] - zs[:-1]) / (ts[1:] - ts[:-1])[:, None]


def check_states(model: str, states: Sequence[str]) -> None:
    """Raises `OptionError` if the model cannot have these states."""
    if model == "lotka-volterra" and len(states) != 2:
        raise OptionError(
            f"--model lotka-volterra needs two states, received {len(states)} "
            f"({', '.join(states)}); name them with --state PREY,PREDATOR"
        )
