"""Recorded iterations: by their logic on the CPU, where replaying is calling again, and on CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from odegrad.compiled import using_backend
from odegrad.compiled.recorded import Recorded, again

CHOICES = [
    (odegrad.RK4(), odegrad.Steps(7)),
    (odegrad.Dopri5(), odegrad.Fixed(0.05)),
    (odegrad.Tsit5(), odegrad.PID(rtol=1e-5, atol=1e-7)),
]
MODES = [
    odegrad.Discrete(),
    odegrad.Discrete(odegrad.Every(3)),
    odegrad.Discrete(odegrad.StoreAll(keep=odegrad.Keep.GRAPH)),
]


def gradients(device: str, **options: Any) -> tuple[list[Tensor], odegrad.Solution]:
    """Everything that has a gradient, for a time-dependent MLP that also reads a captured tensor."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    net = net.to(device, torch.float64)
    y0 = torch.randn(4, 3, dtype=torch.float64).to(device).requires_grad_()
    drift = torch.randn(3, dtype=torch.float64).to(device).requires_grad_()
    ts = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    sol = odegrad.solve(lambda t, y: net(y) * t.cos() + drift, y0, ts, **options)
    weights = torch.arange(1.0, 4.0, dtype=torch.float64, device=device)
    loss = (sol.ys.square().sum((1, 2)) * weights).sum()
    return list(torch.autograd.grad(loss, [y0, drift, ts, *net.parameters()])), sol


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.cpu() - b.cpu()).norm() <= 1e-12 * b.norm().cpu()


def test_a_loop_works_on_its_own_copies() -> None:
    def iterate(i: Tensor, x: Tensor, rows: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        rows[i] = x
        return i + 1, x + by

    recorded: list[Any] = []

    def record(iteration: Any, from_the_start: Any) -> Any:
        recorded.append(iteration)
        return again(iteration, from_the_start)

    loop = Recorded(iterate, lambda i, *_: i < 3, 2, 1, record)
    for by in (1.0, 2.0):  # the second call finds the recording, with other numbers
        i, x, rows = torch.tensor(0), torch.tensor(5.0), torch.zeros(4)
        done = loop(i, x, rows, torch.tensor(by))
        assert [float(v) for v in done] == [3.0, 5.0 + 3 * by]
        assert rows.tolist() == [5.0, 5.0 + by, 5.0 + 2 * by, 0.0]
        assert (float(i), float(x)) == (0.0, 5.0)
        assert float(loop(i, x, rows, torch.tensor(by), count=2)[0]) == 2.0
    assert len(recorded) == 1


@pytest.mark.parametrize(("scheme", "stepsize"), CHOICES)
@pytest.mark.parametrize("gradient", MODES)
def test_recorded_steps_give_the_same_gradients(scheme: Any, stepsize: Any, gradient: Any) -> None:
    options = {"scheme": scheme, "gradient": gradient, "compile": True}
    with using_backend("recorded"):
        found, sol = gradients("cpu", stepsize=stepsize, **options)
    expected, _ = gradients("cpu", scheme=scheme, stepsize=sol.grid, gradient=odegrad.Tape())
    agree(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("scheme", "stepsize"), CHOICES)
@pytest.mark.parametrize("gradient", MODES)
def test_cuda_graphs_give_the_same_gradients(scheme: Any, stepsize: Any, gradient: Any) -> None:
    options = {"scheme": scheme, "gradient": gradient, "compile": True}
    found, sol = gradients("cuda", stepsize=stepsize, **options)
    replayed, _ = gradients("cuda", stepsize=sol.grid, **options)
    expected, _ = gradients("cuda", scheme=scheme, stepsize=sol.grid, gradient=odegrad.Tape())
    agree(found, expected)
    agree(replayed, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("scheme", "stepsize"), CHOICES)
def test_eager_sweeps_on_cuda(scheme: Any, stepsize: Any) -> None:
    found, sol = gradients("cuda", scheme=scheme, stepsize=stepsize)
    expected, _ = gradients("cuda", scheme=scheme, stepsize=sol.grid, gradient=odegrad.Tape())
    agree(found, expected)
