"""Dense output: its order, its transpose, and that asking for outputs does not change the steps."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import GRAPHS, Case, leaf, loss, mlp, relative, structured, time_dependent
from odegrad import PID, Binomial, Discrete, Every, Keep, Steps, StoreAll, Tape, errors
from odegrad.compiled import using_backend
from odegrad.schemes import SCHEMES
from odegrad.schemes.interpolant import Interpolant, default_interpolant

TIMES = (0.1, 0.15, 0.4, 0.45, 0.7, 0.7, 1.0, 1.1)
POLICIES = [
    Discrete(),
    Discrete(StoreAll(Keep.STAGES)),
    GRAPHS,
    Discrete(Every(2)),
    Discrete(Binomial(2)),
]
ADAPTIVE = [s() for s in SCHEMES if s().error_order is not None]
schemes = pytest.mark.parametrize("scheme", [s() for s in SCHEMES], ids=repr)


def solved(
    case: Case, gradient: Any, scheme: Any, stepsize: Any, times: Any = TIMES, **options: Any
) -> tuple[list[Tensor], odegrad.Solution]:
    """Outputs, gradients w.r.t. y0, parameters, args and ts, and the solution."""
    ts = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    sol = odegrad.solve(
        case.f, case.y0, ts, case.args,
        scheme=scheme, stepsize=stepsize, gradient=gradient, **options,
    )  # fmt: skip
    inputs = [*case.y0_leaves, *case.others, ts]
    grads = torch.autograd.grad(loss(sol.ys), inputs)
    return [*(x.detach() for x in torch.utils._pytree.tree_leaves(sol.ys)), *grads], sol


# The interpolants.


def pendulum(t: Any, y: Tensor, p: Any = ()) -> Tensor:
    return torch.stack([y[..., 1] * math.cos(t), -y[..., 0] * (1 + 0.3 * y[..., 1])], dim=-1)


@schemes
def test_order(scheme: Any) -> None:
    """The error of a step is read as well as the scheme accumulates it: O(h^p), at least."""
    y0, start = torch.tensor([1.0, 0.3], dtype=torch.float64), 0.3
    parts = (0.13, 0.37, 0.5, 0.81)
    errors_found = []
    for h in (0.3, 0.15) if scheme.order == 8 else (0.1, 0.05):
        ts = [start, *(start + x * h for x in parts), start + h]
        found = odegrad.solve(
            lambda t, y: pendulum(float(t), y), y0, ts, scheme=scheme, stepsize=Steps(1), land=False
        ).ys
        exact = odegrad.solve(
            lambda t, y: pendulum(float(t), y), y0, ts, scheme=odegrad.Dopri8(), stepsize=Steps(8)
        ).ys
        errors_found.append(float((found - exact)[1:-1].abs().max()))
    assert math.log2(errors_found[0] / errors_found[1]) > scheme.order - 0.3, errors_found


@pytest.mark.parametrize("scheme", ADAPTIVE, ids=repr)
def test_read_states_are_as_good_as_landed_ones(scheme: Any) -> None:
    """Inside of steps the error is at most a few times that at their ends."""
    y0 = torch.tensor([1.0, 0.3], dtype=torch.float64)
    ts = torch.linspace(0.0, 6.0, 41, dtype=torch.float64)

    def exact(ts: Any) -> Tensor:
        return odegrad.solve(
            pendulum_of_t, y0, ts, scheme=odegrad.Dopri8(), stepsize=odegrad.Fixed(0.01)
        ).ys

    for tolerance in (1e-4, 1e-7) if scheme.order > 2 else (1e-4,):
        sol = odegrad.solve(
            pendulum_of_t,
            y0,
            ts,
            scheme=scheme,
            stepsize=PID(tolerance, tolerance),
            land=False,
        )
        nodes = sol.grid.times(sol.landings)
        at_nodes = float((sol(nodes) - exact(nodes)).abs().max())
        assert float((sol.ys - exact(ts)).abs().max()) < 10 * max(at_nodes, tolerance)


def pendulum_of_t(t: Tensor, y: Tensor) -> Tensor:
    return pendulum(float(t), y)


def test_a_wrong_interpolant_raises() -> None:
    good = odegrad.Dopri5.interpolant
    assert good is not None
    row = (1.0, *(x + 1e-9 for x in good.beta[0][1:]))
    with pytest.raises(errors.InvalidValueError, match=r"ends with weights|does not have order"):
        Interpolant((row, *good.beta[1:]), 4).check(odegrad.Dopri5.tableau)
    with pytest.raises(errors.InvalidValueError, match="does not have order 4"):
        Interpolant(
            default_interpolant(odegrad.Bosh3.tableau).beta,
            4,  # pyright: ignore
        ).check(odegrad.Bosh3.tableau)


# Steps do not depend on the outputs.


@pytest.mark.parametrize("gradient", [Tape(), *POLICIES])
def test_outputs_do_not_change_the_steps(gradient: Any) -> None:
    few, options = (TIMES[0], TIMES[-1]), (gradient, odegrad.Tsit5(), PID(1e-6, 1e-8))
    _, with_few = solved(time_dependent(), *options, few, land=False)
    _, with_many = solved(time_dependent(), *options, land=False)
    assert with_few.grid == with_many.grid
    assert with_few.stats.forward_evaluations == with_many.stats.forward_evaluations
    _, landed = solved(time_dependent(), *options, land=True)
    assert len(landed.grid.segments) == len(TIMES) - 1


def test_adaptive_steps_are_read_and_others_land() -> None:
    """Asking for more outputs changes no step of the default; `land=True` and fixed steps end at them."""
    few, case = (TIMES[0], TIMES[-1]), time_dependent
    segments = len(TIMES) - 1
    for scheme, stepsize in ((odegrad.Tsit5(), PID(1e-6, 1e-8)), (odegrad.Dopri8(), PID(1e-3))):
        for compiled in (False, True):
            options = (Discrete(), scheme, stepsize)
            with using_backend("interpreter"):
                _, ends = solved(case(), *options, few, compile=compiled)
                found, sol = solved(case(), *options, compile=compiled)
                explicit, _ = solved(case(), *options, compile=compiled, land=False)
                _, landed = solved(case(), *options, compile=compiled, land=True)
            assert sol.grid == ends.grid
            assert sol.landings == few
            assert all(map(torch.equal, found, explicit))
            assert len(landed.grid.segments) == segments
            assert landed.landings == TIMES
    for fixed in (Steps(2), odegrad.Fixed(0.1)):
        _, sol = solved(case(), Discrete(), odegrad.Tsit5(), fixed)
        assert sol.landings == TIMES
    # A recorded grid replays as it was recorded.
    _, sol = solved(case(), Discrete(), odegrad.Dopri8(), landed.grid)
    assert sol.landings == TIMES


def test_what_is_read_by_f_lands_if_f_draws_random_numbers() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5)).double()
    for scheme, count in ((odegrad.Dopri5(), 1), (odegrad.Dopri8(), len(TIMES) - 1)):
        with pytest.warns(errors.OdegradWarning, match="error estimate of adaptive steps"):
            sol = odegrad.solve(
                lambda t, y: net(y), leaf(2, 3), TIMES, scheme=scheme, stepsize=PID(0.3, 0.3)
            )
        assert len(sol.grid.segments) == count


# The transpose.


@schemes
@pytest.mark.parametrize("case", [time_dependent, structured])
def test_discrete_equals_tape(scheme: Any, case: Any) -> None:
    stepsize = Steps(4) if scheme.error_order is None else PID(1e-3, 1e-5)
    expected, sol = solved(case(), Tape(), scheme, stepsize, land=False)
    assert len(sol.grid.segments) == 1
    for gradient in POLICIES:
        found, again = solved(case(), gradient, scheme, stepsize, land=False)
        assert again.grid == sol.grid
        assert relative(found, expected) <= 1e-13


def test_against_central_differences() -> None:
    """On the recorded grid, with respect to every time, the initial state and a parameter."""
    times = torch.tensor(TIMES, dtype=torch.float64)
    w, y0 = torch.tensor(0.7, dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64)

    def value(w: Tensor, y0: Tensor, ts: Tensor, stepsize: Any) -> Any:
        sol = odegrad.solve(
            lambda t, y: w * torch.stack([y[1] * torch.cos(t), -y[0] * (1 + y[1])]),
            y0,
            ts,
            scheme=odegrad.Dopri5(),
            stepsize=stepsize,
            land=False,
        )
        return loss(sol.ys), sol.grid

    _, grid = value(w, y0, times, PID(1e-3, 1e-5))
    inputs = [x.clone().requires_grad_() for x in (w, y0, times)]
    grads = torch.autograd.grad(value(*inputs, grid)[0], inputs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        v = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in inputs]
        v[2][4] = v[2][5]  # equal times stay equal
        e = 1e-6
        ends = [
            float(value(*(x.detach() + s * e * d for x, d in zip(inputs, v, strict=True)), grid)[0])
            for s in (1, -1)
        ]
        found = sum(float((g * d).sum()) for g, d in zip(grads, v, strict=True))
        assert abs(found - (ends[0] - ends[1]) / (2 * e)) < 1e-8 * abs(found) + 1e-8


def test_the_derivative_of_a_time_is_the_slope_of_the_dense_output() -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    for scheme in (odegrad.Dopri5(), odegrad.CashKarp()):
        ts = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=True)
        sol = odegrad.solve(
            lambda t, y: -y, y0, ts, scheme=scheme, stepsize=PID(1e-3, 1e-6), land=False
        )
        (grad,) = torch.autograd.grad(sol.ys[1].sum(), ts)
        e, at = 1e-5, [0.0, 0.4 - 1e-5, 0.4 + 1e-5, 1.0]
        near = odegrad.solve(lambda t, y: -y, y0, at, scheme=scheme, stepsize=sol.grid).ys
        assert abs(float(grad[1]) - float(near[2] - near[1]) / (2 * e)) < 1e-9


@pytest.mark.parametrize("gradient", [Tape(), Discrete(), Discrete(Binomial(2)), GRAPHS])
def test_second_derivatives(gradient: Any) -> None:
    def product(gradient: Any) -> list[Tensor]:
        net, y0 = mlp(), leaf(2, 3)
        inputs = [y0, *net.parameters()]
        v = [torch.ones_like(x) for x in inputs]
        found = odegrad.hvp(
            lambda: loss(
                odegrad.solve(
                    lambda t, y: net(y),
                    y0,
                    TIMES,
                    stepsize=PID(1e-4, 1e-6),
                    gradient=gradient,
                    land=False,
                ).ys
            ),
            inputs,
            v,
        )
        return [*found.gradient, *found.product]

    assert relative(product(gradient), product(Tape())) <= 1e-12


def test_transforms() -> None:
    net = mlp()
    f = lambda t, y: net(y)  # noqa: E731
    y0 = leaf(4, 3).detach()

    def end(y: Tensor) -> Tensor:
        return odegrad.solve(f, y, TIMES, stepsize=PID(1e-4, 1e-6), land=False).ys.square().sum()

    expected = torch.func.grad(end)(y0)
    tangent = torch.func.jvp(end, (y0,), (torch.ones_like(y0),))[1]
    torch.testing.assert_close(tangent, expected.sum(), rtol=1e-12, atol=0.0)
    each = torch.func.vmap(end)(y0)
    assert each.shape == (4,)


def test_running_costs_and_breakpoints() -> None:
    theta = leaf(3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y * theta * torch.where(t < 0.5, 1.0, 3.0)

    results = []
    for gradient in (Tape(), Discrete(), GRAPHS):
        y0 = leaf(3, seed=1)
        ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
        sol = odegrad.solve(
            f, y0, ts, stepsize=PID(1e-6, 1e-8), gradient=gradient, breakpoints=(0.5,), land=False,
            running=lambda t, y: y.square().sum() * torch.cos(t),
        )  # fmt: skip
        assert len(sol.grid.segments) == 2
        assert sol.landings == (0.1, 0.5, 1.1)
        assert sol.running is not None
        value = loss(sol.ys) + sol.running.square().sum()
        results.append([sol.running.detach(), *torch.autograd.grad(value, [y0, theta, ts])])
    assert max(relative(x, results[0]) for x in results[1:]) <= 1e-12
    exact = y0.detach() * torch.exp(-theta.detach() * (0.4 + 3 * 0.2))
    torch.testing.assert_close(sol.ys[4], exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("times", [(1.1, 0.7, 0.3, 0.1), (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.5)])
def test_descending_and_equal_times(times: Any) -> None:
    for scheme in (odegrad.Tsit5(), odegrad.Dopri8()):
        expected, sol = solved(time_dependent(), Tape(), scheme, PID(1e-5, 1e-7), times, land=False)
        assert bool(torch.isfinite(torch.cat([x.reshape(-1) for x in expected])).all())
        found, _ = solved(time_dependent(), Discrete(), scheme, PID(1e-5, 1e-7), times, land=False)
        assert relative(found[:-1], expected[:-1]) <= 1e-12
        torch.testing.assert_close(found[-1], expected[-1], rtol=1e-11, atol=1e-13)
        for j in range(len(times) - 1):
            if times[j] == times[j + 1]:
                torch.testing.assert_close(sol.ys[j], sol.ys[j + 1], rtol=1e-13, atol=1e-14)


def test_a_recorded_grid_is_read_as_it_was_recorded() -> None:
    for land in (False, True):
        options = (Discrete(), odegrad.Tsit5())
        found, sol = solved(time_dependent(), *options, PID(1e-6, 1e-8), land=land)
        again, replayed = solved(time_dependent(), *options, sol.grid)
        assert replayed.grid == sol.grid
        assert all(map(torch.equal, found, again))


def test_a_budget_holds_for_dense_output() -> None:
    net, y0 = mlp(64, 32).float(), torch.randn(64, 32, requires_grad=True)
    ts = torch.linspace(0.0, 2.0, 30)
    call = {"stepsize": PID(1e-5, 1e-5), "gradient": Discrete(memory="6MiB"), "land": False}
    f = lambda t, y: net(y)  # noqa: E731
    plan = odegrad.plan(f, y0, ts, **call)  # pyright: ignore

    def run() -> None:
        ys = odegrad.solve(f, y0, ts, **call).ys  # pyright: ignore
        torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()])

    run()
    from odegrad.allocations import peak_bytes

    assert plan.peak_bytes <= 6 << 20
    assert peak_bytes(run, torch.device("cpu")) <= 1.02 * (6 << 20)


# What does not go with it.


def test_what_steps_onto_every_time() -> None:
    y0, ts = leaf(3), [0.0, 0.5, 1.0]
    f = lambda t, y: -y  # noqa: E731
    for gradient in (odegrad.Backsolve(), odegrad.Quadrature()):
        assert len(odegrad.solve(f, y0, ts, gradient=gradient).grid.segments) == 2
        with pytest.raises(errors.InvalidValueError, match=r"land=False is not possible.*starts"):
            odegrad.solve(f, y0, ts, gradient=gradient, land=False)
    streamed = {"loss_at": lambda j, y: y.sum()}
    assert len(odegrad.solve(f, y0, ts, **streamed).grid.segments) == 2
    with pytest.raises(errors.InvalidValueError, match="loss_at needs a state at every time"):
        odegrad.solve(f, y0, ts, land=False, **streamed)
    with pytest.raises(errors.InvalidTypeError, match="land must be True, False or None"):
        odegrad.solve(f, y0, ts, land="no")  # pyright: ignore


# Reading a solution again.


@pytest.mark.parametrize("gradient", [Tape(), Discrete(), Discrete(Binomial(2))])
@pytest.mark.parametrize("land", [False, True])
def test_reading_again_is_as_asking_before(gradient: Any, land: Any) -> None:
    net = mlp()
    f = lambda t, y: net(y) * torch.cos(t)  # noqa: E731
    options = {"stepsize": PID(1e-5, 1e-7), "gradient": gradient, "land": land}
    results = []
    for again in (False, True):
        y0 = leaf(2, 3)
        ends = torch.tensor([0.1, 0.6, 1.1], dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.7, 0.2], dtype=torch.float64, requires_grad=True)
        sol = odegrad.solve(f, y0, ends, **options)
        if again:
            ys = sol(t)
        elif land:
            order = torch.stack([ends[0], t[1], ends[1], t[0], ends[2]])
            grid = odegrad.solve(f, y0, ends, **options).grid
            run = odegrad.solve(f, y0, order[[0, 2, 4]], **{**options, "stepsize": grid})
            ys = torch.stack([run(t[0]), run(t[1])])
        else:
            order = torch.stack([ends[0], t[1], t[0], ends[2]])
            ys = odegrad.solve(f, y0, order, **{**options, "stepsize": sol.grid}).ys[[2, 1]]
        inputs = [y0, *net.parameters(), ends, t]
        results.append([ys.detach(), *torch.autograd.grad(loss(ys), inputs)])
    assert relative(results[1], results[0]) <= 1e-12


def test_reading_again_in_every_shape() -> None:
    y0 = {"a": leaf(3), "b": (leaf(2, 2),)}
    sol = odegrad.solve(lambda t, y: {"a": -y["a"], "b": (2 * y["b"][0],)}, y0, [0.0, 1.0])
    one, many = sol(0.25), sol([0.25, 1.0, 0.0])
    assert one["a"].shape == (3,)
    assert many["b"][0].shape == (3, 2, 2)
    torch.testing.assert_close(one["a"], y0["a"] * math.exp(-0.25), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many["a"][1], sol.ys["a"][-1], rtol=1e-15, atol=0.0)
    torch.testing.assert_close(many["a"][2], y0["a"], rtol=1e-15, atol=0.0)


def test_a_stochastic_field_is_read_along_the_same_draws() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    sol = odegrad.solve(
        lambda t, y: net(y), torch.randn(4, 3), [0.0, 0.5, 1.0], scheme=odegrad.RK4(),
        stepsize=Steps(3),
    )  # fmt: skip
    state = torch.get_rng_state()
    torch.testing.assert_close(sol(1.0), sol.ys[-1], rtol=0.0, atol=0.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_reading_again_with_wrong_times_or_too_late() -> None:
    w = leaf(seed=1)
    sol = odegrad.solve(lambda t, y: -w * y, leaf(3), [0.0, 1.0])
    for t, said in (
        (1.5, "outside of the solve"),
        (float("nan"), "outside"),
        ([[0.1]], "one time"),
    ):
        with pytest.raises(errors.InvalidValueError, match=said):
            sol(t)
    with pytest.raises(errors.InvalidTypeError, match="t must be a number"):
        sol("noon")
    assert pickle.loads(pickle.dumps(sol.grid)) == sol.grid
    with torch.no_grad():
        w += 1.0
    with pytest.raises(errors.ChangedTensorError, match="changed in place since the solve"):
        sol(0.5)
    failed = odegrad.solve(lambda t, y: y * y, torch.ones(1), [0.0, 2.0], on_failure="nan")
    with pytest.raises(errors.InvalidValueError, match="needs a solve that succeeded"):
        failed(0.5)
