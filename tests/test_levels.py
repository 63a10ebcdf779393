"""Every schedule gives the numbers of every other: states, gradients, counts; nothing else changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import odegrad
from cases import CASES, SCHEME_STEPS, TIMES, Case, leaf, loss, mlp, relative, time_dependent
from compiling import close, gradients, in_chunks_of, leaves
from odegrad import PID, Binomial, Blockwise, Discrete, Every, Keep, Online, Steps, StoreAll, Tape
from odegrad.checkpoints import Checkpoints, Rewind, Tiered, advances
from odegrad.compiled import using_backend
from odegrad.errors import GradientUnavailableError
from odegrad.schemes import SCHEMES

KEEPS = tuple(Keep)


def units(slots: int) -> list[Any]:
    """Schedules of states in `slots` slots."""
    ram, disk = slots // 2, slots - slots // 2
    return [
        Binomial(slots),
        Online(slots),
        Tiered(ram=ram, disk=disk),
        Tiered(ram=disk, disk=0, device=ram),
    ]


def schedules(slots: int, length: int) -> list[Any]:
    """Every kind of schedule: what takes steps again is bounded by `slots` and `length`."""
    found: list[Any] = [StoreAll(keep) for keep in KEEPS]
    found += units(slots)
    found += [Every(length, keep) for keep in KEEPS]
    found += [Blockwise(x, length, keep) for x in (StoreAll(), *units(slots)) for keep in KEEPS]
    return found


ALL = schedules(3, 4)
each = pytest.mark.parametrize("schedule", ALL, ids=str)
few = pytest.mark.parametrize(
    "schedule",
    [
        StoreAll(),
        StoreAll(Keep.STAGES),
        StoreAll(Keep.GRAPH),
        Binomial(2),
        Online(3),
        Tiered(ram=1, disk=2),
        Every(4, Keep.STAGES),
        Blockwise(Online(2), 3, Keep.GRAPH),
    ],
    ids=str,
)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts kept graphs after every third step, so that few steps have several of them."""
    monkeypatch.setattr("odegrad.sweeps.graphs.STRETCH", 3)


def kept_most(schedule: Any, n: int, known: bool, state: int, slopes: int) -> int:
    """The bytes that the bounds of a schedule allow; without a bound, room grows by half."""
    bounds = schedule.bounds(n, known)
    row = {None: 0, Keep.STATE: state, Keep.STAGES: state + slopes}[bounds.keep]
    stored, tape = bounds.device + bounds.ram, bounds.tape
    if not known and schedule.bounds(2**40, False) != schedule.bounds(2**41, False):
        stored, tape = (max(8, x + x // 2) if x else 0 for x in (stored, tape))
    return (stored + bounds.held) * state + tape * row


# States and gradients.


def check(
    case: Case, schedule: Any, scheme: Any, stepsize: Any, times: tuple[float, ...] = TIMES
) -> None:
    """The states to the last bit, the gradient up to rounding, and what was counted and kept."""
    expected, all_stored = case.gradient(Discrete(), scheme, stepsize, times)
    found, sol = case.gradient(Discrete(schedule), scheme, stepsize, times)
    for a, b in zip(leaves(sol.ys), leaves(all_stored.ys), strict=True):
        assert torch.equal(a, b)
    assert sol.grid == all_stored.grid
    assert relative(found, expected) <= 1e-13
    n, known = sol.stats.accepted, not isinstance(stepsize, PID)
    if isinstance(schedule, Binomial) and known:
        assert sol.stats.recomputed == advances(n, schedule.slots) - (n - 1)
    tape, _ = case.gradient(Tape(), scheme, sol.grid, times)
    assert relative(found, tape) <= 1e-12


@pytest.mark.parametrize("schedule", ALL, ids=str)
@pytest.mark.parametrize("stepsize", [Steps(7), PID(1e-3, 1e-5)])
def test_every_schedule_gives_the_same(schedule: Any, stepsize: Any) -> None:
    """On 14 steps and on about as many adaptive ones; scheme and field change from one to the next."""
    k = ALL.index(schedule)
    schemes = [x for x in SCHEMES if x.error_order is not None]
    check(CASES[k % len(CASES)](), schedule, schemes[k % len(schemes)](), stepsize)


@dataclass(frozen=True)
class Drawn:
    """A solve with everything about it drawn at random."""

    schedule: Any
    scheme: Any
    stepsize: Any
    times: tuple[float, ...]


@st.composite
def solves(draw: st.DrawFn) -> Drawn:
    slots, length = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    schedule = draw(st.sampled_from(schedules(slots, length)))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.1, 0.37, 1.0]), min_size=1, max_size=4))
    sign = draw(st.sampled_from([1.0, -1.0]))
    times = tuple(sign * (0.2 + t) for t in itertools.accumulate(gaps, initial=0.0))
    if draw(st.booleans()):
        scheme = draw(st.sampled_from([x for x in SCHEMES if x.error_order is not None]))
        tolerance = 10.0 ** -draw(st.integers(2, 5))
        return Drawn(schedule, scheme(), PID(tolerance, tolerance), times)
    n = draw(st.integers(1, 300))
    blocks = ceil(n / length) if isinstance(schedule, Blockwise | Every) else n
    while advances(blocks, slots) * (n / blocks) > 200:  # the test would take too long
        n, blocks = n // 2, ceil(blocks / 2)
    scheme = draw(st.sampled_from(SCHEMES[:4] if n > 50 else SCHEMES))
    return Drawn(schedule, scheme(), Steps(max(1, n // len(gaps))), times)


def vector() -> Case:
    """Cheap, and reads t, an argument and captured tensors."""
    w, y0, rate, code = leaf(2, 2, seed=1), leaf(2), leaf(seed=2), leaf(2, seed=3)
    half = code.exp() / 2
    f = lambda t, y, rate: torch.tanh(w @ y) * torch.cos(rate * t) - half * y  # noqa: E731
    return Case(f, y0, [y0], (rate,), (rate, w, code))


@settings(max_examples=25, deadline=None)
@given(solves())
def test_any_schedule_on_any_steps(drawn: Drawn) -> None:
    check(vector(), drawn.schedule, drawn.scheme, drawn.stepsize, drawn.times)


@pytest.mark.exhaustive
@settings(max_examples=400, deadline=None)
@given(solves(), st.sampled_from(CASES))
def test_any_schedule_on_any_steps_at_length(drawn: Drawn, case: Callable[[], Case]) -> None:
    check(case(), drawn.schedule, drawn.scheme, drawn.stepsize, drawn.times)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("scheme", "stepsize"), SCHEME_STEPS, ids=lambda x: getattr(x, "__name__", type(x).__name__)
)
@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_all_schedules_on_all_schemes(
    case: Callable[[], Case], slots: int, scheme: Any, stepsize: Any
) -> None:
    for schedule in schedules(slots, 3):
        check(case(), schedule, scheme(), stepsize)


@few
@pytest.mark.parametrize("times", [(1.1, 0.4, 0.1), (0.1, 0.4, 0.4, 0.4, 1.1), (0.3, 0.3)])
@pytest.mark.parametrize("stepsize", [Steps(3), PID(1e-3, 1e-5)])
def test_descending_and_repeated_times(schedule: Any, times: Any, stepsize: Any) -> None:
    check(vector(), schedule, odegrad.Bosh3(), stepsize, times)


@few
@pytest.mark.parametrize("stepsize", [Steps(4), PID(1e-4, 1e-6)])
def test_a_single_time(schedule: Any, stepsize: Any) -> None:
    case = vector()
    options = {"stepsize": stepsize, "gradient": Discrete(schedule)}
    ys = odegrad.solve(case.f, case.y0, [0.7], case.args, **options).ys
    assert torch.equal(ys[0], case.y0)
    (grad,) = torch.autograd.grad(ys.sum(), case.y0)
    assert torch.equal(grad, torch.ones_like(grad))


@few
@pytest.mark.parametrize("stepsize", [Steps(5), PID(1e-4, 1e-6)])
def test_running_costs(schedule: Any, stepsize: Any) -> None:
    case, weight = vector(), leaf(seed=5)
    inputs, results = [*case.y0_leaves, *case.others, weight], []
    cost = lambda t, y, rate: weight * rate * y.square().sum() * torch.exp(-t)  # noqa: E731
    grid = stepsize
    for gradient in (Discrete(schedule), Tape()):
        sol = odegrad.solve(
            case.f, case.y0, TIMES, case.args, stepsize=grid, gradient=gradient, running=cost
        )
        grid = sol.grid
        assert sol.running is not None
        value = sol.running.square().sum() + loss(sol.ys)
        grads = torch.autograd.grad(value, inputs, retain_graph=True)
        results.append([sol.running.detach(), *grads])
    assert relative(*results) <= 1e-13


# Counts and bytes.


@pytest.mark.parametrize(
    ("n", "slots"), [(1, 1), (1, 9), (2, 1), (7, 2), (19, 1), (19, 2), (40, 5)]
)
def test_counts_of_binomial_schedules(n: int, slots: int) -> None:
    """t(n, c) − (n − 1) steps are taken again, of s evaluations each; each step is transposed once."""
    case, scheme = vector(), odegrad.Midpoint()
    for schedule in (Binomial(slots), Tiered(ram=slots - 1, disk=1)):
        sol = case.gradient(Discrete(schedule), scheme, Steps(n), (0.0, 1.0))[1]
        again = advances(n, slots) - (n - 1)
        assert sol.stats.recomputed == again
        assert sol.stats.recompute_factor == (2 * n + again) / n
        assert sol.stats.f_evaluations == 2 * (n + n + again)
        assert sol.stats.vjps == 2 * n


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 3, 7])
@pytest.mark.parametrize("keep", KEEPS)
def test_counts_of_blocks(slots: int, length: int, keep: Keep) -> None:
    """Blocks are taken again as `Binomial` takes steps; those on the tape but for their last steps."""
    n, case = 11, vector()
    schedule = Blockwise(Binomial(slots), length, keep)
    stats = case.gradient(Discrete(schedule), odegrad.RK4(), Steps(n), (0.0, 1.0))[1].stats
    blocks = ceil(n / length)
    first = n - (blocks - 1) * length  # shorter
    again = taped = 0
    for action in Binomial(slots).backward(blocks, known=True):
        name = type(action).__name__
        if name == "Advance":
            again += sum(first if b == 0 else length for b in range(action.start, action.stop))
        elif name == "Transpose" and action.stop < blocks:
            taped += (first if action.start == 0 else length) - 1
    assert stats.recomputed == again + taped
    taken = n + again + taped
    if keep is Keep.GRAPH:  # the last step of a block is on its tape, too
        assert stats.f_evaluations == 4 * (taken + blocks - 1)
    if keep is Keep.STATE:
        assert stats.f_evaluations == 4 * (taken + n)
    assert stats.vjps == 4 * n


@pytest.mark.parametrize(
    "schedule", [x for x in ALL if x.bounds(1, known=True).keep is not Keep.GRAPH], ids=str
)
@pytest.mark.parametrize("stepsize", [Steps(8), Steps(1), PID(1e-4, 1e-6)])
def test_bytes_kept_stay_within_the_bounds(schedule: Any, stepsize: Any) -> None:
    case, scheme = CASES[2](), odegrad.Bosh3()
    ts = torch.tensor(TIMES, dtype=torch.float64)
    options: dict[str, Any] = {"scheme": scheme, "stepsize": stepsize, "land": True}
    sol = odegrad.solve(case.f, case.y0, ts, gradient=Discrete(schedule), **options)
    loss(sol.ys).backward()
    d = 8 * sum(x.numel() for x in case.y0_leaves)
    n, known = sol.stats.accepted, not isinstance(stepsize, PID)
    most = kept_most(schedule, n, known, 2 * d, 4 * d)  # the carry is a slope
    assert 0 < sol.stats.kept_bytes <= most
    on_disk = schedule.bounds(n, known).disk
    assert bool(sol.stats.disk_bytes) == bool(on_disk)
    if known:
        assert sol.stats.disk_bytes >= on_disk * 2 * d


def test_bytes_kept_with_random_numbers() -> None:
    """The state of the generator counts, once for each stored state."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double()
    options: dict[str, Any] = {"scheme": odegrad.Midpoint(), "stepsize": Steps(30)}
    gradient = Discrete(Binomial(4))
    sol = odegrad.solve(lambda t, y: net(y), leaf(2, 3), [0.0, 1.0], gradient=gradient, **options)
    sol.ys.sum().backward()
    snapshot = torch.get_rng_state().numel()
    assert 4 * snapshot <= sol.stats.kept_bytes <= 5 * (snapshot + 8 * 6)


@few
def test_callbacks_see_each_step_once(schedule: Any) -> None:
    for stepsize in (Steps(5), PID(1e-4, 1e-6)):
        case = vector()
        seen: list[tuple[str, int]] = []
        states: dict[tuple[str, int], Tensor] = {}

        def note(info: odegrad.StepInfo, seen: Any = seen, states: Any = states) -> None:
            seen.append((info.phase, info.n))
            states[info.phase, info.n] = info.y.clone()

        options = {"stepsize": stepsize, "gradient": Discrete(schedule), "callback": note}
        sol = odegrad.solve(case.f, case.y0, TIMES, case.args, **options)
        loss(sol.ys).backward()
        n = sol.stats.accepted
        assert seen == [
            *(("forward", i) for i in range(n)),
            *(("backward", i) for i in reversed(range(n))),
        ]
        # Before step i (backward) is after step i − 1 (forward), to the last bit.
        assert all(
            torch.equal(states["backward", i], states["forward", i - 1]) for i in range(1, n)
        )


# What f draws, changes and reads.


class Noisy(nn.Module):
    """Dropout and batch normalization in train mode."""

    def __init__(self, dropout: float = 0.5, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 6).double(), nn.Linear(6, 3).double()
        self.norm = nn.BatchNorm1d(6).double() if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.second(self.dropout(torch.tanh(self.norm(self.first(y)) * (1 + t))))


@each
def test_random_numbers_and_buffers(schedule: Any) -> None:
    """The same numbers are drawn again, and afterwards everything is as after the solve alone."""
    kind = ("both", "norm", "dropout")[ALL.index(schedule) % 3]
    results, worlds = [], []
    for gradient in (Tape(), Discrete(schedule)):
        net = Noisy(0.0 if kind == "norm" else 0.5, kind != "dropout")
        y0 = leaf(4, 3)
        torch.manual_seed(1)
        options: dict[str, Any] = {"scheme": odegrad.Bosh3(), "stepsize": Steps(5)}
        ys = odegrad.solve(net, y0, TIMES, gradient=gradient, **options).ys
        after = [torch.get_rng_state(), *(b.clone() for b in net.buffers())]
        results.append([ys.detach(), *torch.autograd.grad(loss(ys), [y0, *net.parameters()])])
        now = [torch.get_rng_state(), *net.buffers()]
        assert all(torch.equal(a, b) for a, b in zip(after, now, strict=True))
        assert net.training
        worlds.append(after)
    assert torch.equal(results[0][0], results[1][0])
    grads = [x for x in zip(*results, strict=True) if x[0].norm() > 1e-12]  # norm hides a bias
    assert relative([x[1] for x in grads], [x[0] for x in grads]) <= 1e-13
    assert all(torch.equal(a, b) for a, b in zip(*worlds, strict=True))


@few
def test_buffers_and_more_than_one_backward_pass(schedule: Any) -> None:
    """What puts buffers back leaves retained graphs, and those of other solves, as they are."""
    net, y0 = Noisy(0.0), leaf(4, 3)
    inputs, options = [y0, *net.second.parameters()], {"gradient": Discrete(schedule)}
    ys = odegrad.solve(net, y0, TIMES, stepsize=Steps(5), **options).ys
    first = torch.autograd.grad(loss(ys), inputs, retain_graph=True)
    second = torch.autograd.grad(loss(ys), inputs, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = odegrad.solve(net, y0, TIMES, stepsize=Steps(5), **options).ys
    both = torch.autograd.grad(loss(ys) + loss(other), inputs)
    assert relative(list(both), [2 * g for g in first]) <= 1e-13


@few
def test_functional_call(schedule: Any) -> None:
    """A module inside which a solve runs, called with weights that are not its own."""
    results, x = [], leaf(4, 3)
    for gradient in (Tape(), Discrete(schedule)):
        model = odegrad.NeuralODE(mlp(), gradient=gradient, stepsize=Steps(6))
        slow = dict(model.named_parameters())
        fast = {k: (1.5 * v.detach() + 0.1).requires_grad_() for k, v in slow.items()}
        value = loss(torch.func.functional_call(model, fast, (x, TIMES)))
        results.append(list(torch.autograd.grad(value, [x, *fast.values()])))
        assert all(v.grad is None for v in slow.values())
    assert relative(*results) <= 1e-13


@few
def test_autocast(schedule: Any) -> None:
    """The backward sweep is outside of autocast and evaluates f inside again."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))
    y0, results = torch.randn(4, 3).requires_grad_(), []
    for gradient in (Discrete(), Discrete(schedule), Tape()):
        with torch.autocast("cpu", torch.bfloat16):
            sol = odegrad.solve(
                lambda t, y: net(y), y0, [0.0, 0.5, 1.0], stepsize=Steps(6), gradient=gradient
            )
            value = sol.ys.square().sum()
        grads = torch.autograd.grad(value, [y0, *net.parameters()])
        results.append([sol.ys.detach(), *grads])
    assert torch.equal(results[0][0], results[1][0])
    graphs = schedule.bounds(1, known=True).keep is Keep.GRAPH  # sums in bfloat16, as on a tape
    assert relative(results[1], results[0]) <= (3e-2 if graphs else 1e-5)
    assert relative(results[1], results[2]) <= 3e-2


# More than one backward pass.


@each
@pytest.mark.parametrize("stepsize", [Steps(4), PID(1e-3, 1e-5)])
def test_a_retained_graph_gives_the_same_again(schedule: Any, stepsize: Any) -> None:
    case = vector()
    ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    options = {"scheme": odegrad.Bosh3(), "stepsize": stepsize, "gradient": Discrete(schedule)}
    sol = odegrad.solve(case.f, case.y0, ts, case.args, **options)
    value, inputs = loss(sol.ys), [*case.y0_leaves, *case.others, ts]
    expected = torch.autograd.grad(value, inputs, retain_graph=True)
    again = sol.stats.recomputed
    for retain in (True, True, False):
        found = torch.autograd.grad(value, inputs, retain_graph=retain)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert sol.stats.recomputed == 4 * again
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, inputs)


@each
def test_second_derivatives(schedule: Any) -> None:
    case, results = vector(), []
    for gradient in (Tape(), Discrete(schedule)):
        ts = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        inputs = [*case.y0_leaves, *case.others, ts]
        options = {"scheme": odegrad.Heun(), "stepsize": Steps(6), "gradient": gradient}
        value = loss(odegrad.solve(case.f, case.y0, ts, case.args, **options).ys)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        value = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(value, inputs, retain_graph=True)
        results.append([*(g.detach() for g in first), *second])
    assert relative(*results) <= 1e-12


# What goes wrong in f.


class Failing(nn.Module):
    """Raises at one of its calls; draws random numbers and may have buffers."""

    def __init__(self, error: BaseException, norm: bool = True) -> None:
        super().__init__()
        self.net, self.error = Noisy(norm=norm), error
        self.left: int | None = None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise self.error
        return self.net(t, y)

    def world(self) -> list[Any]:
        """All that a solve could leave changed."""
        tensors = [torch.get_rng_state(), *(x.detach().clone() for x in self.state_dict().values())]
        grads = [x.grad for x in self.parameters()]
        modes = [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]
        return [tensors, grads, modes, [m.training for m in self.modules()]]


def same_world(a: list[Any], b: list[Any]) -> bool:
    return a[1:] == b[1:] and all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))


def raised_by(function: Callable[..., object], **options: Any) -> BaseException | None:
    """What the call raises, if it does."""
    try:
        function(**options)
    except BaseException as error:
        return error
    return None


@each
def test_an_exception_in_the_backward_sweep(schedule: Any) -> None:
    """Nothing of the user's is changed; a second pass gives the gradient or says why it cannot."""
    error = ValueError("mine") if ALL.index(schedule) % 2 else KeyboardInterrupt()
    y0, options = leaf(4, 3), {"scheme": odegrad.Midpoint(), "stepsize": Steps(5)}
    f = Failing(error, norm=schedule.bounds(1, known=True).keep is not Keep.GRAPH)
    inputs = [y0, *f.parameters()]
    for left in (0, 9):
        torch.manual_seed(1)
        expected_ys = odegrad.solve(f, y0, TIMES, gradient=Tape(), **options).ys
        expected = torch.autograd.grad(loss(expected_ys), inputs)
        for retain in (False, True):
            torch.manual_seed(1)
            sol = odegrad.solve(f, y0, TIMES, gradient=Discrete(schedule), **options)
            value, before = loss(sol.ys), f.world()
            f.left = left
            raised = raised_by(value.backward, retain_graph=retain)
            if raised is None:
                assert f.left is not None  # kept graphs evaluate nothing
                for x in inputs:
                    x.grad = None
            else:
                assert raised is error
            f.left = None
            assert same_world(f.world(), before)
            raised = raised_by(value.backward)
            found = [x.grad for x in inputs]
            for x in inputs:
                x.grad = None
            if raised is not None:
                assert not retain
                freed = "second time" in str(raised)
                assert freed or isinstance(raised, GradientUnavailableError), raised
            else:
                pairs = [x for x in zip(found, expected, strict=True) if x[1].norm() > 1e-12]
                assert relative([x[0] for x in pairs], [x[1] for x in pairs]) <= 1e-12
            assert same_world(f.world(), before)


@few
@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=["error", "^C"])
def test_an_exception_in_the_forward_sweep(schedule: Any, error: BaseException) -> None:
    y0, options = leaf(4, 3), {"scheme": odegrad.Midpoint(), "stepsize": Steps(7)}
    f = Failing(error).eval()
    for left in (0, 1, 9, 27):
        before, f.left = f.world(), left
        with pytest.raises(type(error)):
            odegrad.solve(f, y0, TIMES, gradient=Discrete(schedule), **options)
        assert same_world(f.world(), before)
    results = []
    for gradient in (Tape(), Discrete(schedule)):
        ys = odegrad.solve(f, y0, TIMES, gradient=gradient, **options).ys
        results.append(list(torch.autograd.grad(loss(ys), [y0, *f.parameters()])))
    assert relative(*results) <= 1e-13


# Rewinding.


REVERSIBLE = [odegrad.ALF(), odegrad.ReversibleHeun(), odegrad.Reversible(odegrad.RK4())]


@pytest.mark.parametrize("scheme", REVERSIBLE, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("anchor", [None, 1, 4, 1000])
@pytest.mark.parametrize("case", CASES[1:3], ids=lambda c: c.__name__)
def test_rewinding(case: Callable[[], Case], scheme: Any, anchor: int | None) -> None:
    """As exact as the states that are reconstructed, which is measured."""
    problem, stepsize = case(), Steps(5)
    expected, all_stored = problem.gradient(Discrete(), scheme, stepsize)
    found, sol = problem.gradient(Discrete(Rewind(anchor)), scheme, stepsize)
    for a, b in zip(leaves(sol.ys), leaves(all_stored.ys), strict=True):
        assert torch.equal(a, b)
    error = sol.stats.rewind_error
    assert error is not None
    assert 0 <= error <= 1e-12
    assert relative(found, expected) <= 1e-13 + 1e3 * error
    assert sol.stats.recomputed == 0
    anchors = 1 if anchor is None else ceil(10 / anchor)
    assert sol.stats.kept_bytes == (anchors + 1) * all_stored.stats.kept_bytes // 10


@pytest.mark.parametrize("schedule", [Rewind(), Rewind(3)], ids=str)
def test_rewinding_again_and_higher_derivatives(schedule: Any) -> None:
    case, results = vector(), []
    inputs = [*case.y0_leaves, *case.others]
    for gradient in (Tape(), Discrete(schedule)):
        options = {"scheme": odegrad.ALF(), "stepsize": Steps(6), "gradient": gradient}
        value = loss(odegrad.solve(case.f, case.y0, TIMES, case.args, **options).ys)
        once = torch.autograd.grad(value, inputs, retain_graph=True)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(once, first, strict=True))
        value = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(value, inputs, retain_graph=True)
        results.append([*(g.detach() for g in first), *second])
    assert relative(*results) <= 1e-11


# Files of states on disk.


def test_files_are_made_where_they_are_wanted(tmp_path: Path) -> None:
    case = vector()
    schedule = Tiered(ram=1, disk=3, directory=tmp_path)
    expected, _ = case.gradient(Discrete(), odegrad.RK4(), Steps(12))
    found, sol = case.gradient(Discrete(schedule), odegrad.RK4(), Steps(12))
    assert relative(found, expected) <= 1e-13
    assert sol.stats.disk_bytes >= 3 * 16
    missing = Tiered(ram=1, disk=3, directory=tmp_path / "missing")
    with pytest.raises(odegrad.errors.CheckpointStorageError, match="missing"):
        case.gradient(Discrete(missing), odegrad.RK4(), Steps(12))


# The compiled engine.


@pytest.fixture
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


COMPILED = [
    Binomial(1),
    Binomial(3),
    Online(2),
    Every(5),
    Every(4, Keep.STAGES),
    Blockwise(Binomial(2), 4, Keep.STATE),
    Blockwise(Online(2), 5),
    StoreAll(Keep.STAGES),
    Tiered(ram=1, disk=1),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("stepsize", [Steps(6), PID(1e-5, 1e-7)])
def test_compiled_schedules(stepsize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All with the programs of one f, in chunks of three steps."""
    in_chunks_of(3, monkeypatch)
    case = time_dependent()
    expected, all_stored = gradients(case, Discrete(), odegrad.Bosh3(), stepsize)
    for schedule in COMPILED:
        found, sol = gradients(case, Discrete(schedule), odegrad.Bosh3(), stepsize)
        close(sol.ys, all_stored.ys, 0.0)
        assert sol.grid == all_stored.grid
        assert relative(found, expected) <= 1e-12, schedule
        again = torch.autograd.grad(loss(sol.ys), case.y0_leaves, retain_graph=True)
        assert torch.equal(again[0], found[0]), schedule
        last = torch.autograd.grad(loss(sol.ys), case.y0_leaves)
        assert torch.equal(last[0], found[0]), schedule
    tape, _ = case.gradient(Tape(), odegrad.Bosh3(), all_stored.grid)
    assert relative(expected, tape) <= 1e-12


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("rows", [1, 4])
def test_compiled_counts_are_binomial_in_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit is a chunk: of these, t(N/K, c) − (N/K − 1) are taken again, and each onto the tape."""
    in_chunks_of(rows, monkeypatch)
    net, y0 = mlp(), leaf(4, 3)
    case = Case(lambda t, y: net(y), y0, [y0], (), tuple(net.parameters()))
    for slots, chunks in ((1, 1), (1, 5), (2, 6), (4, 5)):
        n = rows * chunks
        schedule: Checkpoints = Binomial(slots)
        stats = gradients(case, Discrete(schedule), odegrad.RK4(), Steps(n), (0.0, 1.0))[1].stats
        again = advances(chunks, slots) - (chunks - 1)
        assert stats.recomputed == rows * again + (chunks - 1) * (rows - 1)
        assert stats.vjps == 4 * n


@pytest.mark.usefixtures("interpreted")
def test_compiled_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    net, y0 = mlp(), leaf(4, 3)
    case = Case(lambda t, y: net(y), y0, [y0], (), tuple(net.parameters()))
    times = (0.0, 1.0)
    in_chunks_of(4, monkeypatch)
    for stepsize in (Steps(100), PID(1e-8, 1e-10)):
        expected, _ = gradients(case, Discrete(), odegrad.Bosh3(), stepsize, times)
        for memory in ("64KiB",):
            gradient = Discrete(memory=memory)
            found, sol = gradients(case, gradient, odegrad.Bosh3(), stepsize, times)
            assert relative(found, expected) <= 1e-12
            assert sol.stats.peak_bytes is not None
            assert (
                sol.stats.kept_bytes
                < sol.stats.peak_bytes
                <= odegrad.budget.budget_bytes(memory, torch.device("cpu"))
            )
