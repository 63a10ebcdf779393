"""Gradients: of `odeint` and `odeint_adjoint`, for states, times, parameters and captured tensors."""

from __future__ import annotations

import pytest
import torch

from compat.fields import ADAPTIVE, DOUBLE, FIXED, METHODS, Net, distance, start, times
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint

QUICK = {"rtol": 1e-4, "atol": 1e-6}


def gradients(interface, net, method, t=None, **settings):
    y0 = start()
    t = times(0.0, 0.3, 1.0, grad=True) if t is None else t
    settings = {**QUICK, **settings}
    if interface is odeint_adjoint:
        settings["adjoint_params"] = tuple(net.inner.parameters())
    ys = interface(net, y0, t, method=method, **settings)
    return torch.autograd.grad(ys.square().sum(), [y0, t, *net.inner.parameters()])


@pytest.mark.parametrize("method", METHODS)
def test_the_adjoint_gradient_is_that_of_backpropagation(method):
    net = Net()
    exact = gradients(odeint, net, method)
    assert distance(gradients(odeint_adjoint, net, method), exact) < 1e-12


@pytest.mark.parametrize("options", [{"step_size": 0.13}, {"step_size": 0.13, "interp": "cubic"}])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_through_interpolated_outputs(options, sign):
    def function(interface):
        params = {"adjoint_params": ()} if interface is odeint_adjoint else {}

        def solve(y0, t):
            return interface(
                lambda t, y: torch.sin(t) * y, y0, t, method="rk4", options=options, **params
            )

        return solve

    y0 = start()
    t = (sign * times(0.0, 0.2, 0.77, 1.0)).requires_grad_()
    for interface in (odeint, odeint_adjoint):
        assert torch.autograd.gradcheck(function(interface), (y0, t))


@pytest.mark.parametrize("method", [*FIXED, "dopri5", "bosh3"])
def test_gradcheck_with_times(method):
    def solve(y0, t):
        return odeint_adjoint(lambda t, y: 0.2 + 0 * y, y0, t, method=method, adjoint_params=())

    assert torch.autograd.gradcheck(solve, (start(), times(1.0, 1.5, 3.0, grad=True)))


def test_parameters_are_found_and_unused_ones_get_zeros():
    net = Net()
    odeint_adjoint(net, start(), times(0.0, 1.0), method="rk4").sum().backward()
    assert net.unused.weight.grad.abs().max() == 0
    assert all(float(p.grad.abs().max()) > 0 for p in net.inner.parameters())


def test_captured_tensors_get_gradients_without_adjoint_params():
    rate = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    y0, t = torch.ones(2, dtype=DOUBLE), times(0.0, 1.0)
    for interface, more in ((odeint, {}), (odeint_adjoint, {"adjoint_params": ()})):
        ys = interface(lambda t, y: -rate * y, y0, t, rtol=1e-10, atol=1e-12, **more)
        (grad,) = torch.autograd.grad(ys[-1, 0], rate)
        assert float(grad) == pytest.approx(-(2.718281828459045**-0.5), rel=1e-8)


class Hidden:
    """Reads a tensor that nothing can find before it is read."""

    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, y):
        return -y * self.rate if t > 0.3 else -y


def test_adjoint_params_are_further_inputs():
    rate = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    other = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    y0, t = torch.ones(2, dtype=DOUBLE), times(0.0, 1.0)
    options = {"step_size": 0.1}
    ys = odeint(Hidden(rate), y0, t, method="rk4", options=options)
    (exact,) = torch.autograd.grad(ys.sum(), rate)
    params = (p for p in (rate, other))
    ys = odeint_adjoint(Hidden(rate), y0, t, method="rk4", options=options, adjoint_params=params)
    found, zero = torch.autograd.grad(ys.sum(), [rate, other])
    assert float(found) == pytest.approx(float(exact), rel=1e-13)
    assert zero.abs().max() == 0
    ys = odeint_adjoint(Hidden(rate), y0, t, method="rk4", options=options, adjoint_params=())
    with pytest.raises(RuntimeError, match="not require grad"):  # never in silence
        torch.autograd.grad(ys.sum(), rate)


def test_the_adjoint_keeps_no_graph_and_evaluates_again():
    net, t = Net(), times(0.0, 1.0)
    ys = odeint_adjoint(net, start(), t, method="rk4", options={"step_size": 0.1})
    forward = net.evaluations
    ys.sum().backward()
    assert net.evaluations - forward == 40
    ys = odeint(net, start(), t, method="rk4", options={"step_size": 0.1})
    before = net.evaluations
    ys.sum().backward()
    assert net.evaluations == before


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_second_derivatives(interface):
    y0 = torch.tensor([0.7], dtype=DOUBLE, requires_grad=True)
    more = {"adjoint_params": ()} if interface is odeint_adjoint else {}
    ys = interface(lambda t, y: y * y, y0, times(0.0, 0.5), rtol=1e-10, atol=1e-12, **more)
    (first,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y0)
    # y(t) = y0 / (1 - y0 t)
    assert first.item() == pytest.approx((1 - 0.35) ** -2, rel=1e-8)
    assert second.item() == pytest.approx(2 * 0.5 * (1 - 0.35) ** -3, rel=1e-6)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_nothing_requires_grad(method):
    with torch.no_grad():
        ys = odeint(Net(), start(), times(0.0, 1.0), method=method, **QUICK)
    assert not ys.requires_grad


def test_autograd_inside_of_func_without_enable_grad():
    def hamiltonian(t, y):
        y = y.detach().requires_grad_() if not y.requires_grad else y
        q, p = y.unbind(-1)
        (grad,) = torch.autograd.grad((q * q + p * p).sum() / 2, y, create_graph=True)
        return torch.stack([grad[..., 1], -grad[..., 0]], -1)

    ys = odeint(hamiltonian, start(grad=False), times(0.0, 1.0), rtol=1e-6)
    energy = ys.square().sum(-1)
    torch.testing.assert_close(energy[1], energy[0], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_transforms(interface, method):
    net, t = Net(), times(0.0, 0.5, 1.0)
    more = {"adjoint_params": ()} if interface is odeint_adjoint else {}

    def solve(y0):
        return interface(net, y0, t, method=method, **QUICK, **more)

    y0 = start(grad=False)
    # Under vmap adaptive steps are those that the most demanding sample needs.
    bound = 1e-13 if method == "rk4" else 1e-3
    torch.testing.assert_close(
        torch.func.vmap(solve, out_dims=1)(y0), solve(y0), rtol=bound, atol=bound
    )
    forward, reverse = torch.func.jacfwd(solve)(y0), torch.func.jacrev(solve)(y0)
    torch.testing.assert_close(forward, reverse, rtol=1e-12, atol=1e-13)
