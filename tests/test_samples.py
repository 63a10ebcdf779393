"""Steps for each sample (``batch=0``): against each sample alone, Tape, complex steps, closed forms."""

from __future__ import annotations

import math
import pickle
import weakref

import pytest
import torch
from torch import Tensor

import odegrad
from cases import leaf, mlp, relative
from odegrad import errors
from odegrad.compiled import using_backend
from odegrad.field import VectorField
from odegrad.samplegrid import SampleClock, SampleGrid
from odegrad.schemes.columns import Columns, suits
from odegrad.schemes.persample import PerSample
from odegrad.state import Structure, axpy, combine
from odegrad.stepsize import History
from odegrad.stepsize.persample import judge, sample_norms
from odegrad.stepsize.pid import starting_size, starting_step

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
    odegrad.Online(3),
    odegrad.Tiered(ram=2, disk=2),
]


ADAMS = {"scheme": odegrad.AdamsBashforth(), "stepsize": odegrad.Steps(9)}


def van_der_pol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """No function whose last digit depends on how many numbers it is given, as torch.sin's does."""
    x, v = y[:, :1], y[:, 1:]
    return torch.cat([v, mu * (1 - x * x) * v - x / (1 + 0.1 * t * t)[:, None]], 1)


class Stiffness:
    """Van der Pol equations of several stiffnesses, each with all that a gradient is taken of."""

    def __init__(self, size: int = 5, most: float = 8.0, per_sample: bool = False) -> None:
        steps = torch.linspace(0.0, 1.0, size, dtype=F64)
        self.mu = (0.2 * (most / 0.2) ** steps)[:, None].requires_grad_()
        start = torch.stack([1.0 + steps, -0.5 + 0.3 * steps], 1)
        self.y0 = start.detach().requires_grad_()
        times = torch.tensor([0.0, 0.7, 1.1, 3.0], dtype=F64)
        if per_sample:
            # Of different lengths, the second one descending.
            sign = torch.ones(size, 1, dtype=F64)
            sign[1] = -0.3
            times = times * sign * (1 + 0.2 * steps[:, None]) + steps[:, None]
        self.ts = times.requires_grad_()

    @property
    def inputs(self) -> list[Tensor]:
        return [self.y0, self.mu, self.ts]

    def solve(self, **options):
        given = {"stepsize": PID, "batch": 0, **options}
        return odegrad.solve(van_der_pol, self.y0, self.ts, (self.mu,), **given)

    def alone(self, b: int, **options):
        ts = self.ts[b] if self.ts.ndim == 2 else self.ts
        given = {"stepsize": PID, **options}
        f, rows = van_der_pol, slice(b, b + 1)
        one = odegrad.solve(
            lambda t, y, mu: f(t.reshape(1), y, mu), self.y0[rows], ts, (self.mu[rows],), **given
        )
        return one

    def gradient(self, sol) -> list[Tensor]:
        return list(torch.autograd.grad(loss(sol.ys), self.inputs, retain_graph=True))


def loss(ys: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, ys.shape[0] * ys.shape[-1], dtype=ys.dtype)
    weights = weights.reshape(ys.shape[0], *[1] * (ys.ndim - 2), ys.shape[-1])
    return (weights * ys.square()).sum() + (weights * ys).sin().sum()


# Against each sample alone.


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    ("scheme", "stepsize"),
    [
        (odegrad.Tsit5(), PID),
        (odegrad.Dopri5(), odegrad.PID(rtol=1e-6, atol=0.0, p=0.2, i=0.3, d=0.05)),
        (odegrad.CashKarp(), odegrad.PID(rtol=1e-4, atol=1e-6, dt0=1.0, dt_max=0.4)),
        (odegrad.ALF(), odegrad.PID(rtol=1e-2, atol=1e-2, dt_min=1e-5)),
        (odegrad.RK4(), odegrad.Fixed(0.3)),
        (odegrad.ReversibleHeun(), odegrad.Steps(4)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_each_sample_takes_the_steps_that_it_takes_alone(scheme, stepsize, per_sample):
    adaptive = isinstance(stepsize, odegrad.PID)
    stable = adaptive and not isinstance(scheme, odegrad.ALF)
    case = Stiffness(most=8.0 if stable else 1.0, per_sample=per_sample)
    sol = case.solve(scheme=scheme, stepsize=stepsize)
    found = case.gradient(sol)
    expected = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for b in range(len(case.y0)):
        one = case.alone(b, scheme=scheme, stepsize=stepsize)
        assert one.stats.accepted == sol.stats.accepted_by_sample[b]
        assert one.stats.rejected == sol.stats.rejected_by_sample[b]
        assert sol.grid[b].times(sol.landings[b]) == one.grid.times(one.landings)  # to the last bit
        assert torch.equal(sol.ys[:, b].detach(), one.ys[:, 0].detach())
        expected = [a + g for a, g in zip(expected, case.gradient(one), strict=True)]
    assert relative(found, expected) < 1e-13
    assert sol.stats.accepted == int(sol.stats.accepted_by_sample.sum())
    assert sol.status == (odegrad.Status.SUCCESS,) * len(case.y0)
    if adaptive:
        assert len(set(sol.stats.accepted_by_sample.tolist())) > 2
        assert sol.stats.rejected > 0


def test_van_der_pol_of_64_stiffnesses():
    """What the feature is for; all steps are those that each sample takes alone, to the last bit."""
    mu = torch.logspace(-1, math.log10(25.0), 64, dtype=F64)[:, None]
    generator = torch.Generator().manual_seed(0)
    y0 = 2.0 * torch.randn(64, 2, dtype=F64, generator=generator)
    ts = torch.linspace(0.0, 5.0, 4, dtype=F64)
    sol = odegrad.solve(van_der_pol, y0, ts, (mu,), stepsize=PID, batch=0)
    for b in range(64):
        one = odegrad.solve(
            lambda t, y, mu: van_der_pol(t.reshape(1), y, mu), y0[b : b + 1], ts,
            (mu[b : b + 1],), stepsize=PID,
        )  # fmt: skip
        assert sol.grid[b].times(sol.landings[b]) == one.grid.times(one.landings)
        assert one.stats.rejected == sol.stats.rejected_by_sample[b]
        assert torch.equal(sol.ys[:, b], one.ys[:, 0])
    counts = sol.stats.accepted_by_sample
    assert counts.max() > 3 * counts.min()


def test_f_is_called_once_per_stage_for_all_samples():
    case = Stiffness()
    calls = 0

    def f(t, y, mu):
        nonlocal calls
        calls += 1
        assert t.shape == (5,)
        assert y.shape == (5, 2)
        return van_der_pol(t, y, mu)

    with torch.no_grad():
        sol = odegrad.solve(f, case.y0, case.ts, (case.mu,), stepsize=PID, batch=0)
    attempts = sol.stats.accepted_by_sample + sol.stats.rejected_by_sample
    assert sol.stats.rounds == attempts.max()
    assert (
        calls == sol.stats.f_evaluations + 1 == 6 * sol.stats.rounds + 4
    )  # start, first slope, trace


def test_gradient_of_the_default_takes_no_step_twice():
    case = Stiffness()
    sol = case.solve()
    assert sol.stats.forward_evaluations == 6 * sol.stats.rounds + 3
    case.gradient(sol)
    assert sol.stats.recomputed == 0
    assert (
        sol.stats.vjps
        <= 6 * sol.grid.n_steps + 1
        == 6 * int(sol.stats.accepted_by_sample.max()) + 1
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128, torch.bfloat16])
def test_sums_by_columns_are_axpy_to_the_last_bit(dtype):
    tableau, generator = odegrad.Dopri8.tableau, torch.Generator().manual_seed(1)
    h = torch.rand(7, dtype=F64, generator=generator)
    y, *slopes = (
        (
            torch.randn(7, 3, generator=generator).to(dtype),
            torch.randn(7, generator=generator).to(dtype),
        )
        for _ in range(tableau.stages + 1)
    )
    rows = (*tableau.a, tableau.b, tableau.b_error)
    sums, n = Columns(rows, h, y), tableau.stages
    for i, slope in enumerate(slopes):
        assert all(map(torch.equal, sums.at(i, y), axpy(y, h, tableau.a[i], slopes)))
        sums.put(slope)
    assert all(map(torch.equal, sums.at(n, y), axpy(y, h, tableau.b, slopes)))
    assert all(map(torch.equal, sums.alone(n + 1), combine(h, tableau.b_error, slopes)))


def test_large_states_are_not_taken_by_columns_and_give_the_same():
    small = torch.randn(3, 5, dtype=F64, generator=torch.Generator().manual_seed(2))
    h, p = torch.tensor([0.1, 0.3, 0.0], dtype=F64), ()
    field = VectorField(lambda t, y: -y * (1.0 + y * y), Structure(small), (small,))
    large = small.repeat(1, 2**14)
    wide = VectorField(lambda t, y: -y * (1.0 + y * y), Structure(large), (large,))
    scheme, t = odegrad.Tsit5(), torch.zeros(3, dtype=F64)
    assert suits(h, (small,))
    assert not suits(h, (large,))
    found = scheme.step(field, t, h, (small,), field(t, (small,), p), p)
    other = scheme.step(wide, t, h, (large,), wide(t, (large,), p), p)
    assert torch.equal(found.y[0].repeat(1, 2**14), other.y[0])
    assert torch.equal(found.error[0].repeat(1, 2**14), other.error[0])


def test_a_step_of_ones_own_is_the_one_that_is_differentiated():
    class Halved(odegrad.Heun):
        """Takes half of each step."""

        def step(self, field, t, dt, y, carry, p):
            return super().step(field, t, dt / 2.0, y, carry, p)

    case = Stiffness(most=1.0)
    sol = case.solve(scheme=Halved(), stepsize=odegrad.Steps(6))
    oracle = case.solve(scheme=Halved(), stepsize=sol.grid, gradient=odegrad.Tape())
    assert torch.equal(sol.ys.detach(), oracle.ys.detach())
    assert relative(case.gradient(sol), case.gradient(oracle)) < 1e-13
    alone = case.alone(1, scheme=Halved(), stepsize=odegrad.Steps(6))  # of one length for all
    assert torch.equal(alone.ys[:, 0], sol.ys[:, 1])
    whole = case.solve(scheme=odegrad.Heun(), stepsize=sol.grid)
    assert not torch.allclose(sol.ys, whole.ys)


# Against Tape, and what shares nothing with the library.


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("stepsize", [PID, odegrad.Fixed(0.25)], ids=["PID", "Fixed"])
@pytest.mark.parametrize("checkpoints", POLICIES, ids=str)
def test_every_schedule_equals_tape(checkpoints, stepsize, per_sample):
    case = Stiffness(most=8.0 if stepsize is PID else 1.0, per_sample=per_sample)
    sol = case.solve(stepsize=stepsize, gradient=odegrad.Discrete(checkpoints))
    found = case.gradient(sol)
    oracle = case.solve(stepsize=sol.grid, gradient=odegrad.Tape())
    assert torch.equal(oracle.ys.detach(), sol.ys.detach())
    assert relative(found, case.gradient(oracle)) < 1e-13
    again = case.gradient(sol)  # what was kept serves again
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize("scheme", [odegrad.ALF(), odegrad.ReversibleHeun()], ids=str)
@pytest.mark.parametrize("anchor", [None, 3])
def test_rewinding(scheme, anchor):
    case = Stiffness(most=1.0)
    options = {"scheme": scheme, "stepsize": odegrad.Fixed(0.2)}
    case.ts = case.ts.detach()[None] * torch.linspace(0.2, 1.0, 5, dtype=F64)[:, None]
    case.ts.requires_grad_()
    found = case.gradient(case.solve(gradient=odegrad.Discrete(odegrad.Rewind(anchor)), **options))
    assert relative(found, case.gradient(case.solve(gradient=odegrad.Tape(), **options))) < 1e-10


def test_tape_searches_by_itself():
    case = Stiffness()
    first = case.solve(gradient=odegrad.Tape())
    second = case.solve()
    assert torch.equal(first.ys.detach(), second.ys.detach())
    assert relative(case.gradient(first), case.gradient(second)) < 1e-13
    assert first.stats.rejected == second.stats.rejected


def test_complex_step():
    case = Stiffness(4, per_sample=True)
    sol = case.solve(land=True)
    found = case.gradient(sol)

    def outputs(b, y, mu, times):
        """Sample b by Tsit5 in plain complex arithmetic, along its recorded grid."""
        tableau, ys = odegrad.Tsit5.tableau, [y]
        for j, segment in enumerate(sol.grid[b].segments):
            for i in range(len(segment)):
                span = times[j + 1] - times[j]
                t, dt = times[j] + span * segment.start(i), span * segment.width(i)
                slopes: list[list[complex]] = []
                for c, row in zip(tableau.c, tableau.a, strict=True):
                    stage = [
                        x + dt * sum(w * k[m] for w, k in zip(row, slopes, strict=False))
                        for m, x in enumerate(y)
                    ]
                    x, v = stage
                    tau = t + c * dt
                    slopes.append([v, mu * (1 - x * x) * v - x / (1 + 0.1 * tau * tau)])
                y = [
                    x + dt * sum(w * k[m] for w, k in zip(tableau.b, slopes, strict=True))
                    for m, x in enumerate(y)
                ]
            ys.append(y)
        return loss(torch.tensor(ys, dtype=torch.complex128)[:, None])

    e = 1e-30
    for b in range(4):
        given = [
            [complex(x) for x in case.y0[b].tolist()],
            complex(case.mu[b].item()),
            [complex(x) for x in case.ts[b].tolist()],
        ]
        for m in range(2):
            y = list(given[0])
            y[m] += e * 1j
            expected = outputs(b, y, given[1], given[2]).imag.item() / e
            assert found[0][b, m].item() == pytest.approx(expected, rel=1e-11)
        expected = outputs(b, given[0], given[1] + e * 1j, given[2]).imag.item() / e
        assert found[1][b].item() == pytest.approx(expected, rel=1e-11)
        for j in range(4):
            times = list(given[2])
            times[j] += e * 1j
            expected = outputs(b, given[0], given[1], times).imag.item() / e
            assert found[2][b, j].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_closed_form():
    rate = torch.tensor([0.5, 3.0, 20.0], dtype=F64, requires_grad=True)
    y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64)
    ts = torch.tensor([[0.0, 2.0], [1.0, 0.5], [0.0, 1.0]], dtype=F64)
    exact = odegrad.PID(rtol=1e-12, atol=1e-14)
    sol = odegrad.solve(lambda t, y: -rate[:, None] * y, y0, ts, stepsize=exact, batch=0)
    span = ts[:, 1] - ts[:, 0]
    end = y0[:, 0] * torch.exp(-rate.detach() * span)
    assert torch.allclose(sol.ys[-1, :, 0], end, rtol=1e-10)
    (grad,) = torch.autograd.grad(sol.ys[-1].sum(), [rate])
    assert torch.allclose(grad, -span * end, rtol=1e-9)


@pytest.mark.parametrize("scheme", [odegrad.Tsit5(), odegrad.RK4(), odegrad.ALF()], ids=str)
@pytest.mark.parametrize("cut", [None, (False, True)], ids=["masked", "compact"])
def test_transpose_of_a_round(scheme, cut):
    """⟨w, DΦ·v⟩ = ⟨step_vjp(w), v⟩, by complex-free finite differences of a linear field: exactly."""
    torch.manual_seed(3)
    shared, own = torch.randn(2, 2, dtype=F64), torch.randn(4, 2, dtype=F64)
    y, start = torch.randn(4, 2, dtype=F64), torch.zeros(4, dtype=F64)
    field = VectorField(
        lambda t, y, a, c: y @ a * 0.3 + c * t[:, None] + c, Structure(y), (y,), (shared, own)
    )
    rounds = PerSample(scheme, start, (torch.randn_like(y),), cut)
    t = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    dt = torch.tensor([0.5, float("nan"), float("nan"), -0.2], dtype=F64)
    sizes: list[int] = []
    carry = rounds.init(field, t, (y,), (shared, own))
    v = [torch.randn_like(x) for x in (t, dt, y, *carry, shared, own)]
    w = [torch.randn_like(x) for x in (y, *carry)]

    def step(e):
        x = [a + e * b for a, b in zip((t, dt, y, *carry, shared, own), v, strict=True)]
        y_, carry_, p = (x[2],), tuple(x[3:-2]), tuple(x[-2:])
        found = rounds.step(field, x[0], x[1], y_, carry_, p)
        sizes.append(len(found.y[0]))
        return sum(float((a * b).sum()) for a, b in zip(w, (*found.y, *found.carry), strict=True))

    e = 1e-3  # Richardson: the remainder is far below the bound
    d = [(step(h) - step(-h)) / (2 * h) for h in (e, 2 * e, 4 * e)]
    d = [(4 * d[0] - d[1]) / 3, (4 * d[1] - d[2]) / 3]
    directional = (16 * d[0] - d[1]) / 15
    p = tuple(x.clone().requires_grad_() for x in (shared, own))
    grads = rounds.step_vjp(field, t, dt, (y,), carry, p, (w[0],), tuple(w[1:]) or None)
    pieces = [grads.t, grads.dt, *grads.y, *(grads.carry or ()), *grads.p]
    total = sum(float((g * x).nan_to_num().sum()) for g, x in zip(pieces, v, strict=True))
    assert total == pytest.approx(directional, rel=1e-9)
    sitting = torch.tensor([False, True, True, False])
    assert torch.equal(grads.y[0][sitting], w[0][sitting])
    assert torch.equal(step_of(rounds, field, t, dt, y, carry, p)[sitting], y[sitting])
    assert not grads.t[sitting].any()
    assert not grads.dt[sitting].any()


def step_of(rounds, field, t, dt, y, carry, p):
    with torch.no_grad():
        return rounds.step(field, t, dt, (y,), carry, p).y[0]


# Times.


def test_one_time_and_none_between():
    case = Stiffness()
    for gradient in (odegrad.Discrete(), odegrad.Tape(), odegrad.Discrete(POLICIES[2])):
        sol = odegrad.solve(van_der_pol, case.y0, [0.5], (case.mu,), batch=0, gradient=gradient)
        assert sol.ys.shape == (1, 5, 2)
        assert sol.grid.n_steps == 0
        (grad,) = torch.autograd.grad(sol.ys.sum(), [case.y0])
        assert torch.equal(grad, torch.ones_like(grad))


@pytest.mark.parametrize("stepsize", [PID, odegrad.Steps(2)], ids=str)
@pytest.mark.parametrize("gradient", [odegrad.Discrete(), odegrad.Tape()], ids=str)
def test_no_samples_at_all(gradient, stepsize):
    y0 = torch.zeros(0, 2, dtype=F64, requires_grad=True)
    for ts in ([0.0, 1.0, 2.0], torch.zeros(0, 3, dtype=F64)):
        sol = odegrad.solve(lambda t, y: -y, y0, ts, batch=0, gradient=gradient, stepsize=stepsize)
        assert sol.ys.shape == (3, 0, 2)
        assert sol.status == ()
        assert torch.autograd.grad(sol.ys.sum(), [y0])[0].shape == (0, 2)


@pytest.mark.parametrize("gradient", [odegrad.Discrete(), odegrad.Tape()], ids=str)
def test_equal_neighbours(gradient):
    case = Stiffness(3)
    case.ts = torch.tensor(
        [[0.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]], dtype=F64
    ).requires_grad_()
    sol = case.solve(gradient=gradient)
    found = case.gradient(sol)
    alone = [case.alone(b, gradient=gradient) for b in range(3)]
    expected = [sum(x) for x in zip(*map(case.gradient, alone), strict=True)]
    assert relative(found, expected) < 1e-13
    assert sol.stats.accepted_by_sample.tolist() == [x.stats.accepted for x in alone]
    assert torch.equal(sol.ys[1, 1], sol.ys[2, 1])


def test_times_as_lists():
    case = Stiffness(2, most=0.5)
    lists = odegrad.solve(van_der_pol, case.y0, [[0, 1], [2, 1]], (case.mu,), batch=0)
    tensor = torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=F64)
    assert torch.equal(
        lists.ys, odegrad.solve(van_der_pol, case.y0, tensor, (case.mu,), batch=0).ys
    )


# Fields and states.


def structured(t: Tensor, y, weights, rate):
    q, z = y["q"], y["z"]
    return {
        "q": torch.tanh(q @ weights) - rate[:, None] * q + t[:, None],
        "z": 1j * rate * z * q.square().sum(1) - z,
    }


def test_structured_states_complex_leaves_and_a_running_cost():
    torch.manual_seed(0)
    size = 4
    q = torch.randn(size, 3, dtype=F64, requires_grad=True)
    z = torch.randn(size, dtype=torch.complex128, requires_grad=True)
    weights = torch.randn(3, 3, dtype=F64, requires_grad=True)
    rate = torch.tensor([0.1, 1.0, 4.0, 9.0], dtype=F64, requires_grad=True)
    ts = torch.tensor([0.0, 0.4, 1.0], dtype=F64, requires_grad=True)

    def f(t, y):
        return structured(t, y, weights, rate)

    def cost(t, y):
        return y["q"].square().sum(1) * (1 + t) + y["z"].abs()

    def run(**options):
        sol = odegrad.solve(
            f, {"q": q, "z": z}, ts, batch=0, running=cost, **{"stepsize": PID, **options}
        )
        ys = sol.ys
        total = (
            loss(ys["q"]) + ys["z"].abs().square().sum() + (sol.running * (1 + ts[:, None])).sum()
        )
        return sol, list(torch.autograd.grad(total, [q, z, weights, rate, ts]))

    sol, found = run()
    assert sol.running.shape == (3, size)
    assert sol.ys["z"].shape == (3, size)
    _, oracle = run(stepsize=sol.grid, gradient=odegrad.Tape())
    assert relative(found, oracle) < 1e-13
    for checkpoints in (POLICIES[2], POLICIES[7]):
        assert relative(run(gradient=odegrad.Discrete(checkpoints))[1], oracle) < 1e-13
    for b in range(size):
        one = odegrad.solve(
            lambda t, y, b=b: structured(t.reshape(1), y, weights, rate[b : b + 1]),
            {"q": q[b : b + 1], "z": z[b : b + 1]},
            ts,
            stepsize=PID,
        )
        assert torch.allclose(one.ys["q"][:, 0], sol.ys["q"][:, b], rtol=1e-9)
        assert one.stats.accepted == sol.stats.accepted_by_sample[b]


def test_module_with_parameters_in_single_precision():
    net = mlp().float()
    y0 = torch.randn(6, 3, requires_grad=True)
    ts = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)

    def run(gradient, stepsize=PID):
        sol = odegrad.solve(
            lambda t, y: net(y) * 3, y0, ts, stepsize=stepsize, batch=0, gradient=gradient
        )
        return sol, list(torch.autograd.grad(loss(sol.ys), [y0, *net.parameters(), ts]))

    sol, found = run(odegrad.Discrete())
    assert sol.ys.dtype == torch.float32
    assert relative(found, run(odegrad.Tape(), sol.grid)[1]) < 1e-5


def test_neural_ode_takes_a_batch():
    net = mlp()
    y0 = torch.randn(4, 3, dtype=F64)
    model = odegrad.NeuralODE(net, stepsize=PID, batch=0)
    sol = odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0], stepsize=PID, batch=0)
    assert torch.equal(model(y0, [0.0, 1.0]), sol.ys)
    assert "batch=0" in repr(model)


@pytest.mark.parametrize("checkpoints", [POLICIES[0], POLICIES[2], POLICIES[7]], ids=str)
def test_dropout_draws_the_same_numbers_again(checkpoints):
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3))
    net.double()
    y0 = torch.randn(4, 3, dtype=F64, requires_grad=True)

    def run(gradient):
        torch.manual_seed(5)
        sol = odegrad.solve(
            lambda t, y: net(y),
            y0,
            [0.0, 1.0],
            stepsize=odegrad.Steps(6),
            batch=0,
            gradient=gradient,
        )
        return list(torch.autograd.grad(loss(sol.ys), [y0, *net.parameters()]))

    assert relative(run(odegrad.Discrete(checkpoints)), run(odegrad.Tape())) < 1e-13


@pytest.mark.parametrize("checkpoints", [POLICIES[0], POLICIES[7]], ids=str)
def test_a_field_that_changes_is_noticed(checkpoints):
    case, calls = Stiffness(), []

    def f(t, y, mu):
        calls.append(0)
        return van_der_pol(t, y, mu) * (1 + 1e-6 * len(calls))

    sol = odegrad.solve(
        f,
        case.y0,
        case.ts,
        (case.mu,),
        stepsize=PID,
        batch=0,
        gradient=odegrad.Discrete(checkpoints),
    )
    with pytest.raises(errors.NonDeterministicFieldError):
        case.gradient(sol)


def test_second_derivatives_and_transforms():
    case = Stiffness(3, most=2.0)

    def gradient_of(gradient, grid):
        sol = case.solve(gradient=gradient, stepsize=grid)
        first = torch.autograd.grad(loss(sol.ys), case.inputs, create_graph=True)
        total = sum((g * g).sum() for g in first)
        return [g.detach() for g in torch.autograd.grad(total, case.inputs)]

    grid = case.solve().grid
    assert (
        relative(gradient_of(odegrad.Discrete(), grid), gradient_of(odegrad.Tape(), grid)) < 1e-11
    )

    def value(mu):
        return loss(odegrad.solve(van_der_pol, case.y0, case.ts, (mu,), stepsize=PID, batch=0).ys)

    found = torch.func.grad(value)(case.mu.detach())
    assert relative([found.detach()], [case.gradient(case.solve())[1]]) < 1e-13


# Samples that fail.


def singular(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """y' = r y²: y(t) = 1 / (1/y(0) − r t)."""
    return rate * y * y


def sick(**options):
    """Four samples of which the second blows up at t = 0.5."""
    y0 = torch.tensor([[1.0], [2.0], [-1.0], [0.3]], dtype=F64, requires_grad=True)
    rate = torch.tensor(1.0, dtype=F64, requires_grad=True)
    ts = torch.tensor([0.0, 0.2, 0.7, 0.9], dtype=F64, requires_grad=True)
    given = {"stepsize": PID, "batch": 0, **options}
    return odegrad.solve(singular, y0, ts, (rate,), **given), [y0, rate, ts]


@pytest.mark.parametrize(
    "gradient",
    [odegrad.Tape(), *(odegrad.Discrete(POLICIES[i]) for i in (0, 1, 2, 3, 7))],
    ids=str,
)
def test_a_sample_that_fails_harms_no_other(gradient):
    healthy = [0, 2, 3]
    sol, inputs = sick(on_failure="return", gradient=gradient)
    assert sol.succeeded.tolist() == [True, False, True, True]
    assert sol.status[1] in (odegrad.Status.STEP_TOO_SMALL, odegrad.Status.NON_FINITE_DERIVATIVE)
    assert sol.status[0] is odegrad.Status.SUCCESS
    assert "sample 1 of the batch" in sol.reason[1]
    assert "t = 0.5" in sol.reason[1]
    assert sol.reason[0] == ""
    assert torch.isfinite(sol.ys[:2]).all()
    assert sol.ys[2:, 1].isnan().all()
    assert len(sol.grid[1].segments) == 0

    # What the loss does not look at has no share in the gradient.
    found = torch.autograd.grad(loss(sol.ys[:, sol.succeeded]), inputs, retain_graph=True)
    ys = []
    y0, rate, ts = inputs
    for b in healthy:
        ys.append(odegrad.solve(singular, y0[b : b + 1], ts, (rate,), stepsize=PID).ys)
    expected = torch.autograd.grad(loss(torch.cat(ys, 1)), inputs)
    assert relative(list(found), list(expected)) < 1e-12
    assert found[0][1] == 0.0

    # What it does look at makes the rows of the sample NaN, and what it shares.
    found = torch.autograd.grad(sol.ys[:2].sum(), inputs, retain_graph=True)
    assert found[0][1].isnan()
    assert torch.isfinite(found[0][healthy]).all()
    assert found[1].isnan()
    assert found[2].isnan().all()

    nan, inputs = sick(on_failure="nan", gradient=gradient)
    assert nan.ys[:, 1].isnan().all()
    assert torch.equal(nan.ys[:, healthy].detach(), sol.ys[:, healthy].detach())
    found = torch.autograd.grad(nan.ys.nansum(), inputs, retain_graph=True)
    assert torch.isfinite(found[1])
    found = torch.autograd.grad(nan.ys.square().sum(), inputs)
    assert found[0].isnan().flatten().tolist() == [False, True, False, False]
    assert found[1].isnan()


@pytest.mark.parametrize("gradient", [odegrad.Tape(), *map(odegrad.Discrete, POLICIES)], ids=str)
def test_a_sample_that_fails_on_a_fixed_grid(gradient):
    def f(t, y, w):
        return torch.where(y > 0, y**3, y) * w * w

    rows = [[-1.0], [0.4], [-0.5]]
    y0 = torch.tensor(rows, dtype=F64, requires_grad=True)
    w = torch.tensor(1.1, dtype=F64, requires_grad=True)
    ts = [0.0, 1.0, 2.0, 9.0]
    options = {"stepsize": odegrad.Steps(4), "gradient": gradient}
    with pytest.raises(
        errors.NonFiniteStateError, match=r"sample 1 of the batch .* its time 3, t = 9"
    ):
        odegrad.solve(f, y0, ts, (w,), batch=0, **options).ys.sum().backward()
    sol = odegrad.solve(f, y0, ts, (w,), batch=0, on_failure="return", **options)
    assert sol.status[1] is odegrad.Status.NON_FINITE_STATE
    assert sol.ys[:3].isfinite().all()
    assert sol.ys[3, 1].isnan().all()
    found = torch.autograd.grad(loss(sol.ys[:, sol.succeeded]), [y0, w])
    one = odegrad.solve(f, y0[[0, 2]], ts, (w,), **options)
    expected = torch.autograd.grad(loss(one.ys), [y0, w])
    assert relative(list(found), list(expected)) < 1e-13
    loose = odegrad.solve(f, y0, ts, (w,), batch=0, check_finite=False, **options)
    assert not loose.ys.isfinite().all()


def test_raising_names_the_sample():
    with pytest.raises(errors.SolveError, match=r"sample 1 of the batch: at t = 0.5"):
        sick()
    case = Stiffness()
    sol = case.solve()
    attempts = sol.stats.accepted_by_sample + sol.stats.rejected_by_sample
    assert attempts[4] > attempts[:4].max()
    most = int(attempts[4]) - 1
    with pytest.raises(errors.MaxStepsError, match="sample 4 of the batch"):
        case.solve(max_steps=most)
    with pytest.raises(errors.MaxStepsError, match="sample 0 of the batch takes 30 steps"):
        case.solve(max_steps=20, stepsize=odegrad.Steps(10))
    some = case.solve(max_steps=most, on_failure="nan")
    assert [x is odegrad.Status.MAX_STEPS for x in some.status] == [
        False,
        False,
        False,
        False,
        True,
    ]


def test_all_samples_fail():
    for gradient in (odegrad.Discrete(), odegrad.Tape(), odegrad.Discrete(POLICIES[7])):
        case = Stiffness()
        sol = case.solve(max_steps=2, on_failure="nan", gradient=gradient)
        assert set(sol.status) == {odegrad.Status.MAX_STEPS}
        assert sol.ys.isnan().all()
        assert all(g.isnan().all() for g in case.gradient(sol))


def test_a_sample_with_nan_in_its_own_data_harms_no_other():
    """Its NaN would reach the gradient of shared weights; `Samples` leaves it out."""
    torch.manual_seed(0)
    weights = torch.randn(2, 2, dtype=F64, requires_grad=True)
    own = torch.randn(4, 2, dtype=F64)
    own[2] = float("nan")
    y0 = torch.randn(4, 2, dtype=F64, requires_grad=True)

    def f(t, y, own, weights):
        return torch.tanh((y * own) @ weights)

    sol = odegrad.solve(
        f, y0, [0.0, 1.0], (own, weights), stepsize=PID, batch=odegrad.Samples(args=(0, None)),
        on_failure="nan",
    )  # fmt: skip
    assert sol.status[2] is odegrad.Status.NON_FINITE_DERIVATIVE
    ok = sol.succeeded
    found = torch.autograd.grad(loss(sol.ys[:, ok]), [y0, weights])
    rest = odegrad.solve(f, y0[ok], [0.0, 1.0], (own[ok], weights), stepsize=PID, batch=0)
    expected = torch.autograd.grad(loss(rest.ys), [y0, weights])
    assert relative(list(found), list(expected)) < 1e-12


@pytest.mark.parametrize("gradient", [odegrad.Tape(), *map(odegrad.Discrete, POLICIES)], ids=str)
def test_a_sample_that_is_through_does_not_give_nan(gradient):
    """√(w a) and √(w (1 − t)) have no derivative at the end of the first sample, a = 0 and t = 1.

    Alone, it is not evaluated there: all stages of the midpoint rule are before it.
    """
    w = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y0 = torch.ones(2, 2, dtype=F64, requires_grad=True)
    ts = torch.tensor([[0.0, 1.0], [0.0, 0.5]], dtype=F64, requires_grad=True)

    def f(t, y):
        a, b = y[:, 0], y[:, 1]
        return torch.stack([-torch.ones_like(a), b * (w * a).sqrt() + (w * (1 - t)).sqrt()], 1)

    parts = [odegrad.Grid((odegrad.grid.Uniform(n),)) for n in (2, 5)]
    options = {"scheme": odegrad.Midpoint(), "gradient": gradient}
    sol = odegrad.solve(f, y0, ts, stepsize=SampleGrid.of(parts), batch=0, **options)
    found = torch.autograd.grad(loss(sol.ys), [w, y0, ts])
    alone = [
        odegrad.solve(f, y0[b : b + 1], ts[b], stepsize=parts[b], **options).ys for b in range(2)
    ]
    expected = torch.autograd.grad(loss(torch.cat(alone, 1)), [w, y0, ts])
    assert relative(list(found), list(expected)) < 1e-13


def test_starting_sizes_are_those_of_each_sample_to_the_last_bit():
    y = leaf(500, 2, seed=4).detach()
    start, control = torch.zeros(500, dtype=F64), odegrad.PID()

    def field(rows):
        return VectorField(lambda t, y: 3 * y * y - y, Structure(rows), (rows,))

    def norm(x, y0, y1):
        return sample_norms(control, x, y0, y1)

    found = starting_size(field(y), norm, 5, start, torch.ones_like(start), (y,), ())
    for b in range(500):
        one = y[b : b + 1]
        assert float(found[b]) == starting_step(field(one), control, 5, 0.0, 1.0, (one,), ())


def test_decisions_are_those_of_the_controller_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    ratios = 10 ** (12 * torch.rand((3, 999), generator=generator, dtype=F64) - 8)
    ratios[0, :4] = torch.tensor([0.0, math.nan, math.inf, 1.0], dtype=F64)
    rejected = torch.rand(999, generator=generator) < 0.5
    for control in (odegrad.PID(), odegrad.PID(p=0.4, i=0.3, d=0.1, safety=0.8, factor_max=5.0)):
        for order in (1, 2, 5):
            found = judge(control, *ratios, rejected, order)
            for b in range(999):
                ratio, last, before = ratios[:, b].tolist()
                history = History((last, before), bool(rejected[b]))
                decision = control.decide(ratio, history, order)
                assert bool(found.accept[b]) == decision.accept
                assert float(found.factor[b]) == decision.factor
                if decision.accept:
                    assert float(found.last[b]) == decision.history.ratios[0]


def rejecting(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """For y[1] above a bound that is the sample's own the step has to be smaller."""
    if (y[:, 1].abs() > 3.0 + mu[:, 0]).any():
        raise odegrad.RejectStep("too fast")
    return van_der_pol(t, y, mu)


@pytest.mark.parametrize("checkpoints", [POLICIES[0], POLICIES[1], POLICIES[7]], ids=str)
def test_rejected_steps_are_those_that_each_sample_rejects_alone(checkpoints):
    case, rows = Stiffness(6), range(6)
    # Long steps at first, that overshoot for some samples and not for others.
    options = {"stepsize": odegrad.PID(rtol=1e-1, atol=1e-1, dt0=0.9), "scheme": odegrad.CashKarp()}
    args = (rejecting, case.y0, case.ts, (case.mu,))
    sol = odegrad.solve(*args, batch=0, gradient=odegrad.Discrete(checkpoints), **options)
    alone = [
        odegrad.solve(
            lambda t, y, mu: rejecting(t.reshape(1), y, mu), case.y0[b : b + 1], case.ts,
            (case.mu[b : b + 1],), **options,
        )
        for b in rows
    ]  # fmt: skip
    assert sol.stats.accepted_by_sample.tolist() == [x.stats.accepted for x in alone]
    assert sol.stats.rejected_by_sample.tolist() == [x.stats.rejected for x in alone]
    assert torch.equal(sol.ys.detach(), torch.cat([x.ys.detach() for x in alone], 1))
    expected = [sum(x) for x in zip(*map(case.gradient, alone), strict=True)]
    assert relative(case.gradient(sol), expected) < 1e-13


def test_f_that_rejects_every_step():
    case = Stiffness(4)

    def never(t, y, mu):
        if (t[mu[:, 0] > 4.0] > 0.5).any():
            raise odegrad.RejectStep("never")
        return van_der_pol(t, y, mu)

    args = (never, case.y0, [0.0, 0.4, 1.0], (case.mu,))
    with pytest.raises(errors.SolveError, match=r"sample 3 of the batch: at t = 0.5 .* RejectStep"):
        odegrad.solve(*args, stepsize=PID, batch=0)
    some = odegrad.solve(*args, stepsize=PID, batch=0, on_failure="return")
    assert some.succeeded.tolist() == [True, True, True, False]
    assert some.ys[:2].isfinite().all()


@pytest.mark.parametrize("gradient", [odegrad.Discrete(), odegrad.Tape()], ids=str)
def test_a_sample_that_f_rejects_on_a_fixed_grid_harms_no_other(gradient):
    case, steps = Stiffness(6), odegrad.Steps(4)
    told: list[tuple[str, int]] = []
    locals_: list[weakref.ref[Tensor]] = []

    def never(t, y, mu):
        if ((t > 0.5) & (mu[:, 0] > 1.0) & (mu[:, 0] < 5.0)).any():
            local = torch.zeros(())
            locals_.append(weakref.ref(local))
            raise odegrad.RejectStep("never")
        return van_der_pol(t, y, mu)

    def note(info):
        told.append((info.phase, info.n))

    bad = (case.mu[:, 0] > 1.0) & (case.mu[:, 0] < 5.0)
    assert 1 < int(bad.sum()) < 5
    args, options = (case.y0, [0.0, 0.4, 1.0], (case.mu,)), {"stepsize": steps, "batch": 0}
    options["gradient"] = gradient
    sol = odegrad.solve(never, *args, on_failure="return", callback=note, **options)
    assert torch.equal(sol.succeeded, ~bad)
    assert {sol.status[b] for b in bad.nonzero()} == {odegrad.Status.STEP_REJECTED}
    assert sol.stats.rounds == 8
    assert told == sorted(set(told))
    assert locals_
    assert all(x() is None for x in locals_)  # the exception that is kept holds no frames
    plain = odegrad.solve(van_der_pol, *args, **options)
    assert torch.equal(sol.ys[:, ~bad], plain.ys[:, ~bad])
    if isinstance(gradient, odegrad.Discrete):
        assert torch.equal(sol.ys[:2, bad], plain.ys[:2, bad])  # what was reached
    assert sol.ys[2, bad].isnan().all()
    found, expected = (
        list(torch.autograd.grad(loss(x.ys[:, ~bad]), [case.y0, case.mu])) for x in (sol, plain)
    )
    assert relative(found, expected) < 1e-13
    with pytest.raises(odegrad.RejectStep, match="never"):
        odegrad.solve(never, *args, **options)


@pytest.mark.parametrize("compiled", [False, True])
def test_rounds_are_told_once_if_a_sample_fails(compiled):
    told: list[int] = []
    y0 = torch.tensor([[1.0], [1e200], [0.5]], dtype=F64)
    options = {"stepsize": odegrad.Steps(6), "on_failure": "nan", "compile": compiled}
    with using_backend("interpreter"), torch.no_grad():
        sol = odegrad.solve(
            lambda t, y: -y * y, y0, [0.0, 0.5, 1.0], batch=0,
            callback=lambda info: told.append(info.n), **options,
        )  # fmt: skip
    assert sol.succeeded.tolist() == [True, False, True]
    assert told == [*range(12)]
    assert sol.stats.rounds == 12


@pytest.mark.parametrize("compiled", [False, True])
def test_a_sample_with_too_many_fixed_steps_harms_no_other(compiled):
    case = Stiffness(3)
    ts = torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.5, 1.0], [0.0, 0.1, 0.3]], dtype=torch.float64)
    options = {"stepsize": odegrad.Fixed(0.1), "batch": 0, "compile": compiled}
    args = (van_der_pol, case.y0, ts, (case.mu,))
    with using_backend("interpreter"):
        sol = odegrad.solve(*args, max_steps=5, on_failure="return", **options)
        plain = odegrad.solve(*args, **options)
    assert sol.succeeded.tolist() == [True, False, True]
    assert sol.status[1] is odegrad.Status.MAX_STEPS
    assert "sample 1 of the batch takes 10 steps" in sol.reason[1]
    some = torch.tensor([0, 2])
    assert torch.equal(sol.ys[:, some], plain.ys[:, some])
    assert torch.equal(sol.ys[0, 1], case.y0[1])
    assert sol.ys[1:, 1].isnan().all()
    assert sol.stats.rounds == 3
    found, expected = (
        list(torch.autograd.grad(loss(x.ys[:, some]), [case.y0, case.mu])) for x in (sol, plain)
    )
    assert relative(found, expected) < 1e-13


# Compaction.


def test_compaction_leaves_out_samples_that_are_through():
    case = Stiffness(8, most=20.0)
    sizes: list[int] = []

    def f(t, y, mu):
        assert len(t) == len(y) == len(mu)
        sizes.append(len(y))
        return van_der_pol(t, y, mu)

    def run(batch, gradient, stepsize=PID):
        sol = odegrad.solve(
            f, case.y0, case.ts, (case.mu,), stepsize=stepsize, batch=batch, gradient=gradient
        )
        return sol, case.gradient(sol)

    whole, expected = run(0, odegrad.Tape())
    sizes.clear()
    for gradient in (odegrad.Tape(), *(odegrad.Discrete(POLICIES[i]) for i in (0, 1, 2, 3, 7))):
        sol, found = run(odegrad.Samples(args=(0,)), gradient)
        assert torch.equal(sol.ys.detach(), whole.ys.detach())
        assert relative(found, expected) < 1e-13
    assert min(sizes) == 1
    assert len(set(sizes)) > 3


def test_compaction_is_refused_where_it_would_be_wrong():
    case = Stiffness(6)
    good = odegrad.Samples(args=(0,))

    def captures(t, y):
        return van_der_pol(t, y, case.mu)

    def couples(t, y, mu):
        return van_der_pol(t, y, mu) - y.mean(0)

    with pytest.raises(
        errors.InvalidValueError, match=r"takes any number of samples.*RuntimeError"
    ):
        odegrad.solve(captures, case.y0, [0.0, 1.0], batch=odegrad.Samples())
    with pytest.raises(errors.InvalidValueError, match="each sample by itself"):
        odegrad.solve(couples, case.y0, [0.0, 1.0], (case.mu,), batch=good)
    with pytest.raises(errors.InvalidValueError, match="marked to have a row for each of the 6"):
        odegrad.solve(van_der_pol, case.y0, [0.0, 1.0], (case.mu[:3],), batch=good)
    with pytest.raises(errors.InvalidValueError, match="must be 0 or None"):
        odegrad.solve(van_der_pol, case.y0, [0.0, 1.0], (case.mu,), batch=odegrad.Samples((1,)))
    assert odegrad.solve(captures, case.y0, [0.0, 1.0], batch=0).ys.isfinite().all()


# What is passed and returned.


def test_grids():
    case = Stiffness(3)
    sol = case.solve(land=True)
    copy = pickle.loads(pickle.dumps(sol.grid))
    assert [copy[b] for b in range(3)] == [sol.grid[b] for b in range(3)]
    assert len(sol.grid) == 3
    remade = SampleGrid.of([sol.grid[b] for b in range(3)])
    assert torch.equal(case.solve(stepsize=remade).ys, sol.ys)
    shared = case.solve(stepsize=sol.grid[2])  # a grid of one for all
    assert torch.equal(shared.ys[:, 2], sol.ys[:, 2])
    with pytest.raises(errors.InvalidValueError, match="replay it with batch=0"):
        case.solve(stepsize=sol.grid, batch=None)
    with pytest.raises(
        errors.InvalidValueError, match="3 samples and 3 segments, the solve has 3 and 1"
    ):
        odegrad.solve(van_der_pol, case.y0, [0.0, 1.0], (case.mu,), stepsize=sol.grid, batch=0)
    clock = SampleClock(sol.grid, case.ts.detach().expand(3, -1))
    assert clock.step(sol.grid.n_steps - 1)[1].isnan().sum() == 2


def test_stats():
    case = Stiffness()
    stats = case.solve().stats
    assert stats.as_dict()["accepted_by_sample"] == stats.accepted_by_sample.tolist()
    assert stats.accepted == sum(stats.as_dict()["accepted_by_sample"])


def test_callback_sees_every_round():
    case, seen = Stiffness(), []
    sol = case.solve(callback=seen.append, gradient=odegrad.Discrete(odegrad.Binomial(3)))
    case.gradient(sol)
    forward = [x for x in seen if x.phase == "forward"]
    backward = [x for x in seen if x.phase == "backward"]
    assert [x.n for x in forward] == list(range(sol.grid.n_steps))
    assert [x.n for x in backward] == list(reversed(range(sol.grid.n_steps)))
    assert forward[0].t.shape == forward[0].dt.shape == (5,)
    assert forward[-1].dt.isnan().any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": 1}, errors.InvalidValueError, "batch must be None, 0 .* or Samples.*received 1"),
        ({"batch": True}, errors.InvalidValueError, "received True"),
        ({"batch": "0"}, errors.InvalidValueError, "received '0'"),
        ({"batch": odegrad.Samples}, errors.InvalidTypeError, "received the class"),
        ({"gradient": odegrad.Backsolve()}, errors.InvalidValueError, "received Backsolve"),
        ({"gradient": odegrad.Quadrature()}, errors.InvalidValueError, "received Quadrature"),
        ({"gradient": odegrad.Tangent()}, errors.InvalidValueError, "received Tangent"),
        ({"gradient": odegrad.Discrete(memory="1KiB")}, errors.MemoryBudgetError, "1.0 KiB is too"),
        ({"gradient": odegrad.Discrete(odegrad.Rewind())}, errors.InvalidValueError, "Rewind"),
        ({"loss_at": lambda j, y, mu: y}, errors.InvalidTypeError, "one real number"),
        ({"loss_at": 3}, errors.InvalidTypeError, "loss_at must be callable"),
        ({"loss_at": lambda j, y, mu: y.sum(), "land": False}, errors.InvalidValueError, "loss_at needs"),
        ({"breakpoints": [math.nan]}, errors.InvalidValueError, "breakpoints must be finite"),
        ({"land": "yes"}, errors.InvalidTypeError, "land must be True, False or None"),
        (ADAMS, errors.InvalidValueError, "Adams"),
        ({"scheme": odegrad.RK4()}, errors.InvalidValueError, "no error estimate"),
        ({"ts": torch.zeros(3, 2)}, errors.InvalidValueError, "times for 3 samples .* y0 has 5"),
        ({"ts": torch.zeros(5, 2, 2)}, errors.InvalidValueError, r"\[T\] or \[B, T\]"),
        ({"ts": torch.zeros(5, 0)}, errors.InvalidValueError, "T ≥ 1"),
        ({"ts": [[0.0, 1.0, 0.5]] * 5}, errors.InvalidValueError, r"direction: ts\[0, 1\] = 1.0"),
        ({"ts": [0.0, 1.0, 0.5]}, errors.InvalidValueError, r"direction: ts\[1\] = 1.0"),
        ({"ts": [[0.0, math.nan]] * 5}, errors.NonFiniteInputError, r"ts\[0, 1\] is nan"),
        ({"ts": "now"}, errors.InvalidTypeError, "ts must be a tensor"),
        ({"y0": torch.zeros(())}, errors.InvalidValueError, "y0 has no dimension"),
        ({"y0": [torch.zeros(5), torch.zeros(4)]}, errors.InvalidValueError, r"has 5, y0\[1\] has 4"),
        ({"y0": torch.full((5, 2), math.inf)}, errors.NonFiniteInputError, "infinite"),
        ({"running": lambda t, y, mu: y.sum()}, errors.InvalidValueError, r"shape \[5\]; it returned"),
    ],
    ids=lambda x: "",
)  # fmt: skip
def test_what_does_not_go(options, error, message):
    case = Stiffness()
    given = {"batch": 0, "y0": case.y0, "ts": case.ts, **options}
    y0, ts = given.pop("y0"), given.pop("ts")
    with pytest.raises(error, match=message):
        odegrad.solve(van_der_pol, y0, ts, (case.mu,), **given)


def test_vmap_is_refused():
    case = Stiffness()
    with pytest.raises(
        errors.GradientUnavailableError, match=r"batch does not go under torch.func.vmap"
    ):
        torch.func.vmap(lambda mu: case_ys(case, mu))(case.mu[None])


def case_ys(case, mu):
    return odegrad.solve(van_der_pol, case.y0, case.ts, (mu,), batch=0).ys


def test_without_a_batch_dimension_of_two_dimensional_times():
    with pytest.raises(errors.InvalidValueError, match=r"shape \[T\]"):
        odegrad.solve(lambda t, y: -y, torch.ones(2, 1), torch.zeros(2, 2))
