"""Adams schemes: weights from the literature and from their definition, plain loops, closed forms."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import CASES, GRAPHS, leaf, loss, mlp, relative
from odegrad import (
    AdamsBashforth,
    AdamsBashforthMoulton,
    Binomial,
    Discrete,
    Every,
    Keep,
    Online,
    Steps,
    StoreAll,
    Tape,
    Tiered,
)
from odegrad.errors import InvalidTypeError, InvalidValueError, OdegradWarning
from odegrad.schemes.extrapolated import ExtrapolatedMidpoint
from odegrad.schemes.interpolatory import gauss_legendre, interpolatory_weights
from odegrad.schemes.tableau import Tableau
from oracles import adams_step, rk_step

F64 = torch.float64

# Weights. Hairer, Nørsett & Wanner I, III.1, tables 1.1 and 1.2; the latest slope first.

BASHFORTH = {
    1: (1, [1]),
    2: (2, [3, -1]),
    3: (12, [23, -16, 5]),
    4: (24, [55, -59, 37, -9]),
    5: (720, [1901, -2774, 2616, -1274, 251]),
}
MOULTON = {
    1: (1, [1]),
    2: (2, [1, 1]),
    3: (12, [5, 8, -1]),
    4: (24, [9, 19, -5, 1]),
    5: (720, [251, 646, -264, 106, -19]),
}


def defined(nodes: list[Fraction]) -> list[Fraction]:
    """∫_0^1 ℓ_i in rational numbers."""
    weights = []
    for i, node in enumerate(nodes):
        powers, scale = [Fraction(1)], Fraction(1)
        for j, other in enumerate(nodes):
            if j != i:
                up, down = [Fraction(0), *powers], [*(-other * c for c in powers), Fraction(0)]
                powers = [a + b for a, b in zip(up, down, strict=True)]
                scale *= node - other
        weights.append(sum(c / (m + 1) for m, c in enumerate(powers)) / scale)
    return weights


def equal(k: int, first: int) -> list[Fraction]:
    """The nodes of equal steps: first, first − 1, …"""
    return [Fraction(first - i) for i in range(k)]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("k", range(1, 13))
def test_weights_are_the_integrals_of_the_lagrange_basis(k: int, first: int) -> None:
    table = (MOULTON if first else BASHFORTH).get(k)
    expected = defined(equal(k, first))
    if table:
        assert expected == [Fraction(c, table[0]) for c in table[1]]
    h = 0.37
    nodes = h * torch.tensor([float(x) for x in equal(k, first)], dtype=F64)
    found = interpolatory_weights(nodes, torch.tensor(h, dtype=F64)) / h
    for a, b in zip(found.tolist(), expected, strict=True):
        assert a == pytest.approx(float(b), rel=2e-14)


@pytest.mark.parametrize("k", [2, 3, 6, 12])
def test_weights_on_unequal_nodes(k: int) -> None:
    exact = [Fraction(-i * (i + 7), 16) for i in range(k)]
    found = interpolatory_weights(
        torch.tensor([float(x) for x in exact], dtype=F64), torch.ones((), dtype=F64)
    )
    for a, b in zip(found.tolist(), defined(exact), strict=True):
        assert a == pytest.approx(float(b), rel=2e-14)


@pytest.mark.parametrize("n", range(1, 8))
def test_gauss_legendre_is_exact(n: int) -> None:
    points, weights = gauss_legendre(n)
    for m in range(2 * n):
        total = math.fsum(w * x**m for x, w in zip(points, weights, strict=True))
        assert total == pytest.approx(1 / (m + 1), rel=1e-15)
    at_next = math.fsum(w * x ** (2 * n) for x, w in zip(points, weights, strict=True))
    assert abs(at_next - 1 / (2 * n + 1)) > 1e-9


def test_extrapolated_midpoint() -> None:
    tab = ExtrapolatedMidpoint.tableau
    assert (tab.stages, ExtrapolatedMidpoint().order) == (37, 12)
    Tableau(tab.a, tab.b, tab.c, order=8)  # checks the 200 conditions up to order 8


# Orders.


def error(scheme: Any, n: int, times: list[float], rate: float) -> float:
    """At all times, of y' = −λ (y − sin 3t) + 3 cos 3t with λ = `rate`."""
    sol = odegrad.solve(
        lambda t, y: -rate * (y - torch.sin(3 * t)) + 3 * torch.cos(3 * t),
        torch.ones(1, dtype=F64), times, scheme=scheme, stepsize=Steps(n),
    )  # fmt: skip
    t = torch.tensor(times, dtype=F64)
    return float((sol.ys[:, 0] - torch.sin(3 * t) - torch.exp(-rate * t)).norm())


def measured(scheme: Any, times: list[float]) -> float:
    """The order, between n and 3n/2 steps per interval."""
    k = scheme.order
    n = 200 if k < 3 else 50 if k < 6 else 20 if k < 9 else 10
    rate = 0.5 if k < 9 else 0.05  # higher orders are soon unstable
    coarse, fine = (error(scheme, m, times, rate) for m in (n, 3 * n // 2))
    return math.log(coarse / fine) / math.log(1.5)


BOTH = pytest.mark.parametrize("cls", [AdamsBashforth, AdamsBashforthMoulton])


@BOTH
@pytest.mark.parametrize("k", range(1, 13))
def test_orders_on_equal_steps(cls: Any, k: int) -> None:
    found = measured(cls(k), [0.0, 0.5, 1.0, 1.5, 2.0])
    assert found == pytest.approx(k, abs=0.1 if k < 9 else 0.5)


@BOTH
@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 8])
def test_orders_where_steps_change(cls: Any, k: int) -> None:
    """By 3/2, 1/3 and 2: it goes on with what it has."""
    assert measured(cls(k), [0.0, 0.6, 1.5, 1.8, 2.4]) == pytest.approx(
        k, abs=0.1 if k < 6 else 0.5
    )


# Against plain loops.


def plain_rk4(f: Any, t: Any, h: Any, y: Any, three_eighths: bool = False) -> Any:
    """(y⁺, f(t, y)) by the classical scheme, or by the 3/8 rule."""
    k1 = f(t, y)
    if three_eighths:
        k2 = f(t + h / 3, y + h * k1 / 3)
        k3 = f(t + 2 * h / 3, y + h * (k2 - k1 / 3))
        k4 = f(t + h, y + h * (k1 - k2 + k3))
        return y + h / 8 * (k1 + 3 * (k2 + k3) + k4), k1
    k2 = f(t + h / 2, y + h / 2 * k1)
    k3 = f(t + h / 2, y + h / 2 * k2)
    k4 = f(t + h, y + h * k3)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), k1


def by_tables(
    f: Any,
    y: Any,
    start: Any,
    stop: Any,
    n: int,
    k: int,
    begin: int,
    m: int = 0,
    eighths: bool = False,
) -> Any:
    """n equal steps with the weights of the tables; the order rises to k after `begin` steps."""
    h, slopes = (stop - start) / n, []
    for i in range(n):
        t = start + i * h
        if i < begin:
            y, slope = plain_rk4(f, t, h, y, eighths)
            slopes = [slope, *slopes]
            continue
        slopes = [f(t, y), *slopes][: k - (m > 0)]
        w = [float(x) for x in defined(equal(len(slopes), 0))]
        new = y + h * sum(a * b for a, b in zip(w, slopes, strict=True))
        w = [float(x) for x in defined(equal(len(slopes) + 1, 1))]
        for _ in range(m):
            read = [f(t + h, new), *slopes]
            new = y + h * sum(a * b for a, b in zip(w, read, strict=True))
        y = new
    return y


MADE = [  # scheme, and what `by_tables` is told
    (AdamsBashforth(4), (4, 3)),
    (AdamsBashforth(5, odegrad.RK4()), (5, 4)),
    (AdamsBashforth(11, odegrad.RK38(), 2), (11, 2, 0, True)),
    (AdamsBashforth(3, start_steps=0), (3, 0)),
    (AdamsBashforthMoulton(4, odegrad.RK4()), (4, 2, 1)),
    (AdamsBashforthMoulton(5, odegrad.RK4(), corrections=3), (5, 3, 3)),
    (AdamsBashforthMoulton(12, odegrad.RK38(), 2, 4), (12, 2, 4, True)),
]


@pytest.mark.parametrize(("scheme", "told"), MADE, ids=lambda x: str(x).split(", s")[0])
def test_equal_steps_are_those_of_the_tables(scheme: Any, told: Any) -> None:
    """The same numbers, and the same gradients: of the state, of a parameter, and of both times.

    Adams–Bashforth of order 11 amplifies: units in the last place of f move its gradient by up to 2e-12.
    """
    w, y0 = leaf(3, 3, seed=1), leaf(3)
    ts = torch.tensor([0.2, 0.9], dtype=F64, requires_grad=True)
    f = lambda t, y: torch.tanh(w @ y) * torch.cos(t) - 0.2 * y  # noqa: E731
    expected = by_tables(f, y0, ts[0], ts[1], 17, *told)
    sol = odegrad.solve(f, y0, ts, scheme=scheme, stepsize=Steps(17))
    assert float((sol.ys[-1] - expected).detach().norm()) < 1e-13
    grads = torch.autograd.grad(loss(sol.ys[-1]), [y0, w, ts])
    exact = torch.autograd.grad(loss(expected), [y0, w, ts])
    assert relative(list(grads), list(exact)) < (
        1e-11 if scheme == AdamsBashforth(11, odegrad.RK38(), 2) else 1e-12
    )


def unequal(f: Any, y: Any, ts: Any, n: int, k: int, m: int | None, tableau: Any) -> Any:
    """ys with n steps per interval, each on the times of its slopes; the start has the tableau."""
    slots = k - (1 if m is None else 2)
    ys, times, slopes, last = [y], [], [], None
    for j in range(len(ts) - 1):
        h = (ts[j + 1] - ts[j]) / n
        for i in range(n):
            t = ts[j] + i * h
            if last is not None and abs(h) > 2.5 * abs(last):
                times, slopes = [], []
            if len(times) < slots:
                (new,), k_ = rk_step(tableau, lambda t, y: [f(t, y[0])], t, h, [y])
                slope = k_[0]
            else:
                (new,), slope = adams_step(
                    lambda t, y: [f(t, y[0])], t, h, [y], times, slopes, k, m
                )
            times, slopes = [t, *times][:slots], [slope, *slopes][:slots]
            y, last = new, h
        ys.append(y)
    return torch.stack(ys)


TS = [0.1, 0.5, 1.1, 1.3, 2.4, 2.5]


@pytest.mark.parametrize(
    "scheme", [AdamsBashforth(4), AdamsBashforthMoulton(5, odegrad.RK4(), corrections=2)]
)
def test_gradients_on_unequal_steps(scheme: Any) -> None:
    """Of a loss of all outputs, by autograd through a plain loop, and by complex step through it.

    The steps shrink, grow, and grow more than 2.5 times, where the scheme begins anew.
    """
    w, y0 = leaf(3, 3, seed=1), leaf(3)
    ts = torch.tensor(TS, dtype=F64, requires_grad=True)
    tab, m = odegrad.RK4.tableau, getattr(scheme, "corrections", None)
    rule = (tab.a, tab.b, tab.c)

    def field(w: Tensor) -> Any:
        return lambda t, y: torch.tanh(w.to(y.dtype) @ y) * torch.cos(t) - 0.2 * y

    def plain(y0: Tensor, w: Tensor, ts: Tensor) -> Tensor:
        times = [x.real if i < 0 else x for i, x in enumerate(ts.unbind())]
        return unequal(field(w), y0, times, 5, scheme.order, m, rule)

    sol = odegrad.solve(field(w), y0, ts, scheme=scheme, stepsize=Steps(5))
    expected = plain(y0, w, ts)
    assert float((sol.ys - expected).detach().norm()) < 1e-13
    inputs = [y0, w, ts]
    grads = list(torch.autograd.grad(loss(sol.ys), inputs))
    assert relative(grads, list(torch.autograd.grad(loss(expected), inputs))) < 1e-12

    weights = torch.linspace(0.5, 1.5, expected.numel(), dtype=F64).reshape(expected.shape)
    for i, x in enumerate(inputs):
        direction = torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(i))
        moved = [a.detach().to(torch.complex128) for a in inputs]
        moved[i] = moved[i] + 1e-30j * direction
        ys = plain(*moved)
        value = ((weights * ys.square()).sum() + (weights * ys).sin().sum()).imag / 1e-30
        assert float((grads[i] * direction).sum()) == pytest.approx(float(value), rel=1e-11)


# Exactness in every mode.

SCHEDULES = [
    *(StoreAll(keep=keep) for keep in Keep),
    *(Every(3), Binomial(2), Online(3), Tiered(ram=2, disk=2)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(
    "scheme", [AdamsBashforth(5), AdamsBashforthMoulton(6, odegrad.Heun(), 1, corrections=2)]
)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_every_schedule_equals_tape(schedule: Any, scheme: Any, case: Any) -> None:
    """On descending and ascending times, equal neighbours, and steps that change by any ratio."""
    k = SCHEDULES.index(schedule) % 2
    times = [(0.1, 0.4, 0.4, 1.1, 1.15), (1.1, 0.9, 0.3, 0.3, -0.2)][k]
    problem = case()
    expected, tape = problem.gradient(Tape(), scheme, Steps(4), times)
    found, sol = problem.gradient(Discrete(schedule), scheme, Steps(4), times)
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(torch.utils._pytree.tree_leaves(x.ys) for x in (sol, tape)), strict=True)
    )
    assert relative(found, expected) <= 1e-12


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS, Tape()], ids=["states", "graphs", "tape"])
def test_steps_of_no_length(gradient: Any) -> None:
    """They change nothing, and the steps behind them are as if they were not there."""
    problem = CASES[1]()
    for scheme in (AdamsBashforth(4), AdamsBashforthMoulton(5)):
        grads, sol = problem.gradient(gradient, scheme, Steps(4), (0.1, 0.1, 0.9, 0.9, 1.5))
        _, plain = problem.gradient(gradient, scheme, Steps(4), (0.1, 0.9, 1.5))
        assert torch.equal(sol.ys[[0, 2, 4]], plain.ys)
        assert torch.equal(sol.ys[1], sol.ys[0])
        assert all(bool(g.isfinite().all()) for g in grads)


def test_work() -> None:
    """One evaluation per step, or m + 1, beside the start; each is transposed once."""
    problem, n = CASES[0](), 10
    for scheme, start, each in [
        (AdamsBashforth(1), 0, 1),
        (AdamsBashforth(4), 3 * 4, 1),
        (AdamsBashforth(4, start_steps=0), 0, 1),
        (AdamsBashforthMoulton(4), 2 * 4, 2),
        (AdamsBashforthMoulton(2, corrections=3), 0, 4),
    ]:
        _, sol = problem.gradient(GRAPHS, scheme, Steps(n), (0.0, 1.0))
        steps = n - (start // 4)
        assert sol.stats.f_evaluations == start + each * steps
        assert sol.stats.vjps == sol.stats.f_evaluations
        _, sol = problem.gradient(Discrete(), scheme, Steps(n), (0.0, 1.0))
        assert sol.stats.f_evaluations == 2 * (start + each * steps)
        assert sol.stats.recomputed == 0


def test_recorded_grids_of_other_schemes() -> None:
    problem = CASES[1]()
    _, sol = problem.gradient(Discrete(), odegrad.Tsit5(), odegrad.PID(1e-6, 1e-8))
    assert sol.grid is not None
    expected, _ = problem.gradient(Tape(), AdamsBashforthMoulton(5), sol.grid)
    found, again = problem.gradient(Discrete(Every(4)), AdamsBashforthMoulton(5), sol.grid)
    assert relative(found, expected) < 1e-12
    assert relative([again.ys.detach()], [sol.ys.detach()]) < 1e-3
    with pytest.raises(InvalidValueError, match=r"AdamsBashforth has no error estimate.*Steps"):
        odegrad.solve(lambda t, y: -y, problem.y0, [0.0, 1.0], scheme=AdamsBashforth())


# Derivatives of derivatives, transforms.

PAIR = [AdamsBashforth(3), AdamsBashforthMoulton(4)]


def small() -> tuple[Any, Tensor, Tensor]:
    w, y0 = leaf(2, 2, seed=1), leaf(2)
    return (lambda t, y, w: torch.tanh(w @ y) * torch.cos(t)), y0, w


@pytest.mark.parametrize("scheme", PAIR)
def test_second_derivatives(scheme: Any) -> None:
    f, y0, w = small()
    ts = torch.tensor([0.0, 0.5, 1.4], dtype=F64, requires_grad=True)
    inputs = (y0, w, ts)

    def value(gradient: Any) -> Any:
        def run(y0: Tensor, w: Tensor, ts: Tensor) -> Tensor:
            sol = odegrad.solve(
                f, y0, ts, (w,), scheme=scheme, stepsize=Steps(4), gradient=gradient
            )
            return loss(sol.ys)

        return run

    found = []
    for gradient in (Tape(), Discrete(), Discrete(Every(2)), GRAPHS):
        grads = torch.autograd.grad(value(gradient)(*inputs), inputs, create_graph=True)
        directions = [torch.linspace(-1, 1, g.numel(), dtype=F64).reshape(g.shape) for g in grads]
        total = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        found.append(list(torch.autograd.grad(total, inputs)))
    assert max(relative(x, found[0]) for x in found[1:]) < 1e-11
    assert torch.autograd.gradcheck(value(Discrete()), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value(Discrete()), inputs)


@pytest.mark.parametrize("scheme", PAIR)
def test_hvp(scheme: Any) -> None:
    net, y0 = mlp(), leaf(4, 3)
    parameters = list(net.parameters())
    directions = [torch.linspace(-1, 1, p.numel(), dtype=F64).reshape(p.shape) for p in parameters]

    def value(gradient: Any) -> Tensor:
        sol = odegrad.solve(
            lambda t, y: net(y), y0, [0.0, 0.6, 1.0],
            scheme=scheme, stepsize=Steps(5), gradient=gradient,
        )  # fmt: skip
        return loss(sol.ys)

    found = odegrad.hvp(lambda: value(Discrete(Every(3))), parameters, directions)
    grads = torch.autograd.grad(value(Tape()), parameters, create_graph=True)
    total = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    expected = torch.autograd.grad(total, parameters)
    assert relative(list(found[2]), list(expected)) < 1e-12


@pytest.mark.parametrize("scheme", PAIR)
def test_transforms(scheme: Any) -> None:
    f, y0, w = small()
    ts = torch.tensor([0.0, 0.5, 1.4], dtype=F64)

    def end(y0: Tensor, w: Tensor, ts: Tensor, gradient: Any = Discrete()) -> Tensor:  # noqa: B008
        return odegrad.solve(
            f, y0, ts, (w,), scheme=scheme, stepsize=Steps(4), gradient=gradient
        ).ys[-1]

    args = (y0.detach(), w.detach(), ts)
    jacobian = torch.func.jacrev(end, argnums=(0, 1, 2))(*args)
    forward = torch.func.jacfwd(end, argnums=(0, 1, 2))(*args)
    y, v, s = (x.clone().requires_grad_() for x in args)
    expected = torch.autograd.functional.jacobian(lambda *x: end(*x, gradient=Tape()), (y, v, s))
    assert relative(list(jacobian), list(expected)) < 1e-12
    assert relative(list(forward), list(expected)) < 1e-12

    many = torch.stack([y0.detach(), 2 * y0.detach(), y0.detach() - 1])
    mapped = torch.func.vmap(lambda y: end(y, w.detach(), ts))(many)
    assert relative([mapped], [torch.stack([end(y, w.detach(), ts) for y in many])]) < 1e-13
    each = torch.func.vmap(torch.func.grad(lambda y: end(y, w.detach(), ts).sin().sum()))(many)
    alone = [torch.func.grad(lambda y: end(y, w.detach(), ts).sin().sum())(y) for y in many]
    assert relative([each], [torch.stack(alone)]) < 1e-13


# Kinds of states.


@pytest.mark.parametrize("scheme", [AdamsBashforth(4), AdamsBashforthMoulton(5)])
def test_complex_states_are_pairs_of_real_ones(scheme: Any) -> None:
    c = leaf(2, seed=3)
    z0 = torch.complex(leaf(2, seed=4).detach(), leaf(2, seed=5).detach()).requires_grad_()
    pair = torch.view_as_real(z0.detach()).clone().requires_grad_()
    options: dict[str, Any] = {"scheme": scheme, "stepsize": Steps(9)}

    def f(t: Tensor, z: Tensor) -> Tensor:
        return 1j * c * z - 0.1 * z * z.abs().square() * torch.cos(t)

    def real(t: Tensor, x: Tensor) -> Tensor:
        return torch.view_as_real(f(t, torch.view_as_complex(x)))

    ys = odegrad.solve(f, z0, [0.0, 0.4, 1.5], **options).ys
    grads = torch.autograd.grad(torch.view_as_real(ys).sin().sum(), [z0, c])
    xs = odegrad.solve(real, pair, [0.0, 0.4, 1.5], **options).ys
    expected = torch.autograd.grad(xs.sin().sum(), [pair, c])
    assert float((torch.view_as_real(ys) - xs).detach().norm()) < 1e-14
    assert relative([torch.view_as_real(grads[0]), grads[1]], list(expected)) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_states(dtype: torch.dtype) -> None:
    """As in double precision, up to the rounding of the states and slopes."""
    found = []
    for kind in (dtype, F64):
        net = mlp().to(kind)
        y0 = leaf(4, 3).detach().to(dtype).to(kind).requires_grad_()
        sol = odegrad.solve(
            lambda t, y, net=net: net(y), y0, [0.0, 0.3, 1.0],
            scheme=AdamsBashforthMoulton(4), stepsize=Steps(6),
        )  # fmt: skip
        assert sol.ys.dtype == kind
        grads = torch.autograd.grad(loss(sol.ys.double()), [y0, *net.parameters()])
        found.append([x.detach().double() for x in (sol.ys, *grads)])
    assert relative(*found) < 100 * torch.finfo(dtype).eps


# Where it begins anew.


def test_jumps_begin_every_step_anew() -> None:
    """With breakpoints at jumps every step is one of the start, and exact all the same."""
    rate = leaf(seed=1)
    f = lambda t, y: torch.where(t < 0.5, rate, -0.3 * rate) * y  # noqa: E731
    found = []
    for gradient in (Tape(), Discrete()):
        y0 = leaf(3)
        sol = odegrad.solve(
            f, y0, [0.0, 1.0], breakpoints=(0.5,), scheme=AdamsBashforth(4),
            stepsize=Steps(5), gradient=gradient,
        )  # fmt: skip
        found.append(list(torch.autograd.grad(loss(sol.ys), [y0, rate])))
        again = odegrad.solve(
            f, y0, [0.0, 1.0], breakpoints=(0.5,), scheme=odegrad.RK4(), stepsize=Steps(5)
        )
        assert float((sol.ys - again.ys).detach().norm()) < 1e-14
    assert relative(*found) < 1e-12


def test_new_carry_forgets() -> None:
    """A second solve from the end of the first is what one solve with a new `init` there would be."""
    f, y0, w = small()
    options: dict[str, Any] = {"scheme": AdamsBashforth(4), "stepsize": Steps(5)}
    first = odegrad.solve(f, y0, [0.0, 1.0], (w,), **options).ys[-1]
    second = odegrad.solve(f, first, [1.0, 2.0], (w,), **options).ys[-1]
    whole = odegrad.solve(f, y0, [0.0, 1.0, 2.0], (w,), **options).ys[-1]
    assert not torch.equal(second, whole)
    assert float((second - whole).detach().norm()) < 1e-3


def test_long_steps_behind_short_ones() -> None:
    """Weights that extrapolate a thousand times too far would ruin the solution in single precision."""
    y0 = torch.ones(1)
    sol = odegrad.solve(
        lambda t, y: -y, y0, [0.0, 1e-3, 2.0], scheme=AdamsBashforth(6), stepsize=Steps(40)
    )
    assert float(sol.ys[-1]) == pytest.approx(math.exp(-2), rel=1e-5)


# Compilers, errors, values.


def test_compile_says_that_it_has_no_effect() -> None:
    y0 = leaf(2)
    options: dict[str, Any] = {"scheme": AdamsBashforth(3), "stepsize": Steps(4)}
    with pytest.warns(
        OdegradWarning, match=r"no effect.*AdamsBashforth.*depends on numbers"
    ) as seen:
        sol = odegrad.solve(lambda t, y: -y, y0, [0.0, 1.0], compile=True, **options)
    assert len(seen) == 1
    assert torch.equal(sol.ys, odegrad.solve(lambda t, y: -y, y0, [0.0, 1.0], **options).ys)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AdamsBashforth(0), InvalidValueError, "order must be from 1 to 12, received 0"),
        (lambda: AdamsBashforthMoulton(13), InvalidValueError, "from 1 to 12, received 13"),
        (lambda: AdamsBashforth(2.0), InvalidTypeError, r"order must be an int.*received 2\.0"),
        (lambda: AdamsBashforth(True), InvalidTypeError, "received True"),
        (lambda: AdamsBashforth(4, "rk4"), InvalidTypeError, r"such as RK4\(\).*received 'rk4'"),
        (lambda: AdamsBashforth(4, odegrad.RK4), InvalidTypeError, "start must be"),
        (lambda: AdamsBashforth(4, odegrad.ALF()), InvalidTypeError, "start must be"),
        (lambda: AdamsBashforth(4, None, 4), InvalidValueError, "start_steps must be from 0 to 3"),
        (lambda: AdamsBashforthMoulton(4, None, 3), InvalidValueError, "from 0 to 2"),
        (lambda: AdamsBashforthMoulton(corrections=0), InvalidValueError, "at least 1, received 0"),
    ],
)
def test_errors(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_schemes_are_values() -> None:
    for scheme in (AdamsBashforth(12), AdamsBashforthMoulton(3, odegrad.RK38(), 1, corrections=2)):
        assert pickle.loads(pickle.dumps(scheme)) == scheme
        assert eval(repr(scheme), vars(odegrad)) == scheme
        assert hash(scheme) == hash(pickle.loads(pickle.dumps(scheme)))
    assert AdamsBashforth(3) != AdamsBashforth(4)
    assert [AdamsBashforth(k).order for k in (1, 12)] == [1, 12]
