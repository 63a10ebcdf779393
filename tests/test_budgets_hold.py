"""Budgets in corners: random solves, cold planners, transforms, and things that once went wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import odegrad
from compiling import in_chunks_of
from odegrad import ALF, PID, Discrete, Dopri8, Euler, Midpoint, Reversible, Steps
from odegrad.allocations import peak_bytes
from odegrad.checkpoints import Blockwise, Every, Keep, Online, StoreAll, Tiered
from odegrad.compiled import using_backend
from odegrad.compiled.tracing import Fakes, device_of
from odegrad.errors import InvalidTypeError, InvalidValueError, MemoryBudgetError, RandomFieldError
from odegrad.gradients import rehearsal

CPU = torch.device("cpu")
SHAPE = (16, 64)
torch.manual_seed(0)
WEIGHT, SMALL = torch.ones(SHAPE, requires_grad=True), nn.Linear(64, 64)
BIG = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 64))
FIELDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "saves nothing": lambda t, y: -y,
    "a product": lambda t, y: WEIGHT * y,
    "a cosine": lambda t, y: (WEIGHT * y).cos(),
    "a layer": lambda t, y: SMALL(y).tanh(),
    "a network": lambda t, y: BIG(y),
}
SCHEMES = [Euler(), Midpoint(), odegrad.RK4(), odegrad.Bosh3(), odegrad.Tsit5(), ALF()]
SCHEMES += [Reversible(odegrad.Heun())]


def forget_gradients() -> None:
    for x in (WEIGHT, *SMALL.parameters(), *BIG.parameters()):
        x.grad = None


def peak(work: Callable[[], object]) -> int:
    """The peak of a gradient, warm."""
    work()
    forget_gradients()
    found = peak_bytes(work, CPU)
    forget_gradients()
    return found


@st.composite
def problems(draw: st.DrawFn) -> tuple[str, dict[str, Any], int]:
    scheme, labels = draw(st.sampled_from(SCHEMES)), draw(st.sampled_from([1, 2, 30]))
    n = draw(st.sampled_from([1, 3, 9, 60])) if labels < 3 else draw(st.sampled_from([1, 4]))
    options: dict[str, Any] = {"scheme": scheme, "stepsize": Steps(n)}
    if scheme.error_order is not None and draw(st.booleans()):
        options["stepsize"] = PID(1e-4, 1e-6)
    if draw(st.booleans()):
        options["loss_at"] = lambda j, y: y.square().sum()
    if draw(st.integers(0, 4)) == 0:
        options["callback"] = lambda info: None
    options["ts"] = torch.linspace(0.0, 1.0, labels + 1)
    budget = int(10 ** draw(st.floats(4.8, 6.7)))
    return draw(st.sampled_from(list(FIELDS))), options, budget


def check(name: str, options: dict[str, Any], budget: int) -> None:
    """A budget is kept to, or refused."""
    y0 = torch.zeros(SHAPE, requires_grad=True)

    def gradient() -> None:
        sol = odegrad.solve(
            FIELDS[name], y0, gradient=Discrete(memory=budget), check_finite=False, **options
        )
        if sol.loss is not None:
            sol.loss.backward()
        else:
            sol.ys.backward(torch.ones_like(sol.ys))
        y0.grad = None

    try:
        found = peak(gradient)
    except MemoryBudgetError:
        return
    assert found <= budget


@settings(max_examples=20, deadline=None)
@given(problems())
def test_a_budget_is_kept_to_or_refused(problem: tuple[str, dict[str, Any], int]) -> None:
    check(*problem)


@pytest.mark.exhaustive
@settings(max_examples=400, deadline=None)
@given(problems())
def test_a_budget_is_kept_to_or_refused_at_length(
    problem: tuple[str, dict[str, Any], int],
) -> None:
    check(*problem)


@pytest.mark.parametrize("scheme", [Euler(), Midpoint()])
def test_the_row_of_a_scheme_with_few_stages(scheme: Any) -> None:
    """Of few such steps the peak lies where no row is left, so that differences tell too little."""
    y0 = torch.zeros(SHAPE, requires_grad=True)
    plan = odegrad.plan(
        FIELDS["a cosine"], y0, [0.0, 1.0], scheme=scheme, stepsize=Steps(180), show=False,
        gradient=Discrete(StoreAll(Keep.GRAPH)),
    )  # fmt: skip
    saved = 2 if isinstance(scheme, Euler) else 4  # WEIGHT * y and y, for each evaluation
    assert plan.row_bytes >= saved * y0.nbytes


@pytest.mark.parametrize("scheme", [odegrad.Heun(), ALF(), Reversible(odegrad.Heun())])
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_short_blocks_with_a_streamed_loss(scheme: Any, length: int) -> None:
    """Of few states many steps are taken again in a row; single numbers count, too."""
    y0 = torch.zeros(SHAPE, requires_grad=True)
    options: dict[str, Any] = {
        "scheme": scheme,
        "stepsize": Steps(1),
        "loss_at": lambda j, y: y.square().sum(),
        "gradient": Discrete(Blockwise(odegrad.Binomial(2), length, Keep.GRAPH)),
    }
    ts, f = torch.linspace(0.0, 1.0, 31), FIELDS["saves nothing"]
    plan = odegrad.plan(f, y0, ts, show=False, **options)

    def gradient() -> None:
        odegrad.solve(f, y0, ts, **options).loss.backward()  # pyright: ignore
        y0.grad = None

    assert peak(gradient) <= plan.peak_bytes  # pyright: ignore


@pytest.mark.parametrize(
    "checkpoints", [odegrad.Online(2), Blockwise(odegrad.Online(2), 8, Keep.GRAPH)]
)
@pytest.mark.parametrize(
    "scheme", [odegrad.Bosh3(), odegrad.RKF45(), ALF(), odegrad.ReversibleHeun()]
)
def test_many_times_that_are_read_in_few_steps(scheme: Any, checkpoints: Any) -> None:
    """They are read at once, on a graph of the step, but for interpolants whose transpose is known."""
    y0, ts, f = (
        torch.zeros(SHAPE, requires_grad=True),
        torch.linspace(0.0, 1.0, 61),
        FIELDS["saves nothing"],
    )
    options: dict[str, Any] = {
        "scheme": scheme, "stepsize": odegrad.PID(1e-4, 1e-6), "gradient": Discrete(checkpoints),
    }  # fmt: skip
    plan = odegrad.plan(f, y0, ts, show=False, **options)

    def gradient() -> None:
        sol = odegrad.solve(f, y0, ts, **options)
        sol.ys.backward(torch.ones_like(sol.ys))
        y0.grad = None

    assert peak(gradient) <= plan.peak_bytes  # pyright: ignore


def test_a_cold_planner_keeps_to_the_budget() -> None:
    """What takes too much is not rehearsed."""
    net = nn.Sequential(nn.Linear(16, 512), nn.Tanh(), nn.Linear(512, 16))
    y0, memory = torch.zeros(128, 16, requires_grad=True), 2 << 20

    def gradient() -> None:
        sol = odegrad.solve(
            lambda t, y: net(y), y0, [0.0, 1.0], scheme=Dopri8(), stepsize=Steps(20),
            gradient=Discrete(memory=memory),
        )  # fmt: skip
        sol.ys.sum().backward()

    net(y0).sum().backward()  # what torch allocates once and for all
    net.zero_grad()
    y0.grad = None
    rehearsal._KNOWN.clear()
    assert peak_bytes(gradient, CPU) <= memory


@pytest.mark.parametrize("scheme", [Euler(), odegrad.RK4(), odegrad.Tsit5()], ids=str)
@pytest.mark.parametrize("kib", [630, 780, 1100, 1500])
def test_a_cold_planner_counts_the_sums(scheme: Any, kib: int) -> None:
    """The sums of the parameter gradient are most of it; what was refused is not looked at."""
    y0, memory = torch.zeros(SHAPE, requires_grad=True), kib << 10
    refused = False

    def gradient() -> None:
        nonlocal refused
        try:
            sol = odegrad.solve(
                FIELDS["a network"], y0, [0.0, 1.0], scheme=scheme, stepsize=Steps(60),
                gradient=Discrete(memory=memory),
            )  # fmt: skip
            sol.ys.backward(torch.ones_like(sol.ys))
        except MemoryBudgetError:
            refused = True

    BIG(y0).sum().backward()  # what torch allocates once and for all
    forget_gradients()
    y0.grad = None
    rehearsal._KNOWN.clear()
    found = peak_bytes(gradient, CPU)
    forget_gradients()
    assert refused == (kib < 1000 and scheme != Euler())
    assert refused or found <= memory


def test_more_rows_are_rehearsed_with_more_memory() -> None:
    """What was found within a small budget does not stand in for what a large one allows."""
    y0 = torch.zeros(SHAPE, requires_grad=True)

    def rows(memory: int | None) -> int:
        plan = odegrad.plan(
            FIELDS["a layer"], y0, [0.0, 1.0], scheme=odegrad.RK4(), stepsize=Steps(200), show=False,
            gradient=Discrete(Blockwise(odegrad.Binomial(2), 4), memory=memory),
        )  # fmt: skip
        return plan.row_bytes

    rehearsal._KNOWN.clear()
    known = rows(None)
    rehearsal._KNOWN.clear()
    refused = 0
    for kib in (100, 130, 160, 200, 260, 350, 500):
        try:
            assert rows(kib << 10) <= known
        except MemoryBudgetError:
            refused += 1
    assert refused
    assert rows(1 << 20) == rows(None) == known


def test_what_is_used_again_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many solves with one f, those that were not used for the longest time are forgotten."""
    measured: list[Any] = []
    honest = rehearsal.Rehearsal._measured

    def counted(self: Any, *kind: Any) -> Any:
        measured.append(self.run.scheme)
        return honest(self, *kind)

    monkeypatch.setattr(rehearsal.Rehearsal, "_measured", counted)
    y0, f = torch.zeros(SHAPE, requires_grad=True), lambda t, y: SMALL(y).tanh()

    def plan(scheme: Any) -> None:
        memory, steps = Discrete(memory="300KiB"), Steps(20)
        odegrad.plan(f, y0, [0.0, 1.0], scheme=scheme, stepsize=steps, gradient=memory, show=False)

    plan(odegrad.RK4())
    once = measured.count(odegrad.RK4())
    assert once > 0
    for scheme in SCHEMES * 2:
        plan(scheme)
        plan(odegrad.RK4())
    assert len(measured) > rehearsal._MOST_KNOWN  # some were forgotten
    assert measured.count(odegrad.RK4()) == once


def test_budgets_under_transforms() -> None:
    """A transform retains what was kept: what is stored again takes new room."""
    params = {k: v.detach() for k, v in BIG.named_parameters()}
    y0, memory = torch.zeros(SHAPE), 2 << 20

    def loss(p: dict[str, Tensor]) -> Tensor:
        return odegrad.solve(
            lambda t, y: torch.func.functional_call(BIG, p, (y,)), y0, [0.0, 1.0],
            scheme=odegrad.RK4(), stepsize=Steps(300), gradient=Discrete(memory=memory),
        ).ys[-1].sum()  # fmt: skip

    assert peak(lambda: torch.func.grad(loss)(params)) <= memory


def test_derivatives_of_gradients_under_transforms() -> None:
    """They come through the node once for each level, and graphs have to be there each time."""
    params = {k: v.detach().double() for k, v in SMALL.named_parameters()}
    y0 = torch.ones(2, 64, dtype=torch.float64)

    def inner(y: Tensor, gradient: Any) -> Tensor:
        return odegrad.solve(
            lambda t, y: torch.func.functional_call(SMALL, params, (y,)).tanh(), y, [0.0, 1.0],
            scheme=odegrad.RK4(), stepsize=Steps(6), gradient=gradient,
        ).ys[-1].square().sum()  # fmt: skip

    def outer(y: Tensor, gradient: Any) -> Tensor:
        return torch.func.grad(inner)(y, gradient).square().sum()

    expected = torch.func.grad(outer)(y0, Discrete())
    for schedule in (StoreAll(Keep.GRAPH), Every(3, Keep.GRAPH)):
        found = torch.func.grad(outer)(y0, Discrete(schedule))
        assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_a_module_that_has_grown_is_measured_again() -> None:
    class Deep(nn.Module):
        depth = 1

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            for _ in range(self.depth):
                y = SMALL(y).tanh()
            return y

    deep, y0 = Deep(), torch.zeros(SHAPE)
    options: dict[str, Any] = {"stepsize": Steps(4), "show": False}
    before = odegrad.plan(deep, y0, [0.0, 1.0], **options).working_bytes
    deep.depth = 40
    assert odegrad.plan(deep, y0, [0.0, 1.0], **options).working_bytes > 5 * before


def test_as_many_states_as_there_is_room_for() -> None:
    """With an unknown number of steps, the more states the fewer steps are taken again."""
    y0, memory = torch.zeros(SHAPE, requires_grad=True), 4 << 20
    plan = odegrad.plan(
        FIELDS["a layer"], y0, [0.0, 1.0], gradient=Discrete(memory=memory), show=False
    )
    inner = plan.checkpoints
    inner = inner.schedule if isinstance(inner, Blockwise) else inner
    assert isinstance(inner, Online)
    assert plan.peak_bytes is not None
    assert memory - 2 * plan.state_bytes < plan.peak_bytes <= memory


def test_a_state_without_numbers() -> None:
    y0 = torch.zeros(0, 64, requires_grad=True)
    for stepsize in (Steps(3), PID(1e-4, 1e-6)):
        sol = odegrad.solve(
            FIELDS["a layer"], y0, [0.0, 1.0], stepsize=stepsize, gradient=Discrete(memory="1MiB")
        )
        assert sol.ys.shape == (2, 0, 64)


def test_what_cannot_be_planned() -> None:
    y0 = torch.zeros(SHAPE)
    with pytest.raises(InvalidValueError, match="single time"):
        odegrad.plan(FIELDS["a layer"], y0, [0.0], show=False)
    for wrong, error in ((0, InvalidValueError), (-3, InvalidValueError), (2.5, InvalidTypeError)):
        with pytest.raises(error, match="n_steps"):
            odegrad.plan(FIELDS["a layer"], y0, [0.0, 1.0], n_steps=wrong, show=False)  # type: ignore[arg-type]
    with pytest.raises(MemoryBudgetError, match="adaptive"):
        odegrad.plan(
            FIELDS["a layer"], y0, [0.0, 1.0], n_steps=10, show=False,
            gradient=Discrete(StoreAll(), memory="64MiB"),
        )  # fmt: skip


def test_looking_for_nan_takes_little_memory() -> None:
    """Where the outputs are most of it, a look at all of them at once would double that."""
    y0 = torch.zeros(64, 64)
    ts = torch.linspace(0.0, 1.0, 301)

    def solve() -> None:
        odegrad.solve(lambda t, y: -y, y0, ts, scheme=Euler(), stepsize=Steps(1))

    assert peak_bytes(solve, CPU) <= 1.2 * len(ts) * y0.nbytes


def test_very_many_places_cost_nothing_in_advance() -> None:
    many = Tiered(ram=1, disk=10**9)
    assert next(iter(many.forward(None))) == next(iter(Tiered(ram=1, disk=9).forward(None)))
    assert next(iter(many.forward(100))).i == 0  # type: ignore[union-attr]


def test_shares_where_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    from odegrad import budget

    monkeypatch.setattr(budget, "_available", lambda: None)
    monkeypatch.setattr(budget, "_left_in_group", lambda: None)
    with pytest.raises(InvalidValueError, match="does not tell"):
        budget.free_bytes(CPU)


# The compiled engine.


def test_a_loss_that_draws_at_some_labels_only() -> None:
    """It is seen by what becomes of the generators, since its first call draws nothing."""
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def loss_at(j: int, y: Tensor) -> Tensor:
        return nn.functional.dropout(y, 0.5, training=j > 0).square().sum()

    for compile in (False, True):
        with using_backend("interpreter"), pytest.raises(RandomFieldError, match="loss_at"):
            odegrad.solve(
                lambda t, y: -y, y0, [0.0, 0.5, 1.0], stepsize=Steps(2), loss_at=loss_at,
                compile=compile,
            )  # fmt: skip


def test_buffers_that_serve_again_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tape of the forward sweep is room for later blocks, unless the graph is retained."""
    in_chunks_of(3, monkeypatch)
    w = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for keep in (Keep.GRAPH, Keep.STATE):
        with using_backend("interpreter"):
            sol = odegrad.solve(
                lambda t, y: (w * y).sin(), y0, [0.0, 1.0], stepsize=Steps(12), compile=True,
                gradient=Discrete(Every(3, keep)),
            )  # fmt: skip
            first = torch.autograd.grad(sol.ys.sum(), [y0, w], retain_graph=True)
            second = torch.autograd.grad(sol.ys.sum(), [y0, w])
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)


def test_the_device_of_a_stand_in_that_another_thread_uses() -> None:
    """A mode that is inside an operation says "meta", to all threads."""
    fakes = Fakes()
    x = fakes.empty((2,), torch.float64, CPU)
    fakes.mode.in_kernel_invocation = True
    try:
        assert x.device.type == "meta"  # else this test, and `device_of`, are of no use
        assert device_of(x) == CPU
    finally:
        fakes.mode.in_kernel_invocation = False
    assert device_of(torch.zeros(1)) == CPU
