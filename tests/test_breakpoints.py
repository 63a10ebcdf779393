"""Times at which f jumps: steps end there, and see one side of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import odegrad
from cases import leaf, relative
from odegrad import PID, Backsolve, Discrete, Mismatched, Quadrature, Steps, Tangent, Tape, controls
from odegrad.compiled import using_backend
from odegrad.errors import InvalidTypeError, InvalidValueError

KNOTS = (0.0, 0.3, 0.7, 1.0)
LEVELS = (1.0, -2.0, 3.0)


def field(t: Tensor, y: Tensor) -> Tensor:
    """Jumps at 0.3 and 0.7; at these times themselves it is what comes next."""
    u = torch.where(t < 0.3, LEVELS[0], torch.where(t < 0.7, LEVELS[1], LEVELS[2]))
    return -u.to(y) * y + torch.cos(3 * t)


def exact(times: list[float]) -> list[float]:
    """SciPy, piece by piece."""
    descending = times[0] > times[-1]
    edges = sorted({*times, 0.3, 0.7}, reverse=descending)
    low, high = min(times), max(times)
    edges = [t for t in edges if low <= t <= high]
    found, y = {edges[0]: 1.0}, 1.0
    for a, b in itertools.pairwise(edges):
        u = LEVELS[(0.5 * (a + b) > 0.3) + (0.5 * (a + b) > 0.7)]
        sol = solve_ivp(
            lambda t, y, u=u: -u * y + math.cos(3 * t),
            (a, b),
            [y],
            "DOP853",
            rtol=1e-13,
            atol=1e-14,
        )
        y = float(sol.y[0, -1])
        found[b] = y
    return [found[t] for t in times]


@pytest.mark.parametrize(
    "times", [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0], [0.0, 0.3, 1.0], [0.1, 0.2], [0.7, 1.0], [0.7, 0.0]]
)
@pytest.mark.parametrize(
    "scheme",
    [
        odegrad.Euler,
        odegrad.Heun,
        odegrad.RK4,
        odegrad.Dopri5,
        odegrad.Dopri8,
        odegrad.ReversibleHeun,
    ],
)
def test_the_order_survives_jumps(scheme: Any, times: list[float]) -> None:
    y0, reference = torch.ones(1, dtype=torch.float64), exact(times)
    errors = []
    for n in (4, 8):
        sol = odegrad.solve(field, y0, times, scheme=scheme(), stepsize=Steps(n), breakpoints=KNOTS)
        assert sol.ys.shape == (len(times), 1)
        assert sol.ts.tolist() == times
        errors.append(
            max(abs(a - b) for a, b in zip(sol.ys[:, 0].tolist(), reference, strict=True))
        )
    assert errors[1] < 2.0 ** (0.4 - scheme().order) * errors[0] + 1e-13, errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.0]])
def test_adaptive_steps_do_not_feel_the_jump(times: list[float], dtype: Any) -> None:
    """Where it is declared, no attempt is rejected for it. In float32, times are rounded like knots."""
    y0 = torch.ones(1, dtype=dtype)
    options: dict[str, Any] = {"scheme": odegrad.Tsit5(), "stepsize": PID(1e-5, 1e-6)}
    sol = odegrad.solve(field, y0, times, breakpoints=(0.3, 0.7), **options)
    blind = odegrad.solve(field, y0, times, **options)
    assert sol.ys[-1].item() == pytest.approx(exact(times)[-1], rel=1e-4)
    assert sol.stats.rejected + 3 < blind.stats.rejected
    assert sol.landings == ((0.0, 0.3, 0.7, 1.0) if times[0] == 0.0 else (1.0, 0.7, 0.3, 0.0))


@pytest.mark.parametrize(
    "scheme",
    [odegrad.RK4(), odegrad.Dopri5(), odegrad.Tsit5(), odegrad.ALF(), odegrad.Reversible()],
)
@pytest.mark.parametrize(
    "mode",
    [
        Discrete(),
        Discrete(odegrad.Binomial(2)),
        Discrete(odegrad.StoreAll(odegrad.Keep.GRAPH)),
        Discrete(odegrad.StoreAll(odegrad.Keep.STAGES)),
        Discrete(odegrad.Every(3)),
        Discrete(memory="1MiB"),
        Tangent(),
    ],
    ids=str,
)
def test_gradients_are_exact(scheme: Any, mode: Any) -> None:
    u = controls.PiecewiseConstant(KNOTS, init=torch.tensor(LEVELS, dtype=torch.float64))
    y0 = leaf(2)
    ts = torch.tensor([0.0, 0.45, 1.0], dtype=torch.float64, requires_grad=True)

    def gradient(mode: Any) -> list[Tensor]:
        sol = odegrad.solve(
            lambda t, y: -y * u(t) + torch.cos(3 * t), y0, ts, scheme=scheme, stepsize=Steps(2),
            gradient=mode, running=lambda t, y: (u(t) * y).sum(),
        )  # fmt: skip
        value = sol.ys.square().sum() + sol.running.sum()  # type: ignore[union-attr]
        return list(torch.autograd.grad(value, [y0, u.values, ts]))

    assert relative(gradient(mode), gradient(Tape())) < 1e-12


@pytest.mark.parametrize(
    "mode", [Mismatched(odegrad.Heun()), Backsolve(), Quadrature(), Backsolve(odegrad.Dopri5())]
)
@pytest.mark.parametrize("times", [(0.0, 0.45, 1.0), (1.0, 0.2)])
def test_the_other_modes_converge_across_jumps(mode: Any, times: Any) -> None:
    u = controls.PiecewiseConstant(KNOTS, init=torch.tensor(LEVELS, dtype=torch.float64))
    y0, ts = leaf(2), torch.tensor(times, dtype=torch.float64, requires_grad=True)

    def gradient(mode: Any, scheme: Any, n: int) -> list[Tensor]:
        sol = odegrad.solve(
            lambda t, y: -y * u(t) + torch.cos(3 * t),
            y0,
            ts,
            scheme=scheme,
            stepsize=Steps(n),
            gradient=mode,
        )
        return list(torch.autograd.grad(sol.ys.square().sum(), [y0, u.values, ts]))

    true = gradient(Tape(), odegrad.Dopri8(), 20)
    errors = [relative(gradient(mode, odegrad.RK4(), n), true) for n in (6, 12)]
    order = 2 if isinstance(mode, Mismatched) else 4
    assert errors[1] < 2.0 ** (0.6 - order) * errors[0], errors


@pytest.mark.parametrize("scheme", [odegrad.RK4(), odegrad.Dopri5()])
def test_compiled(scheme: Any) -> None:
    u = controls.PiecewiseConstant(KNOTS, init=torch.tensor(LEVELS, dtype=torch.float64))
    y0, ts = leaf(2), torch.tensor([0.0, 0.45, 1.0], dtype=torch.float64, requires_grad=True)

    def gradient(compile: bool) -> list[Tensor]:
        sol = odegrad.solve(
            lambda t, y: -y * u(t) + torch.cos(3 * t),
            y0,
            ts,
            scheme=scheme,
            stepsize=Steps(3),
            compile=compile,
        )
        return [sol.ys.detach(), *torch.autograd.grad(sol.ys.square().sum(), [y0, u.values, ts])]

    with using_backend("interpreter"):
        found = gradient(compile=True)
    assert relative(found, gradient(compile=False)) < 1e-13


def test_continuous_controls_cost_nothing_but_their_landings() -> None:
    """Kinks of a derivative do not break the first-same-as-last property."""
    u = controls.PiecewiseLinear(
        KNOTS, init=torch.tensor([1.0, -1.0, 2.0, 0.0], dtype=torch.float64)
    )
    y0 = torch.ones(1, dtype=torch.float64)
    sol = odegrad.solve(
        lambda t, y: -u(t) * y, y0, [0.0, 1.0], scheme=odegrad.Dopri5(), stepsize=Steps(4)
    )
    assert sol.stats.f_evaluations == 3 * 4 * 6 + 1
    jumps = odegrad.solve(
        lambda t, y: -u(t) * y,
        y0,
        [0.0, 1.0],
        scheme=odegrad.Dopri5(),
        stepsize=Steps(4),
        breakpoints=[0.3],
    )
    assert jumps.stats.f_evaluations == 3 * 4 * 7
    assert float((sol.ys - jumps.ys).detach().abs().max()) < 1e-15


def test_without_gradients_and_as_a_module() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u = controls.PiecewiseConstant(
                KNOTS, init=torch.tensor(LEVELS, dtype=torch.float64)
            )

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.u(t) * y + torch.cos(3 * t)

    model = odegrad.NeuralODE(Net(), scheme=odegrad.RK4(), stepsize=Steps(5))
    y0 = torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        still = model(y0, [0.0, 1.0])
    assert torch.equal(still, model(y0, [0.0, 1.0]).detach())
    assert still[-1].item() == pytest.approx(exact([0.0, 1.0])[-1], abs=1e-5)


def test_losses_at_labels_are_not_evaluated_at_breakpoints() -> None:
    y0, seen = leaf(1), set[int]()

    def loss_at(j: int, y: Tensor) -> Tensor:
        seen.add(j)
        return (j + 1) * y.sum()

    options: dict[str, Any] = {"scheme": odegrad.RK4(), "stepsize": Steps(2), "breakpoints": KNOTS}
    for mode in (Discrete(), Discrete(odegrad.Binomial(2)), Tape(), Discrete(memory="1MiB")):
        sol = odegrad.solve(field, y0, [0.0, 0.5, 1.0], loss_at=loss_at, gradient=mode, **options)
        ys = odegrad.solve(field, y0, [0.0, 0.5, 1.0], **options).ys
        value = (ys[:, 0] * torch.arange(1, 4)).sum()
        assert float((sol.loss - value).detach()) == pytest.approx(0.0, abs=1e-14)  # type: ignore[operator]
        (found,), (expected,) = torch.autograd.grad(sol.loss, y0), torch.autograd.grad(value, y0)  # type: ignore[arg-type]
        assert relative([found], [expected]) < 1e-14
    assert seen == {0, 1, 2}


def test_replay_on_the_accepted_grid() -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    sol = odegrad.solve(field, y0, [0.0, 1.0], breakpoints=KNOTS)
    again = odegrad.solve(field, y0, [0.0, 1.0], breakpoints=KNOTS, stepsize=sol.grid)
    assert torch.equal(again.ys, sol.ys)
    steps = sol.grid.times(sol.landings)
    assert len(steps) == sol.stats.accepted + 1
    assert {0.3, 0.7} < set(steps)


def test_breakpoints_that_are_times_up_to_rounding_are_not_repeated() -> None:
    ts = torch.tensor([0.0, 0.3, 1.0])  # float32: 0.3 is 0.30000001192…
    sol = odegrad.solve(
        field,
        torch.ones(1, dtype=torch.float64),
        ts,
        breakpoints=KNOTS,
        stepsize=Steps(3),
        scheme=odegrad.RK4(),
    )
    assert len(sol.landings) == 4
    sharp = odegrad.solve(
        field,
        torch.ones(1, dtype=torch.float64),
        ts.double(),
        breakpoints=KNOTS,
        stepsize=Steps(3),
        scheme=odegrad.RK4(),
    )
    assert float((sol.ys - sharp.ys).abs().max()) < 1e-6


def test_breakpoints_outside_are_passed_over() -> None:
    sol = odegrad.solve(
        field, torch.ones(1), [0.0, 0.2], breakpoints=(-1.0, 0.3, 5.0), stepsize=Steps(2)
    )
    assert sol.landings == (0.0, 0.2)
    assert sol.stats.f_evaluations == 2 * 6 + 1


def test_plans_know_of_breakpoints() -> None:
    plan = odegrad.plan(
        field, leaf(1), [0.0, 1.0], breakpoints=KNOTS, stepsize=Steps(5), show=False
    )
    assert plan.n_steps == 15


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (0.5, InvalidTypeError, r"must be a sequence of times, received float.*breakpoints=\(0.5"),
        ("0.5", InvalidTypeError, "received str"),
        ([None], InvalidTypeError, "received None among them"),
        ([0.2, math.nan], InvalidValueError, "must be finite, received nan"),
    ],
)
def test_bad_breakpoints(given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        odegrad.solve(field, torch.ones(1), [0.0, 1.0], breakpoints=given)


def test_rewinding_over_jumps_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="Rewind takes steps back"):
        odegrad.solve(
            field, leaf(1), [0.0, 1.0], scheme=odegrad.ALF(), stepsize=Steps(3), breakpoints=KNOTS,
            gradient=Discrete(odegrad.Rewind(2)),
        )  # fmt: skip
