"""The laws of every scheme: the step is what its formulas say, and its transpose is exact."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from odegrad.field import VectorField
from odegrad.schemes import (
    ALF,
    RK4,
    SCHEMES,
    AdamsBashforth,
    AdamsBashforthMoulton,
    Bosh3,
    Dopri5,
    ExplicitRungeKutta,
    Reversible,
    ReversibleHeun,
    Scheme,
    Tableau,
)
from odegrad.schemes.multistep import Adams
from odegrad.schemes.tableau import trees
from odegrad.state import Structure
from oracles import adams_step, columns, randn_like, real_inner, rk_step
from problems import BATCH, PROBLEMS, forced, mlp

F64 = torch.float64
KINDS = ("float", "scalar", "per-sample")
RUNGE_KUTTA = [cls for cls in SCHEMES if issubclass(cls, ExplicitRungeKutta)]
schemes = pytest.mark.parametrize("scheme", [cls() for cls in RUNGE_KUTTA], ids=repr)
# ... and all, with the reversible and multistep ones at further values of their parameters.
MORE = [
    *(ALF(0.8), Reversible(RK4(), 0.9), Reversible(Bosh3(), 1.0)),
    *(AdamsBashforth(1), AdamsBashforthMoulton(5, corrections=3)),
]
every_scheme = pytest.mark.parametrize("scheme", [*(cls() for cls in SCHEMES), *MORE], ids=repr)
problems = pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)


def times(kind):
    t, dt = 0.3, 0.17
    if kind == "float":
        return t, dt
    if kind == "scalar":
        return torch.tensor(t, dtype=F64), torch.tensor(dt, dtype=F64)
    steps = torch.linspace(0.5, 1.5, BATCH, dtype=F64)
    return t * steps, dt * steps.flip(0)


def plus(y, h, k):
    return [a + columns(h, a) * b for a, b in zip(y, k, strict=True)]


def formula(scheme, f, t, dt, y, carry):
    """(y⁺, carry⁺, dense) of one step, written without the library; see the schemes' modules."""
    n, z = len(y), list(carry)
    if isinstance(scheme, ExplicitRungeKutta):
        tab = scheme.tableau
        new, slopes = rk_step((tab.a, tab.b, tab.c), f, t, dt, list(y), z or None)
        return new, slopes[-1] if tab.fsal else [], slopes
    if isinstance(scheme, ALF):
        half = plus(y, dt / 2, z)
        u = f(t + dt / 2, half)
        v = [a + 2 * scheme.damping * (b - a) for a, b in zip(z, u, strict=True)]
        return plus(half, dt / 2, v), v, []
    if isinstance(scheme, ReversibleHeun):
        second, slope = z[:n], z[n:]
        second = plus([2 * a - b for a, b in zip(y, second, strict=True)], dt, slope)
        new = f(t + dt, second)
        return plus(plus(y, dt / 2, slope), dt / 2, new), [*second, *new], []
    if isinstance(scheme, Adams):
        times, past = (z[0].unbind(-1), z[1:]) if z else ((), [])
        slopes = [past[i * n : (i + 1) * n] for i in range(len(times))]
        m = getattr(scheme, "corrections", None)
        new, slope = adams_step(f, t, dt, list(y), times, slopes, scheme.order, m)
        if not z:
            return new, [], []
        later = torch.stack([t, *times[:-1]], -1)
        return new, [later, *slope, *past[: len(past) - n]], []
    assert isinstance(scheme, Reversible)
    tab, coupling = scheme.base.tableau, scheme.coupling

    def moved(t, dt, y, start, sign):
        """start ± Ψ(t, y)."""
        _, slopes = rk_step((tab.a, tab.b, tab.c), f, t, dt, y)
        for b, slope in zip(tab.b, slopes, strict=True):
            start = plus(start, sign * b * dt, slope)
        return start

    mixed = [coupling * a + (1 - coupling) * b for a, b in zip(y, z, strict=True)]
    new = moved(t, dt, z, mixed, 1)
    return new, moved(t + dt, -dt, new, z, -1), []


def initial(scheme, f, t, y):
    """The carry before the first step, likewise."""
    if isinstance(scheme, Adams):
        slots = max(0, scheme.order - (2 if isinstance(scheme, AdamsBashforthMoulton) else 1))
        return [torch.stack([t] * slots, -1), *(0 * x for x in y * slots)] if slots else []
    if isinstance(scheme, Reversible):
        return list(y)
    if isinstance(scheme, ReversibleHeun):
        return [*y, *f(t, y)]
    return list(f(t, y)) if isinstance(scheme, ALF) or scheme.tableau.fsal else []


class Setup:
    """One scheme, one problem, one kind of time, and a carry that is not what `init` gives."""

    def __init__(self, scheme, make, kind, seed=0):
        self.scheme, self.problem = scheme, make()
        self.t, self.dt = times(kind)
        self.field = self.problem.field()
        y = self.problem.leaves
        self.p = self.field.discover(0.3, y)
        self.y = (*y, *self.field.cost_leaves(0.3, y, self.p))
        # A random carry: the derivative must not lean on its being f(t, y).
        with torch.no_grad():
            carry = scheme.init(self.field, self.t, self.y, self.p)
        self.carry = tuple(randn_like(carry, seed + 1))
        if isinstance(scheme, Adams) and carry:  # the times of earlier steps, unequal ones
            ago = torch.arange(1, carry[0].shape[-1] + 1, dtype=F64) ** 1.1
            length = torch.as_tensor(self.dt, dtype=F64)[..., None]
            self.carry = (carry[0] - 0.8 * length * ago, *self.carry[1:])
        stages = scheme.tableau.stages if isinstance(scheme, ExplicitRungeKutta) else 0
        self.grad_y = tuple(randn_like(self.y, seed + 2))
        self.grad_carry = tuple(randn_like(self.carry, seed + 3)) if self.carry else None
        self.grad_dense = [tuple(randn_like(self.y, seed + 10 + i)) for i in range(stages)]
        self.field.evaluations = self.field.transposes = 0

    def step(self):
        with torch.no_grad():
            return self.scheme.step(self.field, self.t, self.dt, self.y, self.carry, self.p)

    def vjp(self, *, default=False, carry=True, dense=True):
        rule = Scheme.step_vjp if default else type(self.scheme).step_vjp
        return rule(
            self.scheme, self.field, self.t, self.dt, self.y, self.carry, self.p,
            self.grad_y, self.grad_carry if carry else None, self.grad_dense if dense else None,
        )  # fmt: skip

    def oracle(self, t, dt, y, carry, p):
        """(y⁺, carry⁺, dense), flat, as a function of everything that a step reads."""
        new, end, slopes = formula(self.scheme, self.known(p), t, dt, y, carry)
        return (*new, *end, *(x for slope in slopes for x in slope))

    def known(self, p):
        """The field on flat leaves that reads p."""
        given = dict(zip(map(id, self.p), p, strict=True))
        theta = [given[id(x)] for x in self.problem.theta]
        args = tuple(given[id(x)] for x in self.problem.args)
        return lambda time, leaves: self.problem.flat(time, leaves, theta, args)


def close(x, y, tolerance=1e-13):
    """Whether two pytrees of tensors, None or floats agree, relative to the larger one's size."""
    xs, ys = pytree.tree_leaves(x), pytree.tree_leaves(y)
    assert len(xs) == len(ys)
    for a, b in zip(xs, ys, strict=True):
        a = torch.zeros(()) if a is None else torch.as_tensor(a).detach()
        b = torch.zeros(()) if b is None else torch.as_tensor(b).detach()
        bound = tolerance * max(1.0, float(a.abs().max()), float(b.abs().max()))
        assert float((a - b).abs().max()) <= bound, (a, b)


def zeros(grads, like):
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, like, strict=True)]


# The step.


@every_scheme
@problems
@pytest.mark.parametrize("kind", KINDS)
def test_step_is_its_formula(scheme, make, kind):
    setup = Setup(scheme, make, kind)
    step = setup.step()
    t, dt = torch.as_tensor(setup.t, dtype=F64), torch.as_tensor(setup.dt, dtype=F64)
    with torch.no_grad():
        expected = setup.oracle(t, dt, setup.y, setup.carry, setup.p)
    got = (*step.y, *step.carry, *(x for slope in step.dense for x in slope))
    close(got, list(expected), 2e-14)
    assert step.ok is None
    if not isinstance(scheme, ExplicitRungeKutta):
        return  # their estimates are tested in test_reversible.py
    tab = scheme.tableau
    if tab.b_embedded is None:
        assert step.error is None
    else:
        embedded, _ = rk_step(
            (tab.a, tab.b_embedded, tab.c),
            lambda time, y: setup.problem.flat(
                time, y, setup.problem.theta, setup.problem.args
            ),
            t, dt, list(setup.y), setup.carry or None,
        )  # fmt: skip
        close(step.error, [a - b for a, b in zip(step.y, embedded, strict=True)])
    if setup.problem.raw_running is None:
        assert setup.field.evaluations == tab.stages - tab.fsal


@every_scheme
@problems
def test_float_and_tensor_times_agree_to_the_last_bit(scheme, make):
    a, b = Setup(scheme, make, "float"), Setup(scheme, make, "scalar")
    x, y = a.step(), b.step()
    for left, right in ((x.y, y.y), (x.carry, y.carry), (x.dense, y.dense)):
        for u, v in zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True):
            assert torch.equal(u, v)
            assert u.dtype == v.dtype
            assert u.shape == v.shape


# The transpose.


@every_scheme
@problems
@pytest.mark.parametrize("kind", ["scalar", "per-sample"])
def test_transpose_law(scheme, make, kind):
    """⟨w, DΦ v⟩ = ⟨step_vjp(w), v⟩ for random v and w over all inputs and outputs."""
    setup = Setup(scheme, make, kind)
    grads = setup.vjp()
    n, m = len(setup.y), len(setup.carry)
    inputs = (setup.t, setup.dt, *setup.y, *setup.carry, *setup.p)
    grad = [grads.t, grads.dt, *grads.y, *(grads.carry or ()), *grads.p]
    outputs = [*setup.grad_y, *(setup.grad_carry or ()), *pytree.tree_leaves(setup.grad_dense)]

    def phi(t, dt, *rest):
        return setup.oracle(t, dt, rest[:n], rest[n : n + m], rest[n + m :])

    detached = tuple(x.detach() for x in inputs)
    for seed in (1, 2):
        v = tuple(randn_like(inputs, seed))
        _, dv = torch.func.jvp(phi, detached, v)
        left, right = real_inner(outputs, dv), real_inner(grad, v)
        scale = max(
            1.0, *(float(g.norm() * x.norm()) for g, x in zip(zeros(grad, v), v, strict=True))
        )
        assert abs(left - right) <= 2e-13 * scale
    # Each input on its own, so that no error cancels another's.
    for i in range(len(inputs)):
        v = tuple(
            randn_like([x], i)[0] if j == i else torch.zeros_like(x) for j, x in enumerate(inputs)
        )
        _, dv = torch.func.jvp(phi, detached, v)
        left, right = real_inner(outputs, dv), real_inner([grad[i]], [v[i]])
        assert abs(left - right) <= 2e-13 * max(1.0, abs(left), float(v[i].norm()) * 10)


@every_scheme
@problems
@pytest.mark.parametrize("kind", KINDS)
def test_transpose_equals_the_default_one(scheme, make, kind):
    setup = Setup(scheme, make, kind)
    for carry, dense in ((True, True), (True, False), (False, True), (False, False)):
        hand = setup.vjp(carry=carry, dense=dense)
        default = setup.vjp(default=True, carry=carry, dense=dense)
        for a, b in ((hand.t, default.t), (hand.dt, default.dt), (hand.y, default.y)):
            close(a, b)
        assert (hand.t is None) == (kind == "float")
        assert (hand.dt is None) == (kind == "float")
        if setup.carry:
            close(hand.carry or zeros([None], [torch.zeros(())]), default.carry)
        else:
            assert hand.carry is None
            assert default.carry is None
        close(zeros(hand.p, setup.p), zeros(default.p, setup.p))


@schemes
def test_missing_cotangents_are_zeros(scheme):
    """A structurally zero cotangent of the dense output, whole or leaf by leaf, is a zero one."""
    a, b = Setup(scheme, PROBLEMS[2], "scalar"), Setup(scheme, PROBLEMS[2], "scalar")
    stages = scheme.tableau.stages
    a.grad_dense = [None if i % 2 else (None, *a.grad_dense[i][1:]) for i in range(stages)]
    b.grad_dense = [
        tuple(map(torch.zeros_like, g)) if i % 2 else (torch.zeros_like(g[0]), *g[1:])
        for i, g in enumerate(b.grad_dense)
    ]
    x, y = a.vjp(), b.vjp()
    close((x.t, x.dt, x.y), (y.t, y.dt, y.y))
    close(zeros(x.p, a.p), zeros(y.p, b.p))
    close(zeros(x.carry or (), a.carry), zeros(y.carry or (), b.carry))


@schemes
@pytest.mark.parametrize("per_sample", [False, True])
def test_increments_are_summed_before_they_are_added(scheme, per_sample):
    """A large state is rounded once in a step, not once for each slope: the terms alone are lost."""
    y = (torch.full((1, 2), 2.0**24),)
    field = VectorField(lambda t, y: torch.ones_like(y), Structure(y[0]), y)
    h = torch.full((1,), 2.0, dtype=F64) if per_sample else 2.0
    t = 0.0 * h
    step = scheme.step(field, t, h, y, scheme.init(field, t, y, ()), ())
    assert step.y[0].tolist() == [[2.0**24 + 2.0] * 2]


@every_scheme
@problems
def test_per_sample_times_are_samples_one_by_one(scheme, make):
    setup = Setup(scheme, make, "per-sample")
    whole, grads = setup.step(), setup.vjp()
    grad_p = [torch.zeros_like(x) for x in setup.p]
    for b in range(BATCH):
        one = Setup(scheme, make, "scalar")
        y0 = pytree.tree_map(lambda x, b=b: x[b : b + 1], one.problem.y0)
        one.field = one.problem.field(y0)
        one.p = one.field.discover(0.3, tuple(pytree.tree_leaves(y0)))
        one.t, one.dt = setup.t[b], setup.dt[b]

        def cut(leaves, b=b):
            return tuple(x[b : b + 1] for x in leaves)

        one.y, one.carry = cut(setup.y), cut(setup.carry)
        one.grad_y = cut(setup.grad_y)
        one.grad_carry = cut(setup.grad_carry) if setup.grad_carry else None
        one.grad_dense = [cut(g) for g in setup.grad_dense]
        if isinstance(scheme, Adams) and setup.carry:  # times, which have no axis of their own
            one.carry = (one.carry[0][0], *one.carry[1:])
            one.grad_carry = (one.grad_carry[0][0], *one.grad_carry[1:])
        close(one.step().y, cut(whole.y), 1e-14)
        alone = one.vjp()
        close(alone.y, cut(grads.y))
        close((alone.t, alone.dt), (grads.t[b], grads.dt[b]))
        if setup.carry:
            close(alone.carry, cut(grads.carry))
        grad_p = [a + g for a, g in zip(grad_p, zeros(alone.p, one.p), strict=True)]
    close(grad_p, zeros(grads.p, setup.p))


@every_scheme
@problems
@pytest.mark.parametrize("kind", ["scalar", "per-sample"])
def test_init_transpose_law(scheme, make, kind):
    setup = Setup(scheme, make, kind)
    carry = scheme.init(setup.field, setup.t, setup.y, setup.p)
    with torch.no_grad():
        time = torch.as_tensor(setup.t, dtype=F64)
        close(carry, initial(scheme, setup.known(setup.p), time, setup.y), 1e-15)
    w = tuple(randn_like(carry, 5))
    grads = scheme.init_vjp(setup.field, setup.t, setup.y, setup.p, w)
    assert grads.dt is None
    assert grads.carry is None
    default = Scheme.init_vjp(scheme, setup.field, setup.t, setup.y, setup.p, w)
    close((grads.t, grads.y), (default.t, default.y))
    close(zeros(grads.p, setup.p), zeros(default.p, setup.p))
    n = len(setup.y)
    inputs = (setup.t, *setup.y, *setup.p)

    def first(t, *rest):
        return tuple(initial(scheme, setup.known(rest[n:]), t, rest[:n]))

    v = tuple(randn_like(inputs, 6))
    if not carry:
        assert all(not g.any() for g in (grads.t, *grads.y))
        assert grads.p == (None,) * len(setup.p)
        return
    _, dv = torch.func.jvp(first, tuple(x.detach() for x in inputs), v)
    grad = zeros([grads.t, *grads.y, *grads.p], inputs)
    assert real_inner(w, dv) == pytest.approx(real_inner(grad, v), rel=1e-12, abs=1e-12)


# What is skipped, and what is counted.


def test_a_stage_without_weight_is_not_skipped():
    """b_2 = 0 in Dopri5, but the later stages read k_2."""
    assert Dopri5.tableau.b[1] == 0.0
    setup = Setup(Dopri5(), forced, "float")
    exact = setup.vjp(dense=False)

    class Skipping(Dopri5):
        """The bug: a_j2 = 0 in the transpose."""

    tab = Dopri5.tableau
    broken = object.__new__(Tableau)
    for name in ("b", "c", "order", "b_embedded", "embedded_order"):
        object.__setattr__(broken, name, getattr(tab, name))
    object.__setattr__(broken, "a", tuple((r[0], 0.0, *r[2:]) if len(r) > 1 else r for r in tab.a))
    Skipping.tableau = broken
    setup.scheme = Skipping()
    planted = setup.vjp(dense=False)
    assert float((planted.y[0] - exact.y[0]).abs().max()) > 1e-6
    # ... and the exact one is torch's.
    setup.scheme = Dopri5()
    close(exact.y, setup.vjp(default=True, dense=False).y)


def reached(tab):
    """The number of stages that y⁺ depends on, not counting one that is the incoming carry."""
    needed = [b != 0.0 for b in tab.b]
    for i in reversed(range(tab.stages)):
        needed[i] = needed[i] or any(
            needed[j] and tab.a[j][i] != 0.0 for j in range(i + 1, tab.stages)
        )
    return sum(needed[1:] if tab.fsal else needed)


@schemes
def test_work_is_counted_exactly(scheme):
    """A chain of N steps: (s − 1) N + 1 evaluations under FSAL, and as few transposes as there are."""
    problem, n = mlp(), 3
    field = problem.field()
    p = field.discover(0.0, problem.leaves)
    tab, h = scheme.tableau, 0.1
    per_step = tab.stages - tab.fsal
    with torch.no_grad():
        y, carry = problem.leaves, scheme.init(field, 0.0, problem.leaves, p)
        assert field.evaluations == int(tab.fsal)
        steps = []
        for i in range(n):
            result = scheme.step(field, i * h, h, y, carry, p)
            steps.append((i * h, y, carry))
            y, carry = result.y, result.carry
    assert field.evaluations == per_step * n + tab.fsal
    field.evaluations = 0
    grad, grad_carry = tuple(map(torch.ones_like, y)), None
    transposes = []
    for t, y, carry in reversed(steps):
        before = field.transposes
        grads = scheme.step_vjp(field, t, h, y, carry, p, grad, grad_carry)
        grad, grad_carry = grads.y, grads.carry
        transposes.append(field.transposes - before)
    assert transposes == [reached(tab)] + [reached(tab) + tab.fsal] * (n - 1)
    assert field.evaluations == sum(transposes)


@schemes
def test_first_same_as_last_is_not_counted_twice(scheme):
    """Three steps in a chain, with cotangents on all slopes, against torch through the same chain."""
    problem, h = forced(), torch.tensor(0.2, dtype=F64)
    field = problem.field()
    p = field.discover(0.0, problem.leaves)
    tab, n = scheme.tableau, 3
    t0 = torch.tensor(0.1, dtype=F64, requires_grad=True)
    y0 = [x.clone().requires_grad_() for x in problem.leaves]

    def f(time, leaves):
        return problem.flat(time, leaves, problem.theta, problem.args)

    y, slope, total, weights = y0, f(t0, y0) if tab.fsal else None, 0.0, []
    for i in range(n):
        y, slopes = rk_step((tab.a, tab.b, tab.c), f, t0 + i * h, h, y, slope)
        weights.append([randn_like(y, 100 * i + j) for j in range(tab.stages)])
        for ks, ws in zip(slopes, weights[-1], strict=True):
            total = total + sum((k * w).sum() for k, w in zip(ks, ws, strict=True))
        slope = slopes[-1] if tab.fsal else None
    total = total + sum(x.sum() for x in y)
    expected = torch.autograd.grad(total, [t0, *y0, *p])

    with torch.no_grad():
        y, steps = problem.leaves, []
        carry = scheme.init(field, t0.detach(), y, p)
        for i in range(n):
            steps.append((t0.detach() + i * h, y, carry))
            result = scheme.step(field, *steps[-1][:1], h, y, carry, p)
            y, carry = result.y, result.carry
    grad, grad_carry = tuple(map(torch.ones_like, y)), None
    grad_t, grad_p = torch.zeros((), dtype=F64), [torch.zeros_like(x) for x in p]
    for (t, y, carry), ws in zip(reversed(steps), reversed(weights), strict=True):
        dense = [tuple(w) for w in ws]
        grads = scheme.step_vjp(field, t, h, y, carry, p, grad, grad_carry, dense)
        grad, grad_carry, grad_t = grads.y, grads.carry, grad_t + grads.t
        grad_p = [a + g for a, g in zip(grad_p, zeros(grads.p, p), strict=True)]
    if tab.fsal:
        grads = scheme.init_vjp(field, t0.detach(), problem.leaves, p, grad_carry)
        grad = tuple(a + b for a, b in zip(grad, grads.y, strict=True))
        grad_t = grad_t + grads.t
        grad_p = [a + g for a, g in zip(grad_p, zeros(grads.p, p), strict=True)]
    close([grad_t, *grad, *grad_p], list(expected))


# Schemes are values.


@schemes
def test_schemes_are_values(scheme):
    assert repr(scheme) == f"{type(scheme).__name__}()"
    assert pickle.loads(pickle.dumps(scheme)) == scheme == type(scheme)()
    assert hash(scheme) == hash(type(scheme)())
    assert len({cls() for cls in RUNGE_KUTTA}) == len(RUNGE_KUTTA)
    assert scheme.order == scheme.tableau.order
    assert isinstance(scheme, ExplicitRungeKutta)
    assert trees(1) == ((),)
