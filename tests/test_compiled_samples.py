"""Steps for each sample with compile=True: against the eager engine, and Tape on the accepted grids.

Programs run as the graphs they are (backend "interpreter"), which takes no compiler; what Inductor makes
of them is the matter of test_compiled_inductor.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import mlp, relative
from compiling import close, in_chunks_of, leaves, warnings_of
from odegrad import errors
from odegrad.compiled import SamplePrograms, using_backend
from odegrad.samplegrid import SampleGrid
from odegrad.schemes import SCHEMES
from test_samples import F64, PID, POLICIES, loss, structured, van_der_pol
from test_samples import Stiffness as Reading
from test_samples import sick as reading_sick

# Dynamo looks at `.grad` of a captured tensor with a history; see the test of such tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

STEPS = odegrad.Steps(20)


class Stiffness(Reading):
    """With steps that end at all times."""

    def solve(self, **options: Any) -> odegrad.SampleSolution:
        return super().solve(land=True, **options)

    def alone(self, b: int, **options: Any) -> odegrad.Solution:
        return super().alone(b, land=True, **options)


def sick(**options: Any) -> tuple[odegrad.SampleSolution, list[Tensor]]:
    return reading_sick(land=True, **options)


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


def same_grid(a: SampleGrid, b: SampleGrid) -> None:
    """Whether two grids are equal up to rounding, and have as many steps of each sample."""
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.segments[: a.n_steps] * a.active, b.segments[: b.n_steps] * b.active)
    for x, y in ((a.starts, b.starts), (a.widths, b.widths)):
        close(x[: a.n_steps] * a.active, y[: b.n_steps] * b.active)


def check(case: Stiffness, sol: odegrad.SampleSolution, **options: Any) -> None:
    """Gradients on the accepted grid: the eager engine's up to rounding, and Tape's."""
    found = case.gradient(sol)
    options = {"stepsize": sol.grid, **options}
    eager = case.solve(**options)
    close(sol.ys, eager.ys)
    assert relative(found, case.gradient(eager)) <= 1e-13
    tape = case.solve(**options, gradient=odegrad.Tape())
    assert relative(found, case.gradient(tape)) <= 1e-12


# The same steps, states and gradients.


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("stepsize", [PID, STEPS], ids=["PID", "Steps"])
@pytest.mark.parametrize("rows", [3, 128])
def test_the_two_engines_agree(
    stepsize: Any, per_sample: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(rows, monkeypatch)
    case = Stiffness(per_sample=per_sample)
    sol, eager = (case.solve(stepsize=stepsize, compile=x) for x in (True, False))
    same_grid(sol.grid, eager.grid)
    close(sol.ys, eager.ys, 1e-10)
    mine, others = sol.stats, eager.stats
    assert torch.equal(mine.accepted_by_sample, others.accepted_by_sample)
    assert torch.equal(mine.rejected_by_sample, others.rejected_by_sample)
    assert (mine.rounds, mine.accepted) == (others.rounds, others.accepted)
    assert mine.f_evaluations == others.f_evaluations
    check(case, sol)
    assert mine.recomputed == 0


@pytest.mark.parametrize("size", [1, 8])
def test_van_der_pol_of_many_stiffnesses_and_each_alone(size: int) -> None:
    """Steps equal those of each sample solved alone, to rounding."""
    case = Stiffness(size, most=25.0)
    sol = case.solve(compile=True)
    for b in range(size):
        one = case.alone(b)
        assert one.stats.accepted == sol.stats.accepted_by_sample[b]
        assert one.stats.rejected == sol.stats.rejected_by_sample[b]
        close(sol.ys[:, b], one.ys[:, 0], 1e-9)
        for mine, other in zip(sol.grid[b].segments, one.grid.segments, strict=True):
            assert len(mine) == len(other)
            assert all(abs(mine.start(i) - other.start(i)) < 1e-9 for i in range(len(mine)))


@pytest.mark.parametrize("scheme", [x for x in SCHEMES if x.traceable], ids=lambda x: x.__name__)
def test_every_scheme(scheme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(5, monkeypatch)
    case = Stiffness(3, most=0.8)  # reversible schemes amplify rounding on stiffer ones
    adaptive = scheme().error_order is not None and scheme().order > 2
    stepsize = PID if adaptive else STEPS
    sol = case.solve(scheme=scheme(), stepsize=stepsize, compile=True)
    check(case, sol, scheme=scheme())


@pytest.mark.parametrize("checkpoints", POLICIES, ids=str)
def test_every_schedule(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third one on fixed steps."""
    in_chunks_of(4, monkeypatch)
    case = Stiffness(4, most=3.0)
    stepsize = odegrad.Fixed(0.25) if POLICIES.index(checkpoints) % 3 == 2 else PID
    options = {"stepsize": stepsize, "compile": True}
    sol = case.solve(gradient=odegrad.Discrete(checkpoints), **options)
    plain = case.solve(**options)
    close(sol.ys, plain.ys, 0.0)
    check(case, sol)
    assert relative(case.gradient(sol), case.gradient(plain)) <= 1e-13


def test_few_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of rounds with what their transposes need, and the states before two blocks."""
    in_chunks_of(2, monkeypatch)
    case = Stiffness(4)
    options = {"compile": True, "stepsize": odegrad.Steps(100)}
    kept = {}
    for checkpoints in (odegrad.StoreAll(odegrad.Keep.GRAPH), odegrad.Binomial(2)):
        sol = case.solve(gradient=odegrad.Discrete(checkpoints), **options)
        case.gradient(sol)
        kept[checkpoints] = sol.stats.kept_bytes
    assert sol.stats.recomputed > 300
    assert kept[odegrad.Binomial(2)] < 0.1 * kept[odegrad.StoreAll(odegrad.Keep.GRAPH)]


@pytest.mark.parametrize("keep", list(odegrad.Keep), ids=str)
def test_structured_states_and_a_running_cost(keep: odegrad.Keep) -> None:
    torch.manual_seed(0)
    size = 4
    q = torch.randn(size, 3, dtype=F64, requires_grad=True)
    z = torch.randn(size, dtype=torch.complex128, requires_grad=True)
    weights = torch.randn(3, 3, dtype=F64, requires_grad=True)
    rate = torch.tensor([0.1, 1.0, 4.0, 9.0], dtype=F64, requires_grad=True)
    ts = torch.tensor([0.0, 0.4, 1.0], dtype=F64, requires_grad=True)

    def f(t, y, weights, rate):
        return structured(t, y, weights, rate)

    def cost(t, y, *args):
        return y["q"].square().sum(1) * (1 + t) + y["z"].abs()

    def run(**options):
        args = {"batch": 0, "running": cost, "stepsize": PID, "land": True, **options}
        sol = odegrad.solve(f, {"q": q, "z": z}, ts, (weights, rate), **args)
        ys = sol.ys
        total = loss(ys["q"]) + ys["z"].abs().square().sum()
        total = total + (sol.running * (1 + ts[:, None])).sum()
        return sol, list(torch.autograd.grad(total, [q, z, weights, rate, ts]))

    discrete = odegrad.Discrete(odegrad.StoreAll(keep))
    sol, found = run(compile=True, gradient=discrete)
    eager, expected = run(stepsize=sol.grid)
    close([sol.ys, sol.running], [eager.ys, eager.running])
    same_grid(sol.grid, run()[0].grid)
    assert relative(found, expected) <= 1e-13
    assert relative(found, run(stepsize=sol.grid, gradient=odegrad.Tape())[1]) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_module_that_all_samples_share(dtype: torch.dtype) -> None:
    """Its gradients are products of rows of all steps, those of samples that sit out among them."""
    net = mlp().to(dtype)
    torch.manual_seed(1)
    y0 = (3 * torch.randn(6, 3)).to(dtype).requires_grad_()
    ts = torch.tensor([[0.0, 1.0, 2.0 + 3 * b] for b in range(6)], dtype=dtype, requires_grad=True)

    def run(**options):
        options = {"stepsize": PID, "batch": 0, "land": True, **options}
        sol = odegrad.solve(lambda t, y: net(y) * 3, y0, ts, **options)
        return sol, list(torch.autograd.grad(loss(sol.ys), [y0, *net.parameters(), ts]))

    sol, found = run(compile=True)
    assert int(sol.grid.counts.max()) > 1.5 * int(sol.grid.counts.min())
    bound = 1e-12 if dtype is F64 else 1e-5
    assert relative(found, run(stepsize=sol.grid, gradient=odegrad.Tape())[1]) <= bound


@pytest.mark.parametrize(
    "control",
    [
        odegrad.PID(1e-4, 1e-6, p=0.4, i=0.3, d=0.05, dt0=0.1),
        odegrad.PID(1e-6, 0.0, dt_max=0.2, dt_min=1e-3),
        odegrad.PID(1e-4, 1e-4, norm=lambda x: x[0].abs().amax()),
    ],
    ids=["gains", "sizes", "norm"],
)
def test_controllers(control: odegrad.PID) -> None:
    case = Stiffness(per_sample=True)
    sol, eager = (case.solve(stepsize=control, compile=x) for x in (True, False))
    same_grid(sol.grid, eager.grid)
    assert torch.equal(sol.stats.rejected_by_sample, eager.stats.rejected_by_sample)
    assert int(sol.stats.rejected_by_sample.max()) > 0


def test_equal_times_and_one_time() -> None:
    case = Stiffness(3)
    case.ts = torch.tensor([0.0, 0.4, 0.4, 0.9], dtype=F64, requires_grad=True)
    sol, eager = (case.solve(compile=x) for x in (True, False))
    same_grid(sol.grid, eager.grid)
    check(case, sol)
    case.ts = torch.tensor([0.3], dtype=F64, requires_grad=True)
    for stepsize in (PID, STEPS):
        sol = case.solve(compile=True, stepsize=stepsize)
        assert torch.equal(sol.ys[0], case.y0)
        assert sol.grid.n_steps == 0
        (grad,) = torch.autograd.grad(sol.ys.sum(), case.y0)
        assert torch.equal(grad, torch.ones_like(case.y0))


def test_without_gradients_and_with_few_of_them() -> None:
    case = Stiffness(4)
    sol = case.solve(compile=True)
    expected = case.gradient(sol)
    with torch.no_grad():
        close(case.solve(compile=True).ys, sol.ys, 0.0)
    for i, x in enumerate(case.inputs):
        for other in case.inputs:
            other.requires_grad_(other is x)
        alone = case.solve(compile=True)
        (found,) = torch.autograd.grad(loss(alone.ys), [x])
        assert relative([found], [expected[i]]) <= 1e-13


def test_second_derivatives() -> None:
    case = Stiffness(3, most=2.0)

    def twice(**options: Any) -> list[Tensor]:
        sol = case.solve(**options)
        first = torch.autograd.grad(loss(sol.ys), case.inputs, create_graph=True)
        total = sum((g * g).sum() for g in first)
        return list(torch.autograd.grad(total, case.inputs))

    grid = case.solve(compile=True).grid
    found = twice(compile=True, stepsize=grid)
    assert relative(found, twice(stepsize=grid, gradient=odegrad.Tape())) < 1e-11


def test_backward_twice() -> None:
    case = Stiffness(4)
    sol = case.solve(compile=True)
    once, again = (torch.autograd.grad(loss(sol.ys), case.inputs, retain_graph=True) for _ in "ab")
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize("stepsize", [PID, STEPS], ids=["PID", "Steps"])
def test_callback_sees_every_round(stepsize: Any) -> None:
    case = Stiffness(4, most=3.0)
    seen: dict[bool, list[Any]] = {True: [], False: []}
    for compiled, infos in seen.items():
        sol = case.solve(stepsize=stepsize, compile=compiled, callback=infos.append)
        torch.autograd.grad(loss(sol.ys), case.inputs)
    assert len(seen[True]) == len(seen[False])
    for a, b in zip(seen[True], seen[False], strict=True):
        assert (a.phase, a.n) == (b.phase, b.n)
        assert torch.equal(a.dt.isnan(), b.dt.isnan())
        close([a.t, a.dt.nan_to_num()], [b.t, b.dt.nan_to_num()], 1e-11)
        there = ~a.dt.isnan()
        close(a.y[there], b.y[there], 1e-10)


# Programs are made once for a size of the batch.


def test_other_starts_times_and_tolerances_need_no_other_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    honest = SamplePrograms._search

    def spy(self: SamplePrograms, *args: Any) -> Any:
        made.append(1)
        return honest(self, *args)

    monkeypatch.setattr(SamplePrograms, "_search", spy)
    in_chunks_of(16, monkeypatch)
    case = Stiffness(4)
    case.solve(compile=True)
    with torch.no_grad():
        case.y0 += 0.1
        case.mu *= 0.9
        case.ts *= 1.1
    sol = case.solve(compile=True, stepsize=odegrad.PID(1e-7, 1e-7))
    assert made == [1]
    same_grid(sol.grid, case.solve(stepsize=odegrad.PID(1e-7, 1e-7)).grid)
    check(case, sol)
    Stiffness(3).solve(compile=True)
    assert made == [1, 1]


def test_on_buffers_that_stay_in_place() -> None:
    """As on CUDA."""
    case = Stiffness(4, most=3.0)
    with using_backend("recorded"):
        sol = case.solve(compile=True)
        check(case, sol)
    same_grid(sol.grid, case.solve().grid)


# Samples that fail.


def same_gradients(one: Any, two: Any, bound: float) -> None:
    """Whether two solutions, each with its inputs, agree: of the samples that succeeded, and of all."""
    succeeded = one[0].succeeded
    for sees in (succeeded, torch.ones_like(succeeded)):
        found, expected = (
            torch.autograd.grad(sol.ys[:2, sees].sum(), inputs, retain_graph=True)
            for sol, inputs in (one, two)
        )
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
        finite = [[x.nan_to_num() for x in grads] for grads in (found, expected)]
        assert relative(*finite) <= bound


@pytest.mark.parametrize("on_failure", ["return", "nan"])
@pytest.mark.parametrize("checkpoints", [POLICIES[i] for i in (0, 2, 3, 7)], ids=str)
def test_a_sample_that_fails_harms_no_other(
    checkpoints: Any, on_failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(4, monkeypatch)
    options = {"on_failure": on_failure, "gradient": odegrad.Discrete(checkpoints)}
    (sol, inputs), (eager, others) = (sick(compile=x, **options) for x in (True, False))
    assert sol.status == eager.status
    assert sol.succeeded.tolist() == [True, False, True, True]
    assert "sample 1 of the batch" in sol.reason[1]
    assert "t = 0.5" in sol.reason[1]
    same_grid(sol.grid, eager.grid)
    assert torch.equal(sol.ys.isnan(), eager.ys.isnan())
    close(sol.ys.nan_to_num(), eager.ys.nan_to_num(), 1e-10)
    same_gradients((sol, inputs), (eager, others), 1e-11)


@pytest.mark.parametrize("checkpoints", [POLICIES[i] for i in (0, 2, 7)], ids=str)
def test_a_sample_that_fails_on_a_fixed_grid(checkpoints: Any) -> None:
    case = Stiffness(4, most=40.0)
    options = {"stepsize": odegrad.Steps(12), "on_failure": "return"}
    gradient = odegrad.Discrete(checkpoints)
    sol = case.solve(compile=True, gradient=gradient, **options)
    eager = case.solve(**options)
    assert sol.status == eager.status
    assert 0 < int(sol.succeeded.sum()) < 4
    found, expected = (
        list(torch.autograd.grad(loss(x.ys[:, x.succeeded]), case.inputs)) for x in (sol, eager)
    )
    assert relative(found, expected) <= 1e-13


def test_raising_names_the_sample() -> None:
    with pytest.raises(errors.SolveError, match=r"sample 1 of the batch: at t = 0\.5"):
        sick(compile=True)
    case = Stiffness(4)
    fewest = int(case.solve().grid.counts.max()) - 1
    with pytest.raises(errors.MaxStepsError, match="sample 2 of the batch"):
        case.solve(compile=True, max_steps=fewest)
    sol, eager = (
        case.solve(compile=x, max_steps=fewest, on_failure="return") for x in (True, False)
    )
    assert sol.status == eager.status
    assert sol.reason == eager.reason
    same_grid(sol.grid, eager.grid)


def test_all_samples_fail() -> None:
    case = Stiffness(3)
    sol = case.solve(compile=True, max_steps=2, on_failure="nan")
    assert not sol.succeeded.any()
    assert sol.ys.isnan().all()
    assert torch.autograd.grad(sol.ys.sum(), case.y0)[0].isnan().all()


def test_what_belongs_to_a_sample_that_fails() -> None:
    """Its rows of the gradient are NaN, of args that `Samples` marks, too, and no others."""
    y0 = torch.tensor([[1.0], [2.0], [-1.0]], dtype=F64, requires_grad=True)
    rate = torch.ones(3, 1, dtype=F64, requires_grad=True)
    shared = torch.ones((), dtype=F64, requires_grad=True)

    def f(t, y, shared, rate):
        return shared * rate * y * y

    sol = odegrad.solve(
        f, y0, [0.0, 0.7], (shared, rate), stepsize=PID, compile=True, on_failure="nan",
        batch=odegrad.Samples(args=(None, 0)),
    )  # fmt: skip
    grads = torch.autograd.grad(sol.ys.sum(), [y0, rate, shared])
    assert [g.isnan().flatten().tolist() for g in grads] == [[False, True, False]] * 2 + [[True]]
    # y(T) = y0 / (1 − r T y0), ∂y(T)/∂y0 = (y(T) / y0)²; y(0) counts, too.
    exact = 1 + (1 / (1 - 0.7 * y0)).square()[[0, 2]]
    close(grads[0][[0, 2]], exact.detach(), 1e-4)


# What is not compiled.


def test_what_falls_back_with_one_warning() -> None:
    case = Stiffness(3)

    def branching(t, y, mu):
        return van_der_pol(t, y, mu) if bool(y.sum() > -1e9) else y

    def run() -> odegrad.SampleSolution:
        return odegrad.solve(
            branching, case.y0, case.ts, (case.mu,), stepsize=PID, batch=0, land=True, compile=True
        )

    sol, said = warnings_of(run)
    assert len(said) == 1
    assert "compile=True has no effect on this solve" in said[0]
    assert torch.equal(sol.ys, case.solve().ys)
    rewind = odegrad.Discrete(odegrad.Rewind())
    options = {"scheme": odegrad.ALF(), "stepsize": odegrad.Steps(20), "gradient": rewind}
    mild = Stiffness(3, most=1.0)
    _, said = warnings_of(lambda: mild.solve(compile=True, **options))
    assert "Rewind takes steps back one by one" in said[0]
    empty = torch.zeros(0, 2, dtype=F64)
    sol, said = warnings_of(
        lambda: odegrad.solve(lambda t, y: -y, empty, [0.0, 1.0], batch=0, compile=True)
    )
    assert sol.ys.shape == (2, 0, 2)
    assert "no samples" in said[0]
    with pytest.raises(errors.InvalidValueError, match="compile=True goes with"):
        case.solve(compile=True, gradient=odegrad.Tape())


def test_losses_at_labels_and_states_that_are_read_afterwards() -> None:
    case, found = Stiffness(3), list[list[Tensor]]()

    def cost(j: int, y: Tensor, mu: Tensor) -> Tensor:
        return (mu * y.square()).sum() * (j + 1)

    grid = case.solve(compile=True).grid
    for options in ({"compile": True}, {}, {"gradient": odegrad.Tape()}):
        sol = case.solve(loss_at=cost, stepsize=grid, **options)
        found.append(list(torch.autograd.grad(sol.loss, case.inputs)))
    assert relative(found[0], found[1]) <= 1e-13
    assert relative(found[0], found[2]) <= 1e-12
    sol, eager = case.solve(compile=True), case.solve(stepsize=grid)
    close(sol(0.33), eager(0.33))
    found = [list(torch.autograd.grad(loss(x([0.33, 2.0])), case.inputs)) for x in (sol, eager)]
    assert relative(*found) <= 1e-12


def test_nothing_of_the_users_is_left_changed() -> None:
    case = Stiffness(3)
    before = [x.detach().clone() for x in case.inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol = case.solve(compile=True)
        case.gradient(sol)
    assert all(torch.equal(a, b) for a, b in zip(case.inputs, before, strict=True))
    assert all(x.grad is None for x in leaves(case.inputs))
