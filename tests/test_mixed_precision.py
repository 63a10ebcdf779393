"""Half precision: f under autocast, states in half precision, loss scaling.

What is stored is what f is evaluated at, so that the gradient is that of the program that ran; what is
added up over stages and steps is added up in single precision at least. The oracle carries the same
states in double precision: their roundings are constants to it, and so to the gradient.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import GRAPHS, loss, mlp, relative
from odegrad import (
    PID,
    Backsolve,
    Binomial,
    Discrete,
    Every,
    Keep,
    Quadrature,
    Steps,
    StoreAll,
    Tape,
)
from odegrad.state import axpy
from oracles import rk_step

TIMES = [0.0, 0.4, 1.0]
HALVES = [torch.bfloat16, torch.float16]
POLICIES = [
    Discrete(),
    Discrete(StoreAll(Keep.STAGES)),
    GRAPHS,
    Discrete(Every(3)),
    Discrete(Binomial(2)),
]
SCHEMES = [odegrad.Euler(), odegrad.RK4(), odegrad.Dopri5(), odegrad.ReversibleHeun()]
EPS = float(torch.finfo(torch.bfloat16).eps)


def under(dtype: torch.dtype | None) -> torch.autocast:
    """Autocast on the CPU, off if there is no dtype."""
    return torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)


class Stored(torch.autograd.Function):
    """x in half precision and back, which counts as adding a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


# f under autocast, the state in single precision.


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_policy_sees_the_same_f_under_autocast(dtype: torch.dtype, scheme: Any) -> None:
    net, y0, seen, results = mlp(16).float(), torch.randn(4, 3).requires_grad_(), set(), []

    def f(t: Tensor, y: Tensor) -> Tensor:
        assert y.dtype == torch.float32
        out = net(y)
        seen.add(out.dtype)
        return out

    for gradient in POLICIES:
        with under(dtype):
            sol = odegrad.solve(f, y0, TIMES, scheme=scheme, stepsize=Steps(5), gradient=gradient)
            value = loss(sol.ys)
        grads = torch.autograd.grad(value, [y0, *net.parameters()])
        assert sol.ys.dtype == torch.float32
        assert all(g.dtype == torch.float32 for g in grads)
        results.append([sol.ys.detach(), *grads])
    assert seen == {dtype}
    for found in results[1:]:
        assert torch.equal(found[0], results[0][0])
        assert relative(found[1:], results[0][1:]) < 4 * float(torch.finfo(dtype).eps)


def test_the_gradient_under_autocast_is_that_in_double_precision() -> None:
    """Up to the rounding of the products inside of f, however many steps there are."""
    torch.manual_seed(0)
    weight = (0.3 * torch.randn(6, 6)).bfloat16()  # the copy that autocast makes is exact
    y0, steps = torch.randn(5, 6), 400

    def reference(weight: Tensor, y: Tensor) -> Tensor:
        for _ in range(steps):
            y = y + torch.tanh(y @ weight) / steps
        return y

    inputs = [weight.double().requires_grad_(), y0.double().requires_grad_()]
    expected = torch.autograd.grad(reference(*inputs).square().sum(), inputs)
    inputs = [weight.float().requires_grad_(), y0.clone().requires_grad_()]
    errors = {}
    for gradient in (*POLICIES, Tape()):
        with under(torch.bfloat16):
            ys = odegrad.solve(
                lambda t, y: torch.tanh(y @ inputs[0]),
                inputs[1],
                [0.0, 1.0],
                scheme=odegrad.Euler(),
                stepsize=Steps(steps),
                gradient=gradient,
            ).ys
        found = torch.autograd.grad(ys[-1].square().sum(), inputs)
        errors[gradient] = relative([g.double() for g in found], list(expected))
    tape = errors.pop(gradient)
    assert max(errors.values()) < EPS
    assert tape > 3 * max(errors.values())  # autocast adds up in bfloat16 what its copy receives


@pytest.mark.parametrize(
    ("scheme", "stepsize"),
    [(odegrad.RK4(), Steps(5)), (odegrad.ALF(), Steps(5)), (odegrad.Dopri5(), PID(1e-2, 1e-2))],
)
def test_the_compiled_engine_under_autocast(scheme: Any, stepsize: Any) -> None:
    net, y0, results = mlp(16).float(), torch.randn(4, 3).requires_grad_(), []
    for compiled in (False, True):
        with under(torch.bfloat16):
            ys = odegrad.solve(
                lambda t, y: net(y), y0, TIMES, scheme=scheme, stepsize=stepsize, compile=compiled
            ).ys
        results.append([ys.detach(), *torch.autograd.grad(loss(ys), [y0, *net.parameters()])])
    assert relative(results[1], results[0]) < 4 * EPS


@pytest.mark.parametrize("gradient", [Backsolve(), Quadrature()])
def test_modes_under_autocast(gradient: Any) -> None:
    net, y0, results = mlp(16).float(), torch.randn(4, 3).requires_grad_(), []
    for mode in (Discrete(), gradient):
        with under(torch.bfloat16):
            ys = odegrad.solve(
                lambda t, y: net(y),
                y0,
                TIMES,
                scheme=odegrad.RK4(),
                stepsize=Steps(10),
                gradient=mode,
            ).ys
        results.append(torch.autograd.grad(loss(ys), [y0, *net.parameters()]))
    assert all(g.dtype == torch.float32 for g in results[1])
    assert relative(list(results[1]), list(results[0])) < 8 * EPS


# States in half precision.


def field(weight: Tensor) -> Any:
    """tanh(y W), inside in the precision of W, in the end in that of y."""
    return lambda t, y: torch.tanh(y.to(weight.dtype) @ weight).to(y.dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scheme", [odegrad.Euler(), odegrad.RK4(), odegrad.Kutta3()])
@pytest.mark.parametrize("gradient", [x for x in POLICIES if x != GRAPHS])
def test_states_in_half_precision(dtype: torch.dtype, scheme: Any, gradient: Any) -> None:
    torch.manual_seed(0)
    weight, y0 = 0.5 * torch.randn(6, 6), torch.randn(5, 6).to(dtype)
    inputs = [weight.clone().requires_grad_(), y0.clone().requires_grad_()]
    ys = odegrad.solve(
        field(inputs[0]),
        inputs[1],
        [0.0, 1.0],
        scheme=scheme,
        stepsize=Steps(32),
        gradient=gradient,
    ).ys
    assert ys.dtype == dtype
    found = torch.autograd.grad(ys[-1].double().square().sum(), inputs)
    assert [g.dtype for g in found] == [torch.float32, dtype]

    wide = [weight.double().requires_grad_(), y0.double().requires_grad_()]

    def stored(t: Any, y: list[Tensor]) -> list[Tensor]:
        return [Stored.apply(torch.tanh(Stored.apply(y[0], dtype) @ wide[0]), dtype)]

    y, tableau = wide[1], (scheme.tableau.a, scheme.tableau.b, scheme.tableau.c)
    for _ in range(32):
        y = Stored.apply(rk_step(tableau, stored, 0.0, 1 / 32, [y])[0][0], dtype)
    eps = float(torch.finfo(dtype).eps)
    # An entry or two may be rounded the other way.
    assert relative([ys[-1].detach().double()], [y.detach()]) < eps / 2
    expected = torch.autograd.grad(y.square().sum(), wide)
    assert relative([g.double() for g in found], list(expected)) < eps


def test_sums_over_steps_do_not_stand_still() -> None:
    """In bfloat16, 256 + 1 is 256: a sum of a thousand equal terms would end there."""
    for gradient in POLICIES:
        theta = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
        y0 = torch.zeros(2)
        for compiled in (False, True):
            ys = odegrad.solve(
                lambda t, y: theta + 0 * y,  # noqa: B023
                y0,
                [0.0, 1024.0],
                scheme=odegrad.Euler(),
                stepsize=Steps(1024),
                gradient=gradient,
                compile=compiled,
            ).ys
            (found,) = torch.autograd.grad(ys[-1].sum(), [theta])
            assert found == 2048, (gradient, compiled)


def test_the_compiled_engine_leaves_half_precision_to_the_other() -> None:
    """Where there is a gradient; its transposes would add up in half precision."""
    y0, weight = torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)
    solve = functools.partial(
        odegrad.solve, lambda t, y: -weight * y, y0, TIMES, stepsize=Steps(4), compile=True
    )
    with pytest.warns(odegrad.errors.OdegradWarning, match="its state is in half precision"):
        expected = solve().ys
    with torch.no_grad():
        assert relative([solve().ys], [expected]) < EPS  # without a warning


@pytest.mark.parametrize("scheme", [odegrad.ALF(), odegrad.ReversibleHeun()])
def test_other_schemes(scheme: Any) -> None:
    """Of f = W y the gradient does not depend on the state's roundings."""
    torch.manual_seed(0)
    weight, y0 = (0.5 * torch.randn(6, 6)).bfloat16(), torch.randn(5, 6)
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        y = y0.to(dtype).requires_grad_()
        ys = odegrad.solve(
            lambda t, y: y @ weight.to(y.dtype), y, [0.0, 1.0], scheme=scheme, stepsize=Steps(128)
        ).ys
        results.append(torch.autograd.grad(ys[-1].sum(), [y])[0].double())
    assert relative(results[1:], results[:1]) < EPS


def test_the_planner_does_not_choose_graphs() -> None:
    """On which autograd would add up in half precision."""
    theta = torch.ones(3, requires_grad=True)
    for dtype, graphs in ((torch.float32, True), (torch.bfloat16, False)):
        plan = odegrad.plan(
            lambda t, y: theta.to(y.dtype) * y,
            torch.ones(3, dtype=dtype),
            [0.0, 1.0],
            stepsize=Steps(10),
            gradient=Discrete(memory="1GiB"),
        )
        assert (plan.checkpoints == StoreAll(Keep.GRAPH)) is graphs, plan


def test_a_step_is_added_in_single_precision() -> None:
    """y + h k is rounded once, not h k first."""
    y0 = torch.full((3,), 1.0, dtype=torch.bfloat16)
    k = torch.full((3,), 1.0078125, dtype=torch.bfloat16)
    ys = odegrad.solve(
        lambda t, y: k, y0, [0.0, 0.30078125], scheme=odegrad.Euler(), stepsize=Steps(1)
    ).ys
    assert torch.equal(ys[-1], (y0.double() + 0.30078125 * k.double()).bfloat16())


@pytest.mark.parametrize("dtype", HALVES)
def test_adaptive_steps_measure_the_error_in_single_precision(dtype: torch.dtype) -> None:
    """In float16 a square overflows at 256 and underflows at 2e-4."""
    scale = 1000.0 if dtype == torch.float16 else 1e30
    for size in (scale, 1 / scale):
        y0 = torch.full((4,), size, dtype=dtype)
        sol = odegrad.solve(lambda t, y: -y, y0, [0.0, 1.0], stepsize=PID(0.05, 0.05 * size))
        assert relative([sol.ys[-1].double()], [y0.double() * 0.36788]) < 0.05
        assert sol.stats.accepted < 20


def test_error_norms_of_half_precision() -> None:
    """Their squares would overflow, and tolerances underflow."""
    for error, size in ((300.0, 1000.0), (3e-7, 1e-5)):
        e, y = (torch.full((5,), x, dtype=torch.float16) for x in (error, size))
        found = PID(1e-3, 0.0).scaled_norm((e,), (y,), (y,))
        expected = PID(1e-3, 0.0).scaled_norm((e.double(),), (y.double(),), (y.double(),))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0.0)


def test_an_overflow_of_float16_raises() -> None:
    y0 = torch.full((2,), 200.0, dtype=torch.float16)
    with pytest.raises(odegrad.errors.SolveError, match="float16"):
        odegrad.solve(lambda t, y: y * y, y0, [0.0, 4.0], scheme=odegrad.Euler(), stepsize=Steps(4))


# Loss scaling.


def test_grad_scaler() -> None:
    """A step with an overflow is skipped and the scale falls; others are those without a scale."""
    net, y0 = mlp(16).float(), torch.randn(8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=1000)

    def value() -> Tensor:
        with under(torch.float16):
            ys = odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0], stepsize=Steps(8)).ys
            return ys[-1].float().square().mean()

    scales, before = [], [p.detach().clone() for p in net.parameters()]
    while len(scales) < 40:
        optimizer.zero_grad()
        scaler.scale(value()).backward()
        scaler.unscale_(optimizer)
        grads = [p.grad.clone() for p in net.parameters()]
        finite = all(bool(g.isfinite().all()) for g in grads)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        moved = not all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
        assert moved is finite
        if moved:
            break
    assert len(scales) > 1  # the first were too large
    with torch.no_grad():
        for p, old in zip(net.parameters(), before, strict=True):
            p.copy_(old)
    expected = torch.autograd.grad(value(), list(net.parameters()))
    assert relative(grads, list(expected)) < 4 * float(torch.finfo(torch.float16).eps)


def test_terms_of_an_increment_are_not_rounded():
    """h (k_2 − k_1) is right to a rounding of itself, though the slopes differ in the last place only."""
    one, zero = torch.ones(1, dtype=torch.bfloat16), (torch.zeros(1, dtype=torch.bfloat16),)
    k1, k2 = one, one + torch.finfo(torch.bfloat16).eps
    (found,) = axpy(zero, 1 / 3, (-1.0, 1.0), ((k1,), (k2,)))
    exact = torch.finfo(torch.bfloat16).eps / 3
    assert found.dtype is torch.bfloat16
    assert abs(float(found) - exact) < 4e-3 * exact
