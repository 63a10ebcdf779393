"""The step-size control, as exact numbers, and its norms."""

from __future__ import annotations

import math

import pytest
import torch

from compat.fields import ADAPTIVE, DOUBLE, Net, start, times
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint
from odegrad.compat.torchdiffeq.controller import Controller
from odegrad.stepsize import History


@pytest.mark.parametrize(
    ("ratio", "order", "accept", "factor"),
    [
        (0.0, 5, True, 10.0),
        (1e-12, 5, True, 10.0),
        (1 / 32, 5, True, 1.8),
        (0.99, 2, True, 1.0),  # never smaller after a step that is accepted
        (1.0, 2, True, 0.9),
        (4.0, 2, False, 0.45),
        (1e9, 5, False, 0.2),
        (math.nan, 5, False, 0.2),
        (math.inf, 5, False, 0.2),
    ],
)
def test_decisions(ratio, order, accept, factor):
    decision = Controller().decide(ratio, History(), order)
    assert (decision.accept, decision.factor) == (accept, pytest.approx(factor, rel=1e-15))


def test_a_step_may_grow_at_once_after_a_rejection():
    rejected = Controller().decide(4.0, History(), 5)
    assert Controller().decide(0.0, rejected.history, 5).factor == 10.0


def test_the_ratio():
    y0, y1 = torch.tensor([1.0, -2.0], dtype=DOUBLE), torch.tensor([-3.0, 1.0], dtype=DOUBLE)
    x = torch.tensor([0.3, 0.4], dtype=DOUBLE)
    found = Controller(rtol=0.1, atol=0.01).scaled_norm((x,), (y0,), (y1,))
    wanted = math.sqrt(((0.3 / 0.31) ** 2 + (0.4 / 0.21) ** 2) / 2)
    assert float(found) == pytest.approx(wanted, rel=1e-14)


def test_the_ratio_of_a_tuple_is_the_largest_of_its_parts():
    zeros = (
        torch.zeros(3, dtype=DOUBLE),
        torch.zeros((), dtype=DOUBLE),
        torch.zeros(0, dtype=DOUBLE),
    )
    x = (torch.ones(3, dtype=DOUBLE), torch.tensor(-5.0, dtype=DOUBLE), zeros[2])
    control = Controller(
        rtol=(0.0, 0.0, 0.0), atol=(torch.tensor([1.0, 2.0, 2.0]), 10.0, 1.0), packed=True
    )
    assert float(control.scaled_norm(x, zeros, zeros)) == pytest.approx(math.sqrt(0.5))


def test_the_norm_gets_the_state_as_the_user_knows_it():
    seen = []

    def norm(state):
        seen.append(state)
        first = state[0] if isinstance(state, tuple) else state
        return first.square().mean().sqrt()

    t = times(0.0, 1.0)
    odeint(lambda t, y: y, torch.tensor(1.0, dtype=DOUBLE), t, options={"norm": norm})
    assert all(isinstance(x, torch.Tensor) and x.shape == () for x in seen)
    seen.clear()
    y0 = (torch.tensor(1.0, dtype=DOUBLE), torch.ones(2, 2, dtype=DOUBLE))
    odeint(lambda t, y: y, y0, t, options={"norm": norm})
    assert all(isinstance(x, tuple) and [*map(len, (x, x[1]))] == [2, 2] for x in seen)


@pytest.mark.parametrize(("method", "order"), [("dopri5", 5), ("bosh3", 3), ("dopri8", 8)])
def test_the_first_step(method, order):
    """y' = −y from 1: |y|, |y'| and the estimate of |y''| are all 1 in units of the tolerance."""
    found = []

    def decay(t, y):
        return -y

    decay.callback_step = lambda t0, y0, dt: found.append(dt.item())
    odeint(decay, torch.ones(4, dtype=DOUBLE), times(0.0, 2.0), method=method)
    assert found[0] == pytest.approx((0.01 * (1e-9 + 1e-7)) ** (1 / order), rel=1e-12)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_larger_norm_takes_more_steps(method):
    def evaluations(factor):
        net, t = Net(), times(0.0, 3.0)
        options = {"norm": lambda y: factor * y.abs().max()}
        odeint(net, start(), t, method=method, options=options, rtol=1e-4, atol=1e-6)
        return net.evaluations

    assert evaluations(1.0) < evaluations(1e3)


def test_tolerances_per_part():
    y0 = (torch.ones(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE))
    count = [0]

    def f(t, y):
        count[0] += 1
        return (-y[0], torch.cos(20 * t) * y[1])

    evaluations = []
    for tolerances in ((1e-3, 1e-3), (1e-3, 1e-9), torch.tensor([1e-3, 1e-9])):
        count[0] = 0
        odeint(f, y0, times(0.0, 1.0), rtol=tolerances, atol=tolerances)
        evaluations.append(count[0])
    assert evaluations[0] < evaluations[1] == evaluations[2]
    odeint(
        lambda t, y: -y,
        y0[0],
        times(0.0, 1.0),
        rtol=torch.tensor(1e-3),
        atol=torch.tensor([1e-3, 1.0]),
    )


def test_adjoint_norms_have_no_meaning_and_seminorm_is_silent():
    def never(state):
        raise AssertionError("nothing is solved backwards")

    net, t = Net(), times(0.0, 1.0)
    odeint_adjoint(net, start(), t, adjoint_options={"norm": "seminorm"}).sum().backward()
    from odegrad.compat.torchdiffeq import adjoint

    adjoint._warned.clear()
    with pytest.warns(UserWarning, match="no meaning"):
        ys = odeint_adjoint(net, start(), t, adjoint_options={"norm": never})
    ys.sum().backward()
    odeint_adjoint(net, start(), t, adjoint_options={"norm": never})  # said once
