"""Samples with steps of their own: dense output, losses at labels, breakpoints.

The oracles are each sample alone in the ordinary engine, `Tape` along the same steps, and closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import relative
from odegrad import errors
from odegrad.samplestops import Reading, SampleStops
from odegrad.schemes.restarted import Restarted

F64 = torch.float64
PID = odegrad.PID(rtol=1e-5, atol=1e-5)
POLICIES = [
    odegrad.StoreAll(),
    odegrad.StoreAll(odegrad.Keep.STAGES),
    odegrad.StoreAll(odegrad.Keep.GRAPH),
    odegrad.Every(4),
    odegrad.Every(4, odegrad.Keep.GRAPH),
    odegrad.Every(5, odegrad.Keep.STAGES),
    odegrad.Blockwise(odegrad.Binomial(2), 3),
    odegrad.Binomial(3),
    odegrad.Tiered(ram=2, disk=2),
]
policies = pytest.mark.parametrize("checkpoints", POLICIES, ids=str)


def field(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """Van der Pol equations. No function of torch whose last digit depends on the size of a tensor."""
    x, v = y[:, :1], y[:, 1:]
    return torch.cat([v, mu * (1 - x * x) * v - x / (1 + 0.1 * t * t)[:, None]], 1)


class Case:
    """Samples of several stiffnesses with many times, of which a step has none, one or several.

    Arguments:
        per_sample: Whether each has times of its own, of which the second's descend.
    """

    def __init__(
        self, per_sample: bool = False, f: Callable[..., Any] = field, most: float = 6.0
    ) -> None:
        size, self.f = 4, f
        steps = torch.linspace(0.0, 1.0, size, dtype=F64)
        self.mu = (0.2 * (most / 0.2) ** steps)[:, None].requires_grad_()
        self.y0 = torch.stack([1.0 + steps, -0.5 + 0.3 * steps], 1).requires_grad_()
        times = torch.tensor([0.0, 0.0, 0.01, 0.02, 0.7, 1.1, 1.1, 2.0, 2.0], dtype=F64)
        if per_sample:
            sign = torch.ones(size, 1, dtype=F64)
            sign[1] = -0.3
            times = times * sign * (1 + 0.2 * steps[:, None]) + 0.2 * steps[:, None]
        self.ts = times.requires_grad_()

    @property
    def inputs(self) -> list[Tensor]:
        return [self.y0, self.mu, self.ts]

    def solve(self, **options: Any) -> Any:
        given = {"stepsize": PID, "batch": 0, **options}
        return odegrad.solve(self.f, self.y0, self.ts, (self.mu,), **given)

    def alone(self, b: int, **options: Any) -> Any:
        f, rows, ts = self.f, slice(b, b + 1), self.ts[b] if self.ts.ndim == 2 else self.ts
        return odegrad.solve(
            lambda t, y, mu: f(t.reshape(1), y, mu), self.y0[rows], ts, (self.mu[rows],),
            **{"stepsize": PID, **options},
        )  # fmt: skip

    def gradient(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, self.inputs, retain_graph=True))


def loss(ys: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, ys.shape[0] * ys.shape[-1], dtype=ys.dtype)
    weights = weights.reshape(ys.shape[0], *[1] * (ys.ndim - 2), ys.shape[-1])
    return (weights * ys.square()).sum() + (weights * ys).sin().sum()


def total(gradients: list[list[Tensor]]) -> list[Tensor]:
    return [sum(x[1:], x[0]) for x in zip(*gradients, strict=True)]


# Dense output.


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    ("scheme", "stepsize", "land"),
    [
        (odegrad.Tsit5(), PID, None),
        (odegrad.Dopri5(), odegrad.PID(rtol=1e-4, atol=0.0, i=0.3), False),
        (odegrad.Bosh3(), odegrad.PID(rtol=1e-3, atol=1e-3), None),
        (odegrad.AdaptiveHeun(), odegrad.PID(rtol=1e-2, atol=1e-2), None),
        (odegrad.CashKarp(), odegrad.PID(rtol=1e-4, atol=1e-6), None),  # reading evaluates f
        (odegrad.Dopri8(), PID, None),  # takes a step of half the length, too
        (odegrad.ALF(), odegrad.PID(rtol=1e-1, atol=1e-1), None),
        (odegrad.RK4(), odegrad.Fixed(0.3), False),
        (odegrad.Reversible(), odegrad.Steps(7), False),
        (odegrad.Tsit5(), PID, True),
        (odegrad.RK4(), odegrad.Fixed(0.3), None),
    ],
    ids=str,
)
def test_samples_are_read_as_each_is_alone(
    scheme: Any, stepsize: Any, land: bool | None, per_sample: bool
) -> None:
    adaptive = isinstance(stepsize, odegrad.PID)
    case = Case(per_sample, most=6.0 if adaptive and scheme.order > 3 else 1.0)
    options = {"scheme": scheme, "stepsize": stepsize, "land": land}
    sol, expected = case.solve(**options), []
    for b in range(len(case.y0)):
        one = case.alone(b, **options)
        assert sol.landings[b] == one.landings
        assert sol.grid[b].times(sol.landings[b]) == one.grid.times(one.landings)
        assert torch.equal(sol.ys[:, b].detach(), one.ys[:, 0].detach())
        expected.append(case.gradient(loss(one.ys)))
    assert relative(case.gradient(loss(sol.ys)), total(expected)) < 1e-12
    oracle = case.solve(**{**options, "stepsize": sol.grid}, gradient=odegrad.Tape())
    assert torch.equal(oracle.ys.detach(), sol.ys.detach())
    assert relative(case.gradient(loss(sol.ys)), case.gradient(loss(oracle.ys))) < 1e-12


@pytest.mark.parametrize("scheme", [odegrad.Tsit5(), odegrad.CashKarp()], ids=str)
@pytest.mark.parametrize("batch", [0, odegrad.Samples(args=(0,))], ids=str)
@policies
def test_every_schedule_reads(checkpoints: Any, batch: Any, scheme: Any) -> None:
    case = Case(per_sample=True)
    options = {"scheme": scheme, "batch": batch}
    sol = case.solve(gradient=odegrad.Discrete(checkpoints), **options)
    found = case.gradient(loss(sol.ys))
    oracle = case.solve(stepsize=sol.grid, gradient=odegrad.Tape(), scheme=scheme)
    assert torch.equal(oracle.ys.detach(), sol.ys.detach())
    assert relative(found, case.gradient(loss(oracle.ys))) < 1e-12
    assert all(map(torch.equal, found, case.gradient(loss(sol.ys))))


def test_asking_for_more_times_changes_no_step() -> None:
    case = Case()
    many, ends = case.solve(), odegrad.solve(
        field, case.y0, case.ts[[0, -1]], (case.mu,), stepsize=PID, batch=0
    )  # fmt: skip
    assert [many.grid[b] for b in range(4)] == [ends.grid[b] for b in range(4)]
    assert torch.equal(many.ys[-1], ends.ys[-1])
    assert many.stats.forward_evaluations == ends.stats.forward_evaluations
    landed = case.solve(land=True)
    assert landed.grid.n_segments == 8
    assert landed.landings[2] == tuple(case.ts.tolist())
    with pytest.raises(errors.InvalidValueError, match="as it was recorded with"):
        case.solve(stepsize=many.grid, land=True)


def test_a_sample_without_extent_lands_as_it_does_alone() -> None:
    case = Case(per_sample=True)
    with torch.no_grad():
        case.ts[2] = 1.0
    sol = case.solve()
    assert sol.grid.own_segments.tolist() == [1, 1, 8, 1]
    assert sol.landings[2] == (1.0,) * 9
    expected = total([case.gradient(loss(case.alone(b).ys)) for b in range(4)])
    assert relative(case.gradient(loss(sol.ys)), expected) < 1e-12
    again = case.solve(stepsize=sol.grid, gradient=odegrad.Tape())
    assert torch.equal(again.ys.detach(), sol.ys.detach())


def test_what_a_time_is_read_in() -> None:
    times = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0], [4.0, 3.5, 3.0, 3.0, 2.0]], dtype=F64)
    stops = SampleStops.of(times, torch.tensor([3.0], dtype=F64), [[0, 2, 4], [0, 5, 4]])
    assert stops.landings(times).tolist() == [[0.0, 1.0, 2.0], [4.0, 3.0, 2.0]]
    # A time at the end of a segment belongs to the next one.
    assert stops.order[0, :2].tolist() == [1, 3]
    assert stops.order[1, :3].tolist() == [1, 2, 3]
    assert stops.segment.tolist() == [[0, 1, -1, -1], [0, 1, 1, -1]]
    assert stops.fraction[0, :2].tolist() == [0.5, 0.5]
    reading, both = Reading(stops), torch.tensor([True, True])
    whole = torch.ones(2, dtype=F64)
    first = reading.inside(both, torch.tensor([0, 0]), whole)
    assert [(j.tolist(), b.tolist()) for j, b in first] == [([1, 1], [0, 1])]
    second = reading.inside(both, torch.tensor([1, 1]), whole / 2)
    assert [(j.tolist(), b.tolist()) for j, b in second] == [([3, 2], [0, 1]), ([3], [1])]


def test_second_derivatives_of_what_is_read() -> None:
    case = Case(per_sample=True, most=1.0)

    def gradient_of(gradient: Any, grid: Any) -> list[Tensor]:
        sol = case.solve(gradient=gradient, stepsize=grid, scheme=odegrad.Dopri5())
        first = torch.autograd.grad(loss(sol.ys), case.inputs, create_graph=True)
        value = sum((g * g).sum() for g in first)
        return [g.detach() for g in torch.autograd.grad(value, case.inputs)]

    grid = case.solve(scheme=odegrad.Dopri5()).grid
    expected = gradient_of(odegrad.Tape(), grid)
    assert relative(gradient_of(odegrad.Discrete(), grid), expected) < 1e-11


def test_closed_form_of_what_is_read() -> None:
    rate = torch.tensor([0.5, 3.0, 20.0], dtype=F64, requires_grad=True)
    y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64)
    ts = torch.tensor(
        [[0.0, 0.3, 2.0], [1.0, 0.9, 0.5], [0.0, 0.2, 1.0]], dtype=F64
    ).requires_grad_()
    exact = odegrad.PID(rtol=1e-12, atol=1e-14)
    sol = odegrad.solve(
        lambda t, y: -rate[:, None] * y, y0, ts, stepsize=exact, batch=0, scheme=odegrad.Dopri8()
    )
    span = (ts[:, 1] - ts[:, 0]).detach()
    value = y0[:, 0] * torch.exp(-rate.detach() * span)
    assert torch.allclose(sol.ys[1, :, 0], value, rtol=1e-9)
    grad, times = torch.autograd.grad(sol.ys[1].sum(), [rate, ts])
    assert torch.allclose(grad, -span * value, rtol=1e-8)
    assert torch.allclose(times[:, 1], -rate.detach() * value, rtol=1e-7)


def test_states_of_several_leaves_and_a_running_cost_are_read() -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 2, dtype=F64, requires_grad=True)
    z = torch.randn(3, dtype=torch.complex128, requires_grad=True)
    rate = torch.tensor([0.1, 1.0, 9.0], dtype=F64, requires_grad=True)
    ts = torch.tensor([0.0, 0.2, 0.3, 0.4, 1.0], dtype=F64, requires_grad=True)

    def f(t: Tensor, y: Any) -> Any:
        q, z = y["q"], y["z"]
        return {"q": -rate[:, None] * q + t[:, None], "z": 1j * rate * z * q.square().sum(1) - z}

    def run(**options: Any) -> tuple[Any, list[Tensor]]:
        sol = odegrad.solve(
            f, {"q": q, "z": z}, ts, batch=0, running=lambda t, y: y["q"].square().sum(1) * (1 + t),
            **{"stepsize": PID, **options},
        )  # fmt: skip
        value = loss(sol.ys["q"]) + sol.ys["z"].abs().sum() + (sol.running * ts[:, None]).sum()
        return sol, list(torch.autograd.grad(value, [q, z, rate, ts]))

    sol, found = run()
    assert sol.running.shape == (5, 3)
    assert relative(found, run(stepsize=sol.grid, gradient=odegrad.Tape())[1]) < 1e-12
    graphs = odegrad.Discrete(odegrad.StoreAll(odegrad.Keep.GRAPH))
    assert relative(run(gradient=graphs)[1], found) < 1e-12


# sol(t).


@pytest.mark.parametrize("land", [None, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_solution_at_any_time(per_sample: bool, land: bool | None) -> None:
    case = Case(per_sample)
    sol = case.solve(land=land)
    part = torch.tensor([0.9, 0.1, 1.0, 0.0, 0.5], dtype=F64)
    rows = sol.ts.detach().expand(4, -1)
    first, last = rows[:, :1], rows[:, -1:]
    asked = (first + part * (last - first)).requires_grad_()
    found = sol(asked)
    assert found.shape == (5, 4, 2)
    inputs = [*case.inputs, asked]
    gradients = torch.autograd.grad(loss(found), inputs)
    expected = [torch.zeros_like(x) for x in inputs]
    for b in range(4):
        one = case.alone(b, land=land)(asked[b])
        assert torch.equal(one[:, 0].detach(), found[:, b].detach())
        more = torch.autograd.grad(loss(one), inputs)
        expected = [a + g for a, g in zip(expected, more, strict=True)]
    assert relative(list(gradients), expected) < 1e-12
    assert torch.allclose(found[2], sol.ys[-1], rtol=1e-12)
    if not per_sample:
        assert torch.equal(sol(asked[0])[:, 1].detach(), found[:, 1].detach())
        assert torch.equal(sol(float(asked[0, 0].detach())).detach(), found[0].detach())
        assert sol([0.1, 0.2]).shape == (2, 4, 2)


def test_a_solution_at_any_time_of_tape_and_without_gradients() -> None:
    case = Case(per_sample=True)
    sol = case.solve(gradient=odegrad.Tape())
    asked = sol.ts.detach()[:, 2:5]
    value = sol(asked)
    assert torch.equal(value.detach(), sol.ys[2:5].detach())
    found = case.gradient(loss(value))
    assert relative(found, case.gradient(loss(case.solve()(asked)))) < 1e-12
    with torch.no_grad():
        assert torch.equal(case.solve()(asked), value)


def test_what_sol_of_t_refuses() -> None:
    case = Case(per_sample=True)
    sol = case.solve()
    for wrong in (
        torch.zeros(3, 2),
        torch.zeros(4, 2, 2),
        torch.zeros(0),
        torch.zeros((), dtype=torch.cfloat),
    ):
        with pytest.raises(errors.InvalidValueError, match=r"shape \[\] or \[K\], .* \[4, K\]"):
            sol(wrong)
    with pytest.raises(errors.InvalidValueError, match="t = 9 is outside of the solve of sample 0"):
        sol(9.0)
    with pytest.raises(errors.InvalidTypeError, match="must be a number"):
        sol("now")
    single = odegrad.solve(field, case.y0, [0.0], (case.mu,), batch=0)
    with pytest.raises(errors.InvalidValueError, match="a single time"):
        single(0.0)
    with torch.no_grad():
        case.mu.add_(1.0)
    with pytest.raises(errors.ChangedTensorError, match="changed in place"):
        sol(float(case.ts[0, 0].detach()))


# Samples that fail.


def sick(ts: Any = (0.0, 0.1, 0.2, 0.7, 0.9), **options: Any) -> tuple[Any, list[Tensor]]:
    """y' = r y² of four samples of which the second blows up at t = 0.5."""
    y0 = torch.tensor([[1.0], [2.0], [-1.0], [0.3]], dtype=F64, requires_grad=True)
    rate = torch.tensor(1.0, dtype=F64, requires_grad=True)
    times = torch.tensor(ts, dtype=F64, requires_grad=True)
    given = {"stepsize": PID, "batch": 0, **options}
    sol = odegrad.solve(lambda t, y, r: r * y * y, y0, times, (rate,), **given)
    return sol, [y0, rate, times]


@pytest.mark.parametrize(
    "gradient", [odegrad.Tape(), *(odegrad.Discrete(POLICIES[i]) for i in (0, 2, 7))], ids=str
)
@pytest.mark.parametrize("scheme", [odegrad.Tsit5(), odegrad.CashKarp()], ids=str)
def test_a_sample_that_fails_harms_no_other(scheme: Any, gradient: Any) -> None:
    sol, inputs = sick(on_failure="return", gradient=gradient, scheme=scheme)
    assert sol.succeeded.tolist() == [True, False, True, True]
    assert sol.ys[:3].isfinite().all()
    assert sol.ys[3:, 1].isnan().all()
    assert torch.allclose(sol.ys[1, 1], 1 / (1 / inputs[0][1] - 0.1), rtol=1e-4)
    found = torch.autograd.grad(loss(sol.ys[:, sol.succeeded]), inputs)
    parts = []
    for b in (0, 2, 3):
        one = odegrad.solve(
            lambda t, y, r: r * y * y, inputs[0][b : b + 1], inputs[2], (inputs[1],), stepsize=PID,
            scheme=scheme,
        )  # fmt: skip
        parts.append(list(torch.autograd.grad(loss(one.ys), inputs)))
    assert relative(list(found), total(parts)) < 1e-12
    read = sol([0.1, 0.6])
    assert torch.equal(read[0, 0], sol.ys[1, 0])
    assert read[:, 1].isnan().all()
    finite = torch.autograd.grad(read[:, [0, 2]].sum(), inputs[:1], retain_graph=True)
    assert finite[0].isfinite().all()
    assert torch.autograd.grad(read.sum(), inputs)[1].isnan()


def test_f_that_rejects_where_it_is_read() -> None:
    """RKF45 evaluates f in the step at 0.435 h only to read a state; f rejects one sample there."""
    y0 = torch.tensor([[1.0], [2.0], [1.2]], dtype=F64)

    def f(t: Tensor, y: Tensor) -> Tensor:
        if ((y[:, 0] > 1.5) & (t > 0.86) & (t < 0.88)).any():
            raise odegrad.RejectStep("not there")
        return torch.zeros_like(y)

    given: dict[str, Any] = {"stepsize": odegrad.PID(dt0=2.0), "batch": 0, "on_failure": "return"}
    sol = odegrad.solve(f, y0, [0.0, 0.3, 2.0], scheme=odegrad.RKF45(), **given)
    assert sol.succeeded.tolist() == [True, False, True]
    assert sol.status[1] is odegrad.Status.STEP_REJECTED
    assert torch.equal(sol.ys[:, 0], y0[0].expand(3, 1))
    with pytest.raises(errors.RejectStep, match="not there"):
        odegrad.solve(
            f, y0, [0.0, 0.3, 2.0], scheme=odegrad.RKF45(), **{**given, "on_failure": "raise"}
        )


def test_no_samples_at_all() -> None:
    y0 = torch.zeros(0, 2, dtype=F64, requires_grad=True)
    for land in (None, True, False):
        sol = odegrad.solve(
            lambda t, y: -y, y0, [0.0, 0.5, 1.0], batch=0, land=land, breakpoints=(0.3,),
            loss_at=None,
        )  # fmt: skip
        assert sol.ys.shape == (3, 0, 2)
        assert sol(0.3).shape == (0, 2)
        assert sol([0.3, 0.4]).shape == (2, 0, 2)


# Losses at labels.


class Decoded:
    """A loss at labels that reads a parameter of its own and the argument of f."""

    def __init__(self) -> None:
        self.weights = torch.tensor([[0.3, -1.0], [0.8, 0.1]], dtype=F64, requires_grad=True)
        self.calls: list[int] = []

    def __call__(self, j: int, y: Tensor, mu: Tensor) -> Tensor:
        self.calls.append(j)
        assert y.shape[1:] == (2,)
        return ((y @ self.weights).square() * (1 + j) + mu * y.sin()).sum()


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "gradient", [odegrad.Tape(), *(odegrad.Discrete(POLICIES[i]) for i in (0, 1, 2, 7))], ids=str
)
def test_losses_at_labels(gradient: Any, per_sample: bool) -> None:
    case, decoded = Case(per_sample), Decoded()
    inputs = [*case.inputs, decoded.weights]
    options = {"loss_at": decoded, "running": lambda t, y, mu: y.square().sum(1)}
    sol = case.solve(gradient=gradient, **options)
    assert sol.ys is None
    assert sol.running.shape == (4,)
    value = sol.loss + sol.running.sum()
    found = list(torch.autograd.grad(value, inputs, retain_graph=True))
    expected, values = [], []
    for b in range(4):
        one = case.alone(b, loss_at=decoded, running=lambda t, y, mu: y.square().sum())
        values.append(one.loss + one.running)
        expected.append(list(torch.autograd.grad(values[-1], inputs)))
        assert sol.grid[b].times(sol.landings[b]) == one.grid.times(one.landings)
    sums = sum(float(x.detach()) for x in values)
    assert float(value.detach()) == pytest.approx(sums, rel=1e-14)
    assert relative(found, total(expected)) < 1e-12
    again = torch.autograd.grad(value, inputs)
    assert all(map(torch.equal, found, again))


def test_losses_at_labels_keep_no_graph() -> None:
    """Each is evaluated once more for its transpose, from the first to the last."""
    case, decoded = Case(), Decoded()
    sol = case.solve(loss_at=decoded)
    assert decoded.calls == [0, *range(9)]  # to find what it reads, and the sum
    decoded.calls.clear()
    sol.loss.backward()
    assert decoded.calls == list(range(9))
    with torch.no_grad():
        assert torch.equal(case.solve(loss_at=decoded).loss, sol.loss.detach())


def test_second_derivatives_of_losses_at_labels() -> None:
    case, decoded = Case(most=1.0), Decoded()
    grid = case.solve(land=True).grid

    def second(gradient: Any) -> list[Tensor]:
        inputs = [*case.inputs, decoded.weights]
        sol = case.solve(gradient=gradient, stepsize=grid, loss_at=decoded)
        first = torch.autograd.grad(sol.loss, inputs, create_graph=True)
        return list(torch.autograd.grad(sum((g * g).sum() for g in first), inputs))

    assert relative(second(odegrad.Discrete()), second(odegrad.Tape())) < 1e-11


def test_losses_at_labels_of_samples_that_fail() -> None:
    """The loss gets NaN for them; one that leaves them out has the gradient of the others."""

    def tolerant(j: int, y: Tensor, r: Tensor) -> Tensor:
        return torch.where(y.isfinite(), y, 0.0).square().sum() * (1 + j)

    for gradient in (odegrad.Discrete(), odegrad.Tape()):
        sol, inputs = sick(on_failure="nan", loss_at=tolerant, gradient=gradient)
        assert sol.succeeded.tolist() == [True, False, True, True]
        found = list(torch.autograd.grad(sol.loss, inputs))
        ys, others = sick(on_failure="nan", land=True)
        weights = torch.arange(1.0, 6.0, dtype=F64)[:, None, None]
        value = (ys.ys[:, ys.succeeded].square() * weights).sum()
        assert float(sol.loss.detach()) == pytest.approx(float(value.detach()), rel=1e-14)
        assert relative(found, list(torch.autograd.grad(value, others))) < 1e-12
        sol, inputs = sick(on_failure="nan", loss_at=lambda j, y, r: y.sum(), gradient=gradient)
        assert sol.loss.isnan()
        grads = torch.autograd.grad(sol.loss, inputs)
        assert grads[0][1].isnan().all()
        assert grads[1].isnan()
        reached, inputs = sick(on_failure="return", loss_at=tolerant, gradient=gradient)
        assert reached.loss.detach() > float(value.detach())
        assert torch.autograd.grad(reached.loss, inputs)[1].isnan()
    with pytest.raises(errors.SolveError, match="sample 1 of the batch"):
        sick(loss_at=tolerant)
    with pytest.raises(errors.NonFiniteStateError, match="sum of loss_at over the 2 times is nan"):
        sick((0.0, 0.1), loss_at=lambda j, y, r: (-y.square()).log().sum())


def test_losses_at_labels_are_checked() -> None:
    case, scale = Case(), torch.tensor(1.0, dtype=F64)
    sol = case.solve(loss_at=lambda j, y, mu: (y * scale).square().sum())
    scale.mul_(2.0)
    with pytest.raises(errors.ChangedTensorError, match="which loss_at reads"):
        sol.loss.backward()


# Breakpoints.

JUMPS = (0.3, 0.9, 5.0)


def jumping(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """A field that jumps at 0.3 and 0.9; at these times themselves it is what comes next."""
    u = torch.where(t < 0.3, 1.0, torch.where(t < 0.9, -2.0, 3.0)).to(y)[:, None]
    return -u * y * mu + 1 / (1 + t * t)[:, None]


ONTO_JUMPS = [
    (odegrad.Tsit5(), PID, None),
    (odegrad.Tsit5(), PID, True),
    (odegrad.CashKarp(), PID, None),
    (odegrad.RK4(), odegrad.Steps(3), None),
    (odegrad.Dopri5(), odegrad.Fixed(0.2), False),
    (odegrad.ALF(), odegrad.Steps(4), None),
]


def across_jumps(per_sample: bool) -> Case:
    """A case that jumps; with times for each sample at two, one, none, and one at a time of its own."""
    case = Case(per_sample, jumping, most=1.0)
    if per_sample:
        with torch.no_grad():
            case.ts[2] = torch.linspace(1.0, 2.0, 9, dtype=F64)
            case.ts[3, 4] = 0.9
    return case


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("scheme", "stepsize", "land"), ONTO_JUMPS, ids=str)
def test_every_sample_steps_onto_breakpoints(
    scheme: Any, stepsize: Any, land: bool | None, per_sample: bool
) -> None:
    case = across_jumps(per_sample)
    options = {"scheme": scheme, "stepsize": stepsize, "land": land, "breakpoints": JUMPS}
    sol, expected = case.solve(**options), []
    for b in range(4):
        jumps = any(min(sol.landings[b]) <= x <= max(sol.landings[b]) for x in JUMPS)
        given = dict(options)
        if not jumps:  # all samples of a batch begin anew at every step if one of them has a jump
            given["scheme"] = Restarted.at_jumps(scheme, F64)
        one = case.alone(b, **given)
        assert sol.landings[b] == one.landings
        if not isinstance(stepsize, odegrad.PID):
            assert sol.grid[b].times(sol.landings[b]) == one.grid.times(one.landings)
        assert one.stats.accepted == sol.stats.accepted_by_sample[b]
        assert one.stats.rejected == sol.stats.rejected_by_sample[b]
        assert torch.allclose(sol.ys[:, b], one.ys[:, 0], rtol=1e-12)
        expected.append(case.gradient(loss(one.ys)))
    assert relative(case.gradient(loss(sol.ys)), total(expected)) < 1e-10
    oracle = case.solve(**{**options, "stepsize": sol.grid}, gradient=odegrad.Tape())
    assert relative(case.gradient(loss(sol.ys)), case.gradient(loss(oracle.ys))) < 1e-12
    if per_sample:
        assert len({len(x) for x in sol.landings}) > 1


@policies
def test_every_schedule_with_breakpoints(checkpoints: Any) -> None:
    case = Case(per_sample=True, f=jumping, most=1.0)
    options = {"breakpoints": JUMPS, "batch": odegrad.Samples(args=(0,))}
    sol = case.solve(gradient=odegrad.Discrete(checkpoints), **options)
    oracle = case.solve(stepsize=sol.grid, gradient=odegrad.Tape(), breakpoints=JUMPS)
    assert torch.equal(sol.ys.detach(), oracle.ys.detach())
    assert relative(case.gradient(loss(sol.ys)), case.gradient(loss(oracle.ys))) < 1e-12


@pytest.mark.parametrize("continuous", [False, True])
def test_controls_declare_their_breakpoints(continuous: bool) -> None:
    knots = [0.0, 0.3, 0.7, 1.0]
    values = torch.tensor([1.0, -2.0, 3.0, 1.0][: 3 + continuous], dtype=F64)
    kind = odegrad.controls.PiecewiseLinear if continuous else odegrad.controls.PiecewiseConstant
    u = kind(knots, init=values)
    y0 = torch.tensor([[1.0], [2.0], [0.5]], dtype=F64, requires_grad=True)
    ts = torch.tensor([[0.0, 0.5, 1.0], [0.4, 0.45, 0.5], [1.0, 0.7, 0.2]], dtype=F64)
    ts.requires_grad_()
    inputs = [y0, ts, *u.parameters()]

    def solved(rows: Any, times: Tensor, **options: Any) -> Any:
        return odegrad.solve(
            lambda t, y: -y * u(t).reshape(-1, 1), y0[rows], times, stepsize=PID, **options
        )

    sol = solved(slice(None), ts, batch=0)
    assert sol.landings == ((0.0, 0.3, 0.7, 1.0), (0.4, 0.5), (1.0, 0.7, 0.3, 0.2))
    found = list(torch.autograd.grad(loss(sol.ys), inputs))
    expected = []
    for b in range(3):
        one = solved(slice(b, b + 1), ts[b])
        assert torch.allclose(one.ys[:, 0], sol.ys[:, b], rtol=1e-12)
        expected.append(list(torch.autograd.grad(loss(one.ys), inputs)))
    assert relative(found, total(expected)) < 1e-10


def test_a_jump_is_seen_from_one_side() -> None:
    """y' = 1 up to each sample's share of t = 1/2 and −1 from there: exact, by one step on each side."""
    y0 = torch.zeros(3, 1, dtype=F64)
    ts = torch.tensor([[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]], dtype=F64)
    sol = odegrad.solve(
        lambda t, y: torch.where(t < 0.5, 1.0, -1.0).to(y)[:, None].expand_as(y), y0, ts,
        scheme=odegrad.Dopri5(), stepsize=odegrad.Steps(1), breakpoints=(0.5,), batch=0,
    )  # fmt: skip
    assert sol.ys[-1].abs().max() < 1e-15
    assert torch.allclose(
        sol([[0.5], [0.5], [0.5]])[0, :, 0], torch.tensor([0.5, 0.25, 0.5], dtype=F64)
    )


def test_breakpoints_losses_and_failures_together() -> None:
    options = {"breakpoints": (0.15, 0.6), "on_failure": "nan", "batch": odegrad.Samples()}
    sol, inputs = sick(
        loss_at=lambda j, y, r: torch.where(y.isfinite(), y, 0.0).square().sum(), **options
    )
    assert sol.succeeded.tolist() == [True, False, True, True]
    plain, others = sick(land=True, **options)
    value = plain.ys[:, plain.succeeded].square().sum()
    assert float(sol.loss.detach()) == pytest.approx(float(value.detach()), rel=1e-14)
    found = list(torch.autograd.grad(sol.loss, inputs))
    assert relative(found, list(torch.autograd.grad(value, others))) < 1e-12
    assert math.isfinite(float(sol.loss.detach()))
