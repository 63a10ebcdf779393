"""Reversible schemes: the inverse of a step, orders, what grows, costs, and solves with them.

That their steps are their formulas, and their transposes exact, is tested in test_scheme_laws.py.
"""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch

import odegrad
from cases import GRAPHS, leaf, relative
from odegrad import (
    ALF,
    PID,
    RK4,
    Bosh3,
    Discrete,
    Dopri5,
    Euler,
    Heun,
    Reversible,
    ReversibleHeun,
    Steps,
    Tape,
    Tsit5,
)
from odegrad.errors import (
    GradientUnavailableError,
    InvalidTypeError,
    InvalidValueError,
    UnreachableTensorError,
)
from odegrad.field import VectorField
from odegrad.schemes import SCHEMES, ExplicitRungeKutta
from odegrad.state import Structure
from oracles import randn_like
from problems import CLOSED_FORMS, PROBLEMS, mlp
from test_scheme_laws import KINDS, Setup, close

F64 = torch.float64
REVERSIBLE = [
    ALF(),
    ALF(0.8),
    ReversibleHeun(),
    Reversible(),
    Reversible(Euler(), 0.5),
    Reversible(RK4(), 0.9),
    Reversible(Bosh3(), 1.0),
]
schemes = pytest.mark.parametrize("scheme", REVERSIBLE, ids=repr)


def test_every_reversible_scheme_is_tested():
    assert {type(s) for s in REVERSIBLE} == {cls for cls in SCHEMES if cls.reversible}


# The inverse.


def carried(setup, t):
    """A random carry of those that a step can leave at t."""
    if not isinstance(setup.scheme, ReversibleHeun):
        return setup.carry
    second = setup.carry[: len(setup.y)]
    with torch.no_grad():
        return (*second, *setup.field(t, second, setup.p))


@schemes
@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_unstep_inverts_step_from_both_sides(scheme, make, kind, sign):
    setup = Setup(scheme, make, kind)
    field, t, dt, y, p = setup.field, setup.t, sign * setup.dt, setup.y, setup.p
    with torch.no_grad():
        carry = carried(setup, t)
        after = scheme.step(field, t, dt, y, carry, p)
        close(scheme.unstep(field, t, dt, after.y, after.carry, p), (y, carry), 2e-14)
        carry = carried(setup, t + dt)
        before = scheme.unstep(field, t, dt, y, carry, p)
        again = scheme.step(field, t, dt, *before, p)
        close((again.y, again.carry), (y, carry), 2e-14)


@pytest.mark.parametrize("scheme", [ALF(), ReversibleHeun(), Reversible(), Reversible(RK4(), 1.0)])
def test_long_solves_are_undone(scheme):
    """A thousand steps there and back, of uneven length."""
    problem = mlp()
    field = problem.field()
    p = field.discover(0.0, problem.leaves)
    with torch.no_grad():
        start = y, carry = problem.leaves, scheme.init(field, 0.0, problem.leaves, p)
        t, steps = 0.0, []
        for i in range(1000):
            steps.append((t, 0.01 + 0.005 * math.sin(i)))
            y, carry = scheme.step(field, *steps[-1], y, carry, p)[:2]
            t += steps[-1][1]
        assert float((y[0] - start[0][0]).norm()) > 1.0
        for step in reversed(steps):
            y, carry = scheme.unstep(field, *step, y, carry, p)
    close((y, carry), start, 1e-9)


@pytest.mark.parametrize("cls", [cls for cls in SCHEMES if not cls.reversible])
def test_other_schemes_say_what_would_do(cls):
    problem = mlp()
    with pytest.raises(GradientUnavailableError, match=rf"^{cls.__name__} .*Reversible\(base\)"):
        cls().unstep(problem.field(), 0.0, 0.1, problem.leaves, (), ())


# Order.


def chain(scheme, f, y0, end, n, p=()):
    """The state after n equal steps."""
    y = (torch.as_tensor(y0, dtype=torch.complex128 if torch.is_tensor(y0) else F64),)
    field = VectorField(f, Structure(y[0]), y)
    carry, h = scheme.init(field, 0.0, y, p), end / n
    for i in range(n):
        y, carry = scheme.step(field, i * h, h, y, carry, p)[:2]
    return y[0]


@pytest.mark.parametrize(
    ("scheme", "n"),
    [
        (ALF(), 160),
        (ALF(0.8), 320),
        (ALF(0.55), 640),
        (ReversibleHeun(), 160),
        (Reversible(Heun(), 0.9), 160),
        (Reversible(RK4(), 0.9), 80),
        # In one of odd order two errors of the base nearly cancel where λ is almost 1.
        (Reversible(Euler(), 0.5), 320),
        (Reversible(Bosh3(), 0.5), 160),
        (Reversible(Dopri5(), 0.5), 40),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["linear", "logistic"])
def test_order_of_accuracy(scheme, n, name):
    f, y0, solution = CLOSED_FORMS[name]
    exact = torch.tensor(solution(1.0), dtype=F64)
    errors = [float((chain(scheme, f, y0, 1.0, m) - exact).norm()) for m in (n, 2 * n)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(scheme.order, abs=0.35)


def test_orders_are_those_of_the_base_and_of_the_damping():
    orders = {(s.order, s.error_order) for s in (ALF(), ReversibleHeun())}
    assert orders == {(2, 2)}
    assert (ALF(0.99).order, ALF(0.99).error_order) == (1, 2)
    for base in (cls() for cls in SCHEMES if issubclass(cls, ExplicitRungeKutta)):
        found = Reversible(base)
        assert (found.order, found.error_order) == (base.order, base.error_order)


@schemes
@pytest.mark.parametrize("kind", KINDS)
def test_error_estimates(scheme, kind):
    """The difference to Euler's step, or the base's own estimate at z."""
    setup = Setup(scheme, PROBLEMS[1], kind)
    step, n = setup.step(), len(setup.y)
    if isinstance(scheme, Reversible):
        base, z = scheme.base, setup.carry
        with torch.no_grad():
            first = base.init(setup.field, setup.t, z, setup.p)
            expected = base.step(setup.field, setup.t, setup.dt, z, first, setup.p).error
        assert (expected is None) == (step.error is None)
    else:
        slope = setup.carry[-n:]
        h = torch.as_tensor(setup.dt, dtype=F64).reshape(-1, 1)
        euler = [y + h * k for y, k in zip(setup.y, slope, strict=True)]
        expected = [a - b for a, b in zip(step.y, euler, strict=True)]
    close(step.error, expected)
    y = tuple(x.detach().requires_grad_() for x in setup.y)
    graph = scheme.step(setup.field, setup.t, setup.dt, y, setup.carry, setup.p)
    assert all(x.requires_grad for x in graph.y)
    assert not any(x.requires_grad for x in graph.error or ())


@pytest.mark.parametrize("scheme", [ALF(0.8), Reversible(Bosh3(), 0.9), Reversible(Tsit5(), 0.5)])
@pytest.mark.parametrize("name", ["linear", "logistic"])
def test_order_of_error_estimate_in_the_middle_of_a_solve(scheme, name):
    """... where the carry is not what `init` gives."""
    f, y0, _ = CLOSED_FORMS[name]
    y = (torch.tensor(y0, dtype=F64),)
    field = VectorField(f, Structure(y[0]), y)

    def largest(h):
        state, carry, found = y, scheme.init(field, 0.0, y, ()), 0.0
        for i in range(int(0.5 / h)):
            state, carry, error = scheme.step(field, i * h, h, state, carry, ())[:3]
            found = max(found, float(error[0].norm()))
        return found

    slope = math.log2(largest(1 / 32) / largest(1 / 64))
    assert slope == pytest.approx(scheme.error_order, abs=0.3)


# What grows: the limits that the modules' heads state.


def oscillator(x):
    """y' = x y with complex x, for steps of length 1."""
    y = (torch.ones(1, dtype=torch.complex128),)
    return VectorField(lambda t, y: x * y, Structure(y[0]), y), y


@pytest.mark.parametrize("scheme", [ALF(), ReversibleHeun()])
@pytest.mark.parametrize("x", [0.9j, 0.1j, -0.3 + 0j, -0.2 + 0.5j])
def test_neutral_stability(scheme, x):
    """Both are the leapfrog recurrence r² = 2x r + 1 on y' = x y: |r| = 1 for x in [−i, i] alone."""
    field, y = oscillator(x)
    states, carry = [y[0]], scheme.init(field, 0.0, y, ())
    for i in range(40):
        y, carry = scheme.step(field, float(i), 1.0, y, carry, ())[:2]
        states.append(y[0])
    for before, now, after in zip(states, states[1:], states[2:], strict=False):
        assert float((after - 2 * x * now - before).abs()) <= 1e-14 * float(after.abs() + 1)
    grows = max(float(s.abs()) for s in states) > 2
    assert grows == (x.real != 0.0)


@pytest.mark.parametrize(("base", "coupling"), [(RK4(), 0.9), (Bosh3(), 0.99), (Euler(), 0.95)])
@pytest.mark.parametrize("mu", [0.001, 0.05, 0.2])
def test_what_a_decaying_solution_leaves(base, coupling, mu):
    """The step's second eigenvalue, the solution's aside, is about λ exp(hμ), the inverse's 1 / that."""
    scheme = Reversible(base, coupling)
    field, _ = oscillator(-mu)
    one, zero = (torch.ones(1, dtype=torch.complex128),), (torch.zeros(1, dtype=torch.complex128),)

    def matrix(rule):
        columns = [rule(field, 0.0, 1.0, y, z, ())[:2] for y, z in ((one, zero), (zero, one))]
        return np.array([[complex(x[0]) for x in column] for column in columns]).T

    eigenvalues = sorted(abs(np.linalg.eigvals(matrix(scheme.step))))
    assert np.prod(eigenvalues) == pytest.approx(coupling, rel=1e-12)
    expected = sorted([math.exp(-mu), coupling * math.exp(mu)])
    np.testing.assert_allclose(eigenvalues, expected, rtol=0.05)
    np.testing.assert_allclose(matrix(scheme.unstep) @ matrix(scheme.step), np.eye(2), atol=1e-14)


@pytest.mark.parametrize(
    ("scheme", "factor"), [(ALF(0.9), 1 / 0.8), (ALF(), 1.0), (Reversible(RK4(), 0.9), 1 / 0.9)]
)
def test_how_the_inverse_amplifies_errors(scheme, factor):
    """Where f is constant, an error of v or of y − z is multiplied by `factor` in each step."""
    field, y = oscillator(0.0)
    carry = scheme.init(field, 0.0, y, ())
    error = 1e-3
    if isinstance(scheme, ALF):
        carry = (carry[0] + error,)
    else:
        y = (y[0] + error,)
    for i in reversed(range(20)):
        y, carry = scheme.unstep(field, float(i), 1.0, y, carry, ())
    found = carry[0] if isinstance(scheme, ALF) else y[0] - carry[0]
    assert float(found.abs()) == pytest.approx(error * factor**20, rel=1e-9)


# What is counted.


@schemes
def test_costs(scheme):
    """Evaluations and vector–Jacobian products of a step, its inverse and its transpose."""
    forward = back = transposed = 1
    if isinstance(scheme, Reversible):
        tab = scheme.base.tableau
        back = 2 * (tab.stages - tab.fsal)
        forward = transposed = (
            back + tab.fsal
        )  # all three with fsal have an estimate of their error
    setup = Setup(scheme, mlp, "scalar")
    field, args = setup.field, (setup.t, setup.dt, setup.y, setup.carry, setup.p)
    with torch.no_grad():
        scheme.step(field, *args)
        assert (field.evaluations, field.transposes) == (forward, 0)
        scheme.unstep(field, *args)
        assert (field.evaluations, field.transposes) == (forward + back, 0)
    setup.vjp()
    assert (field.evaluations, field.transposes) == (2 * forward + back, transposed)


# Solves.


@schemes
@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS], ids=["states", "graphs"])
def test_gradients_with_a_running_cost(scheme, gradient):
    y0, rate, net = leaf(4, 2), leaf(2, seed=1), torch.nn.Linear(2, 2).double()

    def f(t, y, rate):
        return torch.tanh(net(y)) - rate.sigmoid() * y * t

    def cost(t, y, rate):
        return (rate * y * torch.cos(t)).sum(-1)

    def found(gradient):
        ts = torch.tensor([0.0, 0.3, 1.0], dtype=F64, requires_grad=True)
        sol = odegrad.solve(
            f, y0, ts, (rate,), scheme=scheme, stepsize=Steps(4), running=cost, gradient=gradient
        )
        loss = sol.ys.square().sum() + sol.running.sin().sum()
        inputs = [y0, rate, ts, *net.parameters()]
        return torch.autograd.grad(loss, inputs), sol.running

    grads, running = found(gradient)
    expected, same = found(Tape())
    assert relative(list(grads), list(expected)) <= 1e-13
    close(running, same, 1e-14)


@schemes
def test_gradients_by_complex_steps(scheme):
    """An oracle without any autograd: Im L(x + iε) / ε, exact to rounding."""

    def f(t, y, rate):
        return torch.stack([y[1] - rate[0] * y[0] * y[1], torch.sin(t + y[0] * rate[1])])

    y0, rate = torch.tensor([0.4, -0.7], dtype=F64), torch.tensor([0.9, 1.3], dtype=F64)
    inputs = y0.clone().requires_grad_(), rate.clone().requires_grad_()
    sol = odegrad.solve(f, inputs[0], [0.0, 1.5], (inputs[1],), scheme=scheme, stepsize=Steps(6))
    found = torch.cat(torch.autograd.grad(sol.ys[-1].square().sum(), inputs))
    for i in range(4):
        x = torch.cat([y0, rate]).to(torch.complex128)
        x[i] += 1e-40j
        end = chain(scheme, lambda t, y, x=x: f(t, y, x[2:]), x[:2], 1.5, 6)
        assert float(found[i]) == pytest.approx(float((end**2).sum().imag) / 1e-40, rel=1e-12)


@pytest.mark.parametrize("scheme", [ALF(), ReversibleHeun(), Reversible(), Reversible(Bosh3())])
def test_adaptive_solves_meet_their_tolerance(scheme):
    f, y0, solution = CLOSED_FORMS["linear"]
    sol = odegrad.solve(
        f,
        torch.tensor(y0, dtype=F64),
        [0.0, 2.0],
        scheme=scheme,
        stepsize=PID(rtol=1e-5, atol=1e-7),
    )
    assert float((sol.ys[-1] - torch.tensor(solution(2.0), dtype=F64)).norm()) < 1e-4
    assert sol.stats.accepted < 1500


def test_a_gradient_that_would_be_lost_is_refused():
    """... also by the default transpose, which `Reversible` uses."""
    y0 = leaf(3)
    sol = odegrad.solve(
        lambda t, y: y.detach().requires_grad_().sin() + y,
        y0, [0.0, 1.0], scheme=Reversible(), stepsize=Steps(2),
    )  # fmt: skip
    with pytest.raises(UnreachableTensorError):
        sol.ys.sum().backward()


# They are values.


@schemes
def test_schemes_are_values(scheme):
    assert eval(repr(scheme), vars(odegrad)) == scheme
    again = pickle.loads(pickle.dumps(scheme))
    assert again == scheme
    assert (hash(again), again.order, again.error_order) == (
        hash(scheme),
        scheme.order,
        scheme.error_order,
    )
    assert scheme.reversible


def test_replacing_an_argument_replaces_what_follows_from_it():
    assert dataclasses.replace(ALF(), damping=0.8).order == 1
    found = dataclasses.replace(Reversible(), base=RK4())
    assert (found.order, found.error_order) == (4, None)
    assert Reversible(RK4()) != Reversible(RK4(), 0.9) != Reversible(Tsit5(), 0.9)


@pytest.mark.parametrize("value", [0.5, 0.0, -1.0, 1.001, 2, math.nan, math.inf])
def test_bad_dampings(value):
    with pytest.raises(InvalidValueError, match=rf"damping .* received {value}; "):
        ALF(value)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.001, 2, math.nan, math.inf])
def test_bad_couplings(value):
    with pytest.raises(InvalidValueError, match=rf"coupling .* received {value}; .* 0.999"):
        Reversible(RK4(), value)


@pytest.mark.parametrize("value", ["1", None, True, 0.9j])
def test_arguments_that_are_no_numbers(value):
    with pytest.raises(InvalidTypeError, match=r"damping .* received .*; pass a float"):
        ALF(value)
    with pytest.raises(InvalidTypeError, match=r"coupling .* received .*; pass a float"):
        Reversible(RK4(), value)


def test_bad_bases():
    with pytest.raises(InvalidTypeError, match=r"received the class RK4; write base=RK4\(\)"):
        Reversible(RK4)
    for value in ("RK4", None, ALF(), Reversible(RK4())):
        with pytest.raises(InvalidTypeError, match=r"explicit .* such as RK4\(\), received"):
            Reversible(value)


@schemes
def test_float32(scheme):
    """No dtype creeps in, whatever kind of time is given."""
    y = (torch.randn(3, 2, dtype=torch.float32, generator=torch.Generator().manual_seed(0)),)
    field = VectorField(lambda t, y: torch.sin(y) * t, Structure(y[0]), y)
    results = []
    for kind in (float, torch.tensor):
        t, dt = kind(0.25), kind(0.1)
        carry = tuple(randn_like(scheme.init(field, t, y, ()), 1))
        step = scheme.step(field, t, dt, y, carry, ())
        before = scheme.unstep(field, t, dt, step.y, step.carry, ())
        grads = scheme.step_vjp(field, t, dt, y, carry, (), y, carry)
        tensors = [*step.y, *step.carry, *before[0], *before[1], *grads.y, *(grads.carry or ())]
        assert {x.dtype for x in tensors} == {torch.float32}
        results.append(tensors)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
