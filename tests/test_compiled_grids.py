"""Compiled adaptive solves accept the steps of the eager controller, whatever the times look like.

Programs run as the graphs they are (backend "interpreter").
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
import problems
from cases import GRAPHS, TIMES, leaf, loss, mlp, relative, time_dependent
from compiling import close, gradients
from odegrad import Discrete, Fixed, Steps, Tape
from odegrad.compiled import using_backend

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

modes = pytest.mark.parametrize("gradient", [Discrete(), GRAPHS], ids=["states", "graphs"])


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


@pytest.mark.parametrize("make", problems.PROBLEMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize(
    ("scheme", "times"),
    [(odegrad.Dopri5(), (0.0, 0.6, 2.0)), (odegrad.Bosh3(), (0.5, 0.2, -0.1))],
    ids=["up", "down"],
)
def test_the_same_steps_are_accepted(make: Any, scheme: Any, times: Any) -> None:
    problem = make()
    running = problem.raw_running
    cost = running and (lambda t, y, *args: running(t, y, problem.theta, args))
    options = {"scheme": scheme, "stepsize": odegrad.PID(1e-6, 1e-8, p=0.2, d=0.1), "running": cost}
    with torch.no_grad():
        found, expected = (
            odegrad.solve(problem.f, problem.y0, times, problem.args, compile=c, **options)
            for c in (True, False)
        )
    assert found.stats.rejected == expected.stats.rejected
    for a, b in zip(found.grid.segments, expected.grid.segments, strict=True):
        assert a.fractions == pytest.approx(b.fractions, rel=1e-7)
    close(found.ys, expected.ys, 1e-12)


def test_rejections_and_controllers_with_bounds() -> None:
    """A jump in f, a first step far too large, steps bounded from both sides, a norm of one's own."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(200 * (t - 1)) - y

    for changes in (
        {"dt0": 0.5},
        {"dt0": 0.5, "dt_min": 1e-3, "dt_max": 0.1},
        {"norm": lambda x: torch.stack([z.abs().max() for z in x]).max()},
        {"p": 0.4, "i": 0.3, "factor_max": 2.0, "safety": 0.8},
    ):
        pid = odegrad.PID(1e-6, 1e-6, **changes)
        found, expected = (
            odegrad.solve(f, leaf(2), [0.0, 0.3, 2.0], stepsize=pid, compile=c)
            for c in (True, False)
        )
        assert found.stats.rejected == expected.stats.rejected > 0
        for a, b in zip(found.grid.segments, expected.grid.segments, strict=True):
            assert a.fractions == pytest.approx(b.fractions, rel=1e-7)


@pytest.mark.parametrize("times", [(1.1, 0.4, 0.1), (0.1, 0.4, 0.4, 1.1), (-1.0, 2.0)])
@pytest.mark.parametrize("stepsize", [Steps(2), Fixed(0.2), odegrad.PID(1e-5, 1e-7)])
def test_descending_and_repeated_times(times: Any, stepsize: Any) -> None:
    problem = time_dependent()
    found, sol = gradients(problem, Discrete(), odegrad.Dopri5(), stepsize, times)
    expected, tape = problem.gradient(Tape(), odegrad.Dopri5(), sol.grid, times)
    eager = problem.gradient(Discrete(), odegrad.Dopri5(), stepsize, times)[1]
    assert sol.grid.n_steps == eager.grid.n_steps
    close(sol.ys, tape.ys)
    assert relative(found, expected) <= 1e-12
    for j, (a, b) in enumerate(pairwise(times)):
        assert a != b or torch.equal(sol.ys[j], sol.ys[j + 1])


@pytest.mark.parametrize("scheme", [odegrad.RKF45(), odegrad.Dopri5()])
@pytest.mark.parametrize("stepsize", [Steps(2), odegrad.PID()])
@modes
def test_one_single_time(scheme: Any, stepsize: Any, gradient: Any) -> None:
    """Only the output at the start: the identity."""
    y0, net = leaf(4, 3), mlp()
    options = {"scheme": scheme, "stepsize": stepsize, "gradient": gradient, "compile": True}
    sol = odegrad.solve(lambda t, y: net(y), y0, [0.7], **options)
    assert torch.equal(sol.ys[0], y0)
    assert sol.grid.n_steps == sol.stats.accepted == 0
    (grad,) = torch.autograd.grad(sol.ys.sum(), [y0])
    assert torch.equal(grad, torch.ones_like(grad))


def test_times_in_float32() -> None:
    """The gradient of times has their dtype, and fixed steps forgive their rounding."""
    ts = torch.linspace(0, 1, 11).requires_grad_()
    assert ts.dtype == torch.float32
    grads = []
    for options in ({"compile": True}, {"gradient": Tape()}):
        sol = odegrad.solve(
            lambda t, y: -y * t, leaf(3), ts, scheme=odegrad.RK4(), stepsize=Fixed(0.1), **options
        )
        assert sol.grid.n_steps == 10
        grads.append(list(torch.autograd.grad(loss(sol.ys), ts)))
    assert grads[0][0].dtype == torch.float32
    assert relative(*grads) <= 1e-6


def test_float32_states_and_mixed_dtypes() -> None:
    """Equal to the eager engine to the rounding of each leaf; t comes in the widest dtype."""
    y0 = (leaf(3).detach().float(), leaf(3, seed=1).detach())

    def f(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        assert t.dtype == torch.float64
        return (-y[0] * t.float(), torch.cos(t) * y[1])

    found, expected = (
        odegrad.solve(f, y0, TIMES, stepsize=Steps(3), compile=c).ys for c in (True, False)
    )
    assert [x.dtype for x in found] == [torch.float32, torch.float64]
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    close(found[1], expected[1])
