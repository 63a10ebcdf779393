"""Memory budgets: what they may be, that plans come true, and that planning leaves no trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import autonomous, leaf, loss, mlp, relative
from odegrad import (
    PID,
    Binomial,
    Blockwise,
    Discrete,
    Every,
    Keep,
    Online,
    Share,
    Steps,
    StoreAll,
    Tape,
)
from odegrad.allocations import peak_bytes, traced_peak_bytes
from odegrad.budget import budget_bytes, free_bytes, size
from odegrad.checkpoints import Tiered
from odegrad.errors import (
    InvalidTypeError,
    InvalidValueError,
    MemoryBudgetError,
)
from odegrad.gradients import rehearsal

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    """Every test rehearses for itself."""
    rehearsal._KNOWN.clear()


# Sizes.


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (1, 1),
        (12345678901, 12345678901),
        ("1", 1),
        ("17B", 17),
        ("256MiB", 256 * MIB),
        (" 256 MiB ", 256 * MIB),
        ("1.5KiB", 1536),
        ("2kB", 2000),
        ("2KB", 2000),
        ("3MB", 3_000_000),
        ("0.5GiB", MIB * 512),
        ("4GB", 4 * 10**9),
        ("1TiB", 1 << 40),
        ("1TB", 10**12),
    ],
)
def test_sizes(memory: int | str, expected: int) -> None:
    assert budget_bytes(memory, CPU) == expected
    assert Discrete(memory=memory).memory == memory


@pytest.mark.parametrize(
    ("memory", "error"),
    [
        (0, InvalidValueError),
        (-1, InvalidValueError),
        ("0MiB", InvalidValueError),
        ("-3MiB", InvalidValueError),
        ("", InvalidValueError),
        ("MiB", InvalidValueError),
        ("3 lots", InvalidValueError),
        ("3mib", InvalidValueError),
        ("3MiB 4", InvalidValueError),
        ("1e9", InvalidValueError),
        ("0.5B", InvalidValueError),
        (True, InvalidTypeError),
        (1.5, InvalidTypeError),
        ([1], InvalidTypeError),
        (Share, InvalidTypeError),
    ],
)
def test_what_is_no_size(memory: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="memory"):
        Discrete(memory=memory)


def test_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    for fraction in (0.0, -0.5, 1.01, float("nan"), float("inf")):
        with pytest.raises(InvalidValueError, match="fraction"):
            Share(fraction)
    for wrong in (True, "half", None):
        with pytest.raises(InvalidTypeError, match="number"):
            Share(wrong)  # type: ignore[arg-type]
    monkeypatch.setattr("odegrad.budget.free_bytes", lambda device: 10 * MIB)
    assert budget_bytes(Share(0.25), CPU) == 2.5 * MIB
    plan = plan_of(Discrete(memory=Share(1)))
    assert plan.budget == 10 * MIB
    monkeypatch.setattr("odegrad.budget.free_bytes", lambda device: 4096)
    with pytest.raises(MemoryBudgetError):
        plan_of(Discrete(memory=Share(1)))


def test_free_bytes() -> None:
    free = free_bytes(CPU)
    assert isinstance(free, int)
    assert 1 << 20 < free < 1 << 50


def test_sizes_for_people() -> None:
    assert [size(x) for x in (0, 1023, 1024, 1.5 * MIB, 1 << 45)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "32.0 TiB",
    ]


@pytest.mark.parametrize("wrong", [Binomial, "Binomial", 8])
def test_what_is_no_schedule(wrong: Any) -> None:
    with pytest.raises(InvalidTypeError, match="must be a schedule"):
        Discrete(wrong)


# Fields whose steps take much more than the interpreter notices.


def perceptron(width: int = 32, batch: int = 256, dim: int = 16) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, dim))
    return net, torch.randn(batch, dim, requires_grad=True)


def wide() -> tuple[nn.Module, Tensor]:
    """Many parameters, little else: the sums of their gradient are most of the memory."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 512), nn.Linear(512, 8))
    return net, torch.randn(2, 8, requires_grad=True)


def convolution() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 3, padding=1))
    return net, torch.randn(1, 4, 20, 20, requires_grad=True)


FIELDS = [perceptron, wide, convolution]
FIXED: dict[str, Any] = {"scheme": odegrad.RK4(), "stepsize": Steps(36)}
FREE: dict[str, Any] = {"scheme": odegrad.Bosh3(), "stepsize": PID(1e-4, 1e-6)}
TIMES = [0.0, 1.0]


def plan_of(gradient: Any, field: Any = None, **options: Any) -> odegrad.Plan:
    net, y0 = field or perceptron()
    options = {**FIXED, **options}
    return odegrad.plan(lambda t, y: net(y), y0, TIMES, gradient=gradient, show=False, **options)


def run(gradient: Any, field: Any, options: dict[str, Any]) -> odegrad.Stats:
    """A solve and its gradient, all of which is let go."""
    net, y0 = field
    sol = odegrad.solve(lambda t, y: net(y), y0, TIMES, gradient=gradient, **options)
    torch.autograd.grad(sol.ys, [y0, *net.parameters()], torch.ones_like(sol.ys))
    return sol.stats


def peak_of(gradient: Any, field: Any, options: dict[str, Any]) -> tuple[int, odegrad.Stats]:
    """The peak of a solve and its gradient whose f was rehearsed before."""
    found = [run(gradient, field, options)]
    return peak_bytes(lambda: found.append(run(gradient, field, options)), CPU), found[-1]


SCHEDULES = [
    StoreAll(),
    StoreAll(Keep.STAGES),
    StoreAll(Keep.GRAPH),
    Every(6, Keep.GRAPH),
    Every(5),
    Binomial(3),
    Tiered(ram=1, disk=3),
    Blockwise(Binomial(2), 4, Keep.STAGES),
    Blockwise(Binomial(2), 5, Keep.GRAPH),
]


@pytest.mark.parametrize("make", FIELDS, ids=lambda x: x.__name__)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_predictions_of_fixed_steps_come_true(make: Any, schedule: Any) -> None:
    field = make()
    plan = plan_of(Discrete(schedule), field)
    peak, stats = peak_of(Discrete(schedule, memory=2**40), field, FIXED)
    assert plan.peak_bytes is not None
    on_the_way = 4 * plan.state_bytes if isinstance(schedule, Tiered) else 0  # at most
    assert 0.99 * plan.peak_bytes - on_the_way <= peak <= 1.01 * plan.peak_bytes
    assert stats.peak_bytes is not None
    assert stats.peak_bytes <= 1.01 * plan.peak_bytes
    assert stats.peak_bytes >= 0.99 * plan.peak_bytes - on_the_way
    assert stats.recompute_factor == pytest.approx(plan.recompute_factor, rel=1e-15)
    assert plan.n_steps == stats.accepted == 36
    assert bool(plan.disk_bytes) == bool(stats.disk_bytes) == isinstance(schedule, Tiered)
    state = 4 * field[1].numel()
    assert (plan.state_bytes, plan.output_bytes, plan.n_outputs) == (state, 2 * 2 * state, 2)
    if schedule.bounds(1, known=True).keep is not Keep.GRAPH:
        assert stats.kept_bytes == sum(schedule.bounds(36, known=True)[:2]) * state + (
            schedule.bounds(36, known=True).held * state
            + schedule.bounds(36, known=True).tape * plan.row_bytes
        )


@pytest.mark.parametrize("make", FIELDS, ids=lambda x: x.__name__)
@pytest.mark.parametrize(
    "schedule",
    [Binomial(3), Online(2), Tiered(ram=1, disk=2), Blockwise(Online(2), 3, Keep.GRAPH)],
    ids=str,
)
def test_predictions_of_adaptive_steps_are_bounds(make: Any, schedule: Any) -> None:
    field = make()
    plan = plan_of(Discrete(schedule), field, **FREE)
    assert (plan.n_steps, plan.recompute_factor) == (None, None)
    peak, stats = peak_of(Discrete(schedule, memory=2**40), field, FREE)
    assert plan.peak_bytes is not None
    assert peak <= 1.005 * plan.peak_bytes
    assert stats.peak_bytes is not None
    assert stats.peak_bytes <= 1.005 * plan.peak_bytes
    expected = plan_of(Discrete(schedule), field, n_steps=stats.accepted, **FREE)
    assert expected.n_steps == stats.accepted
    assert expected.recompute_factor is not None


@pytest.mark.parametrize("make", [perceptron, convolution], ids=lambda x: x.__name__)
@pytest.mark.parametrize("options", [FIXED, FREE], ids=["fixed", "adaptive"])
def test_budgets_are_kept_to(make: Any, options: dict[str, Any]) -> None:
    """From what every graph takes down to the least."""
    field = make()
    net, y0 = field
    reference = odegrad.solve(lambda t, y: net(y), y0, TIMES, gradient=Discrete(), **options)
    expected = torch.autograd.grad(reference.ys.sum(), [y0, *net.parameters()])
    ample = plan_of(Discrete(StoreAll(Keep.GRAPH)), field, **options, n_steps=36).peak_bytes
    assert ample is not None
    with pytest.raises(MemoryBudgetError) as told:
        plan_of(Discrete(memory=1000), field, **options)
    text = str(told.value).split("at least ")[1].split(". ")[0]
    number, unit = text.split(" ")
    least = int((float(number) + 0.1) * 1024 ** ("B", "KiB", "MiB").index(unit))
    assert least < ample
    for budget in (least, (2 * least + ample) // 3):
        plan = plan_of(Discrete(memory=budget), field, **options)
        assert plan.budget == budget
        peak, stats = peak_of(Discrete(memory=budget), field, options)
        assert peak <= 1.005 * budget
        assert plan.peak_bytes is not None
        assert stats.peak_bytes is not None
        assert stats.peak_bytes <= 1.001 * plan.peak_bytes <= 1.001 * budget
        sol = odegrad.solve(
            lambda t, y: net(y), y0, TIMES, gradient=Discrete(memory=budget), **options
        )
        assert sol.grid == reference.grid
        found = torch.autograd.grad(sol.ys.sum(), [y0, *net.parameters()])
        assert relative(list(found), list(expected)) <= 1e-4  # float32


@pytest.mark.exhaustive
def test_the_profiler_agrees() -> None:
    """The peak by the events of torch.profiler, a matter of its own."""
    field, gradient = convolution(), Discrete(Binomial(3), memory=2**40)
    ours, _ = peak_of(gradient, field, FIXED)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run(gradient, field, FIXED)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    assert max(itertools.accumulate(e.nbytes() for e in events)) == pytest.approx(ours, rel=0.01)


def test_peaks_by_the_other_way() -> None:
    """Without torch's profiler; what single operations need for themselves is not seen."""
    field = perceptron()
    ours, _ = peak_of(Discrete(StoreAll()), field, FIXED)
    traced = traced_peak_bytes(lambda: run(Discrete(StoreAll()), field, FIXED), CPU)
    assert traced == pytest.approx(ours, rel=0.1)
    x = torch.ones(1000)
    for peak in (peak_bytes, traced_peak_bytes):
        assert 8000 <= peak(lambda: [x + 1, x + 2], CPU) <= 8200
        assert peak(lambda: None, CPU) == 0


# Which schedule is chosen.


@pytest.mark.parametrize(
    ("n", "share"), [(7, 0.1), (12, 0.02), (12, 0.25), (12, 0.6), (13, 0.4), (30, 0.05)]
)
def test_the_choice_is_the_best_of_its_kinds(n: int, share: float) -> None:
    """All blocks of graphs, with and without states, and all numbers of states: none does better."""
    field, options = perceptron(), {"stepsize": Steps(n)}
    ample = plan_of(Discrete(StoreAll(Keep.GRAPH)), field, **options).peak_bytes
    least = plan_of(Discrete(Blockwise(Binomial(1), 1, Keep.STAGES)), field, **options).peak_bytes
    assert ample is not None
    assert least is not None
    budget = int(least + share * (ample - least))
    found = plan_of(Discrete(memory=budget), field, **options)
    candidates: list[Any] = [StoreAll(Keep.GRAPH), StoreAll()]
    candidates += [Binomial(c) for c in range(1, n)]
    for length in range(1, n + 1):
        slots = {1, 2, 3, 4, -(-n // length) - 1} - {0}
        candidates += [Blockwise(Binomial(c), length, Keep.GRAPH) for c in sorted(slots)]
    fitting = [plan_of(Discrete(x), field, **options) for x in candidates]
    factors = [p.recompute_factor for p in fitting if p.peak_bytes <= budget]
    assert found.recompute_factor <= min(factors)


def test_more_memory_is_never_worse() -> None:
    field, factors = perceptron(), []
    for kib in (300, 400, 500, 750, 1000, 2000, 4000, 8000):
        try:
            plan = plan_of(Discrete(memory=f"{kib}KiB"), field, stepsize=Steps(200))
        except MemoryBudgetError:
            assert not factors
            continue
        factors.append(plan.recompute_factor)
    assert len(factors) > 4
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] < factors[0]


# Plans.


def test_plans_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    net, y0 = perceptron()
    options = {**FIXED, "gradient": Discrete(memory="4MiB")}
    plan = odegrad.plan(lambda t, y: net(y), y0, TIMES, **options)
    printed = capsys.readouterr().out
    assert printed == f"{plan}\n"
    names = [line.split("  ")[0] for line in printed.splitlines()]
    assert names[:4] == ["schedule", "steps", "a state", "the outputs"]
    assert f"{plan.checkpoints}" in printed
    assert "of 4.0 MiB" in printed
    assert "36" in printed.splitlines()[1]
    odegrad.plan(lambda t, y: net(y), y0, TIMES, **options, show=False)
    assert not capsys.readouterr().out
    disk = Discrete(Tiered(ram=1, disk=2))
    odegrad.plan(lambda t, y: net(y), y0, TIMES, **{**FIXED, "gradient": disk})
    assert "on disk" in capsys.readouterr().out
    odegrad.plan(lambda t, y: net(y), y0, TIMES, **FREE)
    printed = capsys.readouterr().out
    assert "unknown in advance" in printed
    assert "no bound" in printed


def test_plans_of_what_has_no_schedule() -> None:
    with pytest.raises(InvalidTypeError, match="Discrete"):
        plan_of(odegrad.Tape())


def test_a_plan_can_be_run_by_itself() -> None:
    field = perceptron()
    plan = plan_of(Discrete(memory="3MiB"), field)
    assert plan.checkpoints != StoreAll(Keep.GRAPH)
    stats = run(Discrete(plan.checkpoints), field, FIXED)
    other = run(Discrete(memory="3MiB"), field, FIXED)
    assert stats.peak_bytes is None
    assert stats.recomputed == other.recomputed
    assert stats.kept_bytes == other.kept_bytes


def test_without_a_budget_everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much memory is free."""

    def free(device: torch.device) -> int:
        raise AssertionError("nobody should ask")

    monkeypatch.setattr("odegrad.budget.free_bytes", free)
    problem = autonomous()
    found, sol = problem.gradient(Discrete(), odegrad.RK4(), Steps(5))
    expected, other = problem.gradient(Discrete(StoreAll()), odegrad.RK4(), Steps(5))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert sol.stats == other.stats
    assert sol.stats.peak_bytes is None
    assert not rehearsal._KNOWN


def test_losses_inside_the_sweeps_need_no_outputs() -> None:
    net, y0 = perceptron()
    times = torch.linspace(0, 1, 101)
    loss_at = lambda j, y: y.square().mean()  # noqa: E731
    options: dict[str, Any] = {"scheme": odegrad.RK4(), "stepsize": Steps(1)}
    with pytest.raises(MemoryBudgetError, match="loss_at"):
        odegrad.solve(lambda t, y: net(y), y0, times, gradient=Discrete(memory="3MiB"), **options)
    options |= {"loss_at": loss_at, "gradient": Discrete(memory="3MiB")}
    plan = odegrad.plan(lambda t, y: net(y), y0, times, **options, show=False)
    assert (plan.output_bytes, plan.n_outputs) == (0, 0)

    def both() -> None:
        sol = odegrad.solve(lambda t, y: net(y), y0, times, **options)
        assert sol.loss is not None
        torch.autograd.grad(sol.loss, [y0, *net.parameters()])

    both()
    assert peak_bytes(both, CPU) == pytest.approx(plan.peak_bytes, rel=0.05)


# What does not fit is refused before the first step.


class Counted(nn.Module):
    """Counts its calls; draws random numbers and changes buffers, if wanted, in train mode."""

    def __init__(self, noisy: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        more = [nn.BatchNorm1d(8), nn.Dropout(0.5)] if noisy else []
        self.net = nn.Sequential(nn.Linear(3, 8), *more, nn.Tanh(), nn.Linear(8, 3)).double()
        self.calls, self.fails_at = 0, -1

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise ValueError("mine")
        return self.net(y)


@pytest.mark.parametrize(
    ("gradient", "stepsize", "message"),
    [
        (Discrete(memory=2000), Steps(1000), "too little.*at least"),
        (Discrete(memory=2000), PID(1e-5, 1e-7), "too little.*at least"),
        (Discrete(StoreAll(), memory="20KiB"), Steps(1000), r"StoreAll.*needs .* allows 20.0 KiB"),
        (Discrete(Binomial(500), memory="20KiB"), Steps(1000), "Binomial.*needs"),
        (Discrete(Every(2), memory="20KiB"), Steps(1000), "Every.*needs"),
        (Discrete(StoreAll(), memory="1GiB"), PID(1e-5, 1e-7), "adaptive steps"),
        (Discrete(Every(9), memory="1GiB"), PID(1e-5, 1e-7), "adaptive steps"),
        (Discrete(Blockwise(StoreAll(), 9), memory="1GiB"), PID(1e-5, 1e-7), "adaptive steps"),
    ],
)
def test_what_does_not_fit(gradient: Any, stepsize: Any, message: str) -> None:
    f, y0 = Counted(), leaf(4, 3)
    options: dict[str, Any] = {"stepsize": stepsize, "gradient": gradient}
    for _ in range(2):
        with pytest.raises(MemoryBudgetError, match=message):
            odegrad.solve(f, y0, TIMES, **options)
    f.calls = 0
    with pytest.raises(MemoryBudgetError, match=message):
        odegrad.solve(f, y0, TIMES, **options)
    assert f.calls <= 2  # to find what f reads, and the first slope, which is part of a state
    with pytest.raises(MemoryBudgetError, match=message):
        odegrad.plan(f, y0, TIMES, **options)


def test_ample_memory_for_adaptive_steps_of_a_small_state() -> None:
    y0 = torch.ones(1, requires_grad=True)
    grads = []
    for gradient in (Discrete(memory="64GiB"), Discrete(Online(1 << 24), memory="1GiB"), Tape()):
        sol = odegrad.solve(lambda t, y: -y * y, y0, TIMES, gradient=gradient)
        grads += torch.autograd.grad(sol.ys.sum(), y0)
    torch.testing.assert_close(grads[0], grads[2])
    torch.testing.assert_close(grads[1], grads[2])


def test_budgets_are_for_gradients() -> None:
    """Nothing is planned where none is wanted, nor for a single time."""
    f = Counted()
    with torch.no_grad():
        odegrad.solve(f, leaf(4, 3), TIMES, stepsize=Steps(9), gradient=Discrete(memory=10))
    assert f.calls == 9 * 6 + 1
    sol = odegrad.solve(f, leaf(4, 3), [0.5], stepsize=Steps(9), gradient=Discrete(memory=10))
    assert sol.stats.accepted == 0


# Planning leaves no trace.


def world(f: nn.Module) -> list[Any]:
    """All that planning could change."""
    tensors = [torch.get_rng_state(), *(x.detach().clone() for x in f.state_dict().values())]
    flags = [torch.is_grad_enabled(), torch.autograd._profiler_enabled()]
    return [
        tensors,
        [*flags, *(m.training for m in f.modules()), *(x.grad for x in f.parameters())],
    ]


def same_world(a: list[Any], b: list[Any]) -> bool:
    return a[1] == b[1] and all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))


@pytest.mark.parametrize("memory", ["10MiB", "150KiB"])
def test_planning_leaves_no_trace(memory: str) -> None:
    """The numbers, and all that f draws and changes, are those of the schedule alone."""
    y0, results = leaf(4, 3), []
    f = Counted(noisy=True)
    options: dict[str, Any] = {"scheme": odegrad.Bosh3(), "stepsize": Steps(9)}
    torch.manual_seed(1)
    before = world(f)
    plan = odegrad.plan(f, y0, TIMES, gradient=Discrete(memory=memory), **options, show=False)
    assert same_world(world(f), before)
    rehearsal._KNOWN.clear()
    for gradient in (Discrete(memory=memory), Discrete(plan.checkpoints)):
        f = Counted(noisy=True)
        torch.manual_seed(1)
        sol = odegrad.solve(f, y0, TIMES, gradient=gradient, **options)
        grads = torch.autograd.grad(loss(sol.ys), [y0, *f.parameters()])
        stats = sol.stats.as_dict()
        del stats["working_bytes"], stats["peak_bytes"]
        results.append((sol.ys.detach(), grads, stats, world(f)))
    (ys, grads, stats, after), (other_ys, other_grads, other_stats, other_after) = results
    assert torch.equal(ys, other_ys)
    assert all(torch.equal(a, b) for a, b in zip(grads, other_grads, strict=True))
    assert stats == other_stats
    assert same_world(after, other_after)


def test_exceptions_of_f_while_planning() -> None:
    """At any call: they reach the user, and the next solve rehearses again."""
    y0 = leaf(4, 3)
    gradient = Discrete(memory="200KiB")
    total = Counted(noisy=True)
    torch.manual_seed(1)
    sol = odegrad.solve(total, y0, TIMES, stepsize=Steps(3), gradient=gradient)
    (expected,) = torch.autograd.grad(sol.ys.sum(), y0)
    for k in (1, 2, 3, 20, 60):
        rehearsal._KNOWN.clear()
        f = Counted(noisy=True)
        torch.manual_seed(1)
        before, f.fails_at = world(f), k
        with pytest.raises(ValueError, match="mine"):
            odegrad.plan(f, y0, TIMES, stepsize=Steps(3), gradient=gradient, show=False)
        assert same_world(world(f), before)
        sol = odegrad.solve(f, y0, TIMES, stepsize=Steps(3), gradient=gradient)
        (found,) = torch.autograd.grad(sol.ys.sum(), y0)
        assert torch.equal(found, expected)


# Rehearsals are not repeated.


def calls_of(f: Counted, y0: Tensor, gradient: Any, **options: Any) -> int:
    before = f.calls
    odegrad.solve(f, y0, TIMES, gradient=gradient, scheme=odegrad.RK4(), **options)
    return f.calls - before


@pytest.mark.parametrize("stepsize", [Steps(20), PID(1e-4, 1e-6)])
def test_rehearsals_are_not_repeated(stepsize: Any) -> None:
    f, gradient = Counted(), Discrete(memory="100KiB")
    options: dict[str, Any] = {"scheme": odegrad.Bosh3(), "stepsize": stepsize}

    def calls(batch: int, gradient: Any = gradient, **more: Any) -> int:
        before, y0 = f.calls, leaf(batch, 3)
        sol = odegrad.solve(f, y0, TIMES, gradient=gradient, **{**options, **more})
        return f.calls - before - sol.stats.f_evaluations

    plain = calls(4, Discrete())
    assert calls(4) > 10  # with rehearsals
    assert calls(4) <= plain + 1  # the first slope
    assert calls(4, Discrete(memory="110KiB")) <= plain + 1
    assert calls(5) > 10
    assert calls(4, scheme=odegrad.Tsit5()) > 10
    f.eval()
    calls(4)
    assert calls(4) <= plain + 1
    f.net[0].weight.requires_grad_(False)
    assert calls(4) > 10


def test_a_function_made_anew_is_known() -> None:
    """As long as it closes over the same things."""
    counted, y0 = Counted(), leaf(4, 3)

    def calls(f: Any) -> int:
        before = counted.calls
        sol = odegrad.solve(f, y0, TIMES, stepsize=Steps(4), gradient=Discrete(memory="200KiB"))
        return counted.calls - before - sol.stats.f_evaluations

    def make(scale: float) -> Callable[..., Any]:
        return lambda t, y: scale * counted(t, y)

    assert calls(make(1.0)) > 10
    assert calls(make(1.0)) <= 3
    assert calls(make(2.0)) <= 3  # another number takes the same memory


class Reps:
    """How often something is done."""

    def __init__(self, n: int) -> None:
        self.n = n


def test_what_is_known_belongs_to_what_was_measured() -> None:
    """Not to something else that happens to lie at the address of what is gone."""
    net, y0 = perceptron(batch=64)

    def needs(n: int) -> int:
        reps = Reps(n)

        def f(t: Tensor, y: Tensor) -> Tensor:
            for _ in range(reps.n):
                y = torch.tanh(y * 0.5)
            return net(y)

        return odegrad.plan(
            f, y0, TIMES, gradient=Discrete(Binomial(2)), show=False, **FIXED
        ).working_bytes

    found = [needs(n) for n in (1, 30, 1, 30)]
    rehearsal._KNOWN.clear()
    assert found[:2] == found[2:]
    assert found[1] == needs(30) > found[0]


def test_the_loss_is_part_of_what_is_known() -> None:
    net, y0 = perceptron(batch=64)
    big = torch.ones(16, 4096)

    def needs(loss_at: Any) -> int:
        return plan_of(Discrete(Binomial(2)), (net, y0), loss_at=loss_at).working_bytes

    def make(wide: bool) -> Any:
        return (lambda j, y: (y @ big).mean()) if wide else (lambda j, y: y.mean())

    small, large = needs(make(False)), needs(make(True))
    assert large > 4 * 64 * 4096 > 2 * small
    assert needs(make(False)) == small


def test_known_results_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closure over a batch of data is another function each time: what is known stays small."""
    net, y0 = mlp(), leaf(4, 3)
    for seed in range(20):
        shift = leaf(3, seed=seed)
        keep.append(shift)  # so that no address is used again
        f = lambda t, y, shift=shift: net(y) + shift  # noqa: E731
        odegrad.solve(f, y0, TIMES, stepsize=Steps(2), gradient=Discrete(memory="1MiB"))
    assert sum(len(x) for x in rehearsal._KNOWN.values()) <= 12
    keep.clear()


keep: list[Tensor] = []
