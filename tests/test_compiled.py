"""compile=True gives the numbers of the eager engine: states, grids, exact gradients, statistics.

Programs run as the graphs they are (backend "interpreter"), which takes no compiler; what Inductor makes
of them is the matter of test_compiled_inductor.py.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import (
    CASES,
    GRAPHS,
    SCHEME_STEPS,
    TIMES,
    Case,
    autonomous,
    leaf,
    loss,
    mlp,
    relative,
    structured,
    time_dependent,
)
from compiling import close, gradients, in_chunks_of, leaves
from odegrad import Discrete, Every, Steps, Tape
from odegrad.compiled import Blocks, using_backend
from odegrad.schemes import SCHEMES

# Dynamo looks at `.grad` of a captured tensor with a history; see the test of such tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

modes = pytest.mark.parametrize("gradient", [Discrete(), GRAPHS], ids=["states", "graphs"])
kinds = pytest.mark.parametrize("stepsize", [Steps(3), odegrad.PID(1e-5, 1e-7)])


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


# Gradients: the exact derivative of the numbers returned.


@pytest.mark.parametrize(
    ("scheme", "stepsize"),
    [x for x in SCHEME_STEPS if x[0].traceable],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_compiled_equals_tape_on_its_grid(scheme: Any, stepsize: Any) -> None:
    """Every second scheme keeps what the transposes need, the others keep states."""
    keeps = SCHEMES.index(scheme) % 2 == 1
    problem = time_dependent() if keeps else structured()
    found, sol = gradients(problem, GRAPHS if keeps else Discrete(), scheme(), stepsize)
    expected, tape = problem.gradient(Tape(), scheme(), sol.grid)
    close(sol.ys, tape.ys)
    assert relative(found, expected) <= 1e-12
    assert sol.grid.n_steps == sol.stats.accepted > 2
    assert sol.stats.recomputed == 0


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
@modes
@kinds
def test_every_case(case: Callable[[], Case], gradient: Any, stepsize: Any) -> None:
    problem = case()
    found, sol = gradients(problem, gradient, odegrad.Bosh3(), stepsize)
    expected, _ = problem.gradient(Tape(), odegrad.Bosh3(), sol.grid)
    assert relative(found, expected) <= 1e-12


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("stepsize", [Steps(4), odegrad.PID(1e-6, 1e-8)])
@modes
def test_landings_inside_and_at_the_ends_of_chunks(
    rows: int, stepsize: Any, gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(rows, monkeypatch)
    problem = structured()
    found, sol = gradients(problem, gradient, odegrad.Bosh3(), stepsize)
    expected, tape = problem.gradient(Tape(), odegrad.Bosh3(), sol.grid)
    close(sol.ys, tape.ys)
    assert relative(found, expected) <= 1e-12


@pytest.mark.parametrize("k", [1, 2, 4, 1000])
@pytest.mark.parametrize("stepsize", [Steps(4), odegrad.PID(1e-5, 1e-7)])
def test_every_schedule_gives_the_same(
    k: int, stepsize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(3, monkeypatch)
    problem = structured()
    expected, all_stored = gradients(problem, Discrete(), odegrad.Bosh3(), stepsize)
    found, sol = gradients(problem, Discrete(Every(k)), odegrad.Bosh3(), stepsize)
    close(sol.ys, all_stored.ys, 0.0)
    assert relative(found, expected) <= 1e-12
    n = sol.stats.accepted
    blocks = [min(k, n - i) for i in range(0, n, k)]
    if not isinstance(stepsize, odegrad.PID):  # the forward sweep kept the last block, a full one
        del blocks[0]
    assert sol.stats.recomputed == sum(b - 1 for b in blocks)


@pytest.mark.parametrize("k", [3, 10])
def test_every_k_keeps_few_states(k: int) -> None:
    """N / k stored states, and a block of k more while it is transposed."""
    sol = gradients(autonomous(), Discrete(Every(k)), odegrad.RK4(), Steps(20))[1]
    state = 8 * 4 * 3
    assert sol.stats.kept_bytes <= (-(-40 // k) + k) * state
    assert gradients(autonomous(), Discrete(), odegrad.RK4(), Steps(20))[1].stats.kept_bytes == (
        40 * state
    )


@pytest.mark.parametrize("outputs", [[0], [1], [-1], [0, 2]])
@modes
def test_losses_on_some_outputs(outputs: list[int], gradient: Any) -> None:
    problem, grads = autonomous(), []
    for options in ({"gradient": gradient, "compile": True}, {"gradient": Tape()}):
        ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
        ys = odegrad.solve(problem.f, problem.y0, ts, stepsize=Steps(3), **options).ys
        inputs = [problem.y0, ts, *problem.others]
        chosen = {"allow_unused": True, "materialize_grads": True}
        grads.append(list(torch.autograd.grad(loss(ys[outputs]), inputs, **chosen)))
    assert relative(*grads) <= 1e-12


def test_one_leaf_of_a_structured_state_in_the_loss() -> None:
    problem, grads = structured(), []
    for options in ({"compile": True}, {"gradient": Tape()}):
        ys = odegrad.solve(problem.f, problem.y0, TIMES, stepsize=Steps(3), **options).ys
        grads.append(list(torch.autograd.grad(loss(ys["s"]), problem.y0_leaves)))
    assert relative(*grads) <= 1e-12


@pytest.mark.parametrize("stepsize", [Steps(3), odegrad.PID(1e-4, 1e-6)])
@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS, Discrete(Every(4))])
def test_running_costs(stepsize: Any, gradient: Any) -> None:
    net, y0, weight = mlp(), leaf(4, 3), leaf(seed=5)

    def cost(t: Tensor, y: Tensor) -> Tensor:
        return weight * (y.square().sum(-1) * torch.exp(-t))

    def solve(**options: Any) -> tuple[Any, list[Tensor]]:
        sol = odegrad.solve(lambda t, y: net(y), y0, TIMES, running=cost, **options)
        assert sol.running is not None
        value = sol.running[-1].square().sum() + loss(sol.ys)
        return sol, list(torch.autograd.grad(value, [y0, weight, *net.parameters()]))

    sol, found = solve(stepsize=stepsize, gradient=gradient, compile=True)
    tape, expected = solve(stepsize=sol.grid, gradient=Tape())
    close((sol.ys, sol.running), (tape.ys, tape.running))
    assert relative(found, expected) <= 1e-12


@modes
def test_complex_state(gradient: Any) -> None:
    w = torch.randn(2, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    w.requires_grad_()
    y0 = torch.tensor([1 + 1j, 0.5 - 1j], dtype=torch.complex128, requires_grad=True)
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)

    def solve(**options: Any) -> tuple[Any, list[Tensor]]:
        sol = odegrad.solve(lambda t, y: torch.tanh(w @ y) * t, y0, ts, **options)
        return sol, list(torch.autograd.grad(sol.ys[-1].abs().square().sum(), [w, y0, ts]))

    sol, found = solve(gradient=gradient, compile=True)
    tape, expected = solve(stepsize=sol.grid, gradient=Tape())
    close(sol.ys, tape.ys)
    assert relative(found, expected) <= 1e-12


@pytest.mark.parametrize("name", ["solve", "inv"])
def test_linear_algebra_inside_the_loop(name: str) -> None:
    a = (2 * torch.eye(3, dtype=torch.float64) + 0.1 * leaf(3, 3).detach()).requires_grad_()
    y0 = leaf(3, 2)

    def f(t: Tensor, y: Tensor) -> Tensor:
        m = a * (1 + t * t)
        return -torch.linalg.solve(m, y) if name == "solve" else -torch.linalg.inv(m) @ y

    sol = odegrad.solve(f, y0, TIMES, compile=True)
    tape = odegrad.solve(f, y0, TIMES, stepsize=sol.grid, gradient=Tape())
    grads = [list(torch.autograd.grad(loss(x.ys), [a, y0])) for x in (sol, tape)]
    assert relative(*grads) <= 1e-12


def test_fields_that_read_little() -> None:
    """A constant, the state itself, and a field that reads a parameter and the time only."""
    w, y0 = leaf(3, seed=1), leaf(3)
    for f in (lambda t, y: torch.ones(3, dtype=torch.float64), lambda t, y: y, lambda t, y: w * t):
        grads = []
        for options in ({"compile": True}, {"gradient": Tape()}):
            ys = odegrad.solve(f, y0, TIMES, stepsize=Steps(2), **options).ys
            found = torch.autograd.grad(loss(ys), [y0, w], allow_unused=True)
            grads.append([torch.zeros(3) if g is None else g for g in found])
        assert relative(*grads) <= 1e-12


@modes
def test_higher_derivatives(gradient: Any) -> None:
    net, y0 = mlp(4, 2), leaf(3, 2)
    results = []
    for options in ({"gradient": gradient, "compile": True}, {"gradient": Tape()}):
        ts = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        f = lambda t, y: net(y) * (1 + t)  # noqa: E731
        value = loss(odegrad.solve(f, y0, ts, stepsize=Steps(2), **options).ys)
        found: list[Tensor] = []
        for _ in range(3):
            grads = torch.autograd.grad(value, [y0, *net.parameters(), ts], create_graph=True)
            found += grads
            value = torch.stack([g.square().sum() for g in grads]).sum()
        results.append([g.detach() for g in found])
    assert relative(*results) <= 1e-11


@pytest.mark.parametrize("gradient", [Discrete(), Discrete(Every(3)), GRAPHS])
def test_backward_twice(gradient: Any) -> None:
    problem = autonomous()
    options = {"stepsize": Steps(8), "gradient": gradient, "compile": True}
    value = loss(odegrad.solve(problem.f, problem.y0, [0.0, 1.0], **options).ys)
    first = torch.autograd.grad(value, problem.y0_leaves, retain_graph=True)
    second = torch.autograd.grad(value, problem.y0_leaves)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, problem.y0_leaves)


def test_captured_tensors_with_a_history_take_no_warning() -> None:
    w, y0 = leaf(3), leaf(4, 3, seed=1)
    encoded = w.exp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odegrad.solve(lambda t, y: -encoded * y, y0, TIMES, stepsize=Steps(2), compile=True)


# What is counted and kept.


@pytest.mark.parametrize("scheme", [odegrad.RK4(), odegrad.Heun(), odegrad.Dopri5()])
def test_statistics_of_a_first_solve_and_of_a_second(
    scheme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tracing evaluates is not counted. Only the last slope of FSAL is transposed once more."""
    in_chunks_of(128, monkeypatch)
    problem = autonomous()
    expected = problem.gradient(Discrete(), scheme, Steps(5))[1].stats
    extra = int(scheme.tableau.fsal)
    for _ in range(2):
        found = gradients(problem, Discrete(), scheme, Steps(5))[1].stats
        assert found.accepted == expected.accepted == 10
        assert found.vjps == expected.vjps + extra
        assert found.f_evaluations == expected.f_evaluations + extra
        assert found.kept_bytes == expected.kept_bytes


def test_kept_values_are_not_evaluated_again() -> None:
    found = gradients(autonomous(), GRAPHS, odegrad.RK4(), Steps(5))[1].stats
    again = gradients(autonomous(), GRAPHS, odegrad.RK4(), Steps(5))[1].stats
    assert again.f_evaluations == found.f_evaluations == 40
    assert again.vjps == 40


def test_nothing_is_kept_under_no_grad() -> None:
    problem = autonomous()
    with torch.no_grad():
        sol = odegrad.solve(problem.f, problem.y0, TIMES, stepsize=Steps(4), compile=True)
    assert sol.stats.kept_bytes == 0
    assert not sol.ys.requires_grad


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """References to all stored states."""
    found: list[weakref.ref[Tensor]] = []
    honest = Blocks.tensors

    def watched(self: Blocks) -> Any:
        tensors = honest(self)
        found.extend(weakref.ref(x) for x in tensors)
        return tensors

    monkeypatch.setattr(Blocks, "tensors", watched)
    return found


@modes
def test_states_die_with_the_graph(gradient: Any, kept: list[Any]) -> None:
    problem = autonomous()
    options: dict[str, Any] = {"stepsize": Steps(8), "gradient": gradient, "compile": True}
    sol = odegrad.solve(problem.f, problem.y0, TIMES, **options)
    assert any(r() is not None for r in kept)
    del sol
    gc.collect()
    assert all(r() is None for r in kept)


@modes
def test_the_backward_pass_frees_the_states(gradient: Any, kept: list[Any]) -> None:
    problem = autonomous()
    options: dict[str, Any] = {"stepsize": Steps(8), "gradient": gradient, "compile": True}
    sol = odegrad.solve(problem.f, problem.y0, TIMES, **options)
    first = list(kept)
    sol.ys.sum().backward()
    gc.collect()
    assert first
    assert all(r() is None for r in first)


def test_what_f_reads_may_not_change_between_the_sweeps() -> None:
    shift, y0 = torch.ones(2, dtype=torch.float64), leaf(2)
    ys = odegrad.solve(lambda t, y: shift * y, y0, TIMES, stepsize=Steps(3), compile=True).ys
    shift.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


def test_leaves_of_any_layout() -> None:
    """y0 and parameters that are not contiguous."""
    y0, w = leaf(3, 4).detach().t().requires_grad_(), leaf(3, 3).detach().t().requires_grad_()
    grads = []
    for options in ({"compile": True}, {"gradient": Tape()}):
        ys = odegrad.solve(
            lambda t, y: torch.tanh(y @ w), y0, TIMES, stepsize=Steps(3), **options
        ).ys
        grads.append(list(torch.autograd.grad(loss(ys), [y0, w])))
    assert relative(*grads) <= 1e-12
    assert len(leaves(ys)) == 1
