"""Tableaux: order conditions, a wrong coefficient, and the orders seen in solutions."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import scipy.integrate
import torch

from odegrad.errors import InvalidValueError
from odegrad.field import VectorField
from odegrad.schemes import SCHEMES, Bosh3, Dopri5, Dopri8, ExplicitRungeKutta, Tableau, Tsit5
from odegrad.schemes.tableau import density, trees, vertices
from odegrad.state import Structure
from problems import CLOSED_FORMS

RUNGE_KUTTA = [cls for cls in SCHEMES if issubclass(cls, ExplicitRungeKutta)]
schemes = pytest.mark.parametrize("scheme", [cls() for cls in RUNGE_KUTTA], ids=repr)


def test_number_of_trees():
    """Hairer, Nørsett & Wanner, table II.2.1, and no tree twice."""
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    for n in range(1, 9):
        assert len(set(trees(n))) == len(trees(n))
        assert all(vertices(tree) == n for tree in trees(n))


def test_densities():
    """γ of the eight trees of up to four vertices: HNW table II.2.1."""
    assert sorted(density(tree) for n in range(1, 5) for tree in trees(n)) == [
        1, 2, 3, 4, 6, 8, 12, 24,
    ]  # fmt: skip
    # Σ n! / (γ σ) over the trees of n vertices is (n − 1)!; here through σ, counted independently.
    for n in range(1, 9):
        total = sum(math.factorial(n) / (density(tree) * symmetry(tree)) for tree in trees(n))
        assert total == pytest.approx(math.factorial(n - 1), rel=1e-13)


def symmetry(tree):
    """The number of automorphisms of a rooted tree."""
    result = 1
    for branch in set(tree):
        m = tree.count(branch)
        result *= math.factorial(m) * symmetry(branch) ** m
    return result


@pytest.mark.parametrize(
    ("scheme", "other"),
    [(Bosh3, scipy.integrate.RK23), (Dopri5, scipy.integrate.RK45)],
    ids=["Bosh3", "Dopri5"],
)
def test_coefficients_are_those_of_scipy(scheme, other):
    tab, s = scheme.tableau, scheme.tableau.stages - 1
    for i in range(s):
        np.testing.assert_array_equal(tab.a[i], other.A[i, :i])
    np.testing.assert_array_equal(tab.c, [*other.C, 1.0])
    np.testing.assert_array_equal(tab.b, [*other.B, 0.0])
    # SciPy's E has the opposite sign in one of the two, where it plays no part.
    sign = np.sign(other.E[0]) * np.sign(tab.b_error[0])
    np.testing.assert_allclose(sign * np.array(tab.b_error), other.E, rtol=0, atol=1e-16)


def test_tsit5_error_weights_are_the_published_ones():
    """The paper's table prints b̂ − b to 16 digits."""
    published = [
        -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995,
        -0.1447110071732629, 0.5823571654525552, -0.45808210592918697, 1 / 66,
    ]  # fmt: skip
    np.testing.assert_allclose(Tsit5.tableau.b_error, [-x for x in published], rtol=0, atol=2e-15)


def perturbations(tab):
    """(label, arguments) with one coefficient changed by 1e-9."""
    fields = {f.name: getattr(tab, f.name) for f in dataclasses.fields(tab) if f.init}
    for name in ("b", "b_embedded", "c"):
        for i in range(len(fields[name] or ())):
            changed = list(fields[name])
            changed[i] += 1e-9
            yield f"{name}[{i}]", {**fields, name: tuple(changed)}
    for i, row in enumerate(tab.a):
        for j in range(len(row)):
            changed = [*row[:j], row[j] + 1e-9, *row[j + 1 :]]
            a = (*tab.a[:i], tuple(changed), *tab.a[i + 1 :])
            yield f"a[{i}][{j}]", {**fields, "a": a}
            # ... also when the row's sum still fits its node.
            c = (*tab.c[:i], math.fsum(changed), *tab.c[i + 1 :])
            yield f"a[{i}][{j}] and c[{i}]", {**fields, "a": a, "c": c}


@schemes
def test_any_wrong_coefficient_raises(scheme):
    """An error of 1e-9 in one coefficient, or in a row of a and its node together, is found."""
    tab, silent, tried = scheme.tableau, [], 0
    Tableau(**{f.name: getattr(tab, f.name) for f in dataclasses.fields(tab) if f.init})
    for label, arguments in perturbations(tab):
        tried += 1
        try:
            Tableau(**arguments)
        except InvalidValueError:
            pass
        else:
            silent.append(label)
    assert tried >= 2
    assert silent == []


@pytest.mark.parametrize(
    "change",
    [
        {"order": 3},
        {"b": (0.0, 1.0, 0.0)},
        {"c": (0.0,)},
        {"a": ((), ())},
        {"b_embedded": (1.0, 0.0)},
        {"b_embedded": (1.0,), "embedded_order": 1},
        {"b_embedded": (1.0, 0.0), "embedded_order": 2},
        {"embedded_order": 1},
    ],
    ids=str,
)
def test_bad_tableaux(change):
    good = {"a": ((), (0.5,)), "b": (0.0, 1.0), "c": (0.0, 0.5), "order": 2}
    assert Tableau(**good).error_order is None
    with pytest.raises(InvalidValueError):
        Tableau(**{**good, **change})


def test_first_same_as_last_is_derived():
    assert [cls for cls in RUNGE_KUTTA if cls.tableau.fsal] == [Bosh3, Dopri5, Tsit5]


def test_dopri8_is_not_dop853():
    assert Dopri8.tableau.stages == 13
    assert len(scipy.integrate.DOP853.B) == 12


@schemes
def test_error_orders(scheme):
    tab = scheme.tableau
    orders = {"AdaptiveHeun": 2, "Fehlberg2": 2, "Bosh3": 3, "RKF45": 5, "CashKarp": 5}
    orders |= {"Dopri5": 5, "Tsit5": 5, "Dopri8": 8}
    assert tab.error_order == scheme.error_order == orders.get(type(scheme).__name__)


# Orders seen in solutions.

# Steps per unit of time, coarse and fine, by order: large enough that the leading term of the error
# dominates, small enough that rounding does not (Dopri8 has one decade and a half in float64).
_STEPS = {1: (100, 200), 2: (50, 100), 3: (25, 50), 4: (15, 30), 5: (12.5, 25), 8: (4.5, 6)}


def rigid_body(t, y):
    """Euler's equations for the principal moments 1/2, 4/5 and 2 (up to a factor)."""
    return torch.stack([-2 * y[1] * y[2], 1.25 * y[0] * y[2], -0.5 * y[0] * y[1]])


def jacobi(t, y):
    """The Jacobi elliptic functions sn, cn, dn with k² = 0.51: problem B5 of DETEST."""
    return torch.stack([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]])


def henon_heiles(t, y):
    """Motion of a star around the centre of a galaxy."""
    q, r, v, w = y
    return torch.stack([v, w, -q - 2 * q * r, -r - q * q + r * r])


ORDER_PROBLEMS = {
    "rigid body": (rigid_body, [1.0, 0.1, 0.9], 8.0),
    "jacobi": (jacobi, [0.0, 1.0, 1.0], 4.0),
    "henon-heiles": (henon_heiles, [0.3, 0.1, 0.2, 0.3], 4.0),
}


def solve_by_hand(scheme, f, y0, end, n):
    y = (torch.tensor(y0, dtype=torch.float64),)
    field = VectorField(f, Structure(y[0]), y)
    carry, h = scheme.init(field, 0.0, y, ()), end / n
    for i in range(n):
        y, carry = scheme.step(field, i * h, h, y, carry, ())[:2]
    return y[0].numpy()


@cache
def reference(name):
    """The solution by another library at its tightest tolerance, good to about 1e-14."""
    f, y0, end = ORDER_PROBLEMS[name]
    return scipy.integrate.solve_ivp(
        lambda t, y: f(t, torch.from_numpy(y)).numpy(),
        (0.0, end),
        y0,
        "DOP853",
        rtol=1e-13,
        atol=1e-15,
        max_step=0.02,
    ).y[:, -1]


@schemes
@pytest.mark.parametrize("name", ORDER_PROBLEMS)
def test_order_of_accuracy(scheme, name):
    f, y0, end = ORDER_PROBLEMS[name]
    coarse, fine = (int(rate * end) for rate in _STEPS[scheme.order])
    errors = [
        np.linalg.norm(solve_by_hand(scheme, f, y0, end, n) - reference(name))
        for n in (coarse, fine)
    ]
    slope = math.log(errors[0] / errors[1]) / math.log(fine / coarse)
    assert slope == pytest.approx(scheme.order, abs=0.2)


@pytest.mark.parametrize("scheme", [c() for c in SCHEMES if c().error_order], ids=repr)
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_order_of_error_estimate(scheme, name):
    f, y0, _ = CLOSED_FORMS[name]
    y = (torch.tensor(y0, dtype=torch.float64),)
    field = VectorField(f, Structure(y[0]), y)
    h = {2: 0.005, 3: 0.01, 5: 0.02, 8: 0.06}[scheme.error_order]

    def estimate(h):
        carry = scheme.init(field, 0.3, y, ())
        return float(scheme.step(field, 0.3, h, y, carry, ()).error[0].norm())

    slope = math.log2(estimate(h) / estimate(h / 2))
    assert slope == pytest.approx(scheme.error_order, abs=0.2)
