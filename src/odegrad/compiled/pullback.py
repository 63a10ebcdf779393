"""The transpose of one step as a graph, with parameter gradients put off to large products.

Transposing a step adds Σ_i δ_iᵀ x_i to the gradient of a weight: one small product per stage and layer,
where the call costs more than the work. The sum over all steps of a chunk is one product of the stacked
δ and x instead:

    Σ_n Σ_i δ_{n,i}ᵀ x_{n,i} = Δᵀ X,      Δ, X = the rows of all δ, x below each other.

So a step's graph returns δ and x in place of such terms, the loop writes them into rows, and
`Deferred.collect` forms the products after it. The gradient of a bias, Σ δ, is read off the same rows.
Terms of any other form are summed in the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from odegrad.compiled.tracing import Fakes, results
from odegrad.field import VectorField
from odegrad.schemes.base import Scheme

__all__ = ["Deferred", "Pullback", "trace_pullback"]

aten = torch.ops.aten

_FEW = 1 << 18
"""Products of at most this many multiplications are put off."""


@dataclass(frozen=True)
class Deferred:
    """A term of a parameter's gradient that is formed from rows after a loop.

    Arguments:
        p: Which parameter.
        left: Which row holds δ, shape [b, m].
        right: Which row holds x, shape [b, k]; None for the sum of δ over b.
        turned: Whether the term is Xᵀ Δ, shape [k, m], rather than Δᵀ X, shape [m, k].
    """

    p: int
    left: int
    right: int | None
    turned: bool

    def collect(self, rows: Sequence[Tensor], n: int, like: Tensor) -> Tensor:
        """The sum over the first n rows, shaped like the parameter."""
        left = rows[self.left][:n].flatten(0, 1)
        if self.right is None:
            return left.sum(0).reshape(like.shape)
        right = rows[self.right][:n].flatten(0, 1)
        found = right.t() @ left if self.turned else left.t() @ right
        return found.reshape(like.shape)


@dataclass(frozen=True)
class Pullback:
    """The transpose of a step.

    Attributes:
        graph: (t, dt, *y, *carry, *p, *grad_y, *grad_carry) ↦ (grad_t, grad_dt if timed; *grad_y,
            *grad_carry, *sums, *rows).
        summed: The parameters whose terms (or some of them) come in `sums`.
        rows: Stand-ins for one row of each kind.
        deferred: How to read the rows.
        reached: The parameters that get a gradient at all.
        evaluations: Evaluations of f per transposed step.
        vjps: Transposed evaluations of f per transposed step.
    """

    graph: GraphModule
    summed: tuple[int, ...]
    rows: tuple[Tensor, ...]
    deferred: tuple[Deferred, ...]
    reached: tuple[int, ...]
    evaluations: int
    vjps: int


def trace_pullback(
    fakes: Fakes,
    field: VectorField,
    scheme: Scheme,
    y: Sequence[Tensor],
    carry: Sequence[Tensor],
    p: Sequence[Tensor],
    wanted: Sequence[bool],
    timed: bool,
) -> Pullback:
    """Traces `scheme.step_vjp` and splits off what can be put off.

    Arguments:
        fakes: The tracer; all tensors below are its stand-ins.
        field: The vector field, a pure function of (t, y, p).
        scheme: The scheme.
        y: The state.
        carry: The carry.
        p: The tensors that f reads.
        wanted: Which of them need a gradient.
        timed: Whether t and dt do.
    """
    n_y, n_c, n_p = len(y), len(carry), len(p)
    reached: list[int] = []
    counts = field.evaluations, field.transposes

    def function(t: Tensor, dt: Tensor, *given: Tensor) -> list[Tensor | None]:
        y, carry = given[:n_y], given[n_y : n_y + n_c]
        p_, grads = given[n_y + n_c : n_y + n_c + n_p], given[n_y + n_c + n_p :]
        p_ = tuple(x.detach().requires_grad_(w) for x, w in zip(p_, wanted, strict=True))
        found = scheme.step_vjp(field, t, dt, y, carry, p_, grads[:n_y], grads[n_y:] or None)
        reached[:] = [i for i, g in enumerate(found.p) if g is not None]
        times = (found.t, found.dt) if timed else ()
        return [*times, *found.y, *(found.carry or ()), *(found.p[i] for i in reached)]

    time = fakes.empty((), torch.float64, torch.device("cpu"))
    module = fakes.trace(function, [time, time, *y, *carry, *p, *y, *carry])
    evaluations, vjps = field.evaluations - counts[0], field.transposes - counts[1]
    field.evaluations, field.transposes = counts
    return _defer(module, len(results(module.graph)) - len(reached), reached, evaluations, vjps)


def _defer(
    module: GraphModule, n_first: int, reached: Sequence[int], evaluations: int, vjps: int
) -> Pullback:
    """Replaces the terms of parameter gradients that can be put off by rows."""
    graph = module.graph
    outputs = results(graph)
    terms = {p: _terms(node) for p, node in zip(reached, outputs[n_first:], strict=True)}
    rows, deferred = list[Node](), list[Deferred]()

    def place(node: Node) -> int:
        if node not in rows:
            rows.append(node)
        return rows.index(node)

    for p, nodes in terms.items():
        rest: list[Node] = []
        for node in nodes:
            factors = _product(node)
            if factors is None:
                rest.append(node)
            else:
                left, right, flipped = factors
                deferred.append(Deferred(p, place(left), place(right), flipped))
        terms[p] = rest
    for p, nodes in terms.items():
        rest = []
        for node in nodes:
            summand = _row_sum(node)
            if summand is None or summand not in rows:
                rest.append(node)
            else:
                deferred.append(Deferred(p, place(summand), None, False))
        terms[p] = rest
    sums: dict[int, Node] = {}
    with graph.inserting_before(graph.output_node()):
        for p, nodes in terms.items():
            for node in nodes:
                old = sums.get(p)
                sums[p] = node if old is None else graph.call_function(aten.add.Tensor, (old, node))
        graph.output_node().args = ((*outputs[:n_first], *sums.values(), *rows),)
    graph.eliminate_dead_code()
    module.recompile()
    stands = tuple(node.meta["val"] for node in rows)
    return Pullback(module, tuple(sums), stands, tuple(deferred), tuple(reached), evaluations, vjps)


_SAME = (aten.detach.default, aten.alias.default)


def _terms(node: Node) -> list[Node]:
    """The summands of a sum that is used for nothing else."""
    if node.target in _SAME:
        return _terms(node.args[0])  # pyright: ignore[reportArgumentType]
    if node.target is aten.add.Tensor and len(node.args) == 2 and not node.kwargs:
        a, b = node.args
        if isinstance(a, Node) and isinstance(b, Node):
            return _terms(a) + _terms(b)
    return [node]


def _turned(node: Node) -> tuple[Node, bool]:
    """What a node is a view of, and whether with rows and columns exchanged."""
    flipped = False
    while node.target is aten.t.default or node.target in _SAME:
        flipped ^= node.target is aten.t.default
        (node,) = node.args  # pyright: ignore[reportAssignmentType]
    return node, flipped


def _product(node: Node) -> tuple[Node, Node, bool] | None:
    """(δ, x, whether turned over) of a small product δᵀ x, or None."""
    product, flipped = _turned(node)
    if product.target is not aten.mm.default:
        return None
    (left, turned), right = _turned(product.args[0]), product.args[1]  # pyright: ignore
    assert isinstance(right, Node)
    b, m = left.meta["val"].shape
    if not turned or b * m * right.meta["val"].shape[1] > _FEW:
        return None
    return left, right, flipped


def _row_sum(node: Node) -> Node | None:
    """δ of a sum of its rows, or None."""
    while node.target in (aten.view.default, aten._unsafe_view.default, *_SAME):
        node = node.args[0]  # pyright: ignore[reportAssignmentType]
    if node.target is aten.sum.dim_IntList and node.args[1] == [0]:
        return node.args[0]  # pyright: ignore[reportReturnType]
    return None
