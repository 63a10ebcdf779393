"""Models that contain a solve, under torch.compile and torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor, nn

import odegrad
from cases import leaf, mlp, relative
from odegrad import PID, Discrete, Steps, Tape, controls
from odegrad.errors import FieldOutputError, InvalidValueError

# Dynamo looks at .grad of the tensors that a frame after a graph break is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

TS = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


class Model(nn.Module):
    """Encoder, solve, decoder."""

    def __init__(self, net: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3, 3).double()
        self.ode = odegrad.NeuralODE(net or mlp(), **options)
        self.decoder = nn.Linear(3, 1).double()

    def forward(self, x: Tensor, ts: Tensor) -> Tensor:
        return self.decoder(self.ode(self.encoder(x), ts)[1:])


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    dynamo.reset()
    yield
    dynamo.reset()


def gradients(model: Any, module: nn.Module) -> list[Tensor]:
    x, ts = leaf(4, 3), TS.clone().requires_grad_()
    value = model(x, ts)
    return [value.detach(), *torch.autograd.grad(value.sin().sum(), [x, ts, *module.parameters()])]


@pytest.mark.parametrize(
    "scheme", [odegrad.Euler, odegrad.RK4, odegrad.Tsit5, odegrad.ALF, odegrad.ReversibleHeun]
)
def test_equal_steps_are_one_graph(scheme: Any) -> None:
    model = Model(scheme=scheme(), stepsize=Steps(2))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative(gradients(compiled, model), gradients(model, model)) < 1e-13


@pytest.mark.parametrize(
    "options",
    [
        {"stepsize": PID(1e-5, 1e-7)},
        {"stepsize": Steps(3), "gradient": Discrete(odegrad.Binomial(2))},
        {"stepsize": Steps(3), "gradient": Discrete(memory="1MiB")},
        {"stepsize": Steps(3), "gradient": odegrad.Backsolve(), "scheme": odegrad.RK4()},
        {"stepsize": odegrad.Fixed(0.2), "scheme": odegrad.RK4()},
        {"stepsize": Steps(3), "on_failure": "nan"},
    ],
    ids=str,
)
def test_others_are_one_break(options: dict[str, Any]) -> None:
    model = Model(**options)
    found = dynamo.explain(model)(leaf(4, 3), TS)
    assert (found.graph_count, found.graph_break_count) == (2, 1)
    assert "odegrad.solve is not traced" in str(found.break_reasons[0].reason)
    dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert relative(gradients(compiled, model), gradients(model, model)) < 1e-13


def test_a_solve_in_a_function_with_running_costs_and_a_structured_state() -> None:
    w, q, v = leaf(seed=3), leaf(4, 2), leaf(4, 2, seed=1)

    def oscillator(t: Tensor, y: dict[str, Tensor], w: Tensor) -> dict[str, Tensor]:
        return {"q": y["v"], "v": -w * y["q"] * torch.cos(t)}

    def run(w: Tensor, q: Tensor, v: Tensor) -> Tensor:
        sol = odegrad.solve(
            oscillator, {"q": q, "v": v}, [0.0, 0.5, 1.0],
            (w,), scheme=odegrad.Dopri5(), stepsize=Steps(2),
            running=lambda t, y, w: w * y["q"].square().sum(),
            gradient=Tape(),
        )  # fmt: skip
        assert sol.running is not None
        return sol.ys["q"].square().sum() + sol.running.sum()

    expected = torch.autograd.grad(run(w, q, v), [w, q, v])
    found = torch.autograd.grad(
        torch.compile(run, fullgraph=True, backend="aot_eager")(w, q, v), [w, q, v]
    )
    assert relative(list(found), list(expected)) < 1e-13


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_inference(strict: bool) -> None:
    model = Model(scheme=odegrad.RK4(), stepsize=Steps(3))
    x = leaf(4, 3).detach()
    program = torch.export.export(model, (x, TS), strict=strict)
    with torch.no_grad():
        assert relative([program.module()(x, TS)], [model(x, TS)]) < 1e-14
        later = TS + 0.5
        assert relative([program.module()(2 * x, later)], [model(2 * x, later)]) < 1e-14


def test_breakpoints_of_modules_are_stepped_onto() -> None:
    class Controlled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u = controls.PiecewiseConstant((0.0, 0.4, 1.0), (3,), init=leaf(2, 3).detach())

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.u(t) - y

    model = Model(Controlled(), scheme=odegrad.RK4(), stepsize=Steps(3))
    assert dynamo.explain(model)(leaf(4, 3), TS).graph_break_count == 1
    dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert relative(gradients(compiled, model), gradients(model, model)) < 1e-13


def test_wrong_fields_and_times_are_refused_while_tracing() -> None:
    for f, ts, error in [
        (lambda t, y: y[:1], TS, FieldOutputError),
        (lambda t, y: -y, TS[0], InvalidValueError),
    ]:
        run = torch.compile(
            lambda y, ts, f=f: odegrad.solve(f, y, ts, stepsize=Steps(2)).ys,
            backend="eager",
            fullgraph=True,
        )
        with pytest.raises(Exception, match=r"f returned shapes|ts must have shape") as raised:
            run(leaf(3), ts)
        assert error.__name__ in repr(raised.value) or isinstance(raised.value, error)
