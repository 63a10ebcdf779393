"""Callbacks: which are called, when, how often, and with what."""

from __future__ import annotations

import pytest
import torch

from compat.fields import ADAPTIVE, DOUBLE, FIXED, Net, start, times
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event

NAMES = ("step", "accept_step", "reject_step")


def listening(net, names=NAMES, suffix=""):
    """What the callbacks of a network were told."""
    heard = []
    for name in names:

        def callback(t0, y0, dt, name=name):
            heard.append((name, t0.item(), y0, dt.item()))

        setattr(net, f"callback_{name}{suffix}", callback)
    return heard


@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps(method):
    net = Net()
    heard, back = listening(net, ["step"]), listening(net, ["step"], "_adjoint")
    options = {"step_size": 0.1}
    ys = odeint_adjoint(net, start(), times(0.0, 1.0), method=method, options=options)
    assert [t for _, t, _, _ in heard] == pytest.approx([i / 10 for i in range(10)], abs=1e-12)
    assert all(dt == pytest.approx(0.1) for *_, dt in heard)
    assert all(y.shape == (2, 2) and not y.requires_grad for _, _, y, _ in heard)
    ys.sum().backward()
    assert len(heard) == 10
    assert [t for _, t, _, _ in back] == pytest.approx([1 - i / 10 for i in range(10)], abs=1e-6)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps(method):
    net = Net()
    net.forward = lambda t, y: net.inner(y) * torch.cos(20 * t)
    heard, back = listening(net), listening(net, NAMES, "_adjoint")
    options = {"first_step": 0.9}
    ys = odeint_adjoint(
        net, start(), times(0.0, 1.0), method=method, options=options, rtol=1e-5, atol=1e-6
    )
    kinds = [name for name, *_ in heard]
    assert kinds[0::2] == ["step"] * (len(kinds) // 2)
    assert set(kinds[1::2]) == {"accept_step", "reject_step"}
    assert kinds[1] == "reject_step"
    assert [x[1:2] for x in heard[0::2]] == [x[1:2] for x in heard[1::2]]
    accepted = [x for x in heard if x[0] == "accept_step"]
    assert sum(dt for *_, dt in accepted) == pytest.approx(1.0)
    ys.sum().backward()
    assert [name for name, *_ in back] == ["step", "accept_step"] * len(accepted)


def test_descending_times_and_tuples():
    class Pair(torch.nn.Module):
        def forward(self, t, y):
            return -y[0], y[1]

    pair = Pair()
    heard = listening(pair, ["step"])
    y0 = (torch.ones(2, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE))
    odeint(pair, y0, times(1.0, 0.5, 0.0), method="euler")
    assert [(t, dt) for _, t, _, dt in heard] == [(1.0, 0.5), (0.5, 0.5)]
    assert all(isinstance(y, tuple) and len(y) == 2 for _, _, y, _ in heard)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("name", ["accept_step", "reject_step"])
def test_fixed_steps_are_never_judged(method, name):
    net = Net()
    listening(net, [name])
    with pytest.warns(UserWarning, match=r"Solver .* does not support callbacks"):
        odeint(net, start(), times(0.0, 1.0), method=method)


def test_the_function_may_be_an_object_or_a_function():
    def f(t, y):
        return -y

    heard = listening(f, ["step"])
    odeint(f, torch.ones(1), torch.linspace(0, 1, 6), method="midpoint")
    assert len(heard) == 5


def test_exceptions_of_callbacks_pass():
    net = Net()

    def stop(t0, y0, dt):
        raise KeyboardInterrupt

    net.callback_step = stop
    with pytest.raises(KeyboardInterrupt):
        odeint(net, start(), times(0.0, 1.0), method="rk4")


def test_towards_an_event():
    def f(t, y):
        return torch.ones_like(y)

    heard = listening(f)
    options = {"max_step": 0.25}
    odeint_event(
        f, torch.zeros(1), torch.tensor(0.0), event_fn=lambda t, y: y[0] - 1.1, options=options
    )
    assert {name for name, *_ in heard} == {"step", "accept_step"}
    assert heard[-1][1] < 1.1
