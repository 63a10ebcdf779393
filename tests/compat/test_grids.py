"""Fixed grids: nodes, outputs between them, `perturb`; and the dense output of `odeint_dense`."""

from __future__ import annotations

import math

import pytest
import torch

from compat.fields import DOUBLE, FIXED, Net, start, times
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event


def ones(n=1):
    return torch.ones(n, dtype=DOUBLE)


def attempted(net):
    """The starts and sizes of the attempted steps of a network."""
    found = []
    net.callback_step = lambda t0, y0, dt: found.append((t0.item(), dt.item()))
    return found


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_last_step_is_shorter(sign):
    net = Net()
    found = attempted(net)
    options = {"step_size": 0.4}
    odeint(net, start(), sign * times(0.0, 1.0), method="euler", options=options)
    wanted = [(0.0, 0.4), (0.4, 0.4), (0.8, 0.2)]
    assert found == [(pytest.approx(sign * t), pytest.approx(dt)) for t, dt in wanted]


def test_linear_and_cubic_outputs_between_the_nodes():
    t = times(0.0, 0.3, 0.5, 0.9, 1.0)
    node = odeint(lambda t, y: 2 * t + 0 * y, ones(), times(0.0, 0.5, 1.0), method="midpoint")[:, 0]
    options = {"step_size": 0.5}
    linear = odeint(lambda t, y: 2 * t + 0 * y, ones(), t, method="midpoint", options=options)[:, 0]
    wanted = [
        node[0],
        0.4 * node[0] + 0.6 * node[1],
        node[1],
        0.2 * node[1] + 0.8 * node[2],
        node[2],
    ]
    torch.testing.assert_close(linear, torch.stack(wanted), rtol=1e-15, atol=0.0)
    options = {"step_size": 0.5, "interp": "cubic"}
    cubic = odeint(lambda t, y: 2 * t + 0 * y, ones(), t, method="midpoint", options=options)[:, 0]
    torch.testing.assert_close(cubic, 1 + t * t, rtol=1e-14, atol=0.0)


def test_a_grid_of_ones_own():
    calls = []

    def grid(func, y0, t):
        calls.append((y0, t))
        return torch.linspace(0, 1, 11)

    y0 = torch.tensor(1.0, requires_grad=True)
    t = torch.tensor([0.0, 1.0])
    options = {"grid_constructor": grid}
    for interface, more in ((odeint, {}), (odeint_adjoint, {"adjoint_params": ()})):
        ys = interface(lambda t, y: y, y0, t, method="euler", options=options, **more)
        (grad,) = torch.autograd.grad(ys[1], y0)
        assert float(ys[1].detach()) == pytest.approx(1.1**10, rel=1e-6)
        assert float(grad) == pytest.approx(1.1**10, rel=1e-6)
    assert len(calls) == 2
    assert torch.equal(calls[0][1], t)


def test_grids_in_half_precision_do_not_collide():
    t = torch.tensor([0.0, 1.0], dtype=torch.bfloat16)
    options = {"step_size": 1e-3}
    ys = odeint(lambda t, y: -y, ones(), t, method="rk4", options=options)
    assert ys[-1].item() == pytest.approx(math.exp(-1.0), rel=1e-9)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_perturb_keeps_off_the_nodes(method, sign):
    seen = []

    def f(t, y):
        seen.append(abs(t.item()))
        return -y

    options = {"step_size": 0.5, "perturb": True}
    ys = odeint(f, ones(), sign * times(0.0, 1.0), method=method, options=options)
    assert not {0.0, 0.5, 1.0} & set(seen)
    plain = odeint(
        lambda t, y: -y, ones(), sign * times(0.0, 1.0), method=method, options={"step_size": 0.5}
    )
    torch.testing.assert_close(ys, plain, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_perturb_keeps_off_a_start_that_is_rounded(dtype):
    """Also in a search for an event, and in its gradient."""
    seen, rate = [], torch.ones((), dtype=dtype, requires_grad=True)

    def f(t, y):
        seen.append(t.item())
        return -rate * y

    y0, options = torch.ones(1, dtype=dtype), {"step_size": 0.1, "perturb": True}
    first = torch.tensor(0.7, dtype=dtype).item()
    odeint(f, y0, times(0.7, 1.0), method="midpoint", options=options)
    assert seen
    assert min(seen) > first
    seen.clear()
    t, ys = odeint_event(
        f, y0, times(0.7)[0], event_fn=lambda t, y: y[0] - 0.5, odeint_interface=odeint,
        method="midpoint", options=options,
    )  # fmt: skip
    (t + ys.sum()).backward()
    assert rate.grad.isfinite()
    assert min(seen) > first


def test_perturb_puts_a_jump_on_the_right_side():
    options = {"step_size": 0.25, "perturb": True}
    ys = odeint(
        lambda t, y: torch.where(t < 0.5, 1.0, 3.0) + 0 * y,
        ones(),
        times(0.0, 1.0),
        method="rk4",
        options=options,
    )
    assert ys[-1].item() == pytest.approx(1 + 0.5 + 1.5, rel=1e-14)


# Dense output.


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_dense_output(sign):
    rate = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    y = odeint_dense(lambda t, y: -rate * y, ones(), torch.tensor(0.0), torch.tensor(2.0 * sign))
    for x in (0.0, 0.3, 1.111, 2.0):
        t = torch.tensor(sign * x, dtype=DOUBLE, requires_grad=True)
        value = y(t)
        exact = math.exp(-x * sign)
        assert value.item() == pytest.approx(exact, rel=1e-6)
        grads = torch.autograd.grad(value.sum(), [t, rate], retain_graph=True)
        assert [g.item() for g in grads] == pytest.approx([-exact, -sign * x * exact], abs=2e-5)
    with pytest.raises(AssertionError, match="runs from"):
        y(3.0)
    with pytest.raises(AssertionError):
        odeint_dense(lambda t, y: -y, ones(), 0.0, 1.0, method="rk4")
    with pytest.raises(AssertionError):
        odeint_dense(lambda t, y: y, (ones(),), 0.0, 1.0)
