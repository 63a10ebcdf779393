"""Memory budgets with steps for each sample: peaks, gradients, refusals."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import leaf, relative
from odegrad import PID, Discrete, Dopri5, Fixed, Heun, Samples, Steps, Tape, Tsit5
from odegrad.allocations import peak_bytes
from odegrad.errors import MemoryBudgetError
from odegrad.gradients import rehearsal

CPU = torch.device("cpu")
TIMES = torch.linspace(0.0, 2.0, 4, dtype=torch.float64)
ROWS = TIMES * torch.linspace(0.5, 1.0, 16, dtype=torch.float64)[:, None]


class Problem:
    """A network whose samples go at different speeds."""

    def __init__(self, size: int = 16, width: int = 96) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(32, width), nn.Tanh(), nn.Linear(width, 32)).double()
        self.rate = torch.linspace(0.2, 3.0, size, dtype=torch.float64)[:, None].requires_grad_()
        self.y0 = torch.randn(size, 32, dtype=torch.float64).requires_grad_()

    def f(self, t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return rate * self.net(y)

    def gradient(
        self, gradient: Any, ts: Tensor = TIMES, **options: Any
    ) -> tuple[list[Tensor], Any]:
        """The gradient, and the solution."""
        options = {"batch": 0} | options
        sol = odegrad.solve(self.f, self.y0, ts, (self.rate,), gradient=gradient, **options)
        value = sol.loss if sol.ys is None else sol.ys[:, sol.succeeded].square().sum()
        if sol.running is not None:
            value = value + sol.running.sum()
        inputs = [self.y0, self.rate, *self.net.parameters()] + [ts] * ts.requires_grad
        return list(torch.autograd.grad(value, inputs)), sol


CASES: dict[str, dict[str, Any]] = {
    "read": {"scheme": Tsit5(), "stepsize": PID(1e-5, 1e-6)},
    "samples": {"scheme": Dopri5(), "stepsize": PID(1e-4, 1e-5), "batch": Samples((0,))},
    "landing": {"scheme": Tsit5(), "stepsize": PID(1e-4, 1e-5), "land": True},
    "rows": {"ts": ROWS.clone().requires_grad_(), "stepsize": PID(1e-4, 1e-5)},
    "fixed": {"scheme": odegrad.RK4(), "stepsize": Steps(30)},
    "fixed samples": {"scheme": Heun(), "stepsize": Fixed(0.05), "batch": Samples((0,))},
    "losses": {"stepsize": PID(1e-4, 1e-5), "loss_at": lambda j, y, *a: y.square().sum() * (j + 1)},
    "cost": {"stepsize": PID(1e-4, 1e-5), "running": lambda t, y, *a: y.square().sum(1)},
    "breakpoints": {"stepsize": PID(1e-4, 1e-5), "breakpoints": (0.3, 1.1)},
    "reversible": {"scheme": odegrad.ReversibleHeun(), "stepsize": PID(1e-3, 1e-4)},
    "many reads": {"ts": torch.linspace(0, 2, 60).double(), "stepsize": PID(1e-3, 1e-4)},
}


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    rehearsal._KNOWN.clear()


FEW = [("read", 1.3), ("fixed samples", 0.8), ("fixed samples", 3.0), ("breakpoints", 1.3)]
"""The others take long."""


@pytest.mark.parametrize(
    ("case", "share"),
    [
        pytest.param(*x, marks=() if x in FEW else pytest.mark.exhaustive)
        for x in itertools.product(CASES, [0.8, 1.3, 3.0])
    ],
)
def test_a_budget_is_kept_to_or_refused(case: str, share: float) -> None:
    problem, options = Problem(), CASES[case]
    budget = int(share * peak_bytes(lambda: problem.gradient(Discrete(), **options), CPU))
    gradient = Discrete(memory=budget)
    try:
        cold = peak_bytes(lambda: problem.gradient(gradient, **options), CPU)
    except MemoryBudgetError:
        assert share < 1.3
        return
    found, sol = problem.gradient(gradient, **options)
    warm = peak_bytes(lambda: problem.gradient(gradient, **options), CPU)
    assert warm <= budget
    assert cold <= budget
    expected, _ = problem.gradient(Tape(), **(options | {"stepsize": sol.grid}))
    assert relative(found, expected) <= 1e-12


@pytest.mark.parametrize("case", ["read", "fixed"])
def test_too_little_is_refused_and_what_is_asked_for_suffices(case: str) -> None:
    problem, options = Problem(), CASES[case]

    def refusal(memory: str) -> str:
        try:
            problem.gradient(Discrete(memory=memory), **options)
        except MemoryBudgetError as error:
            return str(error)
        return ""

    memory, refusals = "20KB", 0
    while message := refusal(memory):  # for the search, and for the gradient
        found = re.search(r"needs (?:at least )?([\d.]+) (KiB|MiB)", message)
        assert found is not None, message
        memory, refusals = f"{found[1]}{found[2]}", refusals + 1
        assert refusals <= 3
    assert refusals


def test_a_search_that_finds_too_many_steps_is_ended() -> None:
    speed = torch.linspace(1.0, 9.0, 16, dtype=torch.float64, requires_grad=True)
    calls = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return speed[:, None] * torch.stack([y[:, 1], -y[:, 0]], 1)

    y0, control = torch.ones(16, 2, dtype=torch.float64), PID(1e-9, 1e-9)
    options: dict[str, Any] = {"stepsize": control, "batch": 0}
    n = odegrad.solve(f, y0, [0.0, 40.0], **options).grid.n_steps
    calls.clear()
    with pytest.raises(MemoryBudgetError, match=r"after (\d+) rounds .* and \d+ are") as caught:
        odegrad.solve(f, y0, [0.0, 40.0], gradient=Discrete(memory="200KiB"), **options)
    rounds = re.search(r"after (\d+) rounds", str(caught.value))
    assert rounds is not None
    assert int(rounds[1]) < n
    assert len(calls) < 7 * n
    with pytest.raises(MemoryBudgetError, match=r"the steps of the samples .* MiB; the rest"):
        odegrad.plan(f, y0, [0.0, 40.0], gradient=Discrete(memory="4MiB"), **options)
    plan = odegrad.plan(
        f, y0, [0.0, 40.0], gradient=Discrete(memory="16MiB"), show=False, **options
    )
    assert plan.n_steps == n


@pytest.mark.parametrize("memory", ["60KiB", "1MiB"])
def test_random_fields_draw_the_same_again(memory: str) -> None:
    net, drop = nn.Linear(2, 2).double(), nn.Dropout(0.3)
    found = []
    for gradient in (Discrete(memory=memory), Tape()):
        torch.manual_seed(3)
        y0 = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
        options: dict[str, Any] = {"stepsize": Steps(20), "batch": 0, "gradient": gradient}
        sol = odegrad.solve(lambda t, y: drop(net(y)), y0, [0.0, 0.5, 1.0], **options)
        found.append([sol.ys.detach(), *torch.autograd.grad(sol.ys.sum(), [y0, *net.parameters()])])
        found[-1].append(torch.rand(1))  # what comes next
    assert relative(*found) <= 1e-12


@pytest.mark.parametrize("case", ["read", "fixed samples"])
def test_the_plan_is_what_is_done(case: str) -> None:
    problem, options = Problem(), {"batch": 0} | CASES[case]
    gradient = Discrete(memory="2MiB")
    args = (problem.f, problem.y0, TIMES, (problem.rate,))
    plan = odegrad.plan(*args, gradient=gradient, show=False, **options)
    _, sol = problem.gradient(gradient, **options)
    assert plan.n_steps == sol.grid.n_steps
    assert plan.peak_bytes is not None
    assert sol.stats.peak_bytes <= plan.peak_bytes <= 2**21
    peak = peak_bytes(lambda: problem.gradient(Discrete(plan.checkpoints), **options), CPU)
    assert peak <= plan.peak_bytes
    many = odegrad.plan(*args, gradient=gradient, show=False, n_steps=40, **options)
    assert many.n_steps == (40 if case == "read" else plan.n_steps)


@pytest.mark.parametrize("stepsize", [PID(1e-4, 1e-5), Steps(20)])
def test_samples_that_fail(stepsize: Any) -> None:
    problem = Problem()
    net = problem.net

    def f(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return torch.where(rate > 2.9, 40.0 * y * y, rate * net(y))

    problem.f = f  # pyright: ignore[reportAttributeAccessIssue]
    options: dict[str, Any] = {"stepsize": stepsize, "on_failure": "nan"}
    expected, sol = problem.gradient(Discrete(), **options)
    assert sol.succeeded.tolist() == [True] * 15 + [False]
    budget = 2 * peak_bytes(lambda: problem.gradient(Discrete(), **options), CPU)
    found, sol = problem.gradient(Discrete(memory=budget), **options)
    assert sol.succeeded.tolist() == [True] * 15 + [False]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert peak_bytes(lambda: problem.gradient(Discrete(memory=budget), **options), CPU) <= budget


def test_a_search_through_many_times_is_measured_with_them() -> None:
    """What one through few times of the same f needs is no guide."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y

    def solve(count: int, memory: str) -> odegrad.SampleSolution:
        y0, ts = leaf(16, 3), torch.linspace(0.0, 1.0, count, dtype=torch.float64)
        gradient = odegrad.Discrete(memory=memory)
        control = odegrad.PID(1e-4, 1e-4)
        return odegrad.solve(f, y0, ts, batch=0, stepsize=control, gradient=gradient)

    assert solve(5, "64MiB").succeeded.all()
    with pytest.raises(MemoryBudgetError, match="the search for the steps"):
        solve(4000, "8MiB")
