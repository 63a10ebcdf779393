"""Controls, against SciPy's piecewise polynomials, NumPy's Chebyshev series and finite differences."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from scipy.interpolate import CubicHermiteSpline, CubicSpline, PPoly
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap

import odegrad
from cases import relative
from odegrad import controls
from odegrad.compiled import using_backend
from odegrad.controls import (
    Chebyshev,
    Control,
    CubicHermite,
    Fourier,
    NaturalSpline,
    PiecewiseConstant,
    PiecewiseLinear,
)
from odegrad.errors import InvalidTypeError, InvalidValueError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

KNOTS = (-0.4, 0.1, 0.7, 0.75, 2.0)  # 0.1 is above itself in float32, 0.7 is below
START, STOP = KNOTS[0], KNOTS[-1]


# What each control should be: (values of u, values of u') at times t, by other people's code.


def constant_oracle(u: PiecewiseConstant, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return both(PPoly(numbers(u.values)[None], KNOTS), t)


def linear_oracle(u: PiecewiseLinear, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    v = numbers(u.values)
    slopes = np.diff(v, axis=0) / np.diff(KNOTS).reshape(-1, *[1] * (v.ndim - 1))
    return both(PPoly(np.stack([slopes, v[:-1]]), KNOTS), t)


def hermite_oracle(u: CubicHermite, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return both(CubicHermiteSpline(KNOTS, numbers(u.values), numbers(u.slopes)), t)


def natural_oracle(u: NaturalSpline, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spline = CubicSpline(KNOTS, numbers(u.values), bc_type="natural")
    inside = np.clip(t, START, STOP)
    outside = (t - inside).reshape(-1, *[1] * len(u.shape))
    value, slope = both(spline, inside)
    return value + slope * outside, slope


def fourier_oracle(u: Fourier, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value = np.zeros((len(t), *u.shape)) + numbers(u.mean)
    slope = np.zeros_like(value)
    for i, time in enumerate(t):
        for m, (a, b) in enumerate(zip(numbers(u.cosine), numbers(u.sine), strict=True), start=1):
            w = 2 * math.pi * m / (STOP - START)
            z = w * (time - START)
            value[i] += a * math.cos(z) + b * math.sin(z)
            slope[i] += w * (b * math.cos(z) - a * math.sin(z))
    return value, slope


def chebyshev_oracle(u: Chebyshev, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c, z = numbers(u.coefficients), 2 * (t - START) / (STOP - START) - 1
    value = np.moveaxis(chebyshev.chebval(z, c), -1, 0)
    slope = chebyshev.chebval(z, chebyshev.chebder(c)) * 2 / (STOP - START)
    return value, np.moveaxis(slope, -1, 0)


def numbers(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def both(u: Any, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return u(t), u.derivative()(t)


@dataclass(frozen=True)
class Kind:
    """A control to test, and what to test it with."""

    make: Callable[..., Control]
    oracle: Callable[[Any, np.ndarray], tuple[np.ndarray, np.ndarray]]
    parameters: tuple[str, ...]
    smooth: bool = False

    def random(self, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Control:
        generator = torch.Generator().manual_seed(len(shape))
        given = [
            torch.randn(p.shape, dtype=torch.float64, generator=generator).to(dtype)
            for p in self.make(shape).parameters()
        ]
        return self.make(shape, init=given)


KINDS = {
    "constant": Kind(lambda s, **k: PiecewiseConstant(KNOTS, s, **k), constant_oracle, ("values",)),
    "linear": Kind(lambda s, **k: PiecewiseLinear(KNOTS, s, **k), linear_oracle, ("values",)),
    "hermite": Kind(
        lambda s, **k: CubicHermite(KNOTS, s, **k), hermite_oracle, ("values", "slopes")
    ),
    "natural": Kind(lambda s, **k: NaturalSpline(KNOTS, s, **k), natural_oracle, ("values",)),
    "fourier": Kind(
        lambda s, **k: Fourier(START, STOP, 3, s, **k),
        fourier_oracle,
        ("mean", "cosine", "sine"),
        smooth=True,
    ),
    "chebyshev": Kind(
        lambda s, **k: Chebyshev(START, STOP, 6, s, **k),
        chebyshev_oracle,
        ("coefficients",),
        smooth=True,
    ),
}

every = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
shapes = pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)

# Inside, at the knots, and somewhat outside.
INSIDE = torch.linspace(START, STOP, 24, dtype=torch.float64)[1:-1]
TIMES = torch.cat([INSIDE, torch.tensor([*KNOTS, -1.0, 2.6], dtype=torch.float64)])


def test_all_are_here():
    assert {type(kind.make(())).__name__ for kind in KINDS.values()} | {"Control"} == {
        *controls.__all__
    }
    assert odegrad.controls is controls


# Values and derivatives.


@every
@shapes
def test_values_and_slopes(kind, shape):
    u = kind.random(shape)
    expected, slope = kind.oracle(u, TIMES.numpy())
    got, tangent = jvp(u, (TIMES,), (torch.ones_like(TIMES),))
    assert got.shape == (len(TIMES), *shape)
    np.testing.assert_allclose(numbers(got), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(numbers(tangent), slope, rtol=1e-12, atol=1e-11)


@every
@shapes
def test_one_time_many_times_vmap(kind, shape):
    u = kind.random(shape)
    each = torch.stack([u(t) for t in TIMES])
    assert each.shape == (len(TIMES), *shape)
    for other in (u(TIMES), vmap(u)(TIMES), torch.stack([u(t) for t in TIMES.tolist()])):
        torch.testing.assert_close(other, each, rtol=1e-14, atol=1e-14)
    grid = TIMES[:6].reshape(2, 3)
    torch.testing.assert_close(u(grid), each[:6].reshape(2, 3, *shape), rtol=1e-14, atol=1e-14)


@every
@pytest.mark.parametrize("times", [(), (5,)], ids=str)
def test_gradcheck(kind, times):
    u = kind.random((2,))
    names = list(kind.parameters)
    given = [p.detach().clone().requires_grad_() for p in u.parameters()]
    t = torch.tensor([-0.7, 0.05, 0.3, 0.72, 2.3], dtype=torch.float64)
    t = (t if times else t[2].clone()).requires_grad_()

    def value(t: Tensor, *p: Tensor) -> Tensor:
        return functional_call(u, dict(zip(names, p, strict=True)), (t,))

    assert torch.autograd.gradcheck(value, (t, *given), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value, (t, *given))


@every
def test_transforms(kind):
    """Of parameters and times, stacked and one by one; mixed second derivatives."""
    u = kind.random()
    p = {name: x.detach() for name, x in u.named_parameters()}
    many = {name: torch.stack([x, 2 * x, -x]) for name, x in p.items()}
    times = TIMES[:3]

    def value(p: dict[str, Tensor], t: Tensor) -> Tensor:
        return functional_call(u, p, (t,)).sin()

    single = [{name: x[i] for name, x in many.items()} for i in range(3)]
    for f in (value, grad(value), grad(value, argnums=1), hessian(value, argnums=1)):
        loop = [f(p, t) for p, t in zip(single, times, strict=True)]
        torch.testing.assert_close(vmap(f)(many, times), stacked(loop), rtol=1e-13, atol=1e-13)
        shared = [f(p, times[0]) for p in single]
        got = vmap(f, (0, None))(many, times[0])
        torch.testing.assert_close(got, stacked(shared), rtol=1e-13, atol=1e-13)


def stacked(items: list[Any]) -> Any:
    return torch.utils._pytree.tree_map(lambda *x: torch.stack(x), *items)


def test_constant_is_right_continuous():
    u = PiecewiseConstant(KNOTS, init=torch.arange(4.0))
    for dtype in (torch.float32, torch.float64):
        knots = torch.tensor(KNOTS, dtype=dtype)
        assert u(knots).tolist() == [0, 1, 2, 3, 3]
        below = torch.nextafter(knots, torch.full_like(knots, -math.inf))
        assert u(below).tolist() == [0, 0, 1, 2, 3]
        above = torch.nextafter(knots, torch.full_like(knots, math.inf))
        assert u(above).tolist() == [0, 1, 2, 3, 3]
    assert u(torch.tensor([-1e30, 1e30])).tolist() == [0, 3]
    assert grad(lambda t: u(t) * 1.0)(torch.tensor(0.3)) == 0


def test_natural_spline_of_two_and_three_knots():
    line = NaturalSpline([0.0, 2.0], init=torch.tensor([1.0, 2.0]))
    assert line(torch.tensor([-2.0, 1.0, 4.0])).tolist() == [0.0, 1.5, 3.0]
    u = NaturalSpline([0.0, 1.0, 2.0], init=torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    curvature = vmap(hessian(u))(torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(
        curvature, torch.tensor([0.0, -1.5, -3.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4, 5, 8, 9, 33, 64, 65])
def test_chebyshev_of_any_degree(degree):
    c = np.random.default_rng(degree).standard_normal(degree + 1)
    u = Chebyshev(-1.0, 1.0, degree, init=torch.from_numpy(c))
    z = np.linspace(-1, 1, 201)
    np.testing.assert_allclose(
        numbers(u(torch.from_numpy(z))), chebyshev.chebval(z, c), rtol=0, atol=1e-12
    )


# Dtypes and the module's life.


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("time", [torch.float32, torch.float64], ids=str)
def test_dtypes(kind, dtype, time):
    """The parameters' dtype, whatever t's, to the accuracy of the narrower of the two."""
    u = kind.random(dtype=dtype)
    t = TIMES[:-2].to(time)
    assert {x.dtype for x in (u(t), u(t[3]), u(float(t[3])))} == {dtype}
    exact = kind.random()(t.double())
    tolerance = 1e-5 if torch.float32 in (dtype, time) else 1e-12
    # A knot rounded to float32 is on its right piece in float32, but may be on the left in float64.
    keep = slice(0, len(INSIDE)) if time is torch.float32 else slice(None)
    got = u(t).real if dtype.is_complex else u(t)
    torch.testing.assert_close(got[keep].double(), exact[keep], rtol=tolerance, atol=tolerance)


@every
def test_wide_parameters_do_not_round_with_a_narrow_time(kind):
    u, t = kind.random(), INSIDE.float()
    torch.testing.assert_close(u(t), u(t.double()), rtol=1e-14, atol=1e-14)


def test_narrow_parameters_do_not_round_the_time():
    for make in (PiecewiseLinear, CubicHermite, NaturalSpline):
        u = make([1e6, 1e6 + 1, 1e6 + 2], init=lambda t: t - 1e6)
        assert u(1e6 + 1.7).item() == pytest.approx(1.7, rel=1e-6)
        assert u(torch.tensor(1e6 + 1.7, dtype=torch.float64)).dtype == torch.float32


@every
def test_moves_keep_the_knots(kind):
    """The numbers that fix the basis are never rounded, nor lost with the parameters' storage."""
    u = kind.random((2,))
    expected = u(TIMES).detach()
    kept = copy.deepcopy(u.state_dict())
    u.half().to(torch.bfloat16).double()
    u.load_state_dict(kept)
    assert torch.equal(u(TIMES), expected)
    u.to("meta").to_empty(device="cpu").load_state_dict(kept)
    assert torch.equal(u(TIMES), expected)
    assert all(b.dtype == torch.float64 for b in u.buffers())
    inside = nn.Sequential(u).float()[0]
    assert {p.dtype for p in inside.parameters()} == {torch.float32}
    assert all(b.dtype == torch.float64 for b in inside.buffers())


@every
@shapes
def test_copies(kind, shape):
    u = kind.random(shape)
    saved = io.BytesIO()
    torch.save(u, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(u),
        pickle.loads(pickle.dumps(u)),
        torch.load(saved, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(other(TIMES), u(TIMES))
        assert repr(other) == repr(u)
        assert other.breakpoints == u.breakpoints
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert not torch.equal(other(TIMES), u(TIMES))


@every
def test_state_dict_is_the_parameters(kind):
    u = kind.make((2,))
    assert tuple(u.state_dict()) == kind.parameters
    assert tuple(dict(u.named_parameters())) == kind.parameters
    assert not any(x.any() for x in u.state_dict().values())
    assert u(TIMES).shape == (len(TIMES), 2)
    assert not u(TIMES).any()


@every
def test_what_a_solver_asks(kind):
    u = kind.make(())
    assert u.breakpoints == (() if kind.smooth else KNOTS)
    assert all(type(x) is float for x in u.breakpoints)
    assert u.continuous == (not isinstance(u, PiecewiseConstant))
    for attribute in ("breakpoints", "continuous"):
        with pytest.raises(AttributeError):
            setattr(u, attribute, None)


@pytest.mark.parametrize(
    "knots", [torch.tensor(KNOTS, dtype=torch.float64), np.array(KNOTS), iter(KNOTS)]
)
def test_knots_of_other_kinds(knots):
    assert PiecewiseConstant(knots).knots == KNOTS


def test_a_control_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Control(())


# Initial values.


@every
def test_init_by_tensors(kind):
    u = kind.random((2,))
    given = [p.detach().clone() for p in u.parameters()]
    for init in (given[0],) if len(given) == 1 else (given, tuple(given)):
        other = kind.make((2,), init=init)
        assert torch.equal(other(TIMES), u(TIMES))
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert given[0].all()  # a copy


@every
def test_init_by_a_function(kind):
    """A control of the same kind is found again; the default dtype."""
    u = kind.random((2,))
    other = kind.make((2,), init=u)
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    torch.set_default_dtype(torch.float64)
    try:
        other = kind.make((2,), init=lambda t: u(t) * 1.0)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(other.state_dict(), u.state_dict(), rtol=1e-11, atol=1e-11)
    assert all(p.is_leaf and p.requires_grad for p in other.parameters())


def test_init_by_plain_numbers():
    assert PiecewiseConstant([0.0, 1.0, 3.0], init=float).values.tolist() == [0.5, 2.0]
    assert PiecewiseLinear([0.0, 1.0], init=lambda t: 3.0).values.tolist() == [3.0, 3.0]
    assert Fourier(0.0, 1.0, 1, init=lambda t: 2).mean.item() == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PiecewiseConstant([0.0]), InvalidValueError, "at least two, received 1"),
        (lambda: PiecewiseConstant([]), InvalidValueError, "at least two, received 0"),
        (lambda: PiecewiseLinear([0.0, 1.0, 1.0]), InvalidValueError, "1.0 followed by 1.0 at index 2"),
        (lambda: CubicHermite([1.0, 0.0]), InvalidValueError, "must increase"),
        (lambda: NaturalSpline([0.0, math.inf]), InvalidValueError, "finite, received inf at index 1"),
        (lambda: NaturalSpline([math.nan, 1.0]), InvalidValueError, "finite, received nan at index 0"),
        (lambda: PiecewiseConstant(3.0), InvalidTypeError, "sequence of numbers, received 3.0"),
        (lambda: PiecewiseConstant([0.0, "a"]), InvalidTypeError, "sequence of numbers"),
        (lambda: PiecewiseConstant([0.0, 1j]), InvalidTypeError, "sequence of numbers"),
        (lambda: PiecewiseConstant(torch.eye(2)), InvalidTypeError, "sequence of numbers"),
        (
            lambda: PiecewiseConstant(torch.tensor([0.0, 1.0], requires_grad=True)),
            InvalidTypeError,
            "pass knots.detach()",
        ),
        (lambda: PiecewiseConstant([0, 1], 3), InvalidTypeError, "write shape=(2,)"),
        (lambda: Fourier(0, 1, 2, (1.5,)), InvalidTypeError, "tuple of ints, received (1.5,)"),
        (lambda: Chebyshev(0, 1, 2, (-1,)), InvalidValueError, "not be negative"),
        (
            lambda: PiecewiseConstant([0, 1, 2], init=torch.zeros(3)),
            InvalidValueError,
            "(values [2]), received [3]",
        ),
        (
            lambda: CubicHermite([0, 1], (3,), init=torch.zeros(2, 3)),
            InvalidValueError,
            "(values [2, 3], slopes [2, 3]), received [2, 3]",
        ),
        (lambda: PiecewiseLinear([0, 1], init=torch.ones(2).long()), InvalidTypeError, "init.double()"),
        (lambda: PiecewiseLinear([0, 1], init=[1.0, 2.0]), InvalidTypeError, "function of time or"),
        (lambda: PiecewiseLinear([0, 1], init=1.0), InvalidTypeError, "received 1.0"),
        (
            lambda: PiecewiseLinear([0, 1], (2,), init=torch.sin),
            InvalidValueError,
            "shape [2], it returned shape []",
        ),
        (lambda: Fourier(0, 1, 0), InvalidValueError, "modes must be at least 1, received 0"),
        (lambda: Fourier(0, 1, 1.0), InvalidTypeError, "modes must be an int, received 1.0"),
        (lambda: Fourier(0, 1, True), InvalidTypeError, "modes must be an int, received True"),
        (lambda: Fourier(1, 1, 2), InvalidValueError, "start < stop, received 1.0 and 1.0"),
        (lambda: Fourier(0, math.inf, 2), InvalidValueError, "finite"),
        (lambda: Chebyshev(0, 1, -1), InvalidValueError, "degree must be at least 0, received -1"),
        (lambda: Chebyshev("a", 1, 2), InvalidTypeError, "must be numbers, received 'a' and 1"),
        (lambda: PiecewiseConstant([0, 1])(torch.tensor(1)), InvalidTypeError, "pass t.double()"),
        (lambda: Fourier(0, 1, 1)("now"), InvalidTypeError, "a number or a tensor, received str"),
    ],
)  # fmt: skip
def test_bad_input(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


# Compilers.


@every
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph(kind, backend):
    torch._dynamo.reset()
    u = kind.random((2,))
    compiled = torch.compile(u, fullgraph=True, backend=backend)
    for t in (TIMES[3], TIMES, 0.25):
        torch.testing.assert_close(compiled(t), u(t), rtol=1e-14, atol=1e-14)
    grads = [torch.autograd.grad(f(TIMES).sin().sum(), list(u.parameters())) for f in (compiled, u)]
    torch.testing.assert_close(*grads, rtol=1e-13, atol=1e-13)


class Driven(nn.Module):
    """y' = −y + u(t) in R², float64."""

    def __init__(self, u: Control) -> None:
        super().__init__()
        self.u = u

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.u(t) - y * y


@pytest.fixture
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


@every
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.usefixtures("interpreted")
def test_in_a_solve(kind, compile):
    """Gradients of parameters and times, against plain autograd over the same steps."""
    f = Driven(kind.random((2,)))
    grads = []
    for options in ({"compile": compile}, {"gradient": odegrad.Tape()}):
        y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
        ts = torch.tensor([0.0, 0.31, 1.1], dtype=torch.float64, requires_grad=True)
        sol = odegrad.solve(f, y0, ts, scheme=odegrad.RK4(), stepsize=odegrad.Steps(3), **options)
        inputs = [y0, ts, *f.parameters()]
        grads.append(torch.autograd.grad(sol.ys.sin().sum(), inputs))
    assert relative(*grads) <= 1e-12
