"""compile=True with times that are read off dense output: the numbers and gradients of `Tape`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import GRAPHS, leaf, loss, mlp, relative, structured, time_dependent
from compiling import close, forget_graphs, gradients, in_chunks_of, warnings_of
from odegrad import PID, Binomial, Blockwise, Discrete, Every, Keep, Steps, Tape
from odegrad.compiled import programs, using_backend
from odegrad.schemes import SCHEMES

TIMES = (0.1, 0.15, 0.17, 0.4, 0.45, 0.7, 0.7, 1.0, 1.1)
TRACEABLE = [s() for s in SCHEMES if s().traceable]
modes = pytest.mark.parametrize("gradient", [Discrete(), GRAPHS], ids=["states", "graphs"])
kinds = pytest.mark.parametrize("stepsize", [Steps(4), PID(1e-6, 1e-8)])


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


def check(problem: Any, gradient: Any, scheme: Any, stepsize: Any, **more: Any) -> Any:
    """Compares states and gradients with those of `Tape` on the same grid; returns the solution."""
    times = more.pop("times", TIMES)
    found, sol = gradients(problem, gradient, scheme, stepsize, times, land=False, **more)
    expected, tape = gradients(
        problem, Tape(), scheme, sol.grid, times, land=False, compile=False, **more
    )
    assert len(sol.grid.segments) == len(sol.landings) - 1 < len(times) - 1
    close(sol.ys, tape.ys)
    assert relative(found, expected) <= 1e-12
    return sol


FEW = {"RK4", "Bosh3", "RKF45", "Tsit5", "ReversibleHeun"}
"""Schemes whose dense outputs are made in different ways; the others take long."""


def thorough(value: Any, few: bool) -> Any:
    """A parameter of a test; one that runs among the long enumerations unless it is one of few."""
    return pytest.param(value, marks=() if few else pytest.mark.exhaustive)


@pytest.mark.parametrize(
    "scheme", [thorough(x, type(x).__name__ in FEW) for x in TRACEABLE], ids=repr
)
@modes
def test_every_scheme(scheme: Any, gradient: Any) -> None:
    problem = structured() if gradient is GRAPHS else time_dependent()
    check(problem, gradient, scheme, PID(1e-4, 1e-6) if scheme.error_order else Steps(4))


@pytest.mark.parametrize("rows", [1, thorough(3, False)])
@modes
@kinds
def test_times_in_every_place_of_a_chunk(
    rows: int, gradient: Any, stepsize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(rows, monkeypatch)
    check(structured(), gradient, odegrad.Bosh3(), stepsize)
    check(structured(), gradient, odegrad.Bosh3(), stepsize, times=TIMES[::-1])
    check(time_dependent(), gradient, odegrad.Tsit5(), stepsize, breakpoints=(0.3, 0.7))
    check(time_dependent(), gradient, odegrad.Tsit5(), stepsize, times=(0.0, 0.0, 1.0, 1.0))


def test_chunks_of_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of states alone have fewer bytes, so that they may have fewer steps than others."""
    forget_graphs(monkeypatch)
    monkeypatch.setattr("odegrad.compiled.CHUNK_BYTES", 8192)
    schedule = Blockwise(Binomial(2), 16, Keep.GRAPH)
    check(time_dependent(), Discrete(schedule), odegrad.Euler(), Steps(32))
    check(time_dependent(), Discrete(schedule), odegrad.AdaptiveHeun(), PID(1e-5, 1e-7))


@pytest.mark.parametrize("schedule", [Every(1), Every(2), Every(1000), Binomial(2)])
@kinds
def test_every_schedule(schedule: Any, stepsize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(3, monkeypatch)
    check(structured(), Discrete(schedule), odegrad.Bosh3(), stepsize)


def test_the_same_steps_and_states_as_the_eager_engine() -> None:
    problem = structured()
    for scheme in (odegrad.Tsit5(), odegrad.CashKarp(), odegrad.ReversibleHeun()):
        options = (Discrete(), scheme, PID(1e-6, 1e-8), TIMES)
        found, sol = gradients(problem, *options, land=False)
        expected, eager = gradients(problem, *options, land=False, compile=False)
        assert sol.grid.n_steps == eager.grid.n_steps
        assert sol.stats.rejected == eager.stats.rejected
        close(sol.ys, eager.ys, 1e-11)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@modes
def test_outputs_do_not_change_the_steps_or_the_programs(
    gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_graphs(monkeypatch)
    made, build = [], programs.build
    monkeypatch.setattr(programs, "build", lambda *args: made.append(1) or build(*args))
    problem, options = time_dependent(), (gradient, odegrad.Tsit5(), PID(1e-6, 1e-8))
    _, few = gradients(problem, *options, (TIMES[0], TIMES[-1]), land=False)
    assert len(made) == 2, "a march and a transposed one: nothing for times inside"
    _, more = gradients(problem, *options, (TIMES[0], 0.3, TIMES[-1]), land=False)
    assert len(made) == 4
    times = torch.linspace(TIMES[0], TIMES[-1], 300, dtype=torch.float64).tolist()
    _, many = gradients(problem, *options, times, land=False)
    assert len(made) == 4, "as many programs for any number of times"
    assert few.grid == more.grid == many.grid
    counts = [x.stats.forward_evaluations for x in (few, more, many)]
    assert counts == [counts[0]] * 3


def test_running_costs_and_parts_that_are_not_wanted() -> None:
    theta, y0 = leaf(3), leaf(3, seed=1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y * theta * torch.cos(t)

    results = []
    for compiled in (False, True):
        sol = odegrad.solve(
            f, y0, TIMES, stepsize=Steps(3), land=False, compile=compiled,
            gradient=Discrete() if compiled else Tape(),
            running=lambda t, y: y.square().sum() * torch.cos(t),
        )  # fmt: skip
        assert sol.running is not None
        value = loss(sol.ys) + sol.running.square().sum()
        results.append([sol.ys.detach(), sol.running.detach(), *torch.autograd.grad(value, theta)])
    assert relative(results[1], results[0]) <= 1e-12


def test_single_and_half_precision() -> None:
    net, y0 = mlp().float(), torch.linspace(-1, 1, 3)
    f = lambda t, y: net(y) * torch.cos(t)  # noqa: E731
    call = {"stepsize": Steps(4), "land": False, "compile": True}
    expected = odegrad.solve(f, y0, TIMES, stepsize=Steps(4), land=False).ys
    torch.testing.assert_close(odegrad.solve(f, y0, TIMES, **call).ys, expected)  # pyright: ignore
    net, low = net.bfloat16(), y0.bfloat16()
    with torch.no_grad():
        found, warned = warnings_of(lambda: odegrad.solve(f, low, TIMES, **call).ys)  # pyright: ignore
    assert found.dtype == torch.bfloat16
    assert not warned
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_second_derivatives() -> None:
    results = []
    for compiled in (False, True):
        net, y0 = mlp(), leaf(2, 3)
        params = list(net.parameters())
        sol = odegrad.solve(
            lambda t, y, net=net: net(y) * torch.cos(t), y0, TIMES,
            stepsize=Steps(3), land=False, compile=compiled,
            gradient=Discrete() if compiled else Tape(),
        )  # fmt: skip
        first = torch.autograd.grad(loss(sol.ys), params, create_graph=True)
        second = torch.autograd.grad(sum((g.square().sum() for g in first), leaf()), params)
        results.append([*(g.detach() for g in first), *second])
    assert relative(results[1], results[0]) <= 1e-12


@pytest.mark.parametrize("land", [True, False])
def test_a_failed_solve_returns_what_was_reached(land: bool) -> None:
    y0, ts = torch.ones(1, dtype=torch.float64), [0.0, 0.3, 0.9, 0.95, 2.0]
    sol = odegrad.solve(
        lambda t, y: y * y, y0, ts, land=land, compile=True, max_steps=40, on_failure="return"
    )
    assert sol.stats.accepted + sol.stats.rejected == 40
    assert sol.status is not odegrad.Status.SUCCESS
    exact = 1.0 / (1.0 - torch.tensor(ts[:4], dtype=torch.float64))
    torch.testing.assert_close(sol.ys[:4, 0], exact, rtol=1e-2, atol=0.0)
    assert bool(sol.ys[4:].isnan().all())


@pytest.mark.parametrize("backend", ["recorded", "inductor"])
def test_other_backends(backend: Any) -> None:
    with using_backend(backend):
        check(time_dependent(), GRAPHS, odegrad.Bosh3(), PID(1e-4, 1e-6))


def test_a_budget_holds() -> None:
    net, y0 = mlp(64, 32).float(), torch.randn(64, 32, requires_grad=True)
    call = {"stepsize": PID(1e-5, 1e-5), "gradient": Discrete(memory="8MiB"), "land": False}
    ts, f = torch.linspace(0.0, 2.0, 30), lambda t, y: net(y)
    plan = odegrad.plan(f, y0, ts, compile=True, **call)  # pyright: ignore

    def run() -> None:
        ys = odegrad.solve(f, y0, ts, compile=True, **call).ys  # pyright: ignore
        torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()])

    run()
    from odegrad.allocations import peak_bytes

    assert plan.peak_bytes <= 8 << 20
    assert peak_bytes(run, torch.device("cpu"), compiled=True) <= 1.02 * (8 << 20)
