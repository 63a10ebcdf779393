"""More calls as they stand in published programs: adjoints, events, callbacks, controls, flows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from compat.fields import DOUBLE, times
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event


class ODEFunc(nn.Module):
    def __init__(self, dim=2):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(dim, 16), nn.Tanh(), nn.Linear(16, dim))
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return self.net(y)


def test_graph_neural_diffusion():
    func = ODEFunc(3)

    class Regularised(nn.Module):
        def __init__(self):
            super().__init__()
            self.func = func

        def forward(self, t, state):
            dx = self.func(t, state[0])
            return (dx, dx.square().sum(1))

    from odegrad.compat.torchdiffeq import adjoint

    adjoint._warned.clear()
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.warns(UserWarning, match="no meaning"):
        z, penalty = odeint_adjoint(
            Regularised(),
            (x, torch.zeros(4)),
            torch.tensor([0.0, 1.0]),
            method="rk4",
            options={"step_size": 0.25},
            adjoint_method="adaptive_heun",
            adjoint_options={"step_size": 0.5, "max_iters": 100},
            atol=1e-4,
            rtol=1e-4,
            adjoint_atol=1e-3,
            adjoint_rtol=1e-3,
        )
    (z[1].sum() + penalty[1].sum()).backward()
    assert x.grad is not None


def test_adjoint_params_of_a_partial():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.func, self.encoder = ODEFunc(), nn.Linear(2, 2)

        def dynamics(self, t, z, x):
            return self.func(t, z + x)

        def forward(self, x):
            t = torch.tensor([0.0, 1.0])
            f = partial(self.dynamics, x=self.encoder(x))
            params = list(self.func.parameters()) + list(self.encoder.parameters())
            return odeint_adjoint(
                f, torch.zeros_like(x), t, adjoint_params=tuple(params), rtol=1e-4
            )[-1]

    model = Model()
    model(torch.randn(3, 2)).sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_seminorms():
    def make_norm(state):
        size = state.numel()

        def norm(aug_state):
            y = aug_state[1 : 1 + size]
            return y.abs().max()

        return norm

    from odegrad.compat.torchdiffeq import adjoint

    adjoint._warned.clear()
    func, y0, t = ODEFunc(), torch.randn(3, 2), torch.tensor([0.0, 1.0])
    odeint_adjoint(func, y0, t, adjoint_options={"norm": "seminorm"}).sum().backward()
    with pytest.warns(UserWarning, match="no meaning"):
        odeint_adjoint(func, y0, t, adjoint_options={"norm": make_norm(y0)}).sum().backward()


def test_the_bouncing_ball():
    class BouncingBall(nn.Module):
        def __init__(self):
            super().__init__()
            self.gravity = nn.Parameter(torch.as_tensor([9.8], dtype=DOUBLE))
            self.log_radius = nn.Parameter(torch.log(torch.as_tensor([0.2], dtype=DOUBLE)))
            self.t0 = nn.Parameter(torch.tensor([0.0], dtype=DOUBLE))
            self.init_pos = nn.Parameter(torch.tensor([10.0], dtype=DOUBLE))
            self.init_vel = nn.Parameter(torch.tensor([0.0], dtype=DOUBLE))
            self.absorption = nn.Parameter(torch.tensor([0.2], dtype=DOUBLE))

        def forward(self, t, state):
            _pos, vel, log_radius = state
            return vel, -self.gravity, torch.zeros_like(log_radius)

        def event_fn(self, t, state):
            pos, _, log_radius = state
            return pos - torch.exp(log_radius)

        def state_update(self, state):
            pos, vel, log_radius = state
            return pos + 1e-7, -vel * (1 - self.absorption), log_radius

        def simulate(self, interface, nbounces=3):
            t0, state = self.t0, (self.init_pos, self.init_vel, self.log_radius)
            event_times = []
            for _ in range(nbounces):
                event_t, solution = odeint_event(
                    self,
                    state,
                    t0,
                    event_fn=self.event_fn,
                    reverse_time=False,
                    atol=1e-8,
                    rtol=1e-8,
                    odeint_interface=interface,
                )
                event_times.append(event_t)
                state = self.state_update(tuple(s[-1] for s in solution))
                t0 = event_t
            return torch.stack(event_times)

    for interface in (odeint, odeint_adjoint):
        ball = BouncingBall()
        ball.simulate(interface)[2].backward()
        assert all(p.grad is not None for p in ball.parameters())
        # t1 = t0 + sqrt(2 (h − r) / g), and bounces shrink by the absorption
        assert float(ball.t0.grad) == pytest.approx(1.0, rel=1e-12)


def test_a_progress_bar_in_callbacks():
    class Sampler(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps, self.preview = 0, None

        def forward(self, t, x):
            return -x

        def callback_step(self, t0, y0, dt):
            self.steps += 1

        def callback_accept_step(self, t0, y0, dt):
            self.preview = y0[0]

    sampler = Sampler()
    with torch.no_grad():
        odeint(sampler, torch.randn(2, 4), torch.tensor([1.0, 0.0]), rtol=1e-3, atol=1e-3)
    assert sampler.steps > 0
    assert sampler.preview.shape == (4,)


@pytest.mark.parametrize("adjoint", [False, True])
def test_controlled_equations(adjoint):
    """As torchcde calls it: a module that holds an interpolation with knots."""

    class Path(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("coefficients", torch.randn(4, 3, dtype=DOUBLE))

        def derivative(self, t):
            return self.coefficients[min(2, int(t.item()))]

    class Field(nn.Module):
        def __init__(self, func, path):
            super().__init__()
            self.func, self.path = func, path

        def forward(self, t, z):
            return (self.func(z).view(*z.shape, 3) @ self.path.derivative(t).unsqueeze(-1)).squeeze(
                -1
            )

    func = nn.Linear(2, 6).double()
    field = Field(func, Path())
    interface = odeint_adjoint if adjoint else odeint
    z0 = torch.randn(5, 2, dtype=DOUBLE)
    z = interface(field, z0, times(0.0, 3.0), method="rk4", options={"step_size": 0.5})
    z[-1].sum().backward()
    assert func.weight.grad.abs().sum() > 0
    options = {"jump_t": torch.tensor([0.0, 1.0, 2.0, 3.0])}
    interface(field, z0, times(0.0, 3.0), method="dopri5", options=options, rtol=1e-5, atol=1e-5)


def test_continuous_normalising_flow():
    class CNF(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = ODEFunc()

        def forward(self, t, states):
            z = states[0]
            with torch.set_grad_enabled(True):
                z.requires_grad_(True)
                dz = self.net(t, z)
                trace = sum(
                    torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i]
                    for i in range(2)
                )
            return (dz, -trace.view(-1, 1))

    for interface in (odeint, odeint_adjoint):
        flow = CNF()
        z, logp = interface(
            flow,
            (torch.randn(8, 2), torch.zeros(8, 1)),
            torch.tensor([1.0, 0.0]),
            atol=1e-5,
            rtol=1e-5,
            method="dopri5",
        )
        (z[-1].square().sum() + logp[-1].sum()).backward()
        assert all(p.grad is not None for p in flow.net.net[0].parameters())
