"""Events: where they are, what they do, their derivatives: against closed forms and a plain replay."""

from __future__ import annotations

import copy
import doctest
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import leaf, mlp, relative
from odegrad import (
    PID,
    Discrete,
    Event,
    Fixed,
    Status,
    Steps,
    Tape,
    errors,
)
from odegrad.events.curve import Curve, Span, points
from odegrad.schemes import SCHEMES

F64 = torch.float64
PAGE = Path(__file__).parent.parent / "docs" / "events.md"


def val(x: Any) -> float:
    """The number that a tensor holds."""
    return float(x.detach()) if isinstance(x, Tensor) else float(x)


def number(x: float, **options: Any) -> Tensor:
    return torch.tensor(x, dtype=F64, requires_grad=True, **options)


# A ball: free fall from a height, and bounces on a floor; all of it is a polynomial between bounces.


class Ball:
    """Its parameters, the solve, and the closed form."""

    def __init__(self) -> None:
        self.height, self.speed, self.start = number(1.3), number(0.4), number(0.2)
        self.gravity, self.floor, self.restitution = number(9.81), number(0.1), number(0.8)
        self.inputs = [
            self.height, self.speed, self.start, self.gravity, self.floor, self.restitution,
        ]  # fmt: skip

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -self.gravity * torch.ones_like(y[1])])

    @property
    def y0(self) -> Tensor:
        return torch.stack([self.height, self.speed])

    @property
    def bounce(self) -> Event:
        return Event(
            lambda t, y: y[0] - self.floor,
            direction=-1,
            jump=lambda t, y: torch.stack([y[0], -self.restitution * y[1]]),
        )

    def bounces(self, n: int) -> tuple[list[Tensor], list[Tensor]]:
        """The times of the first n bounces, and the speeds after them."""
        v, g, above = self.speed, self.gravity, self.height - self.floor
        down = (v.square() + 2.0 * g * above).sqrt()
        times, speeds = [self.start + (v + down) / g], [self.restitution * down]
        for _ in range(n - 1):
            times.append(times[-1] + 2.0 * speeds[-1] / g)
            speeds.append(self.restitution * speeds[-1])
        return times, speeds

    def height_at(self, t: float, n: int) -> Tensor:
        """The height at t, after n bounces."""
        if not n:
            x = t - self.start
            return self.height + self.speed * x - 0.5 * self.gravity * x.square()
        times, speeds = self.bounces(n)
        x = t - times[-1]
        return self.floor + speeds[-1] * x - 0.5 * self.gravity * x.square()


def grads(x: Tensor, inputs: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(x, inputs, retain_graph=True, allow_unused=True)
    return torch.stack(
        [torch.zeros_like(a) if g is None else g for a, g in zip(inputs, found, strict=True)]
    )


EXACT = [
    (odegrad.Tsit5(), PID()),
    (odegrad.Tsit5(), Steps(9)),
    (odegrad.Dopri8(), PID(1e-8, 1e-10)),
    (odegrad.Bosh3(), Fixed(0.07)),
    (odegrad.RK4(), Steps(9)),
    (odegrad.Kutta3(), Steps(9)),
    (odegrad.Heun(), Steps(9)),
]


@pytest.mark.parametrize(("scheme", "stepsize"), EXACT, ids=repr)
@pytest.mark.parametrize("land", [True, False])
def test_bouncing_ball(scheme: Any, stepsize: Any, land: bool) -> None:
    """Every number and every derivative, those of restitution and floor included, to 1e-10."""
    ball = Ball()
    ts = torch.cat([ball.start[None], torch.tensor([0.5, 1.0, 1.6, 2.5], dtype=F64)])
    sol = odegrad.solve(
        ball.f, ball.y0, ts, events=(ball.bounce,), scheme=scheme, stepsize=stepsize, land=land
    )
    (found,) = sol.events
    n = len(found.times)
    times, speeds = ball.bounces(n)
    assert n == 3
    assert sol.status is Status.SUCCESS
    for k in range(n):
        pairs = [
            (found.times[k], times[k]),
            (found.states[k, 0], ball.floor),
            (found.states[k, 1], -speeds[k] / ball.restitution),
            (found.after[k, 1], speeds[k]),
        ]
        for x, exact in pairs:
            assert val((x - exact).abs()) <= 1e-10
            assert val((grads(x, ball.inputs) - grads(exact, ball.inputs)).abs().max()) <= 1e-10
    for j in range(1, 5):
        count = sum(val(t) < val(ts[j]) for t in times)
        exact = ball.height_at(val(ts[j]), count)
        assert val((sol.ys[j, 0] - exact).abs()) <= 1e-10
        off = grads(sol.ys[j, 0], ball.inputs) - grads(exact, ball.inputs)
        assert val(off.abs().max()) <= 1e-10
    again = sol([0.5, 1.6, 1.0])
    torch.testing.assert_close(again, sol.ys[[1, 3, 2]], rtol=0, atol=1e-12)
    off = grads(again[1, 0], ball.inputs) - grads(sol.ys[3, 0], ball.inputs)
    assert val(off.abs().max()) <= 1e-10


def test_terminal_with_a_threshold() -> None:
    """A solve that ends: y = y0 e^(−at) comes to c at log(y0 / c) / a; the scheme is nearly exact."""
    y0, rate, threshold = number(2.0), number(0.7), number(0.5)
    inputs = [y0, rate, threshold]
    sol = odegrad.solve(
        lambda t, y: -rate * y,
        y0,
        [0.0, 1.0, 1.5, 3.0, 4.0],
        scheme=odegrad.Dopri8(),
        stepsize=PID(1e-13, 1e-15),
        events=[Event(lambda t, y: y - threshold)],
    )
    exact = (y0 / threshold).log() / rate
    time = sol.events[0].times
    assert sol.status is Status.EVENT
    assert sol.ts.tolist() == [0.0, 1.0, 1.5]
    assert sol.ys.shape == (3,)
    assert val((time[0] - exact).abs()) <= 1e-11
    assert val((grads(time[0], inputs) - grads(exact, inputs)).abs().max()) <= 1e-10
    state = grads(sol.events[0].states[0], inputs)
    assert val((state - torch.tensor([0.0, 0.0, 1.0], dtype=F64)).abs().max()) <= 1e-12
    assert sol(1.9).item() == pytest.approx(2.0 * math.exp(-0.7 * 1.9), abs=1e-11)
    with pytest.raises(errors.InvalidValueError, match=r"goes from 0 to 1\.98"):
        sol(2.0)


# A plain replay of Heun's scheme with its parabola, in real or complex numbers.


def replay(w: Tensor, n: int, newton: int = 40) -> Tensor:
    """(t*, y(t*), y(end)) of a nonlinear system with one event and one jump, steps with the segments.

    w = (y0[0], y0[1], ts[0], ts[1], a, b, c, d): a in f, b and c in g, d in the jump.
    """
    a, b, c, d = w[4:]

    def f(t: Tensor, y: list[Tensor]) -> list[Tensor]:
        return [y[1] * torch.cos(t), -a * torch.sin(y[0]) + 0.1 * t * y[1]]

    def step(t: Tensor, h: Tensor, y: list[Tensor]) -> tuple[list[Tensor], Any]:
        k = f(t, y)
        m = f(t + h, [u + h * v for u, v in zip(y, k, strict=True)])

        def inside(s: Tensor) -> list[Tensor]:
            x = (s - t) / h
            rows = zip(y, k, m, strict=True)
            return [u + h * ((x - 0.5 * x * x) * p + 0.5 * x * x * q) for u, p, q in rows]

        def rate(s: Tensor) -> list[Tensor]:
            x = (s - t) / h
            return [(1 - x) * p + x * q for p, q in zip(k, m, strict=True)]

        return inside(t + h), (inside, rate)

    def g(s: Tensor, y: list[Tensor]) -> Tensor:
        return y[0] - b * torch.sin(c * s) * (1 + y[1] * y[1])

    y, start, stop = [w[0], w[1]], w[2], w[3]
    for i in range(n):
        h = (stop - start) / n
        t = start + (stop - start) * (i / n)
        before = g(t, y).real
        y, (inside, rate) = step(t, h, y)
        if val(before) > 0.0 >= val(g(t + h, y).real):
            s = t + 0.5 * h
            for _ in range(newton):
                u, v = inside(s), rate(s)
                turn = c * torch.cos(c * s) * (1 + u[1] * u[1])
                slope = v[0] - b * (turn + torch.sin(c * s) * 2 * u[1] * v[1])
                s = s - g(s, u) / slope
            break
    else:
        raise AssertionError("no event")
    at = inside(s)
    y = [at[0] + d * s, -d * at[1] * at[1]]
    for i in range(n):
        y, _ = step(s + (stop - s) * (i / n), (stop - s) / n, y)
    return torch.stack([s, *at, *y])


W = torch.tensor([0.9, 0.3, 0.1, 2.1, 1.4, 0.5, 1.7, 0.4], dtype=F64)


def solved_as_replayed(w: Tensor, n: int, gradient: Any) -> Tensor:
    a, b, c, d = w[4:]

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1] * torch.cos(t), -a * torch.sin(y[0]) + 0.1 * t * y[1]])

    event = Event(
        lambda t, y: y[0] - b * torch.sin(c * t) * (1 + y[1].square()),
        direction=-1,
        max_count=1,
        jump=lambda t, y: torch.stack([y[0] + d * t, -d * y[1].square()]),
    )
    sol = odegrad.solve(
        f, w[:2], w[2:4], events=(event,), scheme=odegrad.Heun(), stepsize=Steps(n),
        gradient=gradient,
    )  # fmt: skip
    (found,) = sol.events
    return torch.cat([found.times, found.states[0], sol.ys[-1]])


@pytest.mark.parametrize("gradient", [Discrete(), Tape(), Discrete(odegrad.Binomial(2))])
def test_against_complex_step(gradient: Any) -> None:
    """Nonlinear f, g and jump, on the discrete solution: times, and parameters of one of them alone."""
    w = W.clone().requires_grad_()
    found = solved_as_replayed(w, 12, gradient)
    exact = replay(W, 12)
    assert val((found - exact).abs().max()) <= 1e-13
    jacobian = torch.stack([grads(x, [w])[0] for x in found])
    step = 1e-30
    columns = [
        replay(W + 1j * step * torch.eye(len(W), dtype=F64)[k], 12).imag / step
        for k in range(len(W))
    ]
    exact = torch.stack(columns, dim=1)
    assert val(exact[:, 4:].abs().max(dim=0).values.min()) > 1e-2
    assert val((jacobian - exact).abs().max()) <= 1e-12


def along(value: Tensor, w: Tensor, u: Tensor, orders: int) -> list[Tensor]:
    """The gradient of value, of its derivative along u, of the second derivative along u, …"""
    found: list[Tensor] = []
    for _ in range(orders):
        (g,) = torch.autograd.grad(value, w, create_graph=True)
        found.append(g.detach())
        value = (g * u).sum()
    return found


@pytest.mark.parametrize("gradient", [Discrete(), Tape()])
def test_higher_derivatives(gradient: Any) -> None:
    """To the fourth, against plain autograd through Newton's iteration in the replay."""
    weights = torch.linspace(0.5, 1.5, 5, dtype=F64)
    u = torch.linspace(-1.0, 0.7, len(W), dtype=F64)
    w = W.clone().requires_grad_()
    expected = along((replay(w, 6, newton=8) * weights).sum(), w, u, 4)
    found = along((solved_as_replayed(w, 6, gradient) * weights).sum(), w, u, 4)
    for a, b in zip(found, expected, strict=True):
        assert relative([a], [b]) <= 1e-11


@pytest.mark.parametrize("gradient", [Discrete(), Tape()])
def test_fifth_derivatives_against_a_closed_form(gradient: Any) -> None:
    """Of the second bounce, in all that it depends on; what g reads is in a module, captured, in args."""
    w = torch.tensor([1.3, 0.4, 9.81, 0.1, 0.8], dtype=F64, requires_grad=True)
    u = torch.linspace(0.3, -0.2, 5, dtype=F64)
    level, made = nn.Linear(1, 1).double(), 2.0 * w[3]  # not a leaf

    def solved() -> Tensor:
        bounce = Event(
            lambda t, y, half: level(y[:1]) - half * made,
            direction=-1,
            jump=lambda t, y, half: torch.stack([y[0], -w[4] * y[1]]),
        )
        sol = odegrad.solve(
            lambda t, y, half: torch.stack([y[1], -w[2] * torch.ones_like(y[1])]),
            w[:2], [0.0, 1.5], (torch.tensor(0.5, dtype=F64),),
            scheme=odegrad.RK4(), stepsize=Steps(5), gradient=gradient, events=(bounce,),
        )  # fmt: skip
        return sol.events[0].times[1] + sol.ys[-1, 0]

    with torch.no_grad():
        level.weight.fill_(1.0)
        level.bias.fill_(0.0)
    h, v, g, c, e = w
    down = (v.square() + 2.0 * g * (h - c)).sqrt()
    second = (v + down + 2.0 * e * down) / g
    x = 1.5 - second
    end = c + e * e * down * x - 0.5 * g * x.square()
    for a, b in zip(along(solved(), w, u, 5), along(second + end, w, u, 5), strict=True):
        assert relative([a], [b]) <= 1e-10


# Discrete and Tape; every scheme.


class Neural:
    """A network as f, one in the event, one in the jump, and all that a gradient may be taken of."""

    def __init__(self) -> None:
        self.net, self.y0 = mlp(), leaf(4, 3)
        self.seen = nn.Linear(3, 1).double()
        self.jump = nn.Linear(3, 3).double()
        self.rate, self.ts = number(1.1), torch.tensor([0.1, 0.7, 1.5], dtype=F64)
        with torch.no_grad():
            self.seen.bias.fill_(0.05)
        self.ts.requires_grad_()

    def solved(self, gradient: Any, scheme: Any, stepsize: Any, **options: Any) -> odegrad.Solution:
        def f(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
            return torch.tanh(self.net(y)) * torch.cos(rate * t) - rate * y

        def g(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
            return 0.5 * self.seen(y).sum() + torch.sin(6.0 * rate * t)

        events = (
            Event(
                g,
                max_count=2,
                terminal=False,
                jump=lambda t, y, rate: 0.7 * y + 0.1 * self.jump(y) * t,
            ),
            Event(lambda t, y, rate: g(t, y, rate) - 0.1, terminal=False),
        )
        return odegrad.solve(
            f, self.y0, self.ts, (self.rate,), events=events, scheme=scheme, stepsize=stepsize,
            gradient=gradient, **options,
        )  # fmt: skip

    def derivatives(self, sol: odegrad.Solution) -> list[Tensor]:
        total = sol.ys.square().sum() + (sol.ys.sum(dim=(1, 2)) * sol.ts).sum()
        for k, found in enumerate(sol.events):
            total = total + (k + 2) * found.times.square().sum() + found.states.sin().sum()
            if found.after is not None:
                total = total + found.after.cos().sum()
        if sol.running is not None:
            total = total + sol.running.square().sum()
        inputs = [self.y0, self.rate, self.ts]
        inputs += [p for m in (self.net, self.seen, self.jump) for p in m.parameters()]
        return list(torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("scheme", [s() for s in SCHEMES], ids=repr)
@pytest.mark.parametrize("land", [True, False])
def test_discrete_equals_tape(scheme: Any, land: bool) -> None:
    neural = Neural()
    stepsize = Steps(8) if scheme.error_order is None else PID(1e-3, 1e-5, dt_max=0.1)
    options = {"land": land, "running": lambda t, y, rate: rate * y.square().sum()}
    tape = neural.solved(Tape(), scheme, stepsize, **options)
    assert len(tape.events[0].times) == 2
    assert len(tape.events[1].times) >= 1
    expected = neural.derivatives(tape)
    for gradient in (Discrete(), Discrete(odegrad.Every(3)), Discrete(odegrad.Binomial(3))):
        sol = neural.solved(gradient, scheme, stepsize, **options)
        assert sol.grid == tape.grid
        assert torch.equal(sol.events[0].times, tape.events[0].times)
        assert relative(neural.derivatives(sol), expected) <= 1e-12


def test_memory_budget_tangent_and_no_gradient() -> None:
    neural = Neural()
    options = (odegrad.Tsit5(), PID(1e-4, 1e-6, dt_max=0.1))
    tape = neural.solved(Tape(), *options)
    expected = neural.derivatives(tape)
    for gradient in (Discrete(memory="64MiB"), odegrad.Tangent()):
        assert relative(neural.derivatives(neural.solved(gradient, *options)), expected) <= 1e-12
    with torch.no_grad():
        plain = neural.solved(Discrete(), *options)
    torch.testing.assert_close(plain.ys, tape.ys, rtol=0, atol=1e-14)
    assert torch.equal(plain.events[0].times, tape.events[0].times)
    assert not plain.events[0].times.requires_grad
    assert plain.stats.forward_evaluations < tape.stats.forward_evaluations


@pytest.mark.parametrize("land", [True, False])
def test_replay(land: bool) -> None:
    """The grid of a solve with events replays it, also for other numbers: then against differences."""
    neural = Neural()
    sol = neural.solved(Discrete(), odegrad.Tsit5(), PID(1e-3, 1e-5, dt_max=0.1), land=land)
    again = neural.solved(Discrete(), odegrad.Tsit5(), sol.grid, land=land)
    assert again.grid == sol.grid
    assert torch.equal(again.ys, sol.ys)
    assert torch.equal(again.events[0].times, sol.events[0].times)
    (slope,) = torch.autograd.grad(sol.events[0].times[1] + sol.ys[-1].sum(), neural.rate)
    found, h = [], 1e-6
    for sign in (1.0, -1.0):
        neural.rate = number(1.1 + sign * h)
        near = neural.solved(Discrete(), odegrad.Tsit5(), sol.grid, land=land)
        found.append(val(near.events[0].times[1] + near.ys[-1].sum()))
    assert (found[0] - found[1]) / (2 * h) == pytest.approx(val(slope), rel=1e-6)
    with pytest.raises(errors.InvalidValueError, match="replay it with the same events"):
        odegrad.solve(lambda t, y: -y, torch.ones(3, dtype=F64), [0.0, 1.0], stepsize=sol.grid)
    with pytest.raises(errors.InvalidValueError, match="a callback is told the time"):
        sol.grid.times(sol.landings)


# The polynomial of a step.


@pytest.mark.parametrize("scheme", [s() for s in SCHEMES], ids=repr)
def test_curve_is_the_dense_output(scheme: Any) -> None:
    """At any place of a step, by a field that the scheme is not exact for."""
    made = odegrad.solve(
        lambda t, y: torch.stack([y[1] * torch.cos(t), -y[0] * (1 + y[1])]),
        torch.tensor([1.0, 0.3], dtype=F64),
        [0.3, 0.7],
        scheme=scheme,
        stepsize=Steps(1),
    )
    span = Span(0.3, 0.4, points(scheme))
    curve = Curve(span, (made(list(span.times)),))
    times = [0.3, 0.301, 0.4, 0.5123, 0.69, 0.7]
    found = torch.stack([curve(t)[0] for t in times])
    # Dopri8's interpolant has coefficients up to 2456: its own evaluation is in error by so many ε.
    bound = 1e-13 if scheme.order == 8 else 1e-14
    torch.testing.assert_close(found, made(times), rtol=0, atol=bound)


# What counts.


def turning(t: Any, y: Tensor) -> Tensor:
    """y = (sin, cos) of t."""
    return torch.stack([y[1], -y[0]])


START = torch.tensor([0.0, 1.0], dtype=F64)
FINE: dict[str, Any] = {"scheme": odegrad.Dopri8(), "stepsize": Steps(40)}


def found_times(*events: Event, ts: Any = (0.0, 10.0), y0: Tensor = START) -> list[list[float]]:
    sol = odegrad.solve(turning, y0, ts, events=events, **FINE)
    return [found.times.tolist() for found in sol.events]


def about(*times: float) -> Any:
    return pytest.approx(list(times), abs=1e-10)


def test_directions() -> None:
    """sin t = 0 at π, 2π, 3π; at t = 0 it is zero and does not count."""
    pi = math.pi
    (both, up, down) = found_times(
        *(Event(lambda t, y: y[0], direction=d, terminal=False) for d in (0, 1, -1))
    )
    assert (both, up, down) == (about(pi, 2 * pi, 3 * pi), about(2 * pi), about(pi, 3 * pi))


def test_descending_times() -> None:
    """The direction is that of the solve: sin t, from 0 to −10, goes up through zero at −π."""
    pi = math.pi
    (both, up, down) = found_times(
        *(Event(lambda t, y: y[0], direction=d, terminal=False) for d in (0, 1, -1)),
        ts=(0.0, -10.0),
    )
    assert (both, up, down) == (about(-pi, -2 * pi, -3 * pi), about(-pi, -3 * pi), about(-2 * pi))


def test_descending_jump_against_closed_form() -> None:
    e = number(0.7)
    sol = odegrad.solve(
        lambda t, y: torch.ones_like(y),
        number(1.0),
        [0.0, -2.0, -3.0],
        events=(Event(lambda t, y: y - 0.5 * e, jump=lambda t, y: y + e + t),),
        stepsize=Steps(3),
    )
    # y = 1 + t comes down to e/2 at e/2 − 1, goes on from 2e − 1, ...
    first = 0.5 * e - 1.0
    second = first + 0.5 * e - (2 * e - 1.0)
    exact = torch.stack([first, second])
    torch.testing.assert_close(sol.events[0].times[:2], exact, rtol=0, atol=1e-13)
    for k in range(2):
        assert val(grads(sol.events[0].times[k], [e])) == pytest.approx(
            val(grads(exact[k], [e])), abs=1e-12
        )


def test_max_count() -> None:
    pi = math.pi
    passed = Event(lambda t, y: y[0], terminal=False, max_count=2)
    (times, others) = found_times(passed, Event(lambda t, y: y[1], max_count=3))
    assert (times, others) == (about(pi, 2 * pi), about(pi / 2, 3 * pi / 2, 5 * pi / 2))
    turned = Event(lambda t, y: y[1], max_count=1, terminal=False, jump=lambda t, y: 2 * y)
    sol = odegrad.solve(turning, START, [0.0, 1.0, 7.0], events=[turned], **FINE)
    assert sol.events[0].times.tolist() == about(pi / 2)
    assert sol.status is Status.SUCCESS
    assert sol.ys[-1].tolist() == about(2 * math.sin(7.0), 2 * math.cos(7.0))


def test_terminal_and_jump() -> None:
    """A terminal event with a jump jumps, but for the last time, after which nothing is solved."""
    event = Event(lambda t, y: y - 1.0, terminal=True, max_count=3, jump=lambda t, y: y - 1.0)
    sol = odegrad.solve(
        lambda t, y: torch.ones_like(y), torch.zeros((), dtype=F64), [0.0, 2.5, 9.0],
        events=(event,), stepsize=Steps(2),
    )  # fmt: skip
    assert sol.status is Status.EVENT
    assert sol.events[0].times.tolist() == about(1.0, 2.0, 3.0)
    assert sol.events[0].states.tolist() == about(1.0, 1.0, 1.0)
    assert sol.events[0].after.tolist() == about(0.0, 0.0, 0.0)
    assert sol.ts.tolist() == [0.0, 2.5]
    assert sol.ys.tolist() == about(0.0, 0.5)


def test_an_event_that_never_comes() -> None:
    sol = odegrad.solve(
        turning, START, [0.0, 1.0, 3.0], events=(Event(lambda t, y: y[0] - 2.0),), **FINE
    )
    assert sol.status is Status.SUCCESS
    assert sol.events[0].times.shape == (0,)
    assert sol.events[0].states.shape == (0, 2)
    plain = odegrad.solve(turning, START, [0.0, 1.0, 3.0], **FINE)
    assert torch.equal(sol.ys, plain.ys)
    assert sol.grid == plain.grid
    assert sol.landings == plain.landings


def test_events_do_not_change_the_steps() -> None:
    neural = Neural()
    events = (Event(lambda t, y: y.sum() - 0.2, terminal=False),)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return neural.net(y)

    for land in (True, False):
        options = {"stepsize": PID(1e-4, 1e-6), "land": land}
        plain = odegrad.solve(f, neural.y0, [0.0, 0.3, 1.0], **options)
        sol = odegrad.solve(f, neural.y0, [0.0, 0.3, 1.0], events=events, **options)
        assert sol.grid == plain.grid
        assert torch.equal(sol.ys, plain.ys)


def test_zero_at_the_start() -> None:
    """It does not count, whichever way g leaves; the return to zero does, also within the first step."""
    pi = math.pi
    still = Event(lambda t, y: 0.0 * t, terminal=False)
    rounded = Event(lambda t, y: torch.sin(t + pi) + 0.0 * y[0], terminal=False)  # sin π is 1.2e-16
    at_one = Event(lambda t, y: y[1] - 1.0, terminal=False)  # zero with its slope, then negative
    (nothing, like_sine, _) = found_times(still, rounded, at_one, ts=(0.0, 4.0))
    assert (nothing, like_sine) == ([], about(pi))
    hop = odegrad.solve(
        lambda t, y: torch.stack([y[1], -torch.ones_like(y[1])]),
        torch.tensor([0.0, 1.0], dtype=F64),
        [0.0, 3.0],
        events=(Event(lambda t, y: y[0], direction=-1),),
        stepsize=Steps(1),
    )
    assert hop.events[0].times.tolist() == about(2.0)


def test_no_derivative_at_the_start() -> None:
    """A norm at the origin, and a root at 0, have a NaN or infinite derivative."""
    y0 = torch.zeros(2, dtype=F64, requires_grad=True)
    leaves = Event(lambda t, y: (y**2).sum().sqrt() - 0.05)
    rises = Event(lambda t, y: y[0].sqrt() - 0.5, terminal=False)
    both = Event(lambda t, y: (y**2).sum().sqrt(), terminal=False)
    again = Event(lambda t, y: y[0].sqrt(), terminal=False)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(y[0]), 0 * y[1]])

    options = {"scheme": odegrad.RK4(), "stepsize": Steps(10)}
    sol = odegrad.solve(f, y0, [0.0, 1.0], events=(leaves,), **options)
    assert sol.events[0].times.tolist() == about(0.05)
    (slope,) = torch.autograd.grad(sol.events[0].times.sum(), [y0])
    assert slope.tolist() == about(-1.0, 0.0)
    sol = odegrad.solve(f, y0, [0.0, 1.0], events=(rises, both, again), **options)
    assert [x.times.tolist() for x in sol.events] == [about(0.25), [], []]


def test_a_jump_far_from_zero() -> None:
    """An integrator that fires: the reset leads away from the threshold, so the next step counts."""
    drive = number(3.0)
    sol = odegrad.solve(
        lambda t, y: drive * torch.ones_like(y),
        torch.zeros((), dtype=F64),
        [0.0, 1.9],
        events=(Event(lambda t, y: y - 1.0, jump=lambda t, y: 0 * y),),
        stepsize=Steps(1),
    )
    times = sol.events[0].times
    assert times.tolist() == about(*(k / 3 for k in range(1, 6)))
    for k in range(5):
        assert val(grads(times[k], [drive])) == pytest.approx(-(k + 1) / 9, abs=1e-12)


def test_several_at_once() -> None:
    """All that occur in one step, in order, also after one that goes on; a terminal one ends that."""
    levels = [0.9, 0.3, 0.5, 0.7]

    def event(level: float, terminal: bool = False) -> Event:
        return Event(lambda t, y: y - level, terminal=terminal)

    def found(*events: Event) -> list[list[float]]:
        sol = odegrad.solve(
            lambda t, y: torch.ones_like(y), torch.zeros((), dtype=F64), [0.0, 1.0],
            events=events, stepsize=Steps(1),
        )  # fmt: skip
        return [x.times.tolist() for x in sol.events]

    assert found(*map(event, levels)) == [about(x) for x in levels]
    assert found(*map(event, levels), event(0.6, True)) == [
        [],
        about(0.3),
        about(0.5),
        [],
        about(0.6),
    ]
    tie = event(0.5), event(0.5, True), event(0.5)
    assert found(*tie) == [about(0.5), about(0.5), []]


def test_two_balls_at_the_same_time() -> None:
    """Each has an event of its own; both bounce, though the jump of one comes first."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[2], y[3], -9.81 * torch.ones_like(t), -9.81 * torch.ones_like(t)])

    def bounce(i: int) -> Event:
        def jump(t: Tensor, y: Tensor) -> Tensor:
            turned = y.clone()
            turned[2 + i] = -0.9 * y[2 + i]
            return turned

        return Event(lambda t, y: y[i], direction=-1, jump=jump)

    y0 = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=F64, requires_grad=True)
    for stepsize in (PID(), Steps(50)):
        sol = odegrad.solve(f, y0, [0.0, 2.0], events=[bounce(0), bounce(1)], stepsize=stepsize)
        first, second = sol.events
        assert len(first.times) == 3
        torch.testing.assert_close(first.times, second.times, rtol=0, atol=1e-12)
        torch.testing.assert_close(sol.ys[-1, 0], sol.ys[-1, 1], rtol=0, atol=1e-11)
        off = grads(sol.ys[-1, 0], [y0])[0] - grads(sol.ys[-1, 1], [y0])[0][[1, 0, 3, 2]]
        assert val(off.abs().max()) <= 1e-10


def test_a_jump_across_another_event() -> None:
    """A jump that carries the state across the zero of another event is no occurrence of it."""
    reset = Event(lambda t, y: y - 1.0, jump=lambda t, y: y - 0.8)
    middle = Event(lambda t, y: y - 0.5, terminal=False)
    sol = odegrad.solve(
        lambda t, y: torch.ones_like(y), torch.zeros((), dtype=F64), [0.0, 1.5],
        events=(reset, middle), stepsize=Steps(4),
    )  # fmt: skip
    assert sol.events[0].times.tolist() == about(1.0)
    assert sol.events[1].times.tolist() == about(0.5, 1.3)


@pytest.mark.parametrize("land", [True, False])
def test_an_output_at_the_time_of_a_jump(land: bool) -> None:
    """It has the state before the jump; a solve that ends there makes the jump, and is through."""
    event = Event(lambda t, y: t - 0.5 + 0.0 * y, jump=lambda t, y: y + 10.0, terminal=False)
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=F64, requires_grad=True)
    y0 = number(0.25)
    sol = odegrad.solve(
        lambda t, y: torch.ones_like(y), y0, ts, events=(event,), stepsize=Steps(2), land=land
    )
    assert sol.events[0].times.tolist() == [0.5]
    assert sol.ys.tolist() == about(0.25, 0.75, 11.25)
    assert sol([0.5, 0.75]).tolist() == about(0.75, 11.0)
    end = odegrad.solve(
        lambda t, y: torch.ones_like(y), y0, ts[:2], events=(event,), stepsize=Steps(2), land=land
    )
    assert end.status is Status.SUCCESS
    assert end.ys.tolist() == about(0.25, 0.75)
    assert end.events[0].after.tolist() == about(10.75)


# Kinds of states, and what else a solve can do.


def test_pytree_complex_and_single_precision() -> None:
    """A dict with a complex leaf and one of float32: its dtypes, and derivatives to rounding."""
    omega = number(1.5)

    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"z": 1j * omega * y["z"], "x": torch.ones_like(y["x"])}

    y0 = {"z": torch.ones(2, dtype=torch.complex128), "x": torch.zeros(3, dtype=torch.float32)}
    event = Event(
        lambda t, y: y["z"][0].imag - y["z"][0].real,
        jump=lambda t, y: {"z": y["z"].conj(), "x": 2 * y["x"]},
    )
    sol = odegrad.solve(
        f, y0, [0.0, 1.0], events=(event,), scheme=odegrad.Dopri8(), stepsize=Steps(30)
    )
    (found,) = sol.events
    # The phase comes to π/4, is turned to −π/4, and comes there again after π/2 more.
    assert found.times.tolist() == about(math.pi / 4 / 1.5)
    assert found.states["z"].dtype is torch.complex128
    assert found.after["x"].dtype is torch.float32
    assert found.after["x"][0].tolist() == pytest.approx([math.pi / 3] * 3, rel=1e-6)
    assert val(grads(found.times[0], [omega])) == pytest.approx(-math.pi / 4 / 1.5**2, abs=1e-9)
    single = torch.tensor(2.0, requires_grad=True)
    ts = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float32)
    fired = odegrad.solve(lambda t, y: -y, single, ts, events=(Event(lambda t, y: y - 1.0),))
    assert fired.events[0].times.dtype is torch.float32
    assert val(fired.events[0].times) == pytest.approx(math.log(2.0), abs=2e-6)
    assert val(grads(fired.events[0].times[0], [single])) == pytest.approx(0.5, abs=2e-5)


def test_captured_tensors_get_gradients() -> None:
    """A module that only the event reads, one that only the jump reads, and y0 without grad."""
    seen, moved = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()
    with torch.no_grad():
        for p, value in zip(
            [*seen.parameters(), *moved.parameters()], [2.0, -1.0, 0.5, 0.25], strict=True
        ):
            p.fill_(value)
    event = Event(lambda t, y: seen(y), max_count=1, terminal=False, jump=lambda t, y: moved(y))
    sol = odegrad.solve(
        lambda t, y: torch.ones_like(y), torch.zeros(1, dtype=F64), [0.0, 2.0], events=(event,)
    )
    inputs = [*seen.parameters(), *moved.parameters()]
    sol.ys[-1].sum().backward()
    # t* = −b/a, y = c t* + d + 2 − t*.
    expected = [(0.5 - 1.0) * 1.0 / 4.0 * -1.0, (0.5 - 1.0) * -0.5, 0.5, 1.0]
    expected[0] = (0.5 - 1.0) * (-1.0 / 4.0)
    assert [val(p.grad) for p in inputs] == about(*expected)


def test_running_cost_goes_on_after_a_jump() -> None:
    level = number(1.0)
    sol = odegrad.solve(
        lambda t, y: torch.ones_like(y), number(0.0), [0.0, 0.5, 1.5],
        running=lambda t, y: 2.0 * y, stepsize=Steps(2),
        events=(Event(lambda t, y: y - level, jump=lambda t, y: 0.0 * y),),
    )  # fmt: skip
    assert sol.running is not None
    assert sol.running.tolist() == about(0.0, 0.25, 1.25)
    assert sol.events[0].running.tolist() == about(1.0)
    # ∫ = c² + (1.5 − c)².
    assert val(grads(sol.running[-1], [level])) == pytest.approx(2.0 - 2.0 * 0.5, abs=1e-12)
    assert val(grads(sol.events[0].running[0], [level])) == pytest.approx(2.0, abs=1e-12)


def test_a_module_with_events() -> None:
    """It returns the states that were reached, and the occurrences."""
    made = nn.Linear(2, 2, dtype=F64)
    level = number(0.4)
    model = odegrad.NeuralODE(
        made, stepsize=Steps(5), events=[Event(lambda t, y: t - level + 0.0 * y.sum())]
    )
    ys, (found,) = model(torch.ones(2, dtype=F64), [0.0, 0.25, 1.0])
    assert ys.shape == (2, 2)
    assert found.times.tolist() == about(0.4)
    assert val(grads(found.times[0], [level])) == pytest.approx(1.0, abs=1e-14)
    assert "events=1" in repr(model)
    with pytest.raises(errors.InvalidTypeError, match="sequence of events"):
        odegrad.NeuralODE(made, events=model.events[0])


class Times(torch.autograd.Function):
    """a b, whose arguments torch does not show to anybody."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return grads[0] * b, grads[0] * a


def test_what_an_event_reads_in_many_ways() -> None:
    """y = e^t y(0) comes to c² / y(0) at 2 log c − 2 log y(0); c is a leaf, has a history, is in args."""
    c, y0 = number(2.0), number(1.2)

    def time(g: Any, *args: Any) -> Tensor:
        sol = odegrad.solve(
            lambda t, y, *args: y, y0, [0.0, 3.0], args, events=[Event(g)],
            scheme=odegrad.Dopri8(), stepsize=Steps(60),
        )  # fmt: skip
        return sol.events[0].times[0]

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.tensor(7.0, dtype=F64))

        def forward(self) -> Tensor:
            return time(lambda t, y: y * y0 - self.c.square())

    def no_leaf() -> Tensor:
        square = c.square()
        return time(lambda t, y: y * y0 - square)

    ways = {
        "captured": lambda: time(lambda t, y: y * y0 - c.square()),
        "no leaf": no_leaf,
        "args": lambda: time(lambda t, y, d: y * y0 - d["c"], {"c": c.square()}),
        "functional_call": lambda: torch.func.functional_call(Inside(), {"c": c}, ()),
    }
    for name, way in ways.items():
        found = way()
        (g,) = torch.autograd.grad(found, c, create_graph=True)
        (h,) = torch.autograd.grad(g, c)
        (other,) = torch.autograd.grad(way(), y0)
        numbers = [val(found), val(g), val(h), val(other)]
        exact = [2 * math.log(2.0 / 1.2), 1.0, -0.5, -2.0 / 1.2]
        assert numbers == pytest.approx(exact, abs=1e-10), name


def test_tensors_that_cannot_be_followed() -> None:
    """What only a torch.autograd.Function sees is refused, not forgotten; args are not hidden."""
    a, y0 = number(2.0), number(0.0)
    hidden = 2.0 * a

    def time(g: Any, *args: Any) -> Tensor:
        sol = odegrad.solve(
            lambda t, y, *args: 1.0 + 0.0 * y, y0, [0.0, 2.0], args, events=[Event(g)]
        )
        return sol.events[0].times[0]

    with pytest.raises(errors.UnreachableTensorError, match=r"events\[0\].fn used a tensor"):
        grads(time(lambda t, y: Times.apply(y, hidden) - 1.0), [a])
    found = time(lambda t, y, b: Times.apply(y, b) - 1.0, hidden)  # at 1 / (2a)
    (g,) = torch.autograd.grad(found, a, create_graph=True)
    (h,) = torch.autograd.grad(g, a)
    assert [val(g), val(h)] == about(-1.0 / 8.0, 1.0 / 8.0)


def test_what_an_event_may_not_read() -> None:
    """Random numbers, buffers that change, and constants that change before the backward pass."""
    y0, level = number(0.0), torch.tensor(1.0, dtype=F64)

    def solved(g: Any) -> Tensor:
        sol = odegrad.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 2.0], events=[Event(g)])
        return sol.events[0].times[0]

    for g in (
        lambda t, y: nn.functional.dropout(y, 0.5) - 1.0,
        lambda t, y: y - torch.rand_like(y),
    ):
        with pytest.raises(errors.RandomFieldError, match=r"events\[0\].fn draws random numbers"):
            solved(g)
    time = solved(lambda t, y: y * level - 1.0)
    level.add_(1.0)
    with pytest.raises(errors.ChangedTensorError, match=r"events\[0\].fn reads"):
        grads(time, [y0])


def test_infinity_is_a_number_of_an_event() -> None:
    y0 = number(0.0)
    event = Event(lambda t, y: torch.where(y < 0.9, -math.inf, y - 1.0))
    sol = odegrad.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 2.0], events=[event])
    assert sol.events[0].times.tolist() == about(1.0)
    assert val(grads(sol.events[0].times[0], [y0])) == pytest.approx(-1.0, abs=1e-12)


def test_breakpoints() -> None:
    """f jumps at 0.7 and at 1.4; steps end there, before and after the state jumps."""
    slope = number(2.0)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return slope * torch.where((t > 0.7) & (t < 1.4), 3.0, 1.0) + 0.0 * y

    event = Event(lambda t, y: y - 2.0, max_count=1, terminal=False, jump=lambda t, y: y - 2.0)
    sol = odegrad.solve(
        f, number(0.0), [0.0, 2.0], events=(event,), breakpoints=(0.7, 1.4), stepsize=Steps(2)
    )
    time = 0.7 + 0.6 / 6.0
    assert sol.events[0].times.tolist() == about(time)
    assert sol.ys[-1].item() == pytest.approx(6.0 * (1.4 - time) + 2.0 * 0.6, abs=1e-12)
    # y(2) = 0.7a + 2.1a + 0.6a − 2, as the jump is by a constant.
    assert val(grads(sol.ys[-1], [slope])) == pytest.approx(0.7 + 2.1 + 0.6, abs=1e-12)


def test_dropout_and_callback() -> None:
    """Random numbers of f are those of the first pass; a callback is told each step once per sweep."""
    torch.manual_seed(0)
    net, told = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.4), nn.Linear(4, 1)).double(), []
    event = Event(
        lambda t, y: y.sum() - 0.1, max_count=1, terminal=False, jump=lambda t, y: 0.5 * y
    )
    y0 = torch.zeros(1, dtype=F64, requires_grad=True)

    def solved(gradient: Any, callback: Any = None) -> tuple[odegrad.Solution, list[Tensor]]:
        torch.manual_seed(1)
        sol = odegrad.solve(
            lambda t, y: 0.3 * net(y) + 1.0, y0, [0.0, 1.0], events=(event,), stepsize=Steps(8),
            gradient=gradient, callback=callback,
        )  # fmt: skip
        return sol, list(torch.autograd.grad(sol.ys.sum() + sol.events[0].times.sum(), [y0]))

    tape, expected = solved(Tape())
    assert len(tape.events[0].times) == 1
    sol, found = solved(Discrete(), told.append)
    assert torch.equal(sol.ys, tape.ys)
    assert relative(found, expected) <= 1e-12
    taken = sum(map(len, sol.grid.segments))
    assert [info.phase for info in told].count("forward") == taken
    assert [info.phase for info in told].count("backward") == taken
    told.clear()
    with torch.no_grad():
        odegrad.solve(
            lambda t, y: -y,
            y0 + 1.0,
            [0.0, 1.0],
            events=(event,),
            stepsize=Steps(8),
            callback=told.append,
        )
    assert len(told) == 8


def test_inference_mode_and_autocast() -> None:
    ball = Ball()
    options: dict[str, Any] = {"events": (ball.bounce,), "stepsize": Steps(9)}
    expected = odegrad.solve(ball.f, ball.y0, [0.2, 2.5], **options)
    with torch.inference_mode():
        found = odegrad.solve(ball.f, ball.y0, [0.2, 2.5], **options)
    assert torch.equal(found.events[0].times, expected.events[0].times)
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(-1.0)
        net.bias.fill_(0.5)
    event, y0 = Event(lambda t, y: net(y).sum().float()), torch.zeros(1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        sol = odegrad.solve(lambda t, y: 1.0 + 0.0 * net(y), y0, [0.0, 1.0], events=(event,))
    assert sol.events[0].times.item() == pytest.approx(0.5, abs=5e-3)


def test_mismatched_gradients_of_events() -> None:
    """The transpose of another scheme: inexact, and of the order of the schemes."""
    neural, options = Neural(), (odegrad.RK4(), Steps(40))
    expected = neural.derivatives(neural.solved(Discrete(), *options))
    found = neural.derivatives(neural.solved(odegrad.Mismatched(odegrad.Kutta3()), *options))
    assert 1e-12 < relative(found, expected) < 1e-3


def test_a_solution_pickles() -> None:
    sol = odegrad.solve(turning, START, [0.0, 4.0], events=(Event(lambda t, y: y[0]),), **FINE)
    again = pickle.loads(pickle.dumps(sol))
    assert torch.equal(again.events[0].times, sol.events[0].times)
    assert again.grid == sol.grid


def test_under_torch_compile_is_a_graph_break() -> None:
    def loss(y0: Tensor) -> Tensor:
        sol = odegrad.solve(
            turning, y0, [0.0, 4.0], events=(Event(lambda t, y: y[0]),), stepsize=Steps(9)
        )
        return sol.events[0].times.sum()

    compiled: Any = torch.compile(loss, backend="eager")
    assert val(compiled(START)) == pytest.approx(math.pi, abs=1e-3)


# What goes wrong.


def touching(t: Tensor, y: Tensor) -> Tensor:
    return 2.0 * (t - 1.0) + 0.0 * y


MIDPOINT: dict[str, Any] = {"scheme": odegrad.Midpoint(), "stepsize": Steps(2)}


def test_grazing() -> None:
    """y = (t − 1)² touches zero at the end of a step: numbers there are, and no derivative."""
    y0 = number(1.0)
    event = Event(lambda t, y: y, terminal=False)
    options: dict[str, Any] = {"events": (event,), **MIDPOINT}
    with torch.no_grad():
        sol = odegrad.solve(touching, y0, [0.0, 2.0], **options)
    assert sol.events[0].times.tolist() == about(1.0)
    with pytest.raises(errors.GrazingEventError, match=r"events\[0\] has no derivative at t = 1"):
        odegrad.solve(touching, y0, [0.0, 2.0], **options)
    failed = odegrad.solve(touching, y0, [0.0, 2.0], on_failure="nan", **options)
    assert failed.status is Status.EVENT_FAILED
    assert failed.ys.isnan().all()
    assert math.isnan(val(torch.autograd.grad(failed.ys.sum(), y0)[0]))


def test_a_function_that_jumps_over_zero_grazes() -> None:
    """Its slope is zero, though the time of the event depends on the state."""
    y0, one = torch.zeros(1, dtype=F64, requires_grad=True), torch.ones((), dtype=F64)
    for level in (one, one.clone().requires_grad_()):
        event = Event(lambda t, y, a=level: torch.where(y[0] > 0.5, a, -a))
        args = (lambda t, y: 2.0 + 0.0 * y, y0, [0.0, 1.0])
        with torch.no_grad():
            sol = odegrad.solve(*args, events=(event,))
        assert sol.events[0].times.tolist() == about(0.25)
        with pytest.raises(errors.GrazingEventError, match="or jumps over it"):
            odegrad.solve(*args, events=(event,))
    early = odegrad.solve(*args, events=(Event(lambda t, y: t - 0.25),))  # depends on nothing
    assert torch.autograd.grad(early.events[0].states.sum(), y0)[0].item() == pytest.approx(1.0)


def test_a_triple_root_grazes() -> None:
    y0 = number(-1.0)
    with pytest.raises(errors.GrazingEventError):
        odegrad.solve(
            lambda t, y: 3.0 * (t - 1.0).square() + 0.0 * y, y0, [0.0, 1.7],
            events=(Event(lambda t, y: y),), stepsize=Steps(3),
        )  # fmt: skip


def test_a_ball_that_comes_to_rest() -> None:
    """Infinitely many bounces in finite time end with an error that says so, and not below the floor."""
    ball = Ball()
    ball.restitution = number(0.5)
    y0 = ball.y0.detach()
    for stepsize in (PID(), Steps(3)):
        with torch.no_grad(), pytest.raises(errors.EventError, match="comes to rest"):
            odegrad.solve(ball.f, y0, [0.2, 9.0], events=(ball.bounce,), stepsize=stepsize)
    with torch.no_grad(), pytest.raises(errors.MaxStepsError, match="jumps before"):
        odegrad.solve(ball.f, y0, [0.2, 9.0], events=(ball.bounce,), max_steps=20)
    with torch.no_grad():
        sol = odegrad.solve(
            ball.f, y0, [0.2, 0.5, 1.0, 9.0], events=(ball.bounce,), on_failure="return"
        )
    assert sol.status is Status.EVENT_FAILED
    assert sol.ys[:3].isfinite().all()
    assert sol.ys[3].isnan().all()
    assert sol.events[0].times.shape == (0,)


def test_jumps_that_do_not_lead_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events that send the state to each other at one time; one that occurs too often."""

    def to(x: float, speed: float) -> Any:
        return lambda t, y: torch.tensor([x, speed], dtype=F64)

    one, two = Event(lambda t, y: y[0], jump=to(1, 1)), Event(lambda t, y: y[0] - 1, jump=to(0, -1))
    with torch.no_grad(), pytest.raises(errors.EventError, match="time does not go on"):
        odegrad.solve(
            lambda t, y: torch.stack([y[1], 0 * y[1]]), torch.tensor([0.5, -1.0], dtype=F64),
            [0.0, 2.0], events=(one, two), stepsize=Steps(2),
        )  # fmt: skip
    monkeypatch.setattr("odegrad.events.solving.MOST_JUMPS", 20)
    often = Event(lambda t, y: y - 1.0, jump=lambda t, y: y - 1e-3)
    with torch.no_grad(), pytest.raises(errors.EventError, match=r"20 jumps, and only t = 1\.02"):
        odegrad.solve(
            lambda t, y: torch.ones_like(y), torch.zeros((), dtype=F64), [0.0, 2.0],
            events=(often,), stepsize=Steps(2),
        )  # fmt: skip


def test_functions_that_go_wrong() -> None:
    def solve(*events: Event, f: Any = turning, **options: Any) -> Any:
        return odegrad.solve(f, START, [0.0, 4.0], events=events, stepsize=Steps(9), **options)

    def inside(t: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        solve(Event(inside))
    assert any("events[0].fn was evaluated" in note for note in caught.value.__notes__)
    with pytest.raises(errors.EventError, match=r"events\[1\].fn is NaN at t = 2"):
        solve(Event(lambda t, y: y[0] - 2.0), Event(lambda t, y: (2.0 - t).sqrt() + 1.0 + 0 * y[0]))
    with pytest.raises(errors.NonFiniteStateError, match="made the state"):
        solve(Event(lambda t, y: y[1], jump=lambda t, y: y / 0.0))
    with pytest.raises(errors.NonFiniteStateError, match="where events are looked for"):
        solve(Event(lambda t, y: y[1]), f=lambda t, y: y * 1e300)
    with pytest.raises(errors.InvalidValueError, match="changed its argument y in place"):
        solve(Event(lambda t, y: y.mul_(2.0)[0]))


@pytest.mark.parametrize("where", ["f", "fn", "jump"])
def test_nothing_is_changed_by_an_exception(where: str) -> None:
    """Generators, buffers, parameters, y0 and grad mode are as before."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).double()
    kept, y0 = copy.deepcopy(net.state_dict()), torch.ones(3, 2, dtype=F64)
    random = torch.get_rng_state()
    calls = itertools.count()

    def maybe(name: str, x: Tensor) -> Tensor:
        if name == where and (name != "f" or next(calls) > 12):
            raise RuntimeError("stop")
        return x

    event = Event(
        lambda t, y: maybe("fn", y.sum() - 8.0 if where != "fn" or val(t) < 0.3 else y.sum()),
        jump=lambda t, y: maybe("jump", y),
    )
    if where == "fn":
        event = Event(lambda t, y: maybe("fn" if val(t) > 0.3 else "", y.sum() - 8.0))
    net.eval()
    with pytest.raises(RuntimeError, match="stop"):
        odegrad.solve(
            lambda t, y: maybe("f", 0.0 * net(y) + 1.0),
            y0,
            [0.0, 1.0],
            events=(event,),
            stepsize=Steps(8),
        )
    assert torch.is_grad_enabled()
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(y0, torch.ones(3, 2, dtype=F64))
    assert all(torch.equal(a, kept[name]) for name, a in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_tensor_changed_before_backward() -> None:
    rate = torch.tensor(1.0, dtype=F64, requires_grad=True)
    sol = odegrad.solve(
        lambda t, y: -rate * y, number(2.0), [0.0, 3.0], events=(Event(lambda t, y: y - 1.0),)
    )
    with torch.no_grad():
        rate.mul_(2.0)
    with pytest.raises((errors.ChangedTensorError, RuntimeError)):
        sol.events[0].times.sum().backward()
    with pytest.raises(errors.ChangedTensorError):
        sol(0.1)


@pytest.mark.skipif(not PAGE.exists(), reason="an sdist has no docs")
def test_the_page_runs() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 10
    assert not found.failed
