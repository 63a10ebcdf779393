"""Random fields, states, times, schemes and schedules: what holds for all of them.

The oracle of `Discrete` is `Tape`, plain autograd over the same grid; that of `Tape` and of the numbers
is `marched`, a loop over plain tensors that shares no code with the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

import odegrad
from cases import relative
from odegrad import (
    PID,
    Binomial,
    Blockwise,
    Discrete,
    Every,
    Fixed,
    Keep,
    Online,
    Steps,
    StoreAll,
    Tape,
    Tiered,
)
from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau
from oracles import rk_step

QUICK = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
MOST_STEPS = 300
"""Of adaptive step sizes: some that are drawn take many thousand."""
LONG = settings(QUICK, max_examples=1500, derandomize=False)


# ------------------------------------------------------------------------------- what is drawn


def random_scheme(numbers: list[float], order: int, fsal: bool) -> ExplicitRungeKutta:
    """An explicit scheme of order 1 or 2 with random coefficients.

    Order 1 is Σ b_i = 1; order 2 has Σ b_i c_i = 1/2 besides. With three stages and free c, a, b_3 they
    are met by solving for b_1 and b_2.
    """
    c2, c3, a32, b3 = numbers
    if order == 2:
        b2 = (0.5 - b3 * c3) / c2
    else:
        b2 = c2 - 0.3
    rows = ((), (c2,), (c3 - a32, a32))
    b, c = (1.0 - b2 - b3, b2, b3), (0.0, c2, c3)
    if fsal:
        rows, b, c = (*rows, b), (*b, 0.0), (*c, 1.0)
    chosen = Tableau(a=rows, b=b, c=c, order=order)

    class Random(ExplicitRungeKutta):
        tableau = chosen

    return Random()


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.integers(0, 1000).map(lambda k: low + (high - low) * k / 1000)


schemes = st.builds(
    random_scheme,
    st.tuples(number(0.3, 1.0), number(0.2, 1.0), number(-0.5, 0.5), number(-0.5, 0.5)),
    st.sampled_from([1, 2]),
    st.booleans(),
)

SCHEDULES = st.one_of(
    st.builds(StoreAll, st.sampled_from(list(Keep))),
    st.builds(Every, st.integers(1, 5), st.sampled_from(list(Keep))),
    st.builds(Binomial, st.integers(1, 5)),
    st.builds(Online, st.integers(1, 5)),
    st.builds(
        Blockwise,
        st.one_of(st.just(StoreAll()), st.builds(Binomial, st.integers(1, 3))),
        st.integers(1, 4),
        st.sampled_from(list(Keep)),
    ),
    st.builds(Tiered, ram=st.integers(0, 2), disk=st.just(1)),
)


@st.composite
def grids(draw: st.DrawFn) -> list[float]:
    """Times that ascend or descend, some of them repeated."""
    start = draw(number(-1.0, 1.0))
    gaps = draw(st.lists(st.one_of(st.just(0.0), number(0.05, 0.5)), min_size=0, max_size=4))
    sign = draw(st.sampled_from([-1.0, 1.0]))
    times = [start]
    for gap in gaps:
        times.append(times[-1] + sign * gap)
    return times


pytestmark = pytest.mark.filterwarnings("ignore:Fixed.* is longer than the whole solve")

STEPSIZES = st.one_of(st.builds(Steps, st.integers(1, 4)), st.builds(Fixed, number(0.05, 0.4)))

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


@dataclass
class Problem:
    """A random field on a random pytree.

    Attributes:
        y0: The initial state.
        leaves: Its leaves.
        f: The field: each leaf is driven by itself, by the next one, by t and by a parameter.
        theta: The parameters, one real number per leaf; captured.
        rate: A tensor in args.
    """

    y0: Any
    leaves: list[Tensor]
    f: Callable[..., Any]
    theta: list[Tensor]
    rate: Tensor


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = tuple(DTYPES)) -> Problem:
    names = ["a", "b", "c"]
    leaf_kinds = draw(
        st.lists(
            st.tuples(st.sampled_from(dtypes), st.lists(st.integers(0, 3), min_size=0, max_size=2)),
            min_size=1,
            max_size=3,
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    leaves = [
        torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()
        for dtype, shape in leaf_kinds
    ]
    theta = [torch.randn((), dtype=torch.float64, generator=generator) for _ in leaves]
    theta = [x.requires_grad_() for x in theta]
    rate = torch.randn((), dtype=torch.float64, generator=generator).requires_grad_()
    kind = draw(st.sampled_from(["tensor", "list", "tuple", "dict", "nested"]))
    if kind == "tensor" or len(leaves) == 0:
        leaves, theta = leaves[:1], theta[:1]
        y0: Any = leaves[0]
    elif kind == "list":
        y0 = list(leaves)
    elif kind == "tuple":
        y0 = tuple(leaves)
    elif kind == "dict":
        y0 = dict(zip(names, leaves, strict=False))
    else:
        y0 = {"x": (leaves[0], [*leaves[1:]])}
    _, spec = pytree.tree_flatten(y0)

    def f(t: Tensor, y: Any, rate: Tensor) -> Any:
        parts = pytree.tree_leaves(y)
        slopes = slope(t, parts, theta, rate)
        return pytree.tree_unflatten(slopes, spec)

    return Problem(y0, leaves, f, theta, rate)


def slope(t: Any, y: list[Tensor], theta: list[Tensor], rate: Tensor) -> list[Tensor]:
    """The field, leaf by leaf, in the dtypes of the state."""
    found = []
    for i, leaf in enumerate(y):
        other = y[(i + 1) % len(y)]
        drive = other.abs().sum() / max(1, other.numel())
        value = theta[i] * torch.sin(t) * leaf - 0.3 * leaf * leaf.abs() + torch.cos(rate * drive)
        found.append(value.to(leaf.dtype))
    return found


def total(outputs: list[Tensor]) -> Tensor:
    """A real loss of every number."""
    value = torch.zeros((), dtype=torch.float64)
    for k, x in enumerate(outputs):
        x = torch.view_as_real(x) if x.is_complex() else x
        weights = torch.linspace(0.5, 1.5, x.numel(), dtype=torch.float64).reshape(x.shape)
        value = value + (weights * x.double().square()).sum() + (k + 1) * (weights * x).sum()
    return value


def wide(x: Tensor) -> bool:
    return x.dtype in (torch.float64, torch.complex128)


def tolerance(problem: Problem) -> float:
    """Rounding of the coarsest leaf, which reaches all gradients."""
    return 1e-11 if all(map(wide, problem.leaves)) else 2e-4


def same_gradients(found: list[Tensor], right: list[Tensor], tolerance: float) -> None:
    """Relative to the norm of all gradients: single ones may vanish by cancellation."""
    scale = max(float(g.abs().max()) for g in right if g.numel())
    for a, b in zip(found, right, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.numel():
            assert float((a - b).abs().max()) <= tolerance * scale


# ------------------------------------------------------------------------ Discrete and Tape


def running_cost(t: Tensor, y: Any, rate: Tensor) -> Tensor:
    parts = [x.abs().square().sum().double() for x in pytree.tree_leaves(y)]
    return torch.stack(parts).sum() * torch.cos(rate * t) + t * t


def solved(
    problem: Problem,
    times: list[float],
    scheme: Any,
    stepsize: Any,
    gradient: Any,
    running: bool,
    streamed: bool,
    land: bool | None = None,
) -> tuple[list[Tensor], list[Tensor], odegrad.Solution]:
    """Outputs, gradients of all inputs, and the solution."""
    ts = torch.tensor(times, dtype=torch.float64, requires_grad=True)

    def loss_at(j: int, y: Any, rate: Tensor) -> Tensor:
        return total(pytree.tree_leaves(y)) * (1 + j) * (1 + rate * rate)

    sol = odegrad.solve(
        problem.f,
        problem.y0,
        ts,
        (problem.rate,),
        scheme=scheme,
        stepsize=stepsize,
        gradient=gradient,
        running=running_cost if running else None,
        loss_at=loss_at if streamed else None,
        land=land,
        max_steps=MOST_STEPS if isinstance(stepsize, PID) else None,
    )
    outputs = [sol.loss] if streamed else pytree.tree_leaves(sol.ys)
    if running:
        outputs.append(sol.running)
    inputs = [*problem.leaves, *problem.theta, problem.rate, ts]
    grads = torch.autograd.grad(total(outputs), inputs, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in outputs], list(grads), sol


def check_discrete_equals_tape(
    problem: Problem,
    times: list[float],
    scheme: Any,
    stepsize: Any,
    checkpoints: Any,
    running: bool,
    streamed: bool,
) -> None:
    call = (problem, times, scheme, stepsize)
    ys, right, tape = solved(*call, Tape(), running, streamed)
    found_ys, found, sol = solved(*call, Discrete(checkpoints), running, streamed)
    for a, b in zip(found_ys, ys, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6) if streamed else None
        assert streamed or torch.equal(a, b)
    same_gradients(found, right, tolerance(problem))
    check_statistics(sol, tape, scheme, len(times))


def check_statistics(sol: Any, tape: Any, scheme: Any, n_times: int) -> None:
    """Counts that follow from the scheme and the grid alone."""
    n, tab = sol.stats.accepted, scheme.tableau
    first = int(tab.fsal and n_times > 1)
    assert n == sol.grid.n_steps == tape.stats.accepted
    assert len(sol.grid.segments) == n_times - 1
    assert sol.stats.rejected == 0
    forward = n * (tab.stages - int(tab.fsal)) + first
    assert sol.stats.forward_evaluations == tape.stats.f_evaluations == forward
    assert sol.stats.f_evaluations >= forward
    assert sol.stats.recomputed >= 0
    assert sol.stats.recompute_factor >= float(n > 0)
    assert sol.status is odegrad.Status.SUCCESS


DISCRETE = {
    "problem": problems(),
    "times": grids(),
    "scheme": schemes,
    "stepsize": STEPSIZES,
    "checkpoints": SCHEDULES,
    "running": st.booleans(),
    "streamed": st.booleans(),
}


@QUICK
@given(**DISCRETE)
def test_discrete_equals_tape(**drawn: Any) -> None:
    check_discrete_equals_tape(**drawn)


@pytest.mark.exhaustive
@LONG
@given(**DISCRETE)
def test_discrete_equals_tape_often(**drawn: Any) -> None:
    check_discrete_equals_tape(**drawn)


# --------------------------------------------------------------------------- a plain loop


def marched(problem: Problem, ts: Tensor, scheme: Any, steps: int) -> list[Tensor]:
    """The outputs, by a loop over plain tensors."""
    tab = scheme.tableau
    coefficients = ([list(row) for row in tab.a], list(tab.b), list(tab.c))
    y = list(problem.leaves)
    rows = [y]
    for j in range(len(ts) - 1):
        start, h = ts[j], (ts[j + 1] - ts[j]) / steps
        for i in range(steps):
            f = lambda t, y: slope(t, y, problem.theta, problem.rate)  # noqa: E731
            y, _ = rk_step(coefficients, f, start + i * h, h, y)
        rows.append(y)
    return [torch.stack([row[k] for row in rows]) for k in range(len(y))]


def check_against_a_plain_loop(
    problem: Problem, times: list[float], scheme: Any, steps: int
) -> None:
    ts = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    inputs = [*problem.leaves, *problem.theta, problem.rate, ts]
    right = marched(problem, ts, scheme, steps)
    more = {"allow_unused": True, "materialize_grads": True}
    wanted = list(torch.autograd.grad(total(right), inputs, **more))
    for gradient in (Tape(), Discrete()):
        ys, found, _ = solved(problem, times, scheme, Steps(steps), gradient, False, False)
        for a, b in zip(ys, right, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)
        same_gradients(found, wanted, 1e-11)


LOOP = {
    "problem": problems((torch.float64, torch.complex128)),
    "times": grids(),
    "scheme": schemes,
    "steps": st.integers(1, 3),
}


@QUICK
@given(**LOOP)
def test_against_a_plain_loop(**drawn: Any) -> None:
    check_against_a_plain_loop(**drawn)


@pytest.mark.exhaustive
@LONG
@given(**LOOP)
def test_against_a_plain_loop_often(**drawn: Any) -> None:
    check_against_a_plain_loop(**drawn)


# ----------------------------------------------------------------------------- adaptive steps


def check_adaptive(
    problem: Problem,
    times: list[float],
    checkpoints: Any,
    rtol: float,
    scheme: Any,
    land: bool | None,
) -> None:
    """The gradient is that of the recorded grid, and the counts fit each other."""
    call = (problem, times, scheme)
    try:
        ys, found, sol = solved(*call, PID(rtol, rtol), Discrete(checkpoints), False, False, land)
    except odegrad.errors.SolveError:
        reject()  # this random solution blows up, or is slow to solve
    again, right, replay = solved(*call, sol.grid, Tape(), False, False, land)
    for a, b in zip(ys, again, strict=True):
        assert torch.equal(a, b)
    same_gradients(found, right, 1e-11)
    stats, tab = sol.stats, scheme.tableau
    assert replay.grid == sol.grid
    assert stats.accepted == sol.grid.n_steps
    attempts = stats.accepted + stats.rejected
    stages = tab.stages - int(tab.fsal)
    starts = (2 + int(tab.fsal)) if len(times) > 1 else 0  # two for the first step size
    assert stats.forward_evaluations == attempts * stages + starts
    assert not land or sol.landings == tuple(times)
    for segment, width in zip(sol.grid.segments, pairwise(sol.landings), strict=True):
        assert segment.fractions[0] == 0.0
        assert segment.fractions[-1] == 1.0
        assert list(segment.fractions) == sorted(segment.fractions)
        assert width[0] != width[1] or len(segment) == 1


ADAPTIVE = {
    "problem": problems((torch.float64,)),
    "times": grids(),
    "checkpoints": SCHEDULES,
    "rtol": st.sampled_from([1e-2, 1e-4, 1e-6]),
    "scheme": st.sampled_from([odegrad.Bosh3(), odegrad.Tsit5(), odegrad.AdaptiveHeun()]),
    "land": st.sampled_from([None, True]),
}


@QUICK
@given(**ADAPTIVE)
def test_adaptive_steps(**drawn: Any) -> None:
    check_adaptive(**drawn)


@pytest.mark.exhaustive
@LONG
@given(**ADAPTIVE)
def test_adaptive_steps_often(**drawn: Any) -> None:
    check_adaptive(**drawn)


# ------------------------------------------------------------------- loss_at is a sum of losses


def check_streamed(problem: Problem, times: list[float], checkpoints: Any) -> None:
    """What the sweeps sum up, by hand from the states that are put out otherwise."""
    call = (problem, times, odegrad.Midpoint(), Steps(2))
    (value,), found, _ = solved(*call, Discrete(checkpoints), False, True)
    ts = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    ys = odegrad.solve(
        problem.f,
        problem.y0,
        ts,
        (problem.rate,),
        scheme=odegrad.Midpoint(),
        stepsize=Steps(2),
        gradient=Tape(),
    ).ys
    by_hand = torch.zeros((), dtype=torch.float64)
    for j in range(len(times)):
        row = [x[j] for x in pytree.tree_leaves(ys)]
        by_hand = by_hand + total(row) * (1 + j) * (1 + problem.rate * problem.rate)
    inputs = [*problem.leaves, *problem.theta, problem.rate, ts]
    right = torch.autograd.grad(total([by_hand]), inputs, allow_unused=True, materialize_grads=True)
    assert relative([value], [by_hand.detach()]) <= 1e-12
    same_gradients(found, list(right), 1e-11)


STREAMED = {
    "problem": problems((torch.float64, torch.complex128)),
    "times": grids(),
    "checkpoints": SCHEDULES,
}


@QUICK
@given(**STREAMED)
def test_streamed_losses(**drawn: Any) -> None:
    check_streamed(**drawn)


@pytest.mark.exhaustive
@LONG
@given(**STREAMED)
def test_streamed_losses_often(**drawn: Any) -> None:
    check_streamed(**drawn)
