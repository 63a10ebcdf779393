"""Options: each one's effect, unknown ones, and those that are passed over."""

from __future__ import annotations

import math

import pytest
import torch

from compat.fields import ADAPTIVE, DOUBLE, Net, start, times
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint


class Jump:
    """f jumps at 0.5."""

    def __init__(self):
        self.times = []

    def __call__(self, t, y):
        self.times.append(t.item())
        return -0.5 * y if t < 0.5 else y * y


def attempted(net):
    """The starts and sizes of the attempted steps of a network."""
    found = []
    net.callback_step = lambda t0, y0, dt: found.append((t0.item(), dt.item()))
    return found


def ones(n=1):
    return torch.ones(n, dtype=DOUBLE)


# Unknown ones.


@pytest.mark.parametrize(
    ("method", "solver", "key"),
    [
        ("dopri5", "Dopri5Solver", "step_size"),
        (None, "Dopri5Solver", "perturb"),
        ("bosh3", "Bosh3Solver", "interp"),
        ("rk4", "RK4", "max_num_steps"),
        ("euler", "Euler", "dtype"),
    ],
)
def test_unknown_options_warn(method, solver, key):
    with pytest.warns(UserWarning, match=rf"{solver}: Unexpected arguments \{{'{key}'"):
        odeint(lambda t, y: -y, ones(), times(0.0, 1.0), method=method, options={key: 1})


@pytest.mark.parametrize("options", [None, {}, {"norm": lambda y: y.abs().max()}])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_options_that_are_fine_everywhere(method, options):
    odeint(lambda t, y: -y, ones(), times(0.0, 1.0), method=method, options=options)


def test_the_dictionary_is_left_alone():
    options = {"step_size": 0.1}
    odeint(lambda t, y: -y, ones(), times(0.0, 1.0), method="rk4", options=options)
    assert options == {"step_size": 0.1}


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "rmse"},
        {"first_step": 0.0},
        {"min_step": -1.0},
        {"max_step": 0.0},
        {"min_step": 2.0, "max_step": 1.0},
        {"dfactor": 1.5},
        {"dtype": "float32"},
        {"safety": "much"},
        {"jump_t": torch.tensor([0.5, 0.5])},
        {"jump_t": torch.tensor([0.5]), "step_t": torch.tensor([0.5])},
    ],
)
def test_unusable_adaptive_options(options):
    with pytest.raises((ValueError, TypeError)):
        odeint(lambda t, y: -y, ones(), times(0.0, 1.0), options=options)


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.0},
        {"step_size": -0.1},
        {"step_size": 0.1, "grid_constructor": lambda f, y, t: t},
        {"interp": "quintic"},
        {"grid_constructor": lambda f, y, t: t[:-1]},
        {"grid_constructor": lambda f, y, t: torch.cat([t[:1], t])},
        {"grid_constructor": lambda f, y, t: [0.0, 1.0]},
    ],
)
def test_unusable_fixed_options(options):
    with pytest.raises((ValueError, TypeError, AssertionError)):
        odeint(lambda t, y: -y, ones(), times(0.0, 0.5, 1.0), method="rk4", options=options)


# Adaptive steps.


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_jump_t(method, interface):
    more = {"adjoint_params": ()} if interface is odeint_adjoint else {}
    y0, t = torch.tensor([1.0, 2.0], dtype=DOUBLE, requires_grad=True), times(0.0, 0.9)
    simple, better = Jump(), Jump()
    settings = {"method": method, "rtol": 1e-6, "atol": 1e-6, **more}
    interface(simple, y0, t, **settings)
    options = {"jump_t": torch.tensor([0.5])}
    ys = interface(better, y0, t, options=options, **settings)
    assert len(better.times) < len(simple.times)
    assert 0.5 not in better.times
    middle = y0 * math.exp(-0.25)
    exact = middle / (1 - 0.4 * middle)
    # The error estimate of Fehlberg's pair is 1/512 of a difference: its steps are long.
    bound = 1e-2 if method == "fehlberg2" else 3e-4
    torch.testing.assert_close(ys[-1], exact, rtol=bound, atol=0.0)
    (grad,) = torch.autograd.grad(ys[-1].sum(), y0)
    (wanted,) = torch.autograd.grad(exact.sum(), y0)
    torch.testing.assert_close(grad, wanted, rtol=10 * bound, atol=0.0)


def test_jump_t_of_descending_times():
    ys = odeint(
        lambda t, y: torch.where(t < 0.5, 1.0, 3.0) + 0 * y,
        ones(),
        times(1.0, 0.0),
        options={"jump_t": torch.tensor([0.5, 7.0])},
    )
    assert ys[-1].item() == pytest.approx(1 - 1.5 - 0.5, rel=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_step_t(sign):
    net = Net()
    found = attempted(net)
    options = {"step_t": sign * torch.tensor([0.25, 0.625, 9.0])}
    odeint(net, start(), sign * times(0.0, 1.0), rtol=1e-2, atol=1e-2, options=options)
    assert {0.25, 0.625} <= {abs(t) for t, _ in found}


def test_first_step_and_largest_step():
    net = Net()
    found = attempted(net)
    options = {"first_step": torch.tensor(0.015625), "max_step": 0.125}
    odeint(net, start(), times(0.0, 1.0), rtol=1e-2, atol=1e-2, options=options)
    assert found[0] == (0.0, 0.015625)
    assert max(dt for _, dt in found) == 0.125


def test_the_smallest_step_is_accepted_whatever_its_error():
    net = Net()
    found = attempted(net)
    options = {"min_step": 0.25}
    odeint(net, start(), times(0.0, 2.0), rtol=1e-12, atol=1e-12, options=options)
    assert [dt for _, dt in found] == pytest.approx([0.25] * 8)
    # A jump that is not declared would need steps without end.
    jump = Jump()
    odeint(jump, ones(), times(0.0, 0.9), rtol=1e-9, atol=1e-9, options={"min_step": 0.01})
    assert len(jump.times) < 1000


def test_safety_ifactor_dfactor():
    def sizes(**options):
        net = Net()
        found = attempted(net)
        odeint(net, start(), times(0.0, 1.0), options={"first_step": 1e-4, **options})
        return [dt for _, dt in found]

    assert sizes()[1] == pytest.approx(1e-3)
    assert sizes(ifactor=3.0)[1] == pytest.approx(3e-4)
    assert len(sizes(safety=0.3)) > len(sizes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_accepted(dtype):
    odeint(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]), options={"dtype": dtype})


# The adjoint's.


def test_adjoint_options_draw_one_warning():
    from odegrad.compat.torchdiffeq import adjoint

    net, t = Net(), times(0.0, 1.0)
    same = {
        "adjoint_rtol": 1e-7,
        "adjoint_atol": 1e-9,
        "adjoint_method": None,
        "adjoint_options": {},
    }
    odeint_adjoint(net, start(), t, **same)
    fixed = {"method": "rk4", "options": {"step_size": 0.5}}
    odeint_adjoint(
        net, start(), t, **fixed, adjoint_method="rk4", adjoint_options={"step_size": 0.5}
    )
    for change in (
        {"adjoint_rtol": 1e-3},
        {"adjoint_atol": 1e-3},
        {"adjoint_method": "rk4"},
        {"adjoint_options": {"step_size": 0.1}},
    ):
        adjoint._warned.clear()
        with pytest.warns(UserWarning, match=f"{next(iter(change))}.*no meaning"):
            odeint_adjoint(net, start(), t, **change)
    odeint_adjoint(net, start(), t, adjoint_rtol=1e-2)  # said once


def test_what_the_adjoint_refuses():
    t = times(0.0, 1.0)
    with pytest.raises(ValueError, match=r"must be an instance of nn\.Module"):
        odeint_adjoint(lambda t, y: -y, ones(), t)
    with pytest.raises(ValueError, match="adjoint_options"):
        odeint_adjoint(Net(), start(), t, method="rk4", options={}, adjoint_method="euler")
    with pytest.raises(TypeError, match="adjoint_params"):
        odeint_adjoint(Net(), start(), t, adjoint_params=(1.0,))


def decay(t, y):
    return -y


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rtol": "1e-3"}, AssertionError, "rtol must be a number.* received '1e-3'; .* YAML"),
        ({"atol": None}, AssertionError, "atol must be a number.* received None; leave it out"),
        ({"max_num_steps": math.inf}, ValueError, "'max_num_steps'. must be at least 1 and finite"),
        ({"max_num_steps": math.nan}, ValueError, "'max_num_steps'. must be at least 1 and finite"),
        ({"max_num_steps": 0}, ValueError, "'max_num_steps'. must be at least 1.* received 0"),
        (
            {"first_step": torch.ones(2)},
            TypeError,
            "'first_step'. must be a number, received tensor",
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_unusable_numbers_are_named(settings, error, message, packed):
    y0 = (ones(), ones(2), ones(), ones()) if packed else ones()
    f = (lambda t, y: tuple(-x for x in y)) if packed else decay
    tolerances = {k: v for k, v in settings.items() if k.endswith("tol")}
    options = {k: v for k, v in settings.items() if k not in tolerances}
    with pytest.raises(error, match=message):
        odeint(f, y0, times(0.0, 1.0), options=options, **tolerances)


def test_a_tensor_for_adjoint_params():
    weight = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(TypeError, match=r"received a tensor of shape \[1\]; write \(tensor,\)"):
        odeint_adjoint(decay, ones(), times(0.0, 1.0), adjoint_params=weight)


@pytest.mark.parametrize(
    ("y0", "t", "settings", "message"),
    [
        (
            (torch.ones(1), 0.0),
            times(0.0, 1.0),
            {},
            "received a tuple with float 0.0 as its entry 1",
        ),
        (
            torch.ones(1),
            1.0,
            {"event_fn": lambda t, y: y[0]},
            "t must be a torch.Tensor, received float",
        ),
        (torch.ones(1), times(0.0, math.nan, 2.0), {}, r"t\[1\] is NaN"),
    ],
)
def test_unusable_states_and_times_are_named(y0, t, settings, message):
    with pytest.raises(AssertionError, match=message):
        odeint(decay, y0, t, **settings)
