"""What cannot be compiled runs all the same, with one warning that says why; errors are the eager's."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import GRAPHS, TIMES, leaf, loss, mlp, relative, structured
from compiling import close, forget_graphs, leaves, warnings_of
from odegrad import Discrete, Every, Steps, Tape, errors
from odegrad.compiled import inductor as inductor_module
from odegrad.compiled import using_backend
from odegrad.compiled.tracing import NotCompilable
from odegrad.stepsize import AdaptiveStepSize, Decision, History


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs for Inductor, which starts by looking for a compiler."""
    forget_graphs(monkeypatch)
    monkeypatch.setattr(inductor_module, "_found", list[str]())
    with using_backend("inductor"):
        yield


def warns_once(reason: str, f: Any, y0: Tensor, inputs: list[Tensor], **options: Any) -> None:
    """compile=True on f: one warning that names the reason, and the eager engine's results."""
    given: dict[str, Any] = {"stepsize": Steps(3), **options}
    results = []
    for compiled in (True, False):
        torch.manual_seed(0)
        sol, seen = warnings_of(lambda c=compiled: odegrad.solve(f, y0, TIMES, compile=c, **given))
        results.append((sol.ys, list(torch.autograd.grad(loss(sol.ys), inputs))))
        assert len(seen) == compiled
        assert not compiled or reason in seen[0]
    close(results[0][0], results[1][0])
    assert relative(results[0][1], results[1][1]) <= 1e-12


# What cannot be seen as one graph, or may not be.


def branch(t: Tensor, y: Tensor) -> Tensor:
    return -y if y.sum() > 0 else y


def number(t: Tensor, y: Tensor) -> Tensor:
    return -y * math.cos(float(t))


def in_numpy(t: Tensor, y: Tensor) -> Tensor:
    return -y * torch.tensor(math.exp(sum(y.tolist()[0])))


@pytest.mark.parametrize(
    ("f", "reason"),
    [(branch, "branching"), (number, ""), (in_numpy, "")],
    ids=lambda x: str(x)[:12],
)
def test_looking_at_values(f: Any, reason: str) -> None:
    y0 = leaf(4, 3)
    warns_once(reason, f, y0, [y0])


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(nn.Dropout(0.5), "random numbers"), (nn.BatchNorm1d(3), "changes a tensor")],
    ids=["dropout", "batch norm"],
)
def test_layers_in_training_mode(layer: nn.Module, reason: str) -> None:
    net, y0 = nn.Sequential(nn.Linear(3, 3), layer).double(), leaf(4, 3)
    warns_once(reason, lambda t, y: net(y), y0, [y0, net[0].weight])


def test_noise() -> None:
    y0 = leaf(4, 3)
    warns_once("random numbers", lambda t, y: -y * torch.rand_like(y), y0, [y0])


@dataclass(frozen=True)
class Halving(AdaptiveStepSize):
    """Accepts every step of a tenth."""

    dt0: float | None = 0.1
    dt_min: float = 0.0
    dt_max: float = 0.1

    def scaled_norm(self, x: Any, y0: Any, y1: Any) -> Tensor:
        return torch.zeros(())

    def decide(self, ratio: float, history: History, order: int) -> Decision:
        return Decision(True, 1.0, history)


def test_a_controller_of_ones_own() -> None:
    y0 = leaf(3)
    warns_once("Halving", lambda t, y: -y, y0, [y0], stepsize=Halving())


def test_a_warning_each_time() -> None:
    """Every solve that is not compiled says so."""
    y0 = leaf(4, 3)
    for _ in range(2):
        warns_once("branching", branch, y0, [y0])


def test_inside_a_transform() -> None:
    y0 = leaf(3).detach()

    def value(y: Tensor) -> Tensor:
        return odegrad.solve(
            lambda t, y: -y.tanh(), y, TIMES, stepsize=Steps(3), compile=True
        ).ys.sum()

    found, seen = warnings_of(lambda: torch.func.grad(value)(y0))
    assert len(seen) == 1
    assert "torch.func" in seen[0]
    y0.requires_grad_()
    assert relative([found], list(torch.autograd.grad(value(y0), y0))) <= 1e-12


def test_a_solve_inside_a_solve() -> None:
    """The inner one cannot be compiled inside the outer one's sweep."""
    y0, w = leaf(3), leaf(3, seed=1)

    def outer(compiled: bool) -> list[Tensor]:
        def f(t: Tensor, y: Tensor) -> Tensor:
            inner = {"stepsize": Steps(1), "compile": compiled}
            return odegrad.solve(lambda s, z: -w * z, y, [0.0, 0.1], **inner).ys[-1]

        ys = odegrad.solve(f, y0, [0.0, 1.0], scheme=odegrad.Euler(), stepsize=Steps(2)).ys
        return list(torch.autograd.grad(loss(ys), [y0, w]))

    found, seen = warnings_of(lambda: outer(compiled=True))
    assert seen
    assert all("inside another solve" in s for s in seen)
    assert relative(found, outer(compiled=False)) <= 1e-12


# What the machine lacks.


def test_no_compiler(inductor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    y0 = leaf(3)
    warns_once("C++ compiler", lambda t, y: -y, y0, [y0])


def test_no_headers(inductor: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    y0 = leaf(3)
    warns_once("Python.h", lambda t, y: -y, y0, [y0])


@pytest.mark.parametrize("stepsize", [Steps(3), odegrad.PID(1e-5, 1e-7)])
@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_nothing_can_be_compiled(
    stepsize: Any, gradient: Any, inductor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All programs run as the graphs they are, with one warning for all; a second solve is silent."""

    def failing(*given: Any) -> Any:
        raise NotCompilable("planted")

    monkeypatch.setattr(inductor_module, "inductor_program", failing)
    net, y0, results = mlp(), leaf(4, 3), []
    for compiled, messages in ((True, 1), (True, 0), (False, 0)):

        def solve(compiled: bool = compiled) -> Any:
            options: Any = {"stepsize": stepsize, "gradient": gradient, "compile": compiled}
            ys = odegrad.solve(lambda t, y: net(y) * t, y0, TIMES, **options).ys
            return list(torch.autograd.grad(loss(ys), [y0, *net.parameters()]))

        found, seen = warnings_of(solve)
        assert len(seen) == messages
        assert all("planted" in s for s in seen)
        results.append(found)
    assert relative(results[0], results[2]) <= 1e-6
    assert relative(results[1], results[0]) <= 1e-14


# Errors: those of the eager engine.


def error_of(f: Any, y0: Any, ts: Any = TIMES, **options: Any) -> Exception:
    """What the solve raises; warnings that f cannot be captured do not matter here."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        warnings_of(lambda: odegrad.solve(f, y0, ts, **options).ys.sum().backward())
    return raised.value


def raising(t: Tensor, y: Tensor) -> Tensor:
    raise KeyError("mine")


def in_place(t: Tensor, y: Tensor) -> Tensor:
    return y.mul_(2.0)


ones = torch.ones(1, dtype=torch.float64)

ERRORS: dict[str, tuple[type[Exception], Callable[..., Any], Any, dict[str, Any]]] = {
    "max_steps": (
        errors.MaxStepsError,
        lambda t, y: -y,
        ones,
        {"stepsize": odegrad.PID(1e-8, 1e-10), "max_steps": 7},
    ),
    "max_steps of fixed steps": (
        errors.MaxStepsError,
        lambda t, y: -y,
        ones,
        {"stepsize": Steps(9), "max_steps": 7},
    ),
    "blow-up": (errors.StepTooSmallError, lambda t, y: y * y, ones, {"ts": [0.0, 2.0]}),
    "smallest step": (
        errors.StepTooSmallError,
        lambda t, y: torch.tanh(1e4 * (t - 0.5)) * y,
        ones,
        {"stepsize": odegrad.PID(1e-9, 1e-9, dt_min=1e-2), "max_steps": 500},
    ),
    "leaving the domain": (
        errors.NonFiniteDerivativeError,
        lambda t, y: y.sqrt() - 1 - y,
        ones,
        {"ts": [0.0, 5.0]},
    ),
    "not finite on a fixed grid": (
        errors.NonFiniteStateError,
        lambda t, y: y.sqrt() - 1 - y,
        ones,
        {"ts": [0.0, 5.0], "stepsize": Steps(50)},
    ),
    "shape": (errors.FieldOutputError, lambda t, y: y[:1], torch.ones(4, 3), {}),
    "structure": (errors.FieldOutputTypeError, lambda t, y: (y, y), ones, {}),
    "dtype": (errors.FieldOutputError, lambda t, y: y.to(torch.complex128), ones, {}),
    "in place": (errors.FieldOutputError, in_place, ones, {}),
    "its own": (KeyError, raising, ones, {}),
    "cost": (
        errors.InvalidTypeError,
        lambda t, y: -y,
        ones,
        {"running": lambda t, y: y.to(torch.complex128)},
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_those_of_the_eager_engine(name: str) -> None:
    kind, f, y0, options = ERRORS[name]
    y0 = y0.clone().requires_grad_()
    found, expected = (error_of(f, y0, compile=c, **options) for c in (True, False))
    assert type(found) is type(expected) is kind
    assert str(found) == str(expected)


@pytest.mark.parametrize("gradient", [Tape(), odegrad.Backsolve()])
def test_other_gradients_are_refused(gradient: Any) -> None:
    with pytest.raises(errors.InvalidValueError, match="compile=True goes with gradient=Discrete"):
        odegrad.solve(lambda t, y: -y, ones, TIMES, gradient=gradient, compile=True)


# Who watches.


@pytest.mark.parametrize("stepsize", [Steps(3), odegrad.PID(1e-5, 1e-7)])
@pytest.mark.parametrize("gradient", [Discrete(), Discrete(Every(3)), GRAPHS])
def test_a_callback_is_told_the_same(stepsize: Any, gradient: Any) -> None:
    def told(compiled: bool) -> list[Any]:
        problem, seen = structured(), list[Any]()

        def note(info: odegrad.StepInfo) -> None:
            y = [x.clone() for x in leaves(info.y)]
            counts = info.stats.accepted, info.stats.rejected
            seen.append((info.phase, info.n, *counts, info.t, info.dt, y))

        options: Any = {"stepsize": stepsize, "gradient": gradient, "callback": note, "land": True}
        ys = odegrad.solve(problem.f, problem.y0, TIMES, compile=compiled, **options).ys
        loss(ys).backward()
        return seen

    found, expected = told(compiled=True), told(compiled=False)
    # Rejected steps are counted by the chunk.
    assert [(*x[:2], x[2]) for x in found] == [(*x[:2], x[2]) for x in expected]
    for a, b in zip(found, expected, strict=True):
        assert a[4:6] == pytest.approx(b[4:6], rel=1e-9, abs=1e-12)
        close(a[6], b[6], 1e-11)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_callback_that_raises(phase: str) -> None:
    """The solve stops; the next one is none the worse for it."""
    net, y0 = mlp(), leaf(4, 3)

    def interrupt(info: odegrad.StepInfo) -> None:
        if info.phase == phase and info.n == 2:
            raise KeyboardInterrupt

    def solve(**options: Any) -> list[Tensor]:
        ys = odegrad.solve(lambda t, y: net(y), y0, TIMES, stepsize=Steps(3), **options).ys
        return list(torch.autograd.grad(loss(ys), [y0, *net.parameters()]))

    with pytest.raises(KeyboardInterrupt):
        solve(compile=True, callback=interrupt)
    assert relative(solve(compile=True), solve()) <= 1e-12


def test_the_bar_says_that_something_is_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    forget_graphs(monkeypatch)
    y0, ts = leaf(3), [0.0, 0.5, 1.0]  # steps that add up to 1 exactly
    options: dict[str, Any] = {"stepsize": Steps(4), "progress": True, "compile": True}
    odegrad.solve(lambda t, y: -y, y0, ts, **options).ys.sum().backward()
    shown = capsys.readouterr().err
    assert "forward, compiling" in shown
    assert "backward: 100%" in shown
