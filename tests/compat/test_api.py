"""Signatures, shapes, defaults, and what is raised."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from compat.fields import ADAPTIVE, DOUBLE, FIXED, METHODS, Net, start, times
from odegrad.compat import torchdiffeq as compat
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event
from odegrad.errors import OdegradError


def decay(t, y):
    return -y


def test_signatures():
    both = {"rtol": 1e-7, "atol": 1e-9, "method": None, "options": None, "event_fn": None}
    adjoint = dict.fromkeys(["rtol", "atol", "method", "options", "params"])
    extra = {f"adjoint_{name}": value for name, value in adjoint.items()}
    for function, wanted in ((odeint, both), (odeint_adjoint, {**both, **extra})):
        found = inspect.signature(function).parameters
        assert list(found)[:3] == ["func", "y0", "t"]
        keywords = {k: p.default for k, p in found.items() if p.kind is p.KEYWORD_ONLY}
        assert keywords == wanted
    assert list(inspect.signature(odeint_dense).parameters)[:4] == ["func", "y0", "t0", "t1"]
    assert list(inspect.signature(odeint_event).parameters)[:3] == ["func", "y0", "t0"]
    assert set(compat.__all__) == {"odeint", "odeint_adjoint", "odeint_dense", "odeint_event"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("descending", [False, True])
def test_closed_form(method, descending):
    t = torch.linspace(0.0, 1.0, 41, dtype=DOUBLE)
    t = t.flip(0) if descending else t
    ys = odeint(decay, torch.ones(3, dtype=DOUBLE), t, method=method, rtol=1e-6, atol=1e-8)
    exact = torch.exp(t[0] - t)[:, None].expand(41, 3)
    bound = {"euler": 0.05, "midpoint": 3e-4, "heun2": 3e-4, "fehlberg2": 1e-4}.get(method, 1e-5)
    assert ys.shape == (41, 3)
    assert torch.equal(ys[0], torch.ones(3, dtype=DOUBLE))
    torch.testing.assert_close(ys, exact, rtol=bound, atol=0.0)


def test_rk4_is_the_three_eighths_rule():
    t, seen = times(0.0, 1.0), []
    odeint(lambda t, y: seen.append(float(t)) or -y, torch.ones(1, dtype=DOUBLE), t, method="rk4")
    assert seen[-4:] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_tuple_states_keep_their_shapes_and_dtypes(method):
    y0 = (torch.ones(2, 3, dtype=DOUBLE), torch.zeros((), dtype=torch.float32))
    a, b = odeint(
        lambda t, y: (-y[0], y[1] + 1), y0, times(0.0, 0.5, 1.0), method=method, rtol=1e-5
    )
    assert (a.shape, a.dtype) == ((3, 2, 3), DOUBLE)
    assert (b.shape, b.dtype) == ((3,), torch.float32)


def test_slopes_of_tuples_may_have_other_shapes_and_be_lists():
    y0 = (torch.ones(4, 2, dtype=DOUBLE), torch.zeros(4, 1, dtype=DOUBLE))
    a, b = odeint(lambda t, y: [-y[0], y[0].sum(1)], y0, times(0.0, 1.0), method="midpoint")
    assert (a.shape, b.shape) == ((2, 4, 2), (2, 4, 1))


@pytest.mark.parametrize("method", METHODS)
def test_one_time(method):
    y0 = start()
    for interface in (odeint, odeint_adjoint):
        assert torch.equal(interface(Net(), y0, times(0.5), method=method), y0[None])


def test_complex_states():
    y0 = torch.tensor([1.0 + 1.0j], dtype=torch.complex128)
    seen = []
    ys = odeint(lambda t, y: seen.append(t.dtype) or 1j * y, y0, times(0.0, math.pi))
    torch.testing.assert_close(ys[-1], -y0, rtol=1e-6, atol=0.0)
    assert set(seen) == {DOUBLE}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_half_precision_states_and_times(dtype, method):
    t = torch.tensor([0.0, 0.0625, 0.25, 0.5625, 1.0], dtype=dtype)
    ys = odeint(lambda t, y: -y * t, torch.ones(4, dtype=dtype), t, method=method)
    assert ys.dtype is dtype
    assert abs(float(ys[-1, 0]) - math.exp(-0.5)) < 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adaptive_steps_in_half_precision(dtype):
    t, y0 = torch.tensor([0.0, 1.0]), torch.ones(4, dtype=dtype)
    ys = odeint(decay, y0, t, rtol=1e-2, atol=1e-2)
    assert ys[-1, 0].item() == pytest.approx(math.exp(-1.0), rel=1e-2)
    for state, f in ((y0, decay), ((y0, torch.ones(2)), lambda t, y: (-y[0], -y[1]))):
        with pytest.warns(UserWarning, match="below the round-off"):
            ys = odeint(f, state, t)
        last = (ys[0] if isinstance(ys, tuple) else ys)[-1, 0]
        assert last.item() == pytest.approx(math.exp(-1.0), rel=3e-2)


def test_the_time_arrives_in_the_dtype_of_the_state():
    seen = set()
    y0, t = torch.ones(2), times(0.0, 1.0)
    odeint(lambda t, y: seen.add((t.dtype, t.shape)) or -y, y0, t, method="rk4")
    assert seen == {(torch.float32, torch.Size([]))}


BAD = [
    (AssertionError, {"t": [0.0, 1.0]}),
    (AssertionError, {"t": times(0.0, 1.0, 1.0)}),
    (AssertionError, {"t": times(0.0, 1.0, 0.5)}),
    (AssertionError, {"t": times(0.0, 1.0).reshape(2, 1)}),
    (AssertionError, {"t": torch.tensor(1.0)}),
    (AssertionError, {"t": torch.zeros(0)}),
    (TypeError, {"t": torch.tensor([0, 1])}),
    (AssertionError, {"y0": [torch.ones(2)]}),
    (AssertionError, {"y0": {"a": torch.ones(2)}}),
    (AssertionError, {"y0": (torch.ones(2), 1.0)}),
    (TypeError, {"y0": torch.ones(2, dtype=torch.int64)}),
    (ValueError, {"method": "rk5"}),
    (ValueError, {"event_fn": decay, "t": times(0.0, 1.0, 2.0)}),
    (AssertionError, {"rtol": torch.tensor(1e-3, requires_grad=True)}),
    (AssertionError, {"atol": (1e-3, 1e-3), "y0": (torch.ones(2),)}),
    (AssertionError, {"rtol": -1.0}),
    (AssertionError, {"rtol": math.nan}),
    (AssertionError, {"rtol": 0.0, "atol": 0.0}),
    (AssertionError, {"y0": torch.tensor([math.nan])}),
    (AssertionError, {"options": {"max_num_steps": 1}}),
    (NotImplementedError, {"method": "scipy_solver"}),
    (NotImplementedError, {"method": "gl4"}),
]


@pytest.mark.parametrize(("kind", "change"), BAD)
def test_exceptions_are_of_both_kinds(kind, change):
    given = {"y0": torch.ones(2, dtype=DOUBLE), "t": times(0.0, 3.0), **change}
    with pytest.raises(kind) as caught:
        odeint(decay, **given)
    assert isinstance(caught.value, OdegradError)


def test_failures_are_assertions():
    t, y0 = times(0.0, 3.0), torch.ones(1, dtype=DOUBLE)
    with pytest.raises(AssertionError, match="singular"):
        odeint(lambda t, y: y * y, y0, t)
    with pytest.raises(AssertionError, match="NaN"):
        odeint(lambda t, y: y / 0.0 - y / 0.0, y0, t)
    with pytest.raises(AssertionError, match="NaN"):
        odeint(lambda t, y: y * math.inf, y0, t, method="euler")
    with pytest.raises(RuntimeError, match="max_num_steps"):
        odeint(lambda t, y: -y, y0, t, options={"max_num_steps": 2})


@pytest.mark.parametrize("name", ["scipy_solver", "radauIIA5", "gl4"])
def test_missing_methods_name_the_nearest(name):
    with pytest.raises(NotImplementedError, match="nearest"):
        odeint(decay, torch.ones(1), torch.tensor([0.0, 1.0]), method=name)


def test_adaptive_and_fixed_lists():
    assert len({*FIXED, *ADAPTIVE}) == 11
