"""The parts of the compiled engine by themselves: graphs, clocks, stored rows, control, transposes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import odegrad
import problems
from cases import leaf, relative
from compiling import close
from odegrad.compiled import Blocks, NotCompilable, Rows, Ticks, constants, using_backend
from odegrad.compiled.controller import CONSTANTS, decide
from odegrad.compiled.loop import Sizes, build
from odegrad.compiled.pullback import trace_pullback
from odegrad.compiled.tracing import (
    Fakes,
    depends_on,
    extract,
    hoist,
    inputs,
    narrowed,
    results,
    unaliased,
)
from odegrad.field import VectorField
from odegrad.grid import Clock, Grid, Nodes, Uniform
from odegrad.schemes import SCHEMES
from odegrad.stepsize import PID, History

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


# Graphs.


def traced(function: Any, *examples: Tensor) -> GraphModule:
    return Fakes().trace(function, examples)


def targets(module: GraphModule) -> list[Any]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def test_a_graph_is_the_function() -> None:
    x, y = leaf(3).detach(), leaf(3, seed=1).detach()
    function = lambda x, y: [x * y.sin(), x + 1]  # noqa: E731
    close(traced(function, x, y)(x, y), function(x, y), 0.0)


def test_equal_values_are_made_once() -> None:
    x = leaf(3).detach()
    module = traced(lambda x: [x.sin() + x.sin().clone(), x.sin() * 1.0, x.sin() * 1], x)
    assert targets(module).count(aten.sin.default) == 1
    assert targets(module).count(aten.mul.Tensor) == 2  # 1.0 and 1 are different arguments
    assert aten.clone.default not in targets(module)


def test_random_numbers_are_not_merged() -> None:
    x = leaf(3).detach()
    module = traced(lambda x: [torch.rand_like(x) - torch.rand_like(x)], x)
    assert float(module(x)[0].abs().max()) > 0


def test_one_tensor_in_two_places_stays_two_inputs() -> None:
    x, y = leaf(3).detach(), leaf(3, seed=1).detach()
    module = traced(lambda a, b: [a - b], x, x)
    close(module(x, y), [x - y], 0.0)


def test_a_branch_on_values_cannot_be_traced() -> None:
    with pytest.raises(NotCompilable, match="not one graph"):
        traced(lambda x: [x if x.sum() > 0 else -x], leaf(3))


def test_dependence() -> None:
    module = traced(lambda a, b: [a.sin() * b, b.cos()], leaf(3), leaf(3))
    a, b = inputs(module)
    assert results(module.graph)[0] in depends_on(module.graph, [a])
    assert results(module.graph)[1] not in depends_on(module.graph, [a])
    assert depends_on(module.graph, [a, b]) >= set(results(module.graph))


def test_extract_computes_a_part_from_values_in_between() -> None:
    x, y = leaf(3).detach(), leaf(3, seed=1).detach()
    module = traced(lambda x, y: [(x.sin() * y).exp()], x, y)
    (sin,) = (n for n in module.graph.nodes if n.target is aten.sin.default)
    part = extract(module, [sin, inputs(module)[1]], results(module.graph))
    assert aten.sin.default not in targets(part)
    close(part(x, y), [(x * y).exp()], 0.0)


def test_narrowed_drops_inputs() -> None:
    x, y = leaf(3).detach(), leaf(3, seed=1).detach()
    module = narrowed(traced(lambda x, y, z: [x * z], x, y, y), [0, 2])
    assert len(inputs(module)) == 2
    close(module(x, y), [x * y], 0.0)


def test_unaliased_results() -> None:
    """A result that is an input, or another result, becomes a copy of it."""
    x = leaf(3).detach()
    module = unaliased(traced(lambda x: [x, x.sin(), x.sin(), x], x))
    found = module(x)
    close(found, [x, x.sin(), x.sin(), x], 0.0)
    assert len({z.data_ptr() for z in (x, *found)}) == 5


def test_hoist_moves_what_does_not_change() -> None:
    x, w = leaf(3).detach(), leaf(3, 3, seed=1).detach()
    module = traced(lambda x, w: [x * w.exp().sum(), x + w.t().sum(0)], x, w)
    before, inner = hoist(module, 1)
    assert aten.exp.default in targets(before)
    assert aten.exp.default not in targets(inner)
    close(inner(x, w, *before(w)), [x * w.exp().sum(), x + w.t().sum(0)], 0.0)


def test_hoist_leaves_what_any_varying_input_changes() -> None:
    x, y, w = (leaf(3, seed=k).detach() for k in range(3))
    module = traced(lambda x, y, w: [x * y.exp() * w.sin()], x, y, w)
    before, inner = hoist(module, 2)
    assert targets(before) == [aten.sin.default]
    close(inner(x, y, w, *before(w)), [x * y.exp() * w.sin()], 0.0)


def test_hoist_leaves_constants_and_changing_values_alone() -> None:
    x, w = leaf(3).detach(), leaf(3, seed=1).detach()
    before, inner = hoist(traced(lambda x, w: [x.sin() * w], x, w), 1)
    assert before(w) == ()
    close(inner(x, w), [x.sin() * w], 0.0)


def test_a_loop_against_python() -> None:
    """Carried values, rows read and written at the index, and values prepared before the loop."""
    fakes = Fakes()
    like = [
        torch.zeros((), dtype=torch.int64),
        *(torch.zeros(s, dtype=torch.float64) for s in (2, 6)),
    ]
    examples = [like[0], like[1], like[2], torch.zeros(6, 2).double(), like[0], like[1]]

    def body(i: Tensor, x: Tensor, a: Tensor, n: Tensor, w: Tensor) -> list[Tensor]:
        return [i + 1, x * w.exp() + a, x]

    loop = build(
        fakes,
        body,
        lambda i, x, n, w: i < n,
        Sizes(2, 1, 1),
        examples,
        pytest.fail,
    )
    x, a, w = leaf(2).detach(), leaf(6, seed=1).detach(), leaf(2, seed=2).detach()
    written, n = torch.zeros(6, 2).double(), torch.tensor(4)
    i, found = loop(torch.tensor(1), x, a, written, n, w)
    expected = torch.zeros(6, 2).double()
    for k in range(1, 4):
        expected[k] = x
        x = x * w.exp() + a[k]
    assert int(i) == 4
    close((found, written), (x, expected), 1e-15)


# Times.

GRID = Grid((Uniform(3), Nodes((0.0, 0.1, 0.35, 1.0)), Uniform(1), Nodes((0.0, 1.0)), Uniform(4)))
LANDINGS = torch.tensor([0.3, 1.0, 2.5, 2.5, 2.0, -1.7], dtype=torch.float64)
RANGES = [(a, b) for a, b in itertools.combinations(range(GRID.n_steps + 1), 2)]


def test_ticks_are_the_clocks() -> None:
    clock, ticks = Clock(GRID, LANDINGS), Ticks(GRID, LANDINGS)
    for start, stop in RANGES:
        t, dt = ticks.step(start, stop)
        expected = [clock.step(n) for n in range(start, stop)]
        assert t.tolist() == [float(a) for a, _ in expected]
        assert dt.tolist() == [float(b) for _, b in expected]


def test_ticks_land_where_the_clock_does() -> None:
    clock, ticks = Clock(GRID, LANDINGS), Ticks(GRID, LANDINGS)
    for start, stop in RANGES:
        expected = [(clock.landing(n), n + 1) for n in range(start, stop)]
        assert ticks.landings(start, stop) == [(j, n) for j, n in expected if j is not None]


def test_the_transpose_of_ticks_is_the_clocks() -> None:
    clock, ticks = Clock(GRID, LANDINGS), Ticks(GRID, LANDINGS)
    grad_t, grad_dt = leaf(GRID.n_steps).detach(), leaf(GRID.n_steps, seed=1).detach()
    for start, stop in RANGES:
        found, expected = torch.zeros_like(LANDINGS), [None] * len(LANDINGS)
        ticks.step_vjp(start, grad_t[start:stop], grad_dt[start:stop], found)
        for n in range(start, stop):
            clock.step_vjp(n, grad_t[n], grad_dt[n], expected)  # pyright: ignore
        total = torch.tensor([0.0 if g is None else float(g) for g in expected], dtype=found.dtype)
        torch.testing.assert_close(found, total, rtol=1e-14, atol=1e-14)


# Stored rows.


def numbered(*numbers: int) -> tuple[Tensor, Tensor]:
    """A state of two leaves per number, which the number can be read off."""
    n = torch.tensor(numbers, dtype=torch.float64)
    return n, n[:, None] * torch.tensor([1.0, -2.0], dtype=torch.float64)


def filled() -> Blocks:
    """Steps 2 … 7: four, of which the buffers have room for five, and two."""
    blocks = Blocks()
    blocks.put(2, 4, numbered(2, 3, 4, 5, 99))
    blocks.put(6, 2, numbered(6, 7))
    return blocks


@pytest.mark.parametrize("size", [1, 2, 3, 6, 10])
def test_blocks_give_rows_across_blocks(size: int) -> None:
    for start, stop in itertools.combinations(range(2, 9), 2):
        if stop - start <= size:
            rows = filled().rows(start, stop, size)
            close(tuple(x[: stop - start] for x in rows), numbered(*range(start, stop)), 0.0)
            assert {len(x) for x in rows} == {size}


def test_blocks_hand_over_their_data() -> None:
    blocks = filled()
    assert blocks.nbytes == 6 * 3 * 8  # without the row that was not written
    data = blocks.tensors()
    blocks.forget_data()
    assert sum(x.numel() for x in blocks.tensors()) == 0
    other = blocks.with_tensors(data, retain=False)
    close(tuple(x[:6] for x in other.rows(2, 8, 6)), numbered(*range(2, 8)), 0.0)


def test_rows_that_belong_together_lie_together() -> None:
    like = tuple(torch.zeros(s, dtype=torch.float64) for s in (2, 3, 2))
    rows = Rows(like, [(0,), (1,), (2,)], 4)
    assert [x.shape for x in rows.kinds] == [(4, 2), (4, 3), (4, 2)]
    rows = Rows((like[0], like[2]), [(0, 1)], 4)
    rows.kinds[1].fill_(1.0)
    rows.kinds[0].fill_(2.0)
    assert rows.stacks[0, 1][:, 0, 0].tolist() == [2.0, 1.0]


# Control.

CONTROLLERS = [
    PID(),
    PID(p=0.4, i=0.3, d=0.1, safety=0.8, factor_min=0.5, factor_max=3.0),
    PID(rtol=1e-3, p=0.2, d=-0.1),
]


@pytest.mark.parametrize("control", CONTROLLERS)
@pytest.mark.parametrize("order", [2, 5])
def test_decisions_are_those_of_the_controller(control: PID, order: int) -> None:
    """As exact numbers."""
    ratios = [0.0, 1e-12, 1e-3, 0.5, 1.0, 1.0 + 2**-52, 7.0, 1e9, math.inf, math.nan]
    c: Any = dict(zip(CONSTANTS, constants(control).unbind(), strict=True))
    number = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    pasts = [(1.0, 1.0), (0.3, 0.01), (1e-10, 1.0)]
    for ratio, past, rejected in itertools.product(ratios, pasts, (False, True)):
        expected = control.decide(ratio, History(past, rejected), order)
        last, before = map(number, past)
        accept, factor = decide(c, number(ratio), last, before, torch.tensor(rejected), order)
        assert bool(accept) is expected.accept
        assert float(factor) == pytest.approx(expected.factor, rel=4e-16)


# Transposes.


def turned() -> problems.Problem:
    """A product whose gradient autograd forms the other way round."""
    theta = [leaf(3, 3, seed=1)]

    def raw(t: Any, y: Tensor, theta: Any, args: Any) -> Tensor:
        return torch.tanh(y @ theta[0].t().contiguous())

    return problems.Problem("turned", raw, leaf(4, 3).detach(), theta)


def pulled(problem: problems.Problem, scheme: Any, keeps: bool, p: list[Tensor]) -> Any:
    """The transpose of a step of a problem, its step as a function, and stand-ins' shapes."""
    theta, args = p[: len(problem.theta)], p[len(problem.theta) :]
    n = len(theta)

    class Pure(VectorField):
        def __call__(self, t: Any, y: Any, p: Any) -> Any:
            self.evaluations += 1
            tree = self._state.unflatten(y[: self.n_state])
            return tuple(torch.utils._pytree.tree_leaves(problem.raw(t, tree, p[:n], p[n:])))

    field = problem.field()
    field.__class__ = Pure
    fakes, y = Fakes(), problem.leaves
    carry = scheme.init(field, torch.tensor(0.3, dtype=torch.float64), y, tuple(p))
    with torch.no_grad():
        given = [fakes.like(x) for x in (y, carry, [*theta, *args])]
    pull = trace_pullback(fakes, field, scheme, *given, [True] * len(p), timed=True, keeps=keeps)
    return field, carry, pull


@pytest.mark.parametrize("keeps", [False, True], ids=["states", "graphs"])
@pytest.mark.parametrize("make", [problems.mlp, problems.forced, problems.nested, turned])
@pytest.mark.parametrize("scheme", [SCHEMES[0](), odegrad.RK4(), odegrad.Dopri5()])
def test_a_steps_transpose_with_sums_put_off_is_autograds(
    make: Any, scheme: Any, keeps: bool
) -> None:
    """Two steps, whose rows are collected at once, against the graph of the step."""
    problem = make()
    p = [x.detach().requires_grad_() for x in (*problem.theta, *problem.args)]
    field, carry, pull = pulled(problem, scheme, keeps, p)
    n_s, size = len(problem.leaves) + len(carry), 3
    rows = Rows(pull.rows, pull.stacks, size)
    kept_rows = tuple(torch.zeros(size, *x.shape, dtype=x.dtype) for x in pull.kept)
    total = [torch.zeros_like(x) for x in p]
    expected = [torch.zeros_like(x) for x in p]
    for r in range(2):
        t, dt = (torch.tensor(x + r, dtype=torch.float64, requires_grad=True) for x in (0.3, 0.1))
        y = tuple((x.detach() + r).requires_grad_() for x in problem.leaves)
        c = tuple(x.detach().requires_grad_() for x in carry)
        grads = [leaf(*x.shape, seed=r + k).detach() for k, x in enumerate((*y, *c))]
        step = scheme.step(field, t, dt, y, c, tuple(p))
        found = torch.autograd.grad(
            (*step.y, *step.carry),
            [t, dt, *y, *c, *p],
            grads,
            materialize_grads=True,
            allow_unused=True,
        )
        plain = [x.detach() for x in (t, dt, *y, *c, *p)]
        kept = pull.forward(*plain)
        for buffer, value in zip(kept_rows, kept, strict=True):
            buffer[r] = value
        out = pull.graph(*plain, *kept, *grads)
        assert relative(list(out[: 2 + n_s]), list(found[: 2 + n_s])) <= 1e-13
        for i, more in zip(pull.summed, out[2 + n_s :], strict=False):
            total[i] += more
        for buffer, value in zip(rows.kinds, out[2 + n_s + len(pull.summed) :], strict=True):
            buffer[r] = value
        expected = [a + b for a, b in zip(expected, found[2 + n_s :], strict=True)]
    for term in pull.deferred:
        total[term.p] += term.collect(rows, kept_rows, 2, p[term.p])
    assert relative(total, expected) <= 1e-13
    assert bool(pull.kept) is keeps
    assert pull.evaluations == (0 if keeps else pull.vjps)


def test_products_are_put_off_for_layers() -> None:
    """Every weight and bias of a perceptron: nothing of them is summed inside the loop."""
    problem = problems.mlp()
    p = [x.detach().requires_grad_() for x in problem.theta]
    _, _, pull = pulled(problem, odegrad.RK4(), keeps=False, p=p)
    assert {term.p for term in pull.deferred} == {0, 1, 2, 3}
    assert pull.summed == ()
