"""Options: each one's effect, unknown ones, and those that are passed over."""

from __future__ import annotations

import math

import pytest
import torch

from compat.fields import ADAPTIVE, DOUBLE, FIXED, Net, start, times
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense


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


# Fixed grids.


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
