"""Calls as they stand in published programs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odegrad.compat.torchdiffeq import odeint, odeint_adjoint


class ODEFunc(nn.Module):
    def __init__(self, dim=2):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(dim, 16), nn.Tanh(), nn.Linear(16, dim))
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return self.net(y)


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_the_block_of_an_ode_net(interface):
    class Block(nn.Module):
        def __init__(self, odefunc):
            super().__init__()
            self.odefunc = odefunc
            self.integration_time = torch.tensor([0, 1]).float()

        def forward(self, x):
            self.integration_time = self.integration_time.type_as(x)
            return interface(self.odefunc, x, self.integration_time, rtol=1e-3, atol=1e-3)[1]

    block = Block(ODEFunc())
    block(torch.randn(5, 2)).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_latent_ode():
    z0, t = torch.randn(7, 4), torch.linspace(0.0, 2.0, 9)
    z = odeint(ODEFunc(4), z0, t).permute(1, 0, 2)
    assert z.shape == (7, 9, 4)
    pred = odeint(ODEFunc(4), z0, t, method="dopri5").to("cpu")
    assert torch.equal(pred[0], z0)


def test_conditional_flow_matching():
    model = ODEFunc()
    cond = torch.randn(6, 2)
    with torch.no_grad():
        x = odeint(
            lambda t, x: model(t, x + cond),
            torch.randn(6, 2),
            torch.linspace(0, 1, 10),
            atol=1e-4,
            rtol=1e-4,
            method="dopri5",
        )[-1]
    assert x.shape == (6, 2)


@pytest.mark.parametrize("method", ["euler", "midpoint", "dopri5"])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.1}])
def test_the_solver_of_flow_matching(method, options):
    """Times from 1 to 0, a pair of states, gradients of the divergence inside, all detached."""
    model = ODEFunc()
    noise = torch.randn(6, 2)

    def ode_func(t, state):
        xt = state[0]
        with torch.set_grad_enabled(True):
            xt.requires_grad_()
            ut = model(t, xt)
            div = (torch.autograd.grad((ut * noise).sum(), xt)[0] * noise).sum(1)
        return ut.detach(), div.detach()

    def call():
        return odeint(
            ode_func,
            (torch.randn(6, 2), torch.zeros(6)),
            torch.tensor([1.0, 0.0]),
            method=method,
            options=options,
            atol=1e-4,
            rtol=1e-4,
        )

    if method == "dopri5" and options:
        with pytest.warns(UserWarning, match="Unexpected"):
            sol, log_det = call()
    else:
        sol, log_det = call()
    assert (sol.shape, log_det.shape) == ((2, 6, 2), (2, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_sway_sampling_in_half_precision(dtype, method):
    odeint_kwargs = {"method": method, "atol": 1e-5, "rtol": 1e-5}
    t = torch.linspace(0, 1, 9 if dtype is torch.bfloat16 else 33, dtype=dtype)
    t = t + -1.0 * (torch.cos(torch.pi / 2 * t) - 1 + t)
    y0 = torch.randn(2, 5, 3, dtype=dtype)
    with torch.inference_mode():
        trajectory = odeint(lambda t, x: (-x * t).to(dtype), y0, t, **odeint_kwargs)
    assert (trajectory.shape, trajectory.dtype) == ((len(t), 2, 5, 3), dtype)
    assert torch.isfinite(trajectory).all()
