"""The entry: bad input, failures, adaptive behaviour, statistics, watching, the module."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor, nn

import odegrad
from cases import GRAPHS, autonomous, leaf, mlp, relative, time_dependent
from odegrad import Discrete, Every, Steps, Tape, errors

ONE = torch.ones(2, dtype=torch.float64)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


BAD_INPUTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("f", {"f": 3}, TypeError, "f must be callable"),
    ("y0 list of floats", {"y0": [1.0, 2.0]}, TypeError, r"y0\[0\] must be a tensor"),
    ("y0 integer", {"y0": torch.ones(2, dtype=torch.int64)}, TypeError, r"pass y0.float\(\)"),
    ("y0 empty tree", {"y0": ()}, ValueError, "holds no tensor"),
    ("y0 nan", {"y0": torch.tensor([1.0, float("nan")])}, ValueError, r"first at index \[1\]"),
    ("y0 inf", {"y0": {"q": torch.tensor([float("inf")])}}, ValueError, r"y0\['q'\] has 1 values"),
    ("ts string", {"ts": "now"}, TypeError, "1-D tensor or a sequence"),
    ("ts scalar", {"ts": torch.tensor(1.0)}, ValueError, r"shape \[T\]"),
    ("ts empty", {"ts": []}, ValueError, r"shape \[T\]"),
    ("ts 2-D", {"ts": torch.zeros(2, 2)}, ValueError, r"received shape \[2, 2\]"),
    ("ts nan", {"ts": [0.0, float("nan")]}, ValueError, r"ts\[1\] is nan"),
    ("ts turns", {"ts": [0.0, 2.0, 1.0]}, ValueError, r"ts\[1\] = 2.0, ts\[2\] = 1.0"),
    ("ts complex", {"ts": torch.zeros(2, dtype=torch.complex64)}, TypeError, "must be real"),
    ("args not a tuple", {"args": ONE}, TypeError, r"write args=\(x,\)"),
    ("scheme string", {"scheme": "dopri5"}, TypeError, r"write scheme=odegrad.Dopri5\(\)"),
    ("scheme class", {"scheme": odegrad.RK4}, TypeError, "received the class RK4"),
    ("scheme other", {"scheme": 4}, TypeError, "scheme must be an object"),
    ("stepsize number", {"stepsize": 0.1}, TypeError, r"Fixed\(0.1\)"),
    ("gradient class", {"gradient": Discrete}, TypeError, "received the class Discrete"),
    ("no error estimate", {"scheme": odegrad.RK4()}, ValueError, "has no error estimate"),
    ("max_steps", {"max_steps": 0}, ValueError, "positive int"),
    ("grid of other length", {"stepsize": odegrad.Grid(())}, ValueError, "0 segments but ts has 1"),
    ("running", {"running": lambda t, y: 1.0}, TypeError, "running must return one real tensor"),
    (
        "f broadcasts",
        {"f": lambda t, y: y[:1]},
        ValueError,
        r"shape \[1\] where the state is \[2\]",
    ),
    ("f None", {"f": lambda t, y: None}, ValueError, "must return tensors"),
    ("f integer", {"f": lambda t, y: y.long()}, ValueError, "floating-point derivative"),
    ("f complex", {"f": lambda t, y: y * 1j}, ValueError, "make the initial state complex"),
    ("f in place", {"f": lambda t, y: y.mul_(2)}, ValueError, "changed its argument y in place"),
]


@pytest.mark.parametrize(
    ("change", "kind", "message"), [c[1:] for c in BAD_INPUTS], ids=[c[0] for c in BAD_INPUTS]
)
@pytest.mark.parametrize("grad", [False, True])
def test_bad_input(change: dict[str, Any], kind: Any, message: str, grad: bool) -> None:
    y0 = ONE.clone()
    call: dict[str, Any] = {"f": decay, "y0": y0, "ts": [0.0, 1.0], **change}
    state = torch.get_rng_state()
    with torch.set_grad_enabled(grad), pytest.raises(kind, match=message) as info:
        odegrad.solve(call.pop("f"), call.pop("y0"), call.pop("ts"), call.pop("args", ()), **call)
    assert isinstance(info.value, errors.OdegradError)
    assert torch.equal(y0, ONE)
    assert torch.equal(state, torch.get_rng_state())


def test_wider_result_is_rounded_with_one_warning() -> None:
    with pytest.warns(errors.OdegradWarning, match="rounded to the state's dtype") as record:
        sol = odegrad.solve(lambda t, y: -y.double(), torch.ones(2), [0.0, 1.0])
    assert len(record) == 1
    assert sol.ys.dtype == torch.float32


def test_exceptions_of_f_pass_through() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        odegrad.solve(f, ONE, [0.0, 1.0])


# Failures of the solve itself.


def test_blow_up() -> None:
    """y' = y² from 1 is infinite at t = 1."""
    with pytest.raises(errors.StepTooSmallError, match=r"at t = (0\.99|1)"):
        odegrad.solve(lambda t, y: y * y, torch.ones(1, dtype=torch.float64), [0.0, 2.0])


def test_f_out_of_its_domain() -> None:
    """The square root of a negative number, and no smaller step helps."""
    with pytest.raises(errors.NonFiniteDerivativeError, match=r"at t = 1"):
        odegrad.solve(lambda t, y: torch.sqrt(1 - t) * torch.ones_like(y) + 0 * y, ONE, [0.0, 2.0])


def test_max_steps() -> None:
    with pytest.raises(errors.MaxStepsError, match="7 steps attempted") as info:
        odegrad.solve(lambda t, y: torch.cos(50 * t) * y, ONE, [0.0, 10.0], max_steps=7)
    assert isinstance(info.value, RuntimeError)
    with pytest.raises(errors.MaxStepsError, match="the grid has 100 steps"):
        odegrad.solve(decay, ONE, [0.0, 1.0], stepsize=odegrad.Fixed(0.01), max_steps=99)


def test_fixed_steps_that_diverge() -> None:
    call: Any = {"scheme": odegrad.Euler(), "stepsize": Steps(1000)}
    with pytest.raises(errors.NonFiniteStateError, match=r"ts\[1\] = 1"):
        odegrad.solve(lambda t, y: -1e6 * y, ONE, [0.0, 1.0], **call)
    sol = odegrad.solve(lambda t, y: -1e6 * y, ONE, [0.0, 1.0], check_finite=False, **call)
    assert not bool(torch.isfinite(sol.ys[-1]).any())


def test_second_derivative_of_backsolve_is_refused() -> None:
    problem = autonomous()
    ys = odegrad.solve(problem.f, problem.y0, [0.0, 1.0], gradient=odegrad.Backsolve()).ys
    (grad,) = torch.autograd.grad(ys.sum(), problem.y0_leaves, create_graph=True)
    with pytest.raises(errors.GradientUnavailableError, match="Backsolve has no second derivative"):
        torch.autograd.grad(grad.sum(), problem.y0_leaves)


def test_checks_survive_python_O() -> None:
    code = (
        "import odegrad, torch\n"
        "try:\n"
        "    odegrad.solve(lambda t, y: y, torch.ones(1), [0.0, 2.0, 1.0])\n"
        "except odegrad.errors.InvalidValueError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused\n"


# Adaptive solves.


@pytest.mark.parametrize("scheme", [odegrad.Bosh3(), odegrad.Tsit5(), odegrad.Dopri8()])
@pytest.mark.parametrize("gains", [{}, {"p": 0.4, "i": 0.3}, {"p": 0.2, "i": 0.4, "d": 0.1}])
def test_adaptive_solution_against_scipy(scheme: Any, gains: dict[str, float]) -> None:
    """The Lotka–Volterra orbit to 1e-6 beside DOP853 at 1e-12."""
    ts = [0.0, 3.0, 10.0]

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[0] - y[0] * y[1], y[0] * y[1] - y[1]])

    y0 = torch.tensor([1.5, 0.5], dtype=torch.float64)
    pid = odegrad.PID(rtol=1e-8, atol=1e-8, **gains)
    sol = odegrad.solve(f, y0, ts, scheme=scheme, stepsize=pid)
    reference = scipy.integrate.solve_ivp(
        lambda t, y: [y[0] - y[0] * y[1], y[0] * y[1] - y[1]],
        (0, 10),
        y0.numpy(),
        "DOP853",
        t_eval=ts,
        rtol=1e-12,
        atol=1e-12,
    )
    np.testing.assert_allclose(sol.ys.numpy(), reference.y.T, atol=1e-6)


def test_rejected_steps_and_limits() -> None:
    """A forcing that switches on quickly makes the controller reject; dt_max holds."""
    sizes: list[float] = []
    sol = odegrad.solve(
        lambda t, y: torch.tanh(200 * (t - 1)) - y,
        ONE,
        [0.0, 2.0],
        scheme=odegrad.Dopri5(),
        stepsize=odegrad.PID(1e-6, 1e-6, dt_max=0.2, dt0=0.2),
        callback=lambda info: sizes.append(info.dt),
    )
    assert sol.stats.rejected > 0
    assert sol.stats.accepted == len(sizes) == sol.grid.n_steps
    assert max(sizes) <= 0.2 + 1e-12
    with pytest.raises(errors.StepTooSmallError, match=r"below 0\.1"):
        odegrad.solve(
            lambda t, y: torch.tanh(200 * (t - 1)) - y,
            ONE,
            [0.0, 2.0],
            stepsize=odegrad.PID(1e-6, 1e-6, dt_min=0.1, dt0=0.2),
        )


def test_a_recorded_grid_replays_bitwise_and_round_trips() -> None:
    problem = time_dependent()
    sol = odegrad.solve(problem.f, problem.y0, [0.0, 0.7, 1.0], problem.args)
    from odegrad.grid import Grid, Nodes, Uniform

    grid = eval(repr(sol.grid), {"Grid": Grid, "Nodes": Nodes, "Uniform": Uniform})
    again = odegrad.solve(problem.f, problem.y0, [0.0, 0.7, 1.0], problem.args, stepsize=grid)
    assert torch.equal(sol.ys, again.ys)
    assert again.stats.rejected == 0
    stretched = odegrad.solve(problem.f, problem.y0, [0.0, 0.8, 1.0], problem.args, stepsize=grid)
    assert stretched.grid == sol.grid


def test_float32_and_a_recorded_grid() -> None:
    net = mlp().float()
    y0 = leaf(4, 3).detach().float().requires_grad_()
    results = []
    for gradient in (Tape(), Discrete(), Discrete(Every(4))):
        ts = torch.tensor([0.0, 0.3, 1.0], requires_grad=True)
        ys = odegrad.solve(lambda t, y: net(y) * t, y0, ts, gradient=gradient).ys
        results.append(list(torch.autograd.grad(ys.square().sum(), [y0, ts, *net.parameters()])))
    assert relative(results[1], results[0]) <= 1e-5
    assert relative(results[2], results[0]) <= 1e-5


# Backsolve.


@pytest.mark.parametrize("times", [(0.0, 0.4, 1.0), (1.0, 0.3, -0.2)])
def test_backsolve_converges_to_the_true_gradient(times: Any) -> None:
    problem = time_dependent()
    exact, _ = problem.gradient(Tape(), odegrad.Dopri8(), odegrad.PID(1e-12, 1e-12), times)
    found, _ = problem.gradient(
        odegrad.Backsolve(), odegrad.Dopri8(), odegrad.PID(1e-12, 1e-12), times
    )
    assert relative(found, exact) <= 1e-9


def test_backsolve_is_inconsistent_with_the_loss_at_the_order_of_the_scheme() -> None:
    differences = []
    for n in (50, 100):
        problem = time_dependent()
        exact, _ = problem.gradient(Tape(), odegrad.Euler(), Steps(n))
        found, sol = problem.gradient(odegrad.Backsolve(), odegrad.Euler(), Steps(n))
        on_grid, _ = problem.gradient(odegrad.Backsolve(), odegrad.Euler(), sol.grid)
        assert relative(on_grid, found) == 0.0
        differences.append(relative(found, exact))
    assert differences[1] > 1e-4
    assert np.log2(differences[0] / differences[1]) == pytest.approx(1.0, abs=0.1)


# Parameters and captured tensors.


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_unused_parameters_get_zeros_and_frozen_ones_nothing(gradient: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = (nn.Linear(3, 3).double() for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.frozen(self.used(y))

    net = Net()
    odegrad.solve(net, leaf(4, 3), [0.0, 1.0], gradient=gradient).ys.sum().backward()
    assert net.unused.weight.grad is not None
    assert float(net.unused.weight.grad.abs().max()) == 0.0
    assert net.frozen.weight.grad is None
    assert net.used.weight.grad is not None


def test_a_tensor_that_cannot_be_found_raises() -> None:
    made: list[Tensor] = []

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, w = ctx.saved_tensors
            return grad * w, (grad * x).sum()

    def f(t: Tensor, y: Tensor) -> Tensor:
        if not made:
            return -y
        return Hidden.apply(y, made[0])

    y0 = leaf(3)
    made_later = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    ys = odegrad.solve(f, y0, [0.0, 1.0], stepsize=Steps(2)).ys
    made.append(made_later)
    with pytest.raises(errors.UnreachableTensorError, match="requires grad"):
        ys.sum().backward()


def test_gradient_wanted_of_y0_alone_leaves_parameters_alone() -> None:
    problem = autonomous()
    ys = odegrad.solve(problem.f, problem.y0, [0.0, 1.0]).ys
    torch.autograd.grad(ys.sum(), problem.y0_leaves)
    assert all(p.grad is None and p.requires_grad for p in problem.others)


# Statistics, callbacks, progress.


def test_statistics_count_exactly() -> None:
    problem = autonomous()
    sol = odegrad.solve(
        problem.f,
        problem.y0,
        [0.0, 1.0],
        scheme=odegrad.RK4(),
        stepsize=Steps(10),
        gradient=Discrete(Every(5)),
    )
    assert sol.stats.as_dict() == {
        "accepted": 10,
        "rejected": 0,
        "f_evaluations": 40,
        "forward_evaluations": 40,
        "vjps": 0,
        "recomputed": 0,
        "kept_bytes": (1 + 5) * 4 * 3 * 8,  # a state, and the last block
        "disk_bytes": 0,
        "rewind_error": None,
        "working_bytes": None,
        "peak_bytes": None,
    }
    sol.ys.sum().backward()
    assert sol.stats.vjps == 40
    assert sol.stats.recomputed == 4
    assert sol.stats.f_evaluations == 40 + 40 + 4 * 4
    assert sol.stats.recompute_factor == 2.4
    assert sol.status is odegrad.Status.SUCCESS


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_callback_sees_both_sweeps(gradient: Any) -> None:
    infos: list[odegrad.StepInfo] = []
    problem = autonomous()
    y0 = {"x": problem.y0}
    sol = odegrad.solve(
        lambda t, y: {"x": problem.f(t, y["x"])},
        y0,
        [0.0, 1.0],
        stepsize=Steps(3),
        gradient=gradient,
        callback=infos.append,
    )
    sol.ys["x"].sum().backward()
    assert [(i.phase, i.n) for i in infos] == [
        ("forward", 0),
        ("forward", 1),
        ("forward", 2),
        ("backward", 2),
        ("backward", 1),
        ("backward", 0),
    ]
    assert infos[1].t == pytest.approx(1 / 3)
    assert torch.equal(infos[2].y["x"], sol.ys["x"][-1])
    assert torch.equal(infos[5].y["x"], problem.y0)
    assert not infos[0].y["x"].requires_grad


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_progress_bars(gradient: Any) -> None:
    text = io.StringIO()
    problem = autonomous()
    with redirect_stderr(text):
        sol = odegrad.solve(
            problem.f, problem.y0, [0.0, 2.0], stepsize=Steps(3), progress=True, gradient=gradient
        )
        sol.ys.sum().backward()
    assert "forward: 100%" in text.getvalue()
    assert "backward: 100%" in text.getvalue()


# The module, and choices as values.


class WithTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.linear(y) * t


def test_neural_ode_module() -> None:
    for net in (WithTime(), nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh())):
        model = odegrad.NeuralODE(net, scheme=odegrad.RK4(), stepsize=Steps(2))
        y0 = torch.ones(5, 3)
        ys = model(y0, [0.0, 1.0])
        assert ys.shape == (2, 5, 3)
        assert "RK4()" in repr(model)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(y0, [0.0, 1.0]), ys)
        assert set(model.state_dict()) == {f"net.{k}" for k in net.state_dict()}
        ys.sum().backward()
        assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    "choice",
    [
        odegrad.Tsit5(),
        Steps(3),
        odegrad.Fixed(0.1),
        odegrad.PID(p=0.2),
        Discrete(Every(3)),
        GRAPHS,
        Discrete(),
        Tape(),
        odegrad.Backsolve(),
    ],
)
def test_choices_are_values(choice: Any) -> None:
    names = {name: getattr(odegrad, name) for name in odegrad.__all__}
    assert eval(repr(choice), names | {"inf": float("inf")}) == choice
    assert pickle.loads(pickle.dumps(choice)) == choice
    assert copy.deepcopy(choice) == choice


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_interrupt_leaves_everything_as_it_was(gradient: Any) -> None:
    """Ctrl-C at any evaluation of either sweep; then the same solve again is right."""
    net = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)
    ).double()
    y0, countdown = leaf(4, 3), [10**9]

    def f(t: Tensor, y: Tensor) -> Tensor:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise KeyboardInterrupt
        return net(y)

    def gradients() -> list[Tensor]:
        ys = odegrad.solve(
            f, y0, [0.0, 1.0], scheme=odegrad.Bosh3(), stepsize=Steps(2), gradient=gradient
        ).ys
        return list(torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()]))

    start = copy.deepcopy(net.state_dict())
    torch.manual_seed(0)
    expected = gradients()
    total = 10**9 - countdown[0]
    for at in range(1, total + 1):
        net.load_state_dict(start)
        torch.manual_seed(0)
        countdown[0] = at
        with pytest.raises(KeyboardInterrupt):
            gradients()
        assert torch.is_grad_enabled()
        assert all(p.grad is None and p.requires_grad for p in net.parameters())
    net.load_state_dict(start)
    torch.manual_seed(0)
    countdown[0] = 10**9
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))


def test_rejected_attempts_leave_no_trace_in_buffers_and_generators() -> None:
    """Only accepted steps count: 6 evaluations each and 1 at the start, for Dopri5."""
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    y0 = torch.randn(5, 2, dtype=torch.float64)
    sol = odegrad.solve(
        lambda t, y: 5 * net(y) * torch.tanh(50 * (t - 0.5)),
        y0,
        [0.0, 1.0],
        scheme=odegrad.Dopri5(),
        stepsize=odegrad.PID(1e-3, 1e-3, dt0=0.5),
    )
    assert sol.stats.rejected > 0
    assert int(net[1].num_batches_tracked) == 6 * sol.stats.accepted + 1


def test_the_callers_state_is_never_handed_to_f() -> None:
    y0 = ONE.clone()
    with torch.no_grad(), pytest.raises(errors.FieldOutputError, match="in place"):
        odegrad.solve(lambda t, y: y.mul_(2), y0, [0.0, 1.0], stepsize=Steps(2))
    assert torch.equal(y0, ONE)


def test_a_step_cut_short_by_a_time_does_not_shorten_the_next() -> None:
    plain = odegrad.solve(decay, ONE, [0.0, 5.0]).stats.accepted
    times = [0.0, 2.5, 2.5 + 1e-7, 5.0]
    cut = odegrad.solve(decay, ONE, times, land=True).stats.accepted
    assert plain < cut <= plain + 3


class Scripted(odegrad.PID):
    """The first attempt is 25 times over the tolerance, all others are within."""

    def scaled_norm(self, x: Any, y0: Any, y1: Any) -> Tensor:
        first, attempts[0] = attempts[0] == 0, attempts[0] + 1
        return torch.tensor(25.0 if first else 0.5)


attempts = [0]


def test_the_smallest_step_allowed_is_tried() -> None:
    """0.2 is rejected, and 0.9 · 25^(−1/5) · 0.2 < 0.1 is wished for: 0.1 gets its try."""
    attempts[0] = 0
    sol = odegrad.solve(
        decay, ONE, [0.0, 1.0], scheme=odegrad.Dopri5(), stepsize=Scripted(dt0=0.2, dt_min=0.1)
    )
    assert sol.stats.rejected == 1
    assert sol.grid.times([0.0, 1.0])[1] == pytest.approx(0.1)


def test_a_module_may_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from odegrad.compiled import Programs, using_backend

    net, y0 = torch.nn.Linear(2, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    made: list[object] = []
    march = Programs.march
    monkeypatch.setattr(Programs, "march", lambda self, *a: made.append(self) or march(self, *a))
    results = []
    for compiled in (True, False):
        model = odegrad.NeuralODE(net, stepsize=odegrad.Steps(4), compile=compiled)
        with using_backend("interpreter"):
            ys = model(y0, [0.0, 1.0])
            results.append([ys, *torch.autograd.grad(ys.square().sum(), net.parameters())])
        assert ("compile=True" in repr(model)) is compiled
        assert len(made) == 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
