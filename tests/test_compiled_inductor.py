"""What Inductor makes of the programs: the same numbers, compiled once.

Compiling takes seconds, so that the programs of a field are shared by the tests of this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import GRAPHS, TIMES, leaf, loss, relative
from compiling import close, forget_graphs, warnings_of
from odegrad import Discrete, Every, Steps, Tape
from odegrad.compiled import inductor, loop, using_backend
from odegrad.compiled.tracing import NotCompilable

pytestmark = [
    pytest.mark.skipif(
        inductor.compiler_obstacle() is not None, reason="nothing can be compiled on this machine"
    ),
    # Inductor imports parts of torch.jit when it is first used.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

PID = odegrad.PID(1e-4, 1e-6)


class Field(nn.Module):
    """Reads the time, parameters and an argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return self.net(y) * torch.cos(rate * t)


@pytest.fixture(scope="module")
def field() -> Field:
    return Field()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one whenever Inductor is called."""
    seen: list[Any] = []
    honest = inductor.inductor_program

    def spy(module: Any, examples: Any) -> Any:
        seen.append(module)
        return honest(module, examples)

    monkeypatch.setattr(inductor, "inductor_program", spy)
    return seen


@pytest.fixture
def unkept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs of their own, so that nothing planted stays."""
    forget_graphs(monkeypatch)
    return


def solved(f: Any, y0: Tensor, rate: Tensor, ts: Any, **options: Any) -> tuple[Any, list[Tensor]]:
    sol = odegrad.solve(f, y0, ts, (rate,), **options)
    inputs = [y0, rate, *f.parameters(), *([ts] if isinstance(ts, Tensor) else [])]
    return sol, list(torch.autograd.grad(loss(sol.ys), inputs))


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS], ids=["states", "graphs"])
@pytest.mark.parametrize("stepsize", [Steps(20), PID], ids=["fixed", "adaptive"])
def test_compiled_loops_give_the_exact_gradient(field: Field, stepsize: Any, gradient: Any) -> None:
    """Fixed and adaptive, forward and transposed, with gradients of everything; without a warning."""
    y0, rate, ts = leaf(4, 3), leaf(seed=1), times(*TIMES)
    options = {"stepsize": stepsize, "gradient": gradient, "scheme": odegrad.Dopri5()}
    (sol, found), seen = warnings_of(lambda: solved(field, y0, rate, ts, compile=True, **options))
    assert seen == []
    grid = {**options, "stepsize": sol.grid, "gradient": Tape()}
    tape, expected = solved(field, y0, rate, ts, **grid)
    close(sol.ys, tape.ys, 1e-12)
    assert relative(found, expected) <= 1e-12
    eager = solved(field, y0, rate, ts, **options)[0]
    assert sol.stats.rejected == eager.stats.rejected
    assert sol.grid.n_steps == eager.grid.n_steps


CHANGES: dict[str, dict[str, Any]] = {
    "values": {"y0": leaf(4, 3, seed=5), "rate": leaf(seed=6), "ts": times(2.0, 1.0, 0.5)},
    "tolerances": {"stepsize": odegrad.PID(1e-9, 1e-10, p=0.1, dt_max=0.2)},
    "times": {"ts": times(0.0, 0.3, 0.3, 2.0)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_second_solve_compiles_nothing(
    change: dict[str, Any], field: Field, compiled: list[Any]
) -> None:
    """And is right: several chunks, other values, changed parameters."""
    first: dict[str, Any] = {"y0": leaf(4, 3), "rate": leaf(seed=1), "ts": times(*TIMES)}
    options: dict[str, Any] = {"scheme": odegrad.Dopri5(), "compile": True, "stepsize": PID}
    solved(field, **first, **options)
    before = len(compiled)
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(1.1)
    given = {**first, **options, **change}
    sol, found = solved(field, **given)
    assert len(compiled) == before
    given |= {"compile": False, "stepsize": sol.grid, "gradient": Tape()}
    assert relative(found, solved(field, **given)[1]) <= 1e-12


def test_schedules_share_programs(field: Field) -> None:
    y0, rate, results = leaf(4, 3), leaf(seed=1), []
    for checkpoints in (odegrad.StoreAll(), Every(7)):
        kind: dict[str, Any] = {"gradient": Discrete(checkpoints), "compile": True}
        options = {"stepsize": Steps(20), "scheme": odegrad.Dopri5(), **kind}
        results.append(solved(field, y0, rate, times(*TIMES), **options)[1])
    assert relative(*results) <= 1e-12


def oscillators(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    x, v = y[:, :1], y[:, 1:]
    return torch.cat([v, mu * (1 - x * x) * v - x * torch.cos(0.1 * t)[:, None]], 1)


def test_steps_for_each_sample_in_compiled_loops(unkept: None, compiled: list[Any]) -> None:
    """The search and the transposed rounds, read inside; one sample of the second batch fails there."""
    mu = torch.tensor([[0.3], [4.0], [9.0]], dtype=torch.float64, requires_grad=True)
    y0, ts = leaf(3, 2), times(0.0, 1.1, 3.0)

    def solve(**options: Any) -> tuple[Any, list[Tensor]]:
        options = {"batch": 0, "stepsize": PID, "scheme": odegrad.Bosh3(), **options}
        sol = odegrad.solve(oscillators, y0, ts, (mu,), **options)
        seen = sol.ys[:, sol.succeeded]
        return sol, list(torch.autograd.grad(loss(seen), [y0, mu, ts]))

    (sol, found), said = warnings_of(lambda: solve(compile=True))
    assert said == []
    assert len(compiled) == 2
    assert torch.equal(sol.grid.counts, solve()[0].grid.counts)
    assert relative(found, solve(stepsize=sol.grid, gradient=Tape())[1]) <= 1e-12
    most = int(sol.grid.counts.max())
    options: dict[str, Any] = {"max_steps": most, "on_failure": "return"}
    sol, found = solve(compile=True, **options)
    assert len(compiled) == 2
    assert sol.succeeded.tolist() == [True, True, False]
    assert relative(found, solve(**options)[1]) <= 1e-10


class Float32(nn.Module):
    """A network in float32, whose tanh is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def test_float32_through_loops_and_through_steps(
    unkept: None, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop; its steps one by one; and as Inductor fails on the loop: one warning."""
    f, y0, results = Float32(), leaf(4, 3).detach().float(), []

    def solve(**options: Any) -> list[Tensor]:
        ys = odegrad.solve(f, y0, TIMES, scheme=odegrad.Midpoint(), stepsize=Steps(3), **options).ys
        return list(torch.autograd.grad(ys.square().sum(), list(f.parameters())))

    results.append(warnings_of(lambda: solve(compile=True)))
    with using_backend("steps"):
        results.append(warnings_of(lambda: solve(compile=True)))

    def failing(*given: Any) -> Any:
        raise NotCompilable("planted")

    forget_graphs(monkeypatch)
    monkeypatch.setattr(loop, "_one_program", failing)
    results.append(warnings_of(lambda: solve(compile=True)))
    assert compiled
    expected = solve()
    assert all(relative(found, expected) <= 1e-5 for found, _ in results)
    assert [len(seen) for _, seen in results] == [0, 0, 1]
    assert "as a whole: planted" in results[2][1][0]


def test_linear_algebra_in_a_compiled_loop(unkept: None) -> None:
    """Operations that can fail: compiled, or by a fallback with a warning."""
    a = (2 * torch.eye(3, dtype=torch.float64) + 0.1 * leaf(3, 3).detach()).requires_grad_()
    y0 = leaf(3, 2)

    def solve(**options: Any) -> list[Tensor]:
        f = lambda t, y: -torch.linalg.solve(a * (1 + t), y)  # noqa: E731
        ys = odegrad.solve(
            f, y0, [0.0, 1.0], scheme=odegrad.Euler(), stepsize=Steps(3), **options
        ).ys
        return list(torch.autograd.grad(loss(ys), [a, y0]))

    found, seen = warnings_of(lambda: solve(compile=True))
    assert len(seen) <= 1
    assert relative(found, solve()) <= 1e-12


def test_complex_states_in_a_compiled_loop(unkept: None) -> None:
    """Inductor does not generate code for complex numbers: right by whatever way."""
    w = torch.tensor([0.3 + 1j, -0.5 - 2j], dtype=torch.complex128, requires_grad=True)
    y0 = torch.tensor([1 + 1j, 0.5 - 1j], dtype=torch.complex128)

    def solve(**options: Any) -> list[Tensor]:
        f = lambda t, y: w * y  # noqa: E731
        ys = odegrad.solve(
            f, y0, [0.0, 1.0], scheme=odegrad.Euler(), stepsize=Steps(3), **options
        ).ys
        return list(torch.autograd.grad(ys.abs().square().sum(), [w]))

    found, seen = warnings_of(lambda: solve(compile=True))
    assert len(seen) <= 1
    assert relative(found, solve()) <= 1e-12
