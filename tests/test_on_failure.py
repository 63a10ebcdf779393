"""Solves that fail: loudly, or as asked for; with a gradient of NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import GRAPHS, leaf, mlp, relative
from odegrad import PID, Discrete, Status, Steps, Tape, errors
from odegrad.compiled import using_backend

TIMES = [0.0, 0.5, 0.9, 1.5, 2.0]
ADAPTIVE: dict[str, Any] = {"scheme": odegrad.Tsit5(), "stepsize": PID(1e-6, 1e-8)}
FIXED: dict[str, Any] = {"scheme": odegrad.RK4(), "stepsize": Steps(20)}


def blow_up(t: Tensor, y: Tensor) -> Tensor:
    """From y = 1 it ends at t = 1."""
    return y * y


def out_of_domain(t: Tensor, y: Tensor) -> Tensor:
    """NaN from t = 1 on."""
    return -y * torch.sqrt(1 - t)


def exploding(t: Tensor, y: Tensor) -> Tensor:
    return torch.exp(y * y * 50)


FAILURES: list[tuple[Any, Callable[..., Tensor], dict[str, Any], Status, type[Exception]]] = [
    ("blow-up", blow_up, ADAPTIVE, Status.STEP_TOO_SMALL, errors.StepTooSmallError),
    ("NaN", out_of_domain, ADAPTIVE, Status.NON_FINITE_DERIVATIVE, errors.NonFiniteDerivativeError),
    ("steps", blow_up, ADAPTIVE | {"max_steps": 12}, Status.MAX_STEPS, errors.MaxStepsError),
    ("fixed", exploding, FIXED, Status.NON_FINITE_STATE, errors.NonFiniteStateError),
    ("grid", blow_up, FIXED | {"max_steps": 12}, Status.MAX_STEPS, errors.MaxStepsError),
]
MODES = [
    Discrete(),
    Discrete(odegrad.Binomial(3)),
    GRAPHS,
    Discrete(memory="1MiB"),
    Tape(),
    odegrad.Backsolve(),
    odegrad.Quadrature(),
    odegrad.Mismatched(odegrad.Heun()),
    odegrad.Tangent(),
]


def start() -> Tensor:
    return torch.ones(2, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("name", "f", "options", "status", "error"), FAILURES, ids=[x[0] for x in FAILURES]
)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_raise_nan_and_return(
    name: str, f: Any, options: Any, status: Status, error: Any, mode: Any
) -> None:
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    field = lambda t, y: w * f(t, y)  # noqa: E731
    with pytest.raises(error) as raised:
        odegrad.solve(field, start(), TIMES, gradient=mode, **options)
    for how in ("nan", "return"):
        y0, ts = start(), torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
        sol = odegrad.solve(field, y0, ts, gradient=mode, on_failure=how, **options)
        assert sol.status is status
        assert sol.reason == str(raised.value)
        assert sol.ys.shape == (5, 2)
        finite = torch.isfinite(sol.ys).all(dim=1).tolist()
        if how == "nan":
            assert not any(finite)
        elif name in ("blow-up", "NaN"):
            assert finite == [True, True, True, False, False]
            expected = 1 / (1 - torch.tensor(TIMES[:3])) if name == "blow-up" else None
            if expected is not None:
                assert torch.allclose(sol.ys[:3, 0], expected.double(), rtol=1e-4)
        else:
            assert not finite[-1]
        for x in torch.autograd.grad(sol.ys[0].sum(), [y0, w, ts]):
            assert torch.isnan(x).all()


@pytest.mark.parametrize("batch", [None, 0])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_most_steps_hold_where_all_of_them_land(compiled: bool, batch: int | None) -> None:
    ts, y0 = torch.linspace(0.0, 1.0, 13, dtype=torch.float64), leaf(3, 2)
    control = odegrad.PID(1e-2, 1e-2, dt0=1.0)

    def run(most: int | None) -> Any:
        options: dict[str, Any] = {"stepsize": control, "land": True, "on_failure": "return"}
        with using_backend("interpreter"):
            return odegrad.solve(
                lambda t, y: -0.1 * y,
                y0,
                ts,
                max_steps=most,
                batch=batch,
                compile=compiled,
                **options,
            )

    whole, enough, few = run(None), run(12), run(5)
    assert (whole.stats.accepted, whole.stats.rejected) in {(12, 0), (36, 0)}
    assert torch.equal(enough.ys, whole.ys)
    if batch is None:
        assert few.status is Status.MAX_STEPS
    else:
        assert few.status == (Status.MAX_STEPS,) * 3
    assert torch.equal(few.ys[:6], whole.ys[:6])
    assert few.ys[6:].isnan().all()


@pytest.mark.parametrize("how", ["nan", "return"])
def test_a_solve_that_succeeds_is_as_without(how: Any) -> None:
    net, y0 = mlp(), leaf(4, 3)

    def run(**more: Any) -> list[Tensor]:
        sol = odegrad.solve(lambda t, y: net(y), y0, TIMES, **ADAPTIVE, **more)
        assert sol.status is Status.SUCCESS
        assert sol.reason == ""
        return [sol.ys.detach(), *torch.autograd.grad(sol.ys.sum(), [y0, *net.parameters()])]

    assert relative(run(on_failure=how), run()) == 0.0


@pytest.mark.parametrize("how", ["nan", "return"])
def test_without_gradients_with_running_costs_breakpoints_and_streamed_losses(how: Any) -> None:
    with torch.no_grad():
        sol = odegrad.solve(
            blow_up,
            start(),
            TIMES,
            on_failure=how,
            running=lambda t, y: y.sum(),
            breakpoints=[0.7],
            **ADAPTIVE,
        )
    assert not sol.ys.requires_grad
    assert sol.running is not None
    assert sol.running.shape == (5,)
    assert torch.isnan(sol.ys[-1]).all()
    assert torch.isnan(sol.running[-1])
    assert math.isfinite(sol.running[2]) == (how == "return")
    y0 = start()
    sol = odegrad.solve(
        blow_up,
        y0,
        TIMES,
        on_failure=how,
        loss_at=lambda j, y: y.sum(),
        running=lambda t, y: y.sum(),
        **ADAPTIVE,
    )
    assert sol.ys is None
    assert sol.loss is not None
    assert torch.isnan(sol.loss)
    assert torch.isnan(sol.running).all()  # type: ignore[arg-type]
    (g,) = torch.autograd.grad(sol.loss, y0)
    assert torch.isnan(g).all()


@pytest.mark.parametrize("options", [ADAPTIVE, FIXED])
def test_compiled(options: Any) -> None:
    f = blow_up if options is ADAPTIVE else exploding
    with using_backend("interpreter"):
        y0 = start()
        sol = odegrad.solve(f, y0, TIMES, on_failure="return", compile=True, **options)
        eager = odegrad.solve(f, y0, TIMES, on_failure="return", **options)
    assert sol.status is eager.status is not Status.SUCCESS
    assert torch.allclose(sol.ys, eager.ys, equal_nan=True)
    (g,) = torch.autograd.grad(sol.ys.sum(), y0)
    assert torch.isnan(g).all()


def test_under_transforms() -> None:
    def run(y: Tensor) -> Tensor:
        return odegrad.solve(blow_up, y, TIMES, on_failure="return", **ADAPTIVE).ys[0].sum()

    y0 = start().detach()
    assert torch.isnan(torch.func.grad(run)(y0)).all()
    _, tangent = torch.func.jvp(run, (y0,), (y0,))
    assert torch.isnan(tangent)
    assert torch.isnan(torch.func.vmap(run)(y0[None])).all()


class Square(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        return self.w * y * y


def test_a_training_step_can_skip_the_batch() -> None:
    model = odegrad.NeuralODE(Square(), on_failure="nan")
    ys = model(start(), [0.0, 2.0])
    assert torch.isnan(ys).all()
    ys[-1].sum().backward()
    assert torch.isnan(model.net.w.grad)


def test_unknown_answers() -> None:
    with pytest.raises(
        errors.InvalidValueError, match='"raise", "nan" or "return", received \'skip\''
    ):
        odegrad.solve(blow_up, start(), TIMES, on_failure="skip")  # type: ignore[arg-type]


def test_wrong_arguments_raise_in_any_case() -> None:
    with pytest.raises(errors.NonFiniteInputError):
        odegrad.solve(blow_up, torch.tensor([math.nan]), TIMES, on_failure="nan")
    with pytest.raises(errors.FieldOutputError):
        odegrad.solve(lambda t, y: y[:1], start(), TIMES, on_failure="nan")


# RejectStep.


def domain(t: Tensor, y: Tensor) -> Tensor:
    """√y, defined for y ≥ 0 only: large steps leave the domain."""
    if bool((y < 0).any()):
        raise odegrad.RejectStep("y has to be positive")
    return -2 * torch.sqrt(y) * (1 - t) ** 3


@pytest.mark.parametrize(
    "mode", [Discrete(), Discrete(odegrad.Binomial(3)), GRAPHS, Tape()], ids=str
)
def test_f_may_ask_for_a_smaller_step(mode: Any) -> None:
    y0 = torch.tensor([0.0626, 1.0], dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"scheme": odegrad.Tsit5(), "stepsize": PID(1e-3, 1e-4, dt0=1.0)}
    sol = odegrad.solve(domain, y0, [0.0, 1.0], gradient=mode, **options)
    assert sol.stats.rejected > 0
    # √y falls by the integral of (1 − t)³, 1/4 in all.
    exact = (y0.detach().sqrt() - 0.25) ** 2
    assert torch.allclose(sol.ys[-1].detach(), exact, atol=2e-3)
    found = torch.autograd.grad(sol.ys[-1].sum(), y0)
    again = odegrad.solve(
        domain, y0, [0.0, 1.0], gradient=Tape(), **(options | {"stepsize": sol.grid})
    )
    assert relative(list(found), list(torch.autograd.grad(again.ys[-1].sum(), y0))) < 1e-12


def test_rejections_leave_no_trace_in_random_numbers() -> None:
    def f(t: Tensor, y: Tensor, strict: bool) -> Tensor:
        noise = torch.randn(())
        if strict and float(t) > 0.3 and f.rejected < 3:  # type: ignore[attr-defined]
            f.rejected += 1  # type: ignore[attr-defined]
            raise odegrad.RejectStep
        return -y + 0 * noise

    states = []
    for strict in (False, True):
        f.rejected = 0  # type: ignore[attr-defined]
        torch.manual_seed(0)
        with pytest.warns(errors.OdegradWarning, match="random numbers"):
            sol = odegrad.solve(
                f, torch.ones(1), [0.0, 1.0], (strict,), scheme=odegrad.Bosh3(),
                stepsize=PID(0.9, 1.0, dt0=0.25, factor_max=1.0001, safety=1.0),
            )  # fmt: skip
        states.append((sol.stats.accepted, sol.stats.rejected))
    assert states[1][1] > states[0][1]


def test_a_field_that_rejects_everything() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        if float(t) > 0.4:
            raise odegrad.RejectStep("no")
        return -y

    with pytest.raises(
        errors.StepTooSmallError, match=r"f rejects every step.*from t = 0\.39|from t = 0\.4"
    ):
        odegrad.solve(f, start(), [0.0, 1.0])
    sol = odegrad.solve(f, start(), [0.0, 1.0], on_failure="return")
    assert sol.status is Status.STEP_TOO_SMALL


def test_on_a_fixed_grid_it_ends_the_solve() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        if float(t) > 0.4:
            raise odegrad.RejectStep("no further")
        return -y

    with pytest.raises(odegrad.RejectStep, match="no further"):
        odegrad.solve(f, start(), [0.0, 1.0], **FIXED)
    y0 = start()
    sol = odegrad.solve(f, y0, [0.0, 0.2, 1.0], on_failure="return", **FIXED)
    assert sol.status is Status.STEP_REJECTED
    assert torch.isfinite(sol.ys[1]).all()
    assert torch.isnan(sol.ys[2]).all()
