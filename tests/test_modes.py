"""The gradient modes beside `Discrete`: what each is of, at which order, and what it refuses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odegrad
from cases import CASES, SCHEME_STEPS, leaf, loss, mlp, relative
from odegrad import (
    PID,
    Backsolve,
    Discrete,
    Fixed,
    GaussKronrod,
    Mismatched,
    Quadrature,
    Steps,
    Tangent,
    Tape,
)
from odegrad.errors import GradientUnavailableError, InvalidTypeError, InvalidValueError
from odegrad.gradients.kronrod import NODES
from odegrad.schemes import SCHEMES, ExplicitRungeKutta
from odegrad.sweeps.trajectory import Trajectory

EXPLICIT = [s for s in SCHEMES if issubclass(s, ExplicitRungeKutta)]
REVERSIBLE = [s for s in SCHEMES if not issubclass(s, ExplicitRungeKutta)]


# Tangent: exact, by another road.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("scheme", "stepsize"),
    [x for x in SCHEME_STEPS if x[0] in (odegrad.Euler, odegrad.Tsit5, odegrad.ALF)],
)
def test_tangent_is_the_gradient_of_the_computed_loss(
    case: Any, scheme: Any, stepsize: Any
) -> None:
    problem = case()
    exact, sol = problem.gradient(Tape(), scheme(), stepsize)
    found, _ = problem.gradient(Tangent(), scheme(), sol.grid)
    assert relative(found, exact) < 1e-12


def test_tangent_of_complex_states_and_second_derivatives() -> None:
    w = torch.tensor([1.0 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True)
    y0 = torch.tensor([1.0, 1.0j], dtype=torch.complex128, requires_grad=True)

    def gradient(mode: Any) -> list[Tensor]:
        ys = odegrad.solve(
            lambda t, y: w * y * y.conj() * t, y0, [0.0, 1.0], scheme=odegrad.RK4(),
            stepsize=Steps(5), gradient=mode,
        ).ys  # fmt: skip
        first = torch.autograd.grad(ys.abs().square().sum(), [y0, w], create_graph=True)
        value = sum(g.abs().square().sum() for g in first)
        second = torch.autograd.grad(value, [y0, w])  # type: ignore[arg-type]
        return [x.detach() for x in (*first, *second)]

    assert relative(gradient(Tangent()), gradient(Tape())) < 1e-12


def test_tangent_where_vmap_does_not_go() -> None:
    """A field with a branch on values is differentiated direction by direction."""
    a, y0 = leaf(2), leaf(3, 2)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -a * y if bool(y.sum() > -1e9) else y

    def gradient(mode: Any) -> list[Tensor]:
        ys = odegrad.solve(f, y0, [0.0, 1.0], stepsize=Steps(3), gradient=mode).ys
        return list(torch.autograd.grad(loss(ys), [a, y0]))

    assert relative(gradient(Tangent()), gradient(Tape())) < 1e-13


def test_tangent_replays_dropout() -> None:
    net = torch.nn.Sequential(mlp(), torch.nn.Dropout(0.4))
    y0 = leaf(5, 3)

    def gradient(mode: Any) -> list[Tensor]:
        torch.manual_seed(1)
        ys = odegrad.solve(
            lambda t, y: net(y), y0, [0.0, 0.5, 1.0], stepsize=Steps(3), gradient=mode
        ).ys
        return list(torch.autograd.grad(loss(ys), [y0, *net.parameters()]))

    assert relative(gradient(Tangent()), gradient(Discrete())) < 1e-12


def test_tangent_of_an_empty_state() -> None:
    y0 = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    sol = odegrad.solve(lambda t, y: -y, y0, [0.0, 1.0], stepsize=Steps(2), gradient=Tangent())
    assert torch.autograd.grad(sol.ys.sum(), y0)[0].shape == (0, 3)


def test_tangent_refuses_many_parameters() -> None:
    net, y0 = torch.nn.Linear(400, 400), torch.zeros(400)
    with pytest.raises(GradientUnavailableError, match=r"160400 here.*Discrete"):
        odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0], gradient=Tangent())


# Mismatched.


@pytest.mark.parametrize("scheme", EXPLICIT)
def test_mismatched_with_the_scheme_itself_is_exact(scheme: Any) -> None:
    for case in CASES:
        exact, sol = case().gradient(Tape(), scheme(), Steps(3))
        found, _ = case().gradient(Mismatched(scheme()), scheme(), sol.grid)
        assert relative(found, exact) < 1e-12


def test_only_if() -> None:
    """Another scheme's costate recursion is not the gradient: its error has the lower of both orders."""
    problem = CASES[1]()
    true, _ = problem.gradient(Discrete(), odegrad.Dopri8(), Steps(40))
    for ours, other in itertools.permutations([odegrad.Euler(), odegrad.Heun(), odegrad.RK4()], 2):
        errors, gaps = [], []
        for n in (8, 16, 32):
            exact, sol = problem.gradient(Tape(), ours, Steps(n))
            found, _ = problem.gradient(Mismatched(other), ours, sol.grid)
            errors.append(relative(found, true))
            gaps.append(relative(found, exact))
        assert min(gaps) > 1e-5
        order = min(ours.order, other.order)
        assert abs(math.log2(errors[1] / errors[2]) - order) < 0.35, (ours, other, errors)


def test_mismatched_goes_with_losses_at_labels() -> None:
    net, y0 = mlp(), leaf(4, 3)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)

    def gradient(**options: Any) -> list[Tensor]:
        sol = odegrad.solve(
            lambda t, y: net(y), y0, times, scheme=odegrad.Heun(), stepsize=Steps(2),
            gradient=Mismatched(odegrad.Euler()), **options,
        )  # fmt: skip
        value = sol.loss if options else sol.ys.square().sum()
        return list(torch.autograd.grad(value, [y0, *net.parameters()]))

    streamed = gradient(loss_at=lambda j, y: y.square().sum())
    assert relative(streamed, gradient()) < 1e-13


# Backsolve and Quadrature.


CONTINUOUS = [Backsolve(), Quadrature(), Quadrature(GaussKronrod(1e-9, 1e-12))]


SCHEMES_AND_CASES = [
    *(
        (scheme, CASES[1])
        for scheme in (odegrad.Euler, odegrad.Heun, odegrad.Kutta3, odegrad.Dopri5)
    ),
    (odegrad.RK4, CASES[2]),
]


@pytest.mark.parametrize("mode", CONTINUOUS)
@pytest.mark.parametrize(("scheme", "case"), SCHEMES_AND_CASES)
def test_continuous_modes_converge_at_the_order_of_the_scheme(
    mode: Any, scheme: Any, case: Any
) -> None:
    problem = case()
    true, _ = problem.gradient(Discrete(), odegrad.Dopri8(), Steps(30))
    errors = [relative(problem.gradient(mode, scheme(), Steps(n))[0], true) for n in (10, 20)]
    rate = math.log2(errors[0] / errors[1])
    assert scheme().order - 0.45 < rate, errors
    exact, _ = problem.gradient(Tape(), scheme(), Steps(4))
    found, _ = problem.gradient(mode, scheme(), Steps(4))
    assert relative(found, exact) > 1e-12  # inconsistent with the computed loss


def test_continuous_modes_of_order_eight() -> None:
    problem = CASES[1]()
    true, _ = problem.gradient(Discrete(), odegrad.Dopri8(), Steps(30))
    for mode in CONTINUOUS:
        errors = [
            relative(problem.gradient(mode, odegrad.Dopri8(), Steps(n))[0], true) for n in (3, 6)
        ]
        assert errors[1] < 2.0**-7 * errors[0] + 1e-13, (mode, errors)


@pytest.mark.parametrize("mode", CONTINUOUS)
@pytest.mark.parametrize("ends", [(0.3, -0.9), (0.0, 0.5, 0.5, 1.0), (1.0, 0.2, 0.0)])
def test_continuous_modes_on_any_times(mode: Any, ends: Any) -> None:
    """Downwards, and with equal neighbours; the running cost has a costate of its own."""
    net, y0, w = mlp(), leaf(4, 3), leaf(seed=4)
    ts = torch.tensor(ends, dtype=torch.float64, requires_grad=True)

    def gradient(mode: Any, scheme: Any) -> list[Tensor]:
        sol = odegrad.solve(
            lambda t, y: net(y) * torch.cos(w * t), y0, ts, scheme=scheme, stepsize=Steps(12),
            gradient=mode, running=lambda t, y: (w * y.square()).sum(),
        )  # fmt: skip
        value = loss(sol.ys) + sol.running.square().sum()  # type: ignore[union-attr]
        return list(torch.autograd.grad(value, [y0, w, ts, *net.parameters()]))

    true = gradient(Tape(), odegrad.Dopri8())
    assert relative(gradient(mode, odegrad.Dopri8()), true) < 1e-10
    assert relative(gradient(mode, odegrad.Heun()), true) > 1e-9


@pytest.mark.parametrize("scheme", REVERSIBLE)
def test_quadrature_needs_nodes(scheme: Any) -> None:
    problem = CASES[1]()
    with pytest.raises(InvalidValueError, match=r"no explicit Runge–Kutta scheme.*GaussKronrod"):
        problem.gradient(Quadrature(), scheme(), Steps(4))
    true, _ = problem.gradient(Discrete(), odegrad.Dopri8(), Steps(30))
    for mode in (Quadrature(scheme=odegrad.RK4()), Quadrature(GaussKronrod()), Backsolve()):
        errors = [relative(problem.gradient(mode, scheme(), Steps(n))[0], true) for n in (8, 16)]
        assert math.log2(errors[0] / errors[1]) > min(scheme().order, 4) - 0.5, (mode, errors)


def test_the_way_back_may_have_a_scheme_and_steps_of_its_own() -> None:
    problem = CASES[1]()
    true, _ = problem.gradient(Discrete(), odegrad.Dopri8(), Steps(30))
    for mode in (
        Backsolve(odegrad.Dopri8(), Steps(30)),
        Quadrature(None, odegrad.Dopri8(), Steps(30)),
        Backsolve(odegrad.Tsit5(), PID(1e-10, 1e-12)),
        Quadrature(GaussKronrod(1e-10, 1e-12), stepsize=PID(1e-10, 1e-12), scheme=odegrad.Dopri8()),
    ):
        found, _ = problem.gradient(mode, odegrad.Dopri8(), Steps(30))
        assert 1e-16 < relative(found, true) < 1e-8, mode
    coarse = Backsolve(odegrad.Euler(), Fixed(0.5))
    found, _ = problem.gradient(coarse, odegrad.Dopri8(), Steps(30))
    assert relative(found, true) > 1e-3


def test_seminorm_takes_fewer_steps_and_quadrature_none_for_parameters() -> None:
    """The parameters are no part of the error control: their number changes nothing."""
    y0 = leaf(4, 3)

    def evaluations(mode: Any, factor: float) -> int:
        net = mlp()
        scales = torch.full((), factor, dtype=torch.float64, requires_grad=True)

        def f(
            t: Tensor, y: Tensor
        ) -> Tensor:  # the same field, with a gradient as large as you like
            return net(y) + (scales - factor) / factor * torch.sin(40 * t) * y

        sol = odegrad.solve(f, y0, [0.0, 2.0], stepsize=PID(1e-5, 1e-7), gradient=mode)
        ahead = sol.stats.f_evaluations
        sol.ys[-1].square().sum().backward()
        return sol.stats.f_evaluations - ahead

    plain = [evaluations(Backsolve(), x) for x in (1e3, 1e-3)]
    assert plain[1] > 1.5 * plain[0]
    for mode in (Backsolve(seminorm=True), Quadrature()):
        assert evaluations(mode, 1e3) == evaluations(mode, 1e-3)
    assert evaluations(Backsolve(seminorm=True), 1e-3) < plain[1]


@pytest.mark.parametrize("mode", [Quadrature(), Mismatched(odegrad.Heun())])
def test_inexact_modes_have_no_second_derivative(mode: Any) -> None:
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    ys = odegrad.solve(lambda t, y: -y.square(), y0, [0.0, 1.0], gradient=mode).ys
    (g,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    with pytest.raises(GradientUnavailableError, match=f"{type(mode).__name__} has no second"):
        torch.autograd.grad(g.sum(), y0)


def test_a_single_time() -> None:
    for mode in (Quadrature(), Mismatched(odegrad.Heun()), Tangent(), Backsolve()):
        y0 = leaf(3)
        ys = odegrad.solve(lambda t, y: -y, y0, [0.5], gradient=mode).ys
        (g,) = torch.autograd.grad(ys.sum(), y0)
        assert torch.equal(g, torch.ones_like(y0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Mismatched("Heun"),
            InvalidTypeError,
            r"Mismatched: scheme must be an object such as Heun",
        ),
        (lambda: Quadrature(0.1), InvalidTypeError, "rule must be GaussKronrod"),
        (lambda: Quadrature(scheme=odegrad.RK4), InvalidTypeError, "scheme must be an object"),
        (lambda: Backsolve(stepsize=0.1), InvalidTypeError, "stepsize must be an object"),
        (
            lambda: Backsolve(odegrad.RK4(), PID()),
            InvalidValueError,
            r"no error estimate.*Steps\(n\)",
        ),
        (lambda: Backsolve(stepsize=odegrad.Grid(())), InvalidValueError, "recorded grid"),
        (lambda: GaussKronrod(-1.0), InvalidValueError, "tolerances must be ≥ 0"),
        (lambda: GaussKronrod(0.0, 0.0), InvalidValueError, "not both zero"),
        (lambda: GaussKronrod(float("nan")), InvalidValueError, "received rtol=nan"),
    ],
)
def test_bad_choices(make: Any, error: Any, message: str) -> None:
    y0 = leaf(2)
    with pytest.raises(error, match=message):
        odegrad.solve(lambda t, y: -y, y0, [0.0, 1.0], gradient=make())


def test_a_way_back_without_error_estimate_is_refused_before_the_solve() -> None:
    calls: list[int] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return -y

    for mode in (Backsolve(odegrad.RK4()), Quadrature(scheme=odegrad.RK4())):
        with pytest.raises(InvalidValueError, match="cannot choose the steps of the way back"):
            odegrad.solve(f, leaf(2), [0.0, 1.0], gradient=mode)
    assert len(calls) <= 4  # discovery


# Their parts.


def test_the_rules_of_gauss_and_kronrod() -> None:
    """Exact for the polynomials that they are exact for, and no others."""
    for weight, degree in ((1, 23), (2, 13)):
        for k in range(degree + 1):
            total = math.fsum(node[weight] * node[0] ** k for node in NODES)
            assert total == pytest.approx((1 + (-1) ** k) / (k + 1), abs=1e-15)
        total = math.fsum(node[weight] * node[0] ** (degree + 1) for node in NODES)
        assert abs(total - 2 / (degree + 2)) > 1e-12


def test_adaptive_quadrature_against_closed_forms() -> None:
    calls: list[float] = []

    def g(t: float) -> tuple[Tensor | None, ...]:
        calls.append(t)
        values = torch.tensor([math.exp(-t), 1.0, 1 / (1e-3 + t * t)], dtype=torch.float64)
        return (values[:2], None, values[2])

    for start, stop in ((-1.0, 2.0), (2.0, -1.0)):
        calls.clear()
        a, b, c = GaussKronrod(1e-9, 1e-12).integrate(g, start, stop)
        assert b is None
        assert a is not None
        assert c is not None
        primitive = [
            lambda t: -math.exp(-t), lambda t: t,
            lambda t: math.atan(t / math.sqrt(1e-3)) / math.sqrt(1e-3),
        ]  # fmt: skip
        exact = [F(stop) - F(start) for F in primitive]
        assert [*a.tolist(), c.item()] == pytest.approx(exact, rel=1e-6)
        assert len(calls) < 3000


def test_quadrature_that_does_not_converge_says_so() -> None:
    with pytest.warns(odegrad.errors.OdegradWarning, match="does not reach its tolerance"):
        GaussKronrod(0.0, 1e-30).integrate(
            lambda t: (torch.tensor(math.sin(1 / (t + 1e-9))),), 0.0, 1.0
        )


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("order", [2, 4, 5, 8])
def test_hermite_interpolation_of_polynomials_and_its_order(sign: float, order: int) -> None:
    times = [sign * t for t in (0.0, 0.3, 0.5, 1.0, 1.2, 2.0, 2.1)]
    exact = 2 * max(2, (order + 1) // 2) - 1
    poly = np.polynomial.Polynomial(np.linspace(1, 2, exact + 1))
    slope = poly.deriv()
    path = Trajectory(
        times,
        lambda i: (torch.tensor(poly(times[i])), torch.tensor(1.0).double()),
        lambda i, n: (torch.tensor(slope(times[i])), torch.tensor(0.0).double()),
        order,
    )
    for t in (0.0, 0.1, 0.45, 0.5, 1.7, 2.05, 2.1):
        found = path(sign * t)
        assert float(found[0]) == pytest.approx(poly(sign * t), rel=1e-12)
        assert float(found[1]) == pytest.approx(1.0, rel=1e-12)


def test_interpolation_does_not_look_across_kinks() -> None:
    times = [0.0, 0.25, 0.5, 0.75, 1.0]
    seen: list[tuple[int, int]] = []

    def slope(i: int, n: int) -> tuple[Tensor]:
        seen.append((i, n))
        return (torch.tensor(1.0 if n >= 2 else -1.0).double(),)

    path = Trajectory(
        times, lambda i: (torch.tensor(abs(times[i] - 0.5)).double(),), slope, 8, kinks=[2]
    )
    for t in (0.1, 0.3, 0.49, 0.51, 0.6, 0.9):
        assert float(path(t)[0]) == pytest.approx(abs(t - 0.5), abs=1e-15)
    assert (2, 1) in seen
    assert (2, 2) in seen


# The symplectic partner.


@pytest.mark.parametrize("scheme", EXPLICIT)
def test_transposed_steps_are_the_symplectic_partner(scheme: Any) -> None:
    """The costate equation solved by (â, b, c) as a linear system: the same costate, and the same p̄."""
    tableau = scheme.tableau
    if 0.0 in tableau.b:
        with pytest.raises(InvalidValueError, match="iff no b_i is 0"):
            _ = tableau.partner
        return
    s, partner = tableau.stages, np.array(tableau.partner)
    a = np.zeros((s, s))
    for i, row in enumerate(tableau.a):
        a[i, :i] = row
    b, h, d = np.array(tableau.b), 0.3, 3
    assert b[:, None] * partner + (b[:, None] * a).T == pytest.approx(np.outer(b, b), abs=1e-14)

    net, y0 = mlp(), leaf(d)
    lam = leaf(d, seed=7).detach()
    with torch.no_grad():
        slopes = []
        jacobians = []
        for i in range(s):
            stage = y0 + h * sum((a[i, j] * slopes[j] for j in range(i)), torch.zeros(d))
            slopes.append(net(stage))
            jacobians.append(torch.func.jacrev(net)(stage).numpy())
    # λ1 is given; λ0 = λ1 + h Σ b_i J_iᵀ Λ_i and Λ_i = λ0 − h Σ_j â_ij J_jᵀ Λ_j.
    system, right = np.zeros((d * s, d * s)), np.tile(lam.numpy(), s)
    for i in range(s):
        for j in range(s):
            block = h * (partner[i, j] - b[j]) * jacobians[j].T
            system[d * i : d * i + d, d * j : d * j + d] = block + (np.eye(d) if i == j else 0)
    stages = np.linalg.solve(system, right).reshape(s, d)
    start = lam.numpy() + h * sum(b[i] * jacobians[i].T @ stages[i] for i in range(s))

    sol = odegrad.solve(lambda t, y: net(y), y0, [0.0, h], scheme=scheme(), stepsize=Steps(1))
    found, *grads = torch.autograd.grad(sol.ys[-1] @ lam, [y0, *net.parameters()])
    assert np.abs(found.numpy() - start).max() < 1e-13 * np.abs(start).max()
    # The parameter gradient is the quadrature of the forward method's own b and c.
    total = [torch.zeros_like(x) for x in net.parameters()]
    for i in range(s):
        stage = y0.detach() + h * sum((a[i, j] * slopes[j] for j in range(i)), torch.zeros(d))
        weighted = h * b[i] * torch.from_numpy(stages[i])
        for g, more in zip(
            total, torch.autograd.grad(net(stage) @ weighted, list(net.parameters())), strict=True
        ):
            g += more
    assert relative(grads, total) < 1e-13


# Losses with many labels, and the perturbation identity.


def test_single_point_and_multi_point_backpropagation() -> None:
    """K labels in one sweep, and one by one: the same gradient to rounding, one sweep instead of K."""
    net, y0 = mlp(), leaf(4, 3)
    times = torch.linspace(0, 1, 7, dtype=torch.float64)
    inputs = [y0, *net.parameters()]

    def solve() -> odegrad.Solution:
        return odegrad.solve(
            lambda t, y: net(y), y0, times, scheme=odegrad.RK4(), stepsize=Steps(2)
        )

    sol = solve()
    losses = [(j + 1) * sol.ys[j].sin().sum() for j in range(7)]
    before = sol.stats.vjps
    multi = torch.autograd.grad(sum(losses), inputs, retain_graph=True)  # type: ignore[arg-type]
    sweep = sol.stats.vjps - before
    single = [torch.zeros_like(x) for x in inputs]
    before = sol.stats.vjps
    for value in losses:
        for total, g in zip(
            single, torch.autograd.grad(value, inputs, retain_graph=True), strict=True
        ):
            total += g
    assert relative(list(multi), single) < 1e-14
    assert sol.stats.vjps - before == 7 * sweep == 7 * 6 * 2 * 4


def test_the_perturbation_identity() -> None:
    """J(θ + εδ) − J(θ) = ε ∫ (aᵀ f_θ + ℓ_θ) δ dt + O(ε²), for J = Φ(y(T)) + ∫ ℓ dt."""
    net, y0 = mlp(), leaf(4, 3)
    ell = lambda t, y: (y.square() * torch.cos(t)).sum() + net[0].weight.square().sum() * y[0, 0]  # noqa: E731

    def cost() -> Tensor:
        sol = odegrad.solve(
            lambda t, y: net(y),
            y0,
            [0.0, 1.0],
            scheme=odegrad.Tsit5(),
            stepsize=Steps(20),
            running=ell,
        )
        assert sol.running is not None
        return sol.ys[-1].sin().sum() + sol.running[-1]

    grads = torch.autograd.grad(cost(), list(net.parameters()))
    torch.manual_seed(3)
    delta = [torch.randn_like(x) for x in net.parameters()]
    slope = float(sum((g * d).sum() for g, d in zip(grads, delta, strict=True)))
    with torch.no_grad():
        j0 = float(cost())
        rest = []
        for eps in (1e-2, 5e-3, 2.5e-3):
            for x, d in zip(net.parameters(), delta, strict=True):
                x += eps * d
            rest.append(float(cost()) - j0 - eps * slope)
            for x, d in zip(net.parameters(), delta, strict=True):
                x -= eps * d
    assert math.log2(abs(rest[0] / rest[1])) > 1.95 - 0.05
    assert math.log2(abs(rest[1] / rest[2])) > 1.95
