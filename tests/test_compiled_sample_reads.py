"""Compiled steps of each sample that are read inside, and that end at breakpoints.

Against the eager engine, `Tape` on the accepted grids, and closed forms; programs run as the graphs they
are, as in test_compiled_samples.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import relative
from compiling import close, in_chunks_of
from odegrad import errors
from odegrad.compiled import SamplePrograms, using_backend
from odegrad.samplestops import Reading, SampleStops
from odegrad.sweeps.samples.compiled.places import Reader
from test_compiled_samples import same_gradients, same_grid
from test_samples_dense import (
    F64,
    JUMPS,
    ONTO_JUMPS,
    PID,
    POLICIES,
    Case,
    Decoded,
    across_jumps,
    field,
    jumping,
    loss,
    sick,
)

# Dynamo looks at `.grad` of a captured tensor with a history; see the test of such tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


ROUGH = odegrad.PID(rtol=1e-3, atol=1e-3)
exhaustive = pytest.mark.exhaustive


class Rough(Case):
    """With few steps of few operations, which are quick to trace."""

    def solve(self, **options: Any) -> Any:
        return super().solve(**{"scheme": odegrad.AdaptiveHeun(), "stepsize": ROUGH, **options})


def some(values: list[Any], *fast: int) -> list[Any]:
    """Parameters of a test, of which all but some are exhaustive."""
    return [
        pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=() if i in fast else exhaustive)
        for i, x in enumerate(values)
    ]


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"), warnings.catch_warnings():
        warnings.simplefilter("error", errors.OdegradWarning)
        yield


def compare(case: Case, evaluations: bool = True, **options: Any) -> Any:
    """A compiled solve that has all that the eager one has, and the gradients of `Tape` on its grid."""
    sol, eager = (case.solve(compile=x, **options) for x in (True, False))
    same_grid(sol.grid, eager.grid)
    close(sol.ys, eager.ys, 1e-12)
    assert sol.landings == eager.landings
    assert sol.status == eager.status
    assert torch.equal(sol.stats.accepted_by_sample, eager.stats.accepted_by_sample)
    assert torch.equal(sol.stats.rejected_by_sample, eager.stats.rejected_by_sample)
    assert sol.stats.rounds == eager.stats.rounds
    if evaluations:
        assert sol.stats.f_evaluations == eager.stats.f_evaluations
    check(case, sol, **options)
    return sol


def check(case: Case, sol: Any, **options: Any) -> None:
    """Whether the gradients are those of `Tape` on the accepted grid."""
    options = {**options, "stepsize": sol.grid, "gradient": odegrad.Tape()}
    expected = case.gradient(loss(case.solve(**options).ys))
    assert relative(case.gradient(loss(sol.ys)), expected) <= 1e-12


# Times that are read.


@pytest.mark.parametrize(
    ("rows", "per_sample"), some([(3, True), (128, False), (3, False), (128, True)], 0)
)
@pytest.mark.parametrize(
    ("scheme", "stepsize", "land"),
    some(
        [
            (odegrad.Bosh3(), ROUGH, False),
            (odegrad.RKF45(), ROUGH, None),  # reading evaluates f
            (odegrad.RK4(), odegrad.Fixed(0.3), False),
            (odegrad.Tsit5(), PID, None),
            (odegrad.AdaptiveHeun(), odegrad.PID(rtol=1e-2, atol=1e-2), None),
            (odegrad.ALF(), odegrad.PID(rtol=1e-1, atol=1e-1), None),
        ],
        0,
        1,
    ),
    ids=str,
)
def test_the_two_engines_agree(
    scheme: Any,
    stepsize: Any,
    land: bool | None,
    rows: int,
    per_sample: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the times some are equal, several are in one step, and most steps have none."""
    in_chunks_of(rows, monkeypatch)
    case = Case(per_sample, most=6.0 if scheme.order > 3 and stepsize is PID else 1.0)
    options = {"scheme": scheme, "stepsize": stepsize, "land": land}
    sol = compare(case, evaluations=scheme.reads_slopes, **options)
    assert all(len(x) == 2 for x in sol.landings)


@exhaustive
@pytest.mark.parametrize("scheme", [odegrad.CashKarp(), odegrad.Dopri8()], ids=str)
def test_what_evaluates_f_to_be_read(scheme: Any) -> None:
    """It does so in all steps; Dopri8 takes a step of half the length, too."""
    compare(Case(per_sample=True), evaluations=False, scheme=scheme)


@pytest.mark.parametrize("checkpoints", some(POLICIES, 2, 7), ids=str)
def test_every_schedule_reads(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(4, monkeypatch)
    case = Rough(per_sample=True)
    options = {"gradient": odegrad.Discrete(checkpoints), "batch": odegrad.Samples(args=(0,))}
    sol = case.solve(compile=True, **options)
    close(sol.ys, case.solve(**options).ys, 1e-12)
    check(case, sol)
    found = [case.gradient(loss(sol.ys)) for _ in "ab"]
    assert all(map(torch.equal, *found))


def test_asking_for_more_times_changes_no_step_and_no_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[bool] = []
    honest = SamplePrograms._search

    def spy(self: SamplePrograms, norm: Any, n_times: int, read: bool) -> Any:
        made.append(read)
        return honest(self, norm, n_times, read)

    monkeypatch.setattr(SamplePrograms, "_search", spy)
    in_chunks_of(16, monkeypatch)
    case = Rough()
    many = case.solve(compile=True)
    case.ts = torch.tensor([0.0, 0.3, 2.0], dtype=F64, requires_grad=True)
    few = case.solve(compile=True)
    assert made == [True]
    same_grid(many.grid, few.grid)
    assert torch.equal(many.ys[-1], few.ys[-1])
    assert many.stats.forward_evaluations == few.stats.forward_evaluations
    check(case, few)
    case.ts = torch.tensor([0.0, 2.0], dtype=F64, requires_grad=True)
    ends = case.solve(compile=True)
    assert made == [True, False]
    same_grid(many.grid, ends.grid)
    close(many.ys[-1], ends.ys[-1])


def test_a_sample_without_extent_and_no_gradients() -> None:
    case = Rough(per_sample=True)
    with torch.no_grad():
        case.ts[2] = 1.0
    sol = compare(case)
    assert sol.grid.own_segments.tolist() == [1, 1, 8, 1]
    with torch.no_grad():
        close(case.solve(compile=True).ys, sol.ys, 0.0)
    for x in case.inputs:
        x.requires_grad_(False)
    case.ts.requires_grad_()
    alone = case.solve(compile=True)
    expected = case.solve(stepsize=sol.grid, gradient=odegrad.Tape())
    found = [torch.autograd.grad(loss(x.ys), case.ts)[0] for x in (alone, expected)]
    assert relative(found[:1], found[1:]) <= 1e-12


def test_where_a_time_lies() -> None:
    """As the eager engine finds it, step by step: random steps, some rejected, in chunks."""
    generator = torch.Generator().manual_seed(0)
    size, rows = 5, 60
    times = torch.linspace(0.0, 3.0, 25, dtype=F64).expand(size, -1).clone()
    times[:, 7] = times[:, 8]
    breaks = torch.tensor([1.0], dtype=F64)
    stops = SampleStops.of(times, breaks, [[0, 25, 24]] * 3 + [[0, 12, 24]] * 2)
    taken = torch.rand(rows, size, generator=generator) < 0.8
    widths = torch.randint(1, 5, (rows, size), generator=generator) / 20
    place, segment, stop = torch.zeros(size, dtype=F64), [], []
    for row, width in zip(taken, widths, strict=True):
        follows = torch.minimum(place + width, place.floor() + 1.0).round(decimals=9)
        segment.append(place.floor().long().clamp(max=2))
        stop.append(follows - segment[-1])
        place = torch.where(row & (place < 2), follows, place)
    taken &= torch.stack(segment) < 2
    eager, reader, found = Reading(stops), Reader(stops), set[tuple[int, int, int]]()
    for r, given in enumerate(zip(taken, segment, stop, strict=True)):
        for j, b in eager.inside(*given):
            found |= {(r, *x) for x in zip(j.tolist(), b.tolist(), strict=True)}
    mine, first = set[tuple[int, int, int]](), 0
    for n in (1, 6, 13, 40):
        part = slice(first, first + n)
        places = reader.places(taken[part], torch.stack(segment[part]), torch.stack(stop[part]))
        rows_ = (places.rows + first).tolist()
        assert rows_ == sorted(rows_)
        mine |= set(zip(rows_, places.numbers.tolist(), places.samples.tolist(), strict=True))
        first += n
    assert mine == found
    assert len(found) == size * 22 + 3


@exhaustive
def test_closed_form_of_what_is_read() -> None:
    """y' = −r y: the derivative with respect to the time at which it is read is −r y."""
    rate = torch.tensor([0.5, 3.0, 20.0], dtype=F64, requires_grad=True)
    y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64)
    ts = torch.tensor(
        [[0.0, 0.3, 2.0], [1.0, 0.9, 0.5], [0.0, 0.2, 1.0]], dtype=F64
    ).requires_grad_()
    sol = odegrad.solve(
        lambda t, y, r: -r[:, None] * y, y0, ts, (rate,), stepsize=odegrad.PID(1e-12, 1e-14),
        batch=0, scheme=odegrad.Dopri8(), compile=True,
    )  # fmt: skip
    span = (ts[:, 1] - ts[:, 0]).detach()
    value = y0[:, 0] * torch.exp(-rate.detach() * span)
    close(sol.ys[1, :, 0].detach(), value, 1e-9)
    grad, times = torch.autograd.grad(sol.ys[1].sum(), [rate, ts])
    close(grad, -span * value, 1e-8)
    close(times[:, 1], -rate.detach() * value, 1e-7)


@pytest.mark.parametrize("keep", some([odegrad.Keep.STATE, odegrad.Keep.GRAPH], 1), ids=str)
def test_states_of_several_leaves_and_a_running_cost_are_read(keep: odegrad.Keep) -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 2, dtype=F64, requires_grad=True)
    z = torch.randn(3, dtype=torch.complex128, requires_grad=True)
    rate = torch.tensor([0.1, 1.0, 9.0], dtype=F64, requires_grad=True)
    ts = torch.tensor([0.0, 0.2, 0.3, 0.4, 1.0], dtype=F64, requires_grad=True)

    def f(t: Tensor, y: Any, rate: Tensor) -> Any:
        q, z = y["q"], y["z"]
        return {"q": -rate[:, None] * q + t[:, None], "z": 1j * rate * z * q.square().sum(1) - z}

    def run(**options: Any) -> tuple[Any, list[Tensor]]:
        sol = odegrad.solve(
            f, {"q": q, "z": z}, ts, (rate,), batch=0,
            running=lambda t, y, rate: y["q"].square().sum(1) * (1 + t),
            **{"stepsize": ROUGH, "scheme": odegrad.AdaptiveHeun(), **options},
        )  # fmt: skip
        value = loss(sol.ys["q"]) + sol.ys["z"].abs().sum() + (sol.running * ts[:, None]).sum()
        return sol, list(torch.autograd.grad(value, [q, z, rate, ts]))

    sol, found = run(compile=True, gradient=odegrad.Discrete(odegrad.StoreAll(keep)))
    eager, expected = run(stepsize=sol.grid)
    close([sol.ys, sol.running], [eager.ys, eager.running], 1e-12)
    assert relative(found, expected) <= 1e-12
    assert relative(found, run(stepsize=sol.grid, gradient=odegrad.Tape())[1]) <= 1e-12


def test_second_derivatives_of_what_is_read() -> None:
    case = Rough(per_sample=True, most=1.0)

    def twice(**options: Any) -> list[Tensor]:
        sol = case.solve(**options)
        first = torch.autograd.grad(loss(sol.ys), case.inputs, create_graph=True)
        return list(torch.autograd.grad(sum((g * g).sum() for g in first), case.inputs))

    grid = case.solve(compile=True).grid
    found = twice(compile=True, stepsize=grid)
    assert relative(found, twice(stepsize=grid, gradient=odegrad.Tape())) < 1e-11


def test_on_buffers_that_stay_in_place() -> None:
    """As on CUDA."""
    with using_backend("recorded"):
        compare(Rough(per_sample=True))


def test_single_precision_is_read_in_it() -> None:
    case = Case()
    options = {"scheme": odegrad.AdaptiveHeun(), "stepsize": ROUGH}
    y0, mu = (x.detach().float().requires_grad_() for x in (case.y0, case.mu))
    sol, eager = (
        odegrad.solve(field, y0, case.ts, (mu,), batch=0, compile=x, **options)
        for x in (True, False)
    )
    assert sol.ys.dtype is torch.float32
    close(sol.ys, eager.ys, 1e-5)
    found = [list(torch.autograd.grad(loss(x.ys), [y0, mu])) for x in (sol, eager)]
    assert relative(*found) <= 1e-4


# sol(t), losses at labels.


@pytest.mark.parametrize("land", some([None, True], 0))
def test_a_solution_at_any_time(land: bool | None) -> None:
    case = Rough(per_sample=True)
    sol = case.solve(compile=True, land=land)
    eager = case.solve(stepsize=sol.grid, land=land, gradient=odegrad.Tape())
    part = torch.tensor([0.9, 0.1, 1.0, 0.0, 0.5], dtype=F64)
    first, last = case.ts.detach()[:, :1], case.ts.detach()[:, -1:]
    asked = (first + part * (last - first)).requires_grad_()
    inputs = [*case.inputs, asked]
    close(sol(asked), eager(asked), 1e-12)
    found = [list(torch.autograd.grad(loss(x(asked)), inputs)) for x in (sol, eager)]
    assert relative(*found) <= 1e-12


@pytest.mark.parametrize("per_sample", some([False, True], 1))
def test_losses_at_labels_and_breakpoints(per_sample: bool) -> None:
    case, decoded = Rough(per_sample, jumping, most=1.0), Decoded()
    options: dict[str, Any] = {"loss_at": decoded, "breakpoints": JUMPS}
    sol = case.solve(compile=True, **options)
    tape = case.solve(stepsize=sol.grid, gradient=odegrad.Tape(), **options)
    assert float(sol.loss.detach()) == pytest.approx(float(tape.loss.detach()), rel=1e-13)
    inputs = [*case.inputs, decoded.weights]
    found = [list(torch.autograd.grad(x.loss, inputs)) for x in (sol, tape)]
    assert relative(*found) <= 1e-12


# Breakpoints.


@pytest.mark.parametrize("per_sample", some([False, True], 1))
@pytest.mark.parametrize(
    ("scheme", "stepsize", "land"),
    some([(odegrad.Bosh3(), ROUGH, None), *ONTO_JUMPS], 0, 4),
    ids=str,
)
def test_every_sample_steps_onto_breakpoints(
    scheme: Any, stepsize: Any, land: bool | None, per_sample: bool
) -> None:
    case = across_jumps(per_sample)
    options = {"scheme": scheme, "stepsize": stepsize, "land": land, "breakpoints": JUMPS}
    sol = compare(case, evaluations=scheme.reads_slopes or stepsize is not PID, **options)
    assert all((0.3 in x) == (min(x) < 0.3 < max(x)) for x in sol.landings)
    if per_sample:
        assert len({len(x) for x in sol.landings}) > 1


@pytest.mark.parametrize("checkpoints", some(POLICIES, 2), ids=str)
def test_every_schedule_with_breakpoints(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(4, monkeypatch)
    case = Rough(per_sample=True, f=jumping, most=1.0)
    sol = case.solve(compile=True, breakpoints=JUMPS, gradient=odegrad.Discrete(checkpoints))
    check(case, sol, breakpoints=JUMPS)


def test_a_jump_is_seen_from_one_side() -> None:
    """y' = 1 up to each sample's share of t = 1/2 and −1 from there: exact, by one step on each side."""
    y0 = torch.zeros(3, 1, dtype=F64)
    ts = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.375, 0.75], [1.0, 0.75, 0.0]], dtype=F64)
    sol = odegrad.solve(
        lambda t, y: torch.where(t < 0.5, 1.0, -1.0).to(y)[:, None].expand_as(y), y0, ts,
        scheme=odegrad.Dopri5(), stepsize=odegrad.Steps(1), breakpoints=(0.5,), batch=0,
        land=False, compile=True,
    )  # fmt: skip
    assert sol.ys[-1].abs().max() < 1e-15
    close(sol.ys[1, :, 0], torch.tensor([0.5, 0.125, 0.25], dtype=F64), 1e-15)


def test_controls_declare_their_breakpoints() -> None:
    """A continuous one has kinks, but no jumps: no step begins anew."""
    u = odegrad.controls.PiecewiseLinear(
        [0.0, 0.3, 0.7, 1.0], init=torch.tensor([1.0, -2.0, 3.0, 1.0], dtype=F64)
    )
    y0 = torch.tensor([[1.0], [2.0], [0.5]], dtype=F64, requires_grad=True)
    ts = torch.tensor([[0.0, 0.5, 1.0], [0.4, 0.45, 0.5], [1.0, 0.7, 0.2]], dtype=F64)
    inputs = [y0, ts.requires_grad_(), *u.parameters()]

    def run(**options: Any) -> tuple[Any, list[Tensor]]:
        sol = odegrad.solve(
            lambda t, y: -y * u(t)[:, None], y0, ts, batch=0,
            **{"stepsize": ROUGH, "scheme": odegrad.AdaptiveHeun(), **options},
        )  # fmt: skip
        return sol, list(torch.autograd.grad(loss(sol.ys), inputs))

    sol, found = run(compile=True)
    assert sol.landings == ((0.0, 0.3, 0.7, 1.0), (0.4, 0.5), (1.0, 0.7, 0.3, 0.2))
    same_grid(sol.grid, run()[0].grid)
    assert relative(found, run(stepsize=sol.grid, gradient=odegrad.Tape())[1]) <= 1e-12


# Samples that fail.


@pytest.mark.parametrize(
    ("checkpoints", "on_failure"),
    some([(POLICIES[i], x) for i in (0, 2, 7) for x in ("return", "nan")], 0),
    ids=str,
)
def test_a_sample_that_fails_harms_no_other(
    checkpoints: Any, on_failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(4, monkeypatch)
    options = {"on_failure": on_failure, "gradient": odegrad.Discrete(checkpoints)}
    options |= {"breakpoints": (0.15, 0.6), "scheme": odegrad.Bosh3(), "stepsize": ROUGH}
    (sol, inputs), (eager, others) = (sick(compile=x, **options) for x in (True, False))
    assert sol.status == eager.status
    assert sol.succeeded.tolist() == [True, False, True, True]
    same_grid(sol.grid, eager.grid)
    assert torch.equal(sol.ys.isnan(), eager.ys.isnan())
    close(sol.ys.nan_to_num(), eager.ys.nan_to_num(), 1e-12)
    same_gradients((sol, inputs), (eager, others), 1e-12)
    with pytest.raises(errors.SolveError, match="sample 1 of the batch"):
        sick(compile=True, **(options | {"on_failure": "raise"}))


def test_a_sample_that_fails_on_a_fixed_grid() -> None:
    case = Rough(most=60.0)
    options = {"stepsize": odegrad.Steps(12), "land": False, "on_failure": "return"}
    sol, eager = (case.solve(compile=x, **options) for x in (True, False))
    assert sol.status == eager.status
    assert 0 < int(sol.succeeded.sum()) < 4
    found, expected = (case.gradient(loss(x.ys[:, x.succeeded])) for x in (sol, eager))
    assert relative(found, expected) <= 1e-12
