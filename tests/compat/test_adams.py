"""Adams methods by torchdiffeq's names, against loops written out here."""

from __future__ import annotations

import pytest
import torch

from compat.fields import DOUBLE
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint
from odegrad.errors import OdegradWarning

START = torch.tensor([1.0, 0.3], dtype=DOUBLE)


def field(t, y):
    return torch.stack([y[1] * torch.cos(t), -y[0] * (1 + 0.3 * y[1])])


def three_eighths(t, h, y):
    k1 = field(t, y)
    k2 = field(t + h / 3, y + h * k1 / 3)
    k3 = field(t + 2 * h / 3, y + h * (k2 - k1 / 3))
    k4 = field(t + h, y + h * (k1 - k2 + k3))
    return y + h * (k1 + 3 * (k2 + k3) + k4) / 8


def marched(t, y, implicit):
    """Two steps of the 3/8 rule, then Bashforth's third-order formula, and Moulton's of order four."""
    h, slopes, states = t[1] - t[0], [], [y]
    for n in range(len(t) - 1):
        slopes = [field(t[n], y), *slopes][:3]
        if n < 2:
            y = three_eighths(t[n], h, y)
        else:
            f, f1, f2 = slopes
            new = y + h * (23 * f - 16 * f1 + 5 * f2) / 12
            for _ in range(4 if implicit else 0):
                new = y + h * (9 * field(t[n] + h, new) + 19 * f - 5 * f1 + f2) / 24
            y = new
        states.append(y)
    return torch.stack(states)


@pytest.mark.parametrize(
    ("method", "implicit"),
    [("explicit_adams", False), ("implicit_adams", True), ("fixed_adams", True)],
)
def test_against_a_plain_loop(method, implicit):
    t = torch.linspace(0.0, 1.0, 11, dtype=DOUBLE)
    results = []
    for solve in (odeint, odeint_adjoint, None):
        y0 = START.clone().requires_grad_()
        if solve is None:
            ys = marched(t, y0, implicit)
        else:
            more = {} if solve is odeint else {"adjoint_params": ()}
            ys = solve(field, y0, t, method=method, options={"max_order": 4}, **more)
        (grad,) = torch.autograd.grad(ys.square().sum(), y0)
        results.append((ys.detach(), grad))
    for ys, grad in results[:2]:
        torch.testing.assert_close(ys, results[2][0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(grad, results[2][1], rtol=1e-12, atol=1e-12)


def test_the_default_order_is_accurate():
    """That of Moulton; Bashforth's eleventh order is stable for tiny steps only, there as here."""
    t = torch.linspace(0.0, 1.0, 41, dtype=DOUBLE)
    exact = odeint(field, START, t, method="dopri8", rtol=1e-12, atol=1e-12)
    found = odeint(field, START, t, method="implicit_adams")
    assert float((found - exact).abs().max()) < 1e-6


def test_low_orders_are_one_step_methods():
    t = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
    with pytest.warns(OdegradWarning, match="reduces to `rk4`"):
        found = odeint(field, START, t, method="implicit_adams", options={"max_order": 3})
    assert torch.equal(found, odeint(field, START, t, method="rk4"))
