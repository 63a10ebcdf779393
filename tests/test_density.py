"""The gradient density against closed forms and against the gradient that it sums to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import leaf, mlp
from odegrad import PID, Steps
from odegrad.errors import GradientUnavailableError, InvalidTypeError, InvalidValueError
from odegrad.schemes import SCHEMES, ExplicitRungeKutta

A, T = 0.8, 2.0


def linear(scheme: Any, n: int, **options: Any) -> odegrad.GradientDensity:
    """y' = −a y + b sin t, L = y(T)²: the density of b is 2 y(T) exp(−a (T − t)) sin t."""
    a = torch.tensor(A, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Parameter(a), torch.nn.Parameter(b)
    module.forward = lambda t, y: -module.a * y + module.b * torch.sin(t)  # type: ignore[method-assign]
    y0 = torch.ones(1, dtype=torch.float64)
    return odegrad.gradient_density(
        module,
        y0,
        [0.0, T],
        lambda ys: ys[-1].square().sum(),
        scheme=scheme,
        stepsize=Steps(n),
        **options,
    )


def closed_form(t0: float, t1: float) -> float:
    """The mean of the density of b from t0 to t1."""
    end = math.exp(-A * T) + 0.5 * (A * math.sin(T) - math.cos(T) + math.exp(-A * T)) / (A * A + 1)
    primitive = lambda t: math.exp(-A * (T - t)) * (A * math.sin(t) - math.cos(t)) / (A * A + 1)  # noqa: E731
    return 2 * end * (primitive(t1) - primitive(t0)) / (t1 - t0)


@pytest.mark.parametrize(
    "scheme", [s for s in SCHEMES if issubclass(s, ExplicitRungeKutta) and s().order < 8]
)
def test_of_the_order_of_the_scheme_against_the_analytic_costate(scheme: Any) -> None:
    errors = []
    for n in (16, 32):
        found = linear(scheme(), n)
        means = [
            closed_form(x, y)
            for x, y in zip(found.edges[:-1].tolist(), found.edges[1:].tolist(), strict=True)
        ]
        errors.append(
            max(abs(a - b) for a, b in zip(found.values["b"].tolist(), means, strict=True))
        )
    assert errors[1] < 2.0 ** (0.35 - scheme().order) * errors[0] + 1e-13, errors


def model() -> tuple[Any, Tensor, list[Tensor]]:
    net, y0, w = mlp(), leaf(4, 3), leaf(seed=9)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return net(y) * torch.cos(w * t)

    return f, y0, [*net.parameters(), w]


def value(ys: Tensor, running: Tensor | None = None) -> Tensor:
    return ys.sin().sum() + (0 if running is None else running.square().sum())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bins", [None, 5, [0.0, 0.05, 0.6, 1.1]])
def test_sums_to_the_gradient(scheme: Any, bins: Any) -> None:
    f, y0, parameters = model()
    ell = lambda t, y: (y * t).sum() * parameters[-1]  # noqa: E731
    options: dict[str, Any] = {"scheme": scheme(), "stepsize": Steps(3), "running": ell}
    found = odegrad.gradient_density(f, y0, [0.0, 0.4, 1.1], value, bins=bins, **options)
    sol = odegrad.solve(f, y0, [0.0, 0.4, 1.1], **options)
    grads = torch.autograd.grad(value(sol.ys, sol.running), parameters)
    assert len(found.values) == len(grads) == 5
    for name, g in zip(found.values, grads, strict=True):
        assert float((found.gradient(name) - g).norm()) < 1e-13 * float(g.norm()) + 1e-15
    norms = odegrad.gradient_density(
        f, y0, [0.0, 0.4, 1.1], value, bins=bins, norms=True, **options
    )
    assert torch.equal(norms.edges, found.edges)
    for name, x in found.values.items():
        expected = x.reshape(len(x), -1).norm(dim=1)
        assert torch.allclose(norms.values[name], expected, rtol=1e-12)


@pytest.mark.parametrize("ts", [[0.0, 1.0], [1.0, 0.0], [0.0, 0.5, 0.5, 1.0]])
def test_adaptive_descending_and_repeated_times(ts: list[float]) -> None:
    f, y0, parameters = model()
    for bins in (None, 4):
        found = odegrad.gradient_density(f, y0, ts, value, stepsize=PID(1e-5, 1e-7), bins=bins)
        sol = odegrad.solve(f, y0, ts, stepsize=PID(1e-5, 1e-7))
        for name, g in zip(
            found.values, torch.autograd.grad(value(sol.ys), parameters), strict=True
        ):
            assert torch.isfinite(found.values[name]).all()
            # A step of no length has a density of zero: nothing moves there.
            assert torch.allclose(found.gradient(name), g, rtol=1e-12, atol=1e-14)


def test_where_a_control_is_off_nothing_is_learnt() -> None:
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    found = odegrad.gradient_density(
        lambda t, y: torch.where(t < 0.5, 0.0, 1.0) * w * y,
        torch.ones(1, dtype=torch.float64), [0.0, 1.0],
        lambda ys: ys[-1].sum(), scheme=odegrad.RK4(), stepsize=Steps(4), breakpoints=[0.5], bins=2,
    )  # fmt: skip
    (density,) = found.values.values()
    assert density[0] == 0.0
    assert density[1].item() == pytest.approx(2 * 0.5 * math.exp(0.5), rel=1e-4)


def test_nothing_is_added_to_grad_and_names_are_those_of_the_parameters() -> None:
    net = mlp()
    frozen = net[0].bias.requires_grad_(False)
    found = odegrad.gradient_density(
        lambda t, y: net(y), leaf(3), [0.0, 1.0], value, stepsize=Steps(3)
    )
    assert list(found.values) == ["0.weight", "2.weight", "2.bias"]
    assert all(x.grad is None for x in (frozen, *net.parameters()))
    assert found.values["0.weight"].shape == (3, *net[0].weight.shape)


def test_complex_parameters() -> None:
    w = torch.tensor(0.3 + 1j, dtype=torch.complex128, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.complex128)
    found = odegrad.gradient_density(
        lambda t, y: w * y,
        y0,
        [0.0, 1.0],
        lambda ys: ys[-1].abs().square().sum(),
        stepsize=Steps(4),
    )
    sol = odegrad.solve(lambda t, y: w * y, y0, [0.0, 1.0], stepsize=Steps(4))
    (g,) = torch.autograd.grad(sol.ys[-1].abs().square().sum(), w)
    (name,) = found.values
    assert torch.allclose(found.gradient(name), g)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": 3}, InvalidTypeError, "loss must be callable"),
        ({"loss": lambda ys: ys}, GradientUnavailableError, r"one number.*shape \[2, 2\]"),
        ({"loss": lambda ys: 3.0}, GradientUnavailableError, r"it returned 3\.0"),
        ({"loss": lambda ys: ys.detach().sum()}, GradientUnavailableError, "depends on ys"),
        ({"ts": [0.0]}, GradientUnavailableError, "single time"),
        ({"f": lambda t, y: -y}, GradientUnavailableError, "reads no tensor that requires grad"),
        ({"bins": 0}, InvalidValueError, "bins must be at least 1"),
        ({"bins": [0.0, 0.5]}, InvalidValueError, r"from ts\[0\] = 0.0 to ts\[-1\] = 1.0"),
        ({"bins": [0.0, 0.6, 0.5, 1.0]}, InvalidValueError, "in one direction"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: Any, message: str) -> None:
    net = torch.nn.Linear(2, 2).double()
    given: dict[str, Any] = {
        "f": lambda t, y: net(y),
        "ts": [0.0, 1.0],
        "loss": lambda ys: ys.sum(),
    } | change
    f, ts, loss = given.pop("f"), given.pop("ts"), given.pop("loss")
    with pytest.raises(error, match=message):
        odegrad.gradient_density(
            f, torch.ones(2, dtype=torch.float64), ts, loss, stepsize=Steps(2), **given
        )


def test_norms_do_not_sum() -> None:
    with pytest.raises(InvalidValueError, match="norms do not sum"):
        linear(odegrad.RK4(), 4, norms=True).gradient("b")
