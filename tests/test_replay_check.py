"""A field that does not give again what it gave is found before its gradient is used."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import GRAPHS, leaf, mlp, relative
from odegrad import Discrete, Keep, Steps, Tape
from odegrad.errors import NonDeterministicFieldError
from odegrad.schemes import SCHEMES

SCHEDULES = [
    Discrete(),
    Discrete(odegrad.StoreAll(Keep.STAGES)),
    Discrete(odegrad.Binomial(2)),
    Discrete(odegrad.Online(2)),
    Discrete(odegrad.Every(4, Keep.GRAPH)),
    Discrete(odegrad.Tiered(1, 2)),
    Discrete(odegrad.Blockwise(odegrad.Binomial(2), 3, Keep.GRAPH)),
]


def clock() -> Callable[..., Tensor]:
    return lambda t, y: -y * (1 + time.perf_counter() % 1)


def counter() -> Callable[..., Tensor]:
    calls = itertools.count()
    return lambda t, y: -y * (1 + 0.01 * next(calls))


def numpys() -> Callable[..., Tensor]:
    generator = np.random.default_rng(0)
    return lambda t, y: -y + 0.1 * generator.standard_normal()


def own_generator() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda t, y: -y + 0.1 * torch.randn(y.shape, generator=generator, dtype=y.dtype)


def cache() -> Callable[..., Tensor]:
    """A module that keeps a hidden state between calls: a tensor that is no buffer."""
    seen: list[Tensor] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(y.detach())
        return -y + 0.1 * seen[-min(3, len(seen))]

    return f


def run(
    f: Callable[..., Any], y0: Tensor, gradient: Any, scheme: Any, n: int = 6, **more: Any
) -> Tensor:
    sol = odegrad.solve(
        f, y0, [0.0, 0.5, 1.0], scheme=scheme, stepsize=Steps(n), gradient=gradient, **more
    )
    return sol.ys.square().sum()


@pytest.mark.parametrize("make", [clock, counter, numpys, own_generator, cache])
@pytest.mark.parametrize("gradient", SCHEDULES, ids=str)
@pytest.mark.parametrize("scheme", [odegrad.RK4(), odegrad.Tsit5()])
def test_what_changes_from_call_to_call_is_found(make: Any, gradient: Any, scheme: Any) -> None:
    y0 = leaf(4, 3)
    value = run(make(), y0, gradient, scheme)
    with pytest.raises(NonDeterministicFieldError, match=r"differs by .*clock.*Tape\(\)"):
        value.backward()
    assert y0.grad is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_every_scheme(scheme: Any) -> None:
    value = run(counter(), leaf(3), Discrete(), scheme())
    with pytest.raises(NonDeterministicFieldError):
        value.backward()


def test_parameters_changed_through_data_are_found() -> None:
    net, y0 = mlp(), leaf(4, 3)
    value = run(lambda t, y: net(y), y0, Discrete(), odegrad.RK4())
    net[0].weight.data.mul_(1.1)
    with pytest.raises(NonDeterministicFieldError, match=r"through \.data"):
        value.backward()


@pytest.mark.parametrize("gradient", [Tape(), GRAPHS, Discrete(replay_check=False)], ids=str)
def test_who_evaluates_nothing_again_or_does_not_want_to_know(gradient: Any) -> None:
    value = run(counter(), leaf(3), gradient, odegrad.RK4())
    value.backward()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.layer(y)) - y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(8, 8, batch_first=True)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.cell(y)[0] - y


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Tanh())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) - 0.1 * torch.randn_like(y)


@pytest.mark.parametrize("kind", [Attention, Recurrent, Noisy])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("gradient", SCHEDULES, ids=str)
def test_no_false_alarm(kind: Any, autocast: bool, gradient: Any) -> None:
    torch.manual_seed(0)
    net, y0 = kind(), torch.randn(3, 4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = run(net, y0, gradient, odegrad.Tsit5(), n=4)
    value.backward()
    assert y0.grad is not None


def test_no_false_alarm_in_long_chaotic_or_mixed_solves() -> None:
    net = mlp().float()

    def mixed(t: Tensor, y: Tensor) -> Tensor:
        return net(y.float()).double() + torch.stack(
            [10 * (y[:, 1] - y[:, 0]), y[:, 0] * (28 - y[:, 2]), -y[:, 2]], 1
        )

    y0 = leaf(4, 3)
    run(mixed, y0, Discrete(odegrad.Binomial(5)), odegrad.RK4(), n=300).backward()
    assert y0.grad is not None
    empty = torch.zeros(0, 3, requires_grad=True)
    run(lambda t, y: -y, empty, Discrete(), odegrad.RK4()).backward()


def test_it_costs_no_evaluation() -> None:
    net, y0 = mlp(), leaf(4, 3)

    def both(**more: Any) -> tuple[odegrad.Stats, list[Tensor]]:
        sol = odegrad.solve(
            lambda t, y: net(y), y0, [0.0, 1.0], stepsize=Steps(5), gradient=Discrete(**more)
        )
        grads = torch.autograd.grad(sol.ys.square().sum(), [y0, *net.parameters()])
        return sol.stats, list(grads)

    (looked, found), (trusted, expected) = both(), both(replay_check=False)
    assert looked == trusted
    assert relative(found, expected) == 0.0
