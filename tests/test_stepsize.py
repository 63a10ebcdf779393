"""Step sizes as exact numbers, without any differential equation; and the starting step."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch

from odegrad.errors import InvalidTypeError, InvalidValueError, OdegradError
from odegrad.field import VectorField
from odegrad.grid import Grid, Nodes, Uniform
from odegrad.state import Structure
from odegrad.stepsize import (
    PID,
    AdaptiveStepSize,
    Decision,
    Fixed,
    FixedStepSize,
    History,
    Steps,
    starting_step,
)

EPS = 2.0**-52


# Fixed grids.


def test_steps():
    assert Steps(3).segment(0, 0.0, 5.0, EPS) == Uniform(3)
    assert Steps(3).segment(9, 5.0, -1.0, EPS) == Uniform(3)
    Steps(3).check(1)
    Steps(3).check(100)


@pytest.mark.parametrize(
    ("dt", "start", "stop", "n"),
    [
        (0.1, 0.0, 1.0, 10),
        (0.1, 1.0, 0.0, 10),
        (0.1, 0.0, 0.3, 3),  # 0.3 / 0.1 is 2.9999999999999996 or 3.0000000000000004 elsewhere
        (0.1, 0.0, 0.1 + 0.2, 3),
        (0.1, 100.0, 100.3, 3),
        (0.1, -0.3, 0.0, 3),
        (0.3, 0.0, 1.0, 4),
        (0.25, 0.0, 1.0, 4),
        (0.33333333333, 0.0, 1.0, 3),  # as many digits as a person writes
        (0.25, 0.0, 1.0001, 5),
        (5.0, 0.0, 1.0, 1),
        (1e-3, 0.0, 1.0, 1000),
        (0.1, 0.0, 0.0, 1),
    ],
)
def test_fixed(dt, start, stop, n):
    assert Fixed(dt).segment(0, start, stop, EPS) == Uniform(n)


def test_fixed_forgives_times_rounded_to_float32():
    """Every segment of a float32 linspace takes the steps that the exact times would take."""
    eps = torch.finfo(torch.float32).eps
    for end, n in ((1.0, 7), (3.0, 10), (10.0, 31), (25.0, 101), (1000.0, 11)):
        ts = torch.linspace(0, end, n, dtype=torch.float32).tolist()
        for per_segment in (1, 2, 5):
            dt = end / (n - 1) / per_segment
            for start, stop in itertools.pairwise(ts):
                assert Fixed(dt).segment(0, start, stop, eps) == Uniform(per_segment)
                assert Fixed(dt).segment(0, stop, start, eps) == Uniform(per_segment)
    # Without the slack some segment of these would take one more.
    ts = torch.linspace(0, 1, 7, dtype=torch.float32).tolist()
    counts = {Fixed(1 / 6).segment(0, a, b, 0.0).n for a, b in itertools.pairwise(ts)}
    assert counts == {1, 2}


@pytest.mark.parametrize("n", [0, -1])
def test_steps_rejects_numbers(n):
    with pytest.raises(InvalidValueError, match="at least one"):
        Steps(n)


@pytest.mark.parametrize("n", [1.0, True, "3", None])
def test_steps_rejects_types(n):
    with pytest.raises(InvalidTypeError, match="whole number"):
        Steps(n)


@pytest.mark.parametrize("dt", [0.0, -0.1, math.inf, math.nan])
def test_fixed_rejects(dt):
    with pytest.raises(InvalidValueError, match="positive"):
        Fixed(dt)


# The controller's decisions.


def pid(**changes):
    """Unlimited and without safety, so that the formula shows."""
    return PID(**{"safety": 1.0, "factor_min": 1e-9, "factor_max": 1e9, **changes})


def test_integral_control():
    assert pid().decide(2.0**-10, History(), 5) == Decision(
        True, 4.0, History((2.0**-10, 1.0), rejected=False)
    )
    assert pid().decide(32.0, History((0.5, 0.25)), 5) == Decision(
        False, 0.5, History((0.5, 0.25), rejected=True)
    )
    assert pid(i=0.5).decide(2.0**-4, History(), 2).factor == 2.0


def test_proportional_integral_derivative_control():
    """β = (p + i + d, −(p + 2 d), d): every gain by itself, with k = 1 and powers of two."""
    history = History((2.0**-2, 2.0**-3))
    e = 2.0**-1
    assert pid(p=0.0, i=1.0).decide(e, history, 1).factor == 2.0
    # p: (e_{n−1} / e_n)^p.
    assert pid(p=1.0, i=0.0).decide(e, history, 1).factor == 2.0**-1
    # d: (e_{n−1}² / (e_n e_{n−2}))^d = 2^(−4 + 1 + 3).
    assert pid(p=0.0, i=0.0, d=1.0).decide(e, history, 1).factor == 1.0
    assert pid(p=0.0, i=0.0, d=1.0).decide(e / 2, history, 1).factor == 2.0
    mixed = pid(p=0.5, i=0.25, d=0.125).decide(e, history, 3).factor
    expected = (
        0.5 ** (-(0.5 + 0.25 + 0.125) / 3) * 0.25 ** ((0.5 + 0.25) / 3) * 0.125 ** (-0.125 / 3)
    )
    assert mixed == pytest.approx(expected, rel=1e-15)


def test_history_remembers_accepted_steps():
    control, history = pid(), History()
    for ratio in (0.5, 0.25, 4.0, 0.125):
        history = control.decide(ratio, history, 5).history
    assert history == History((0.125, 0.25), rejected=False)


def test_limits():
    control = PID(safety=0.5, factor_min=0.25, factor_max=8.0)
    assert control.decide(1e-30, History(), 1).factor == 8.0
    assert control.decide(0.0, History(), 1).factor == 8.0
    assert control.decide(1e30, History(), 1) == Decision(False, 0.25, History(rejected=True))
    assert control.decide(1.0, History(), 1) == Decision(True, 0.5, History((1.0, 1.0)))
    assert not control.decide(1.0000001, History(), 1).accept
    # A rejected step shrinks even where history would let it grow.
    assert PID(p=1.0, i=0.0).decide(2.0, History((1e6, 1.0)), 1).factor == 0.9
    # The first accepted step after a rejection does not grow; the next one may.
    after = control.decide(1e-9, History((1.0, 1.0), rejected=True), 1)
    assert (after.accept, after.factor) == (True, 1.0)
    assert control.decide(1e-9, after.history, 1).factor == 8.0


@pytest.mark.parametrize("ratio", [math.nan, math.inf])
def test_non_finite_errors_reject(ratio):
    history = History((0.5, 0.25))
    assert PID().decide(ratio, history, 5) == Decision(False, 0.2, History((0.5, 0.25), True))


@pytest.mark.filterwarnings("ignore:PID. rtol=1.0:odegrad.errors.OdegradWarning")
def test_scaled_norm():
    y0, y1 = torch.tensor([1.0, -2.0]), torch.tensor([-3.0, 1.0])
    e = torch.tensor([3.5, 2.5])
    got = PID(rtol=1.0, atol=0.5).scaled_norm((e,), (y0,), (y1,))
    assert float(got) == 1.0
    assert got.shape == ()
    # Two leaves: the mean is over all elements, not over leaves.
    two = PID(rtol=1.0, atol=0.5).scaled_norm(
        (e, torch.zeros(6)), (y0, torch.zeros(6)), (y1, torch.zeros(6))
    )
    assert float(two) == 0.5
    largest = PID(rtol=1.0, atol=0.5, norm=lambda leaves: leaves[0].abs().max())
    assert float(largest.scaled_norm((2 * e,), (y0,), (y1,))) == 2.0
    z = torch.tensor([3 + 4j], dtype=torch.complex128)
    assert float(PID(rtol=0.0, atol=1.0).scaled_norm((z,), (z,), (z,))) == 5.0
    y = y0.clone().requires_grad_()
    assert not PID().scaled_norm((y,), (y,), (y,)).requires_grad


@pytest.mark.parametrize(
    "change",
    [
        {"rtol": -1.0}, {"atol": -1.0}, {"rtol": 0.0, "atol": 0.0}, {"rtol": math.nan},
        {"safety": 0.0}, {"safety": 1.1}, {"factor_min": 0.0}, {"factor_min": 1.0},
        {"factor_max": 1.0}, {"dt0": 0.0}, {"dt0": -1.0}, {"dt0": math.inf}, {"dt_min": -1.0},
        {"dt_min": 1.0, "dt_max": 0.5}, {"dt_max": 0.0}, {"dt_max": math.nan},
        {"rtol": torch.tensor(1e-3)}, {"atol": torch.tensor(1e-3)},
    ],
    ids=str,
)  # fmt: skip
def test_pid_rejects(change):
    expected = (
        InvalidTypeError
        if any(isinstance(x, torch.Tensor) for x in change.values())
        else InvalidValueError
    )
    with pytest.raises(expected, match=next(iter(change)) if len(change) == 1 else None):
        PID(**change)
    assert issubclass(expected, OdegradError)


# Values.


@pytest.mark.parametrize(
    "value",
    [
        Steps(4),
        Fixed(0.1),
        PID(),
        PID(rtol=1e-3, atol=1e-5, p=0.4, i=0.3, dt0=0.1, dt_max=2.0),
        Grid((Uniform(2), Nodes((0.0, 0.1, 1.0)))),
        History((0.5, 0.25), rejected=True),
        Decision(True, 0.5, History()),
    ],
    ids=repr,
)
def test_values(value):
    assert eval(repr(value), {**globals(), "inf": math.inf}) == value
    assert pickle.loads(pickle.dumps(value)) == value
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))


def test_kinds():
    for value in (Steps(1), Fixed(1.0), Grid((Uniform(1),))):
        assert isinstance(value, FixedStepSize)
        assert not isinstance(value, AdaptiveStepSize)
    assert isinstance(PID(), AdaptiveStepSize)
    assert not isinstance(PID(), FixedStepSize)


# The starting step.


def hairer(f, t, y, direction, order, rtol, atol):
    """HNW I, II.4, p. 169, with numpy."""
    scale = atol + rtol * np.abs(y)

    def norm(x):
        return np.sqrt(np.mean((x / scale) ** 2))

    f0 = f(t, y)
    d0, d1 = norm(y), norm(f0)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    y1 = y + h0 * direction * f0
    d2 = norm(f(t + h0 * direction, y1) - f0) / h0
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** (1 / (order + 1))
    return min(100 * h0, h1)


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("order", [1, 2, 5, 8])
@pytest.mark.parametrize(
    ("f", "y"),
    [
        (lambda t, y: -50 * y + t, [1.0, 2.0]),
        (lambda t, y: 0 * y + 1.0, [1.0, 2.0]),
        (lambda t, y: 0 * y, [1.0, 2.0]),
        (lambda t, y: y + 1.0, [0.0, 0.0]),
        (lambda t, y: 1e-3 * y * t, [1.0, -3.0]),
    ],
)
def test_starting_step(direction, order, f, y):
    state = (torch.tensor(y, dtype=torch.float64),)
    field = VectorField(f, Structure(state[0]), state)
    got = starting_step(field, PID(1e-4, 1e-6), order, 0.7, direction, state, ())
    expected = hairer(f, 0.7, np.array(y), direction, order, 1e-4, 1e-6)
    assert got == pytest.approx(expected, rel=1e-12)
    assert field.evaluations == 2


def test_starting_step_of_a_field_that_blows_up():
    state = (torch.tensor([1.0], dtype=torch.float64),)
    for f in (lambda t, y: y / 0, lambda t, y: y * math.nan, lambda t, y: 1e300 * y**3):
        field = VectorField(f, Structure(state[0]), state)
        h = starting_step(field, PID(), 5, 0.0, 1.0, state, ())
        assert 0 < h <= 1e-6
