"""Events: when, where, and their gradients against closed forms and a complex step."""

from __future__ import annotations

import math

import pytest
import torch

from compat.fields import ADAPTIVE, DOUBLE, FIXED, Net, times
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event
from odegrad.errors import GradientUnavailableError, GrazingEventError

INTERFACES = [(odeint, {}), (odeint_adjoint, {"adjoint_params": ()})]
STEPS = [{}, {"method": "rk4", "options": {"step_size": 0.1}}, {"method": "dopri8"}]


def leaf(value):
    return torch.tensor(value, dtype=DOUBLE, requires_grad=True)


class Ball:
    """A ball that falls from some height and bounces with a coefficient of restitution."""

    def __init__(self):
        self.gravity, self.restitution, self.floor = leaf(9.81), leaf(0.8), leaf(0.3)
        self.y0, self.t0 = leaf([10.0, 1.0]), leaf(0.5)
        self.inputs = [self.gravity, self.restitution, self.floor, self.y0, self.t0]

    def fall(self, t, y):
        return torch.stack([y[1], -self.gravity + 0 * y[0]])

    def touches(self, t, y):
        return y[0] - self.floor

    def solved(self, bounces, interface, **settings):
        """The times of the first bounces, by solving."""
        t, y, found = self.t0, self.y0, []
        for _ in range(bounces):
            t, ys = odeint_event(
                self.fall, y, t, event_fn=self.touches, odeint_interface=interface, **settings
            )
            found.append(t)
            # A little above the floor, or the next event would be now.
            y = torch.stack([ys[-1][0] + 1e-9, -self.restitution * ys[-1][1]])
        return torch.stack(found), y

    def exact(self, bounces):
        """The same in closed form."""
        t, (height, speed), found = self.t0, self.y0, []
        for _ in range(bounces):
            impact = torch.sqrt(speed**2 + 2 * self.gravity * (height - self.floor))
            t = t + (speed + impact) / self.gravity
            found.append(t)
            height, speed = self.floor + 1e-9, self.restitution * impact
        return torch.stack(found), torch.stack([height, speed])


@pytest.mark.parametrize(("interface", "more"), INTERFACES)
@pytest.mark.parametrize("settings", STEPS)
def test_bouncing_ball(interface, more, settings):
    ball = Ball()
    found, state = ball.solved(3, interface, **settings, **more)
    exact, other = ball.exact(3)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    weights = times(1.0, -2.0, 3.0)
    grads = torch.autograd.grad(found @ weights + state[1], ball.inputs)
    wanted = torch.autograd.grad(exact @ weights + other[1], ball.inputs)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("interface", "more"), INTERFACES)
def test_second_derivatives_of_events(interface, more):
    ball = Ball()
    hessians = []
    for t, _ in (ball.solved(1, interface, **more), ball.exact(1)):
        grads = torch.autograd.grad(t.sum(), [ball.gravity, ball.floor], create_graph=True)
        total = grads[0] + 2 * grads[1]
        hessians.append(torch.autograd.grad(total, [ball.gravity, ball.floor, ball.y0]))
    for a, b in zip(*hessians, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("interface", "more"), INTERFACES)
@pytest.mark.parametrize("of", ["time", "state"])
def test_third_derivatives_of_events_are_refused(interface, more, of):
    ball = Ball()
    t, state = ball.solved(1, interface, **more)
    value = t.sum() if of == "time" else state.sum()
    for _ in range(2):
        (value,) = torch.autograd.grad(value, ball.gravity, create_graph=True)
    with pytest.raises(GradientUnavailableError, match=r"up to order 2, the one of order 3.*Event"):
        torch.autograd.grad(value, ball.gravity)


def steps_to_event(y, rate, level, n, h):
    """The 3/8 rule for y' = -rate y² + cos t, n steps of h and one that ends where y = level, by Newton.

    Plain numbers, which may be complex.
    """

    def f(t, y):
        return -rate * y * y + (
            complex(math.cos(t.real) * math.cosh(t.imag), -math.sin(t.real) * math.sinh(t.imag))
        )

    def step(t, y, h):
        k1 = f(t, y)
        k2 = f(t + h / 3, y + h * k1 / 3)
        k3 = f(t + 2 * h / 3, y + h * (-k1 / 3 + k2))
        k4 = f(t + h, y + h * (k1 - k2 + k3))
        return y + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8

    for i in range(n):
        y = step(complex(i * h), y, h)
    t, s = complex(n * h), complex(h / 2)
    for _ in range(40):
        d = 1e-6
        slope = (step(t, y, s + d) - step(t, y, s - d)) / (2 * d)
        s = s - (step(t, y, s) - level) / slope
    return t + s


@pytest.mark.parametrize(("interface", "more"), INTERFACES)
def test_gradient_of_the_discrete_event_against_a_complex_step(interface, more):
    y0, rate, level = leaf([1.5]), leaf(0.7), leaf(1.02)
    t, ys = interface(
        lambda t, y: -rate * y * y + torch.cos(t),
        y0,
        times(0.0, 1.0),
        event_fn=lambda t, y: y[0] - level,
        method="rk4",
        options={"step_size": 0.25},
        **more,
    )
    n = int(t.item() / 0.25)
    assert steps_to_event(1.5, 0.7, 1.02, n, 0.25).real == pytest.approx(t.item(), rel=1e-12)
    assert ys[-1].item() == pytest.approx(1.02, rel=1e-14)
    grads = torch.autograd.grad(t, [y0, rate, level])
    tiny = 1e-30j
    for i, grad in enumerate(grads):
        values = [1.5, 0.7, 1.02]
        values[i] = values[i] + tiny
        derivative = steps_to_event(*values, n, 0.25).imag / 1e-30
        assert grad.item() == pytest.approx(derivative, rel=1e-10)


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
@pytest.mark.parametrize("reverse", [False, True])
def test_all_methods_find_events_in_both_directions(method, reverse):
    options = {"step_size": 0.01} if method in FIXED else {}
    t, ys = odeint_event(
        lambda t, y: -y,
        torch.ones(1, dtype=DOUBLE),
        torch.tensor(0.0, dtype=DOUBLE),
        event_fn=lambda t, y: y - (2.0 if reverse else 0.5),
        reverse_time=reverse,
        method=method,
        options=options,
    )
    exact = math.log(2.0) * (-1 if reverse else 1)
    assert t.item() == pytest.approx(exact, rel=1e-2 if method == "euler" else 1e-4)
    assert ys.shape == (2, 1)


@pytest.mark.parametrize("method", FIXED)
def test_events_of_a_slow_state_in_single_precision(method):
    """A unit in the last place of the state is 1e-6 in time: it must be lost once in a step at most."""
    t, _ = odeint_event(
        lambda t, y: 0.2 + 0.0 * y,
        torch.tensor([3.2]),
        torch.tensor(0.0),
        event_fn=lambda t, y: y - 3.5,
        method=method,
        options={"step_size": 0.01},
    )
    assert t.item() == pytest.approx(1.5, rel=1e-4)


def test_the_first_of_several_conditions_and_tuple_states():
    y0 = (torch.tensor(0.0, dtype=DOUBLE), torch.tensor([4.0], dtype=DOUBLE))
    t, (a, b) = odeint_event(
        lambda t, y: (torch.ones_like(y[0]), -torch.ones_like(y[1])),
        y0,
        torch.tensor(0.0, dtype=DOUBLE),
        event_fn=lambda t, y: torch.stack([y[0] - 3.0, y[1][0] - 3.5]),
    )
    assert (t.item(), a[-1].item(), b[-1].item()) == pytest.approx((0.5, 0.5, 3.5))


def test_events_that_are_now_return_at_once():
    t, ys = odeint_event(
        lambda t, y: y, torch.zeros(1), torch.tensor(1.0), event_fn=lambda t, y: y[0]
    )
    assert (t.item(), ys.shape) == (1.0, (2, 1))


def test_events_that_never_come():
    y0, t0 = torch.ones(1, dtype=DOUBLE), torch.tensor(0.0, dtype=DOUBLE)
    for settings in (
        {"method": "euler", "options": {"step_size": 1e-4}},
        {"options": {"max_num_steps": 50}},
    ):
        with pytest.raises(RuntimeError) as caught:
            odeint_event(lambda t, y: -y, y0, t0, event_fn=lambda t, y: y[0] + 1, **settings)
        assert isinstance(caught.value, AssertionError)
    with pytest.raises(AssertionError, match="step_size"):
        odeint_event(lambda t, y: -y, y0, t0, event_fn=lambda t, y: y[0] + 1, method="rk4")
    with pytest.raises(AssertionError, match="NaN"):
        odeint_event(lambda t, y: -y, y0, t0, event_fn=lambda t, y: torch.sqrt(y[0] - 0.9) + 1)


def test_events_far_away():
    t, _ = odeint_event(
        lambda t, y: torch.ones_like(y),
        torch.zeros(1, dtype=DOUBLE),
        torch.tensor(0.0, dtype=DOUBLE),
        event_fn=lambda t, y: y[0] - 12345.0,
        options={"max_step": 10.0},
    )
    assert t.item() == pytest.approx(12345.0, rel=1e-12)


def test_events_at_which_the_condition_only_touches_zero_have_no_gradient():
    level = leaf(0.0)
    t, _ = odeint_event(
        lambda t, y: torch.ones_like(y),
        torch.tensor([-1.0], dtype=DOUBLE),
        torch.tensor(0.0, dtype=DOUBLE),
        event_fn=lambda t, y: (y[0] - level).clamp(max=0.0) * -1.0 + 0.0 * level,
    )
    assert t.item() >= 1.0
    with pytest.raises(GrazingEventError, match="touches zero without crossing it"):
        torch.autograd.grad(t, level)


def test_parameters_of_networks_and_no_grad():
    net, level = Net(), leaf(1.05)

    def solved():
        return odeint_event(
            net,
            torch.tensor([[1.0, -1.0]], dtype=DOUBLE),
            torch.tensor(0.0, dtype=DOUBLE),
            event_fn=lambda t, y: y[0, 0] * y[0, 0] - level,
            odeint_interface=odeint_adjoint,
        )

    t, ys = solved()
    (t + ys[-1].sum()).backward()
    assert level.grad is not None
    assert all(p.grad is not None for p in net.inner.parameters())
    with torch.no_grad():
        again, other = solved()
    torch.testing.assert_close(again, t.detach(), rtol=1e-13, atol=0.0)
    torch.testing.assert_close(other, ys.detach(), rtol=1e-13, atol=0.0)


def test_jumps_before_the_event():
    rate = leaf(2.0)
    t, _ = odeint_event(
        lambda t, y: torch.where(t < 0.5, rate, 1.0) * torch.ones_like(y),
        torch.zeros(1, dtype=DOUBLE),
        torch.tensor(0.0, dtype=DOUBLE),
        event_fn=lambda t, y: y[0] - 2.0,
        options={"jump_t": torch.tensor([0.5])},
    )
    # rate / 2 + (t - 1/2) = 2
    assert t.item() == pytest.approx(1.5, rel=1e-12)
    (grad,) = torch.autograd.grad(t, rate)
    assert grad.item() == pytest.approx(-0.5, rel=1e-12)


@pytest.mark.parametrize("settings", STEPS)
def test_an_event_function_that_jumps(settings):
    """It tells where the event is, and has no derivative there."""
    rate, level = leaf(2.0), leaf(1.0)
    functions = [
        lambda t, y: torch.where(y[0] > 0.5, 1.0, -1.0),
        lambda t, y: torch.where(y[0] > 0.5, level, -level),
    ]
    for g in functions:
        t, ys = odeint_event(
            lambda t, y: rate * torch.ones_like(y),
            torch.zeros(1, dtype=DOUBLE),
            torch.tensor(0.0, dtype=DOUBLE),
            event_fn=g,
            odeint_interface=odeint,
            **settings,
        )
        assert t.item() == pytest.approx(0.25, abs=1e-6)
        assert ys[-1].item() == pytest.approx(0.5, abs=1e-6)
        (nothing,) = torch.autograd.grad(0.0 * t, [rate], retain_graph=True)
        assert nothing == 0.0
        with pytest.raises(GrazingEventError, match=r"the event at t = 0\.2.* jumps over it"):
            torch.autograd.grad(t, [rate])


def test_attempts_are_counted_until_the_event():
    """Also if those of a stretch are all that is allowed."""
    options = {"first_step": 0.01, "max_step": 0.01, "max_num_steps": 1000}
    with pytest.raises(AssertionError, match="1000 steps attempted, and no event"):
        odeint_event(
            lambda t, y: torch.ones_like(y),
            torch.zeros(1, dtype=DOUBLE),
            torch.tensor(0.0, dtype=DOUBLE),
            event_fn=lambda t, y: y[0] - 1e9,
            odeint_interface=odeint,
            options=options,
        )
