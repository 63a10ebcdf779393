"""The transpose of one step as a graph.

The terms of parameter gradients that are small products are put off (`odegrad.compiled.deferred`); terms
of any other form are summed in the loop.

The transpose needs what the step computed: slopes, activations. Either its graph computes that again from
the state before the step, or the forward sweep keeps it, in rows of the same kind (`Pullback.forward`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from odegrad.compiled.deferred import SAME, Deferred, Plan
from odegrad.compiled.reading import Reading
from odegrad.compiled.tracing import Fakes, depends_on, extract, inputs, results
from odegrad.field import VectorField
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, is_half

__all__ = ["Pullback", "trace_pullback"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Pullback:
    """The transpose of a step.

    Attributes:
        graph: (t, dt, *y, *carry, *p, *kept, *grad_y, *grad_carry, *grad_inside) ↦ (grad_t, grad_dt,
            *inside if timed; *grad_y, *grad_carry, *sums, *rows).
        forward: (t, dt, *y, *carry, *p) ↦ kept: what the forward sweep has to keep.
        kept: Stand-ins for that; empty if the graph computes it again.
        summed: The parameters whose terms (or some of them) come in `sums`.
        rows: Stand-ins for one row of each kind.
        stacks: Which kinds of rows belong together.
        deferred: How to read the rows.
        timed: Whether t and dt get cotangents.
        inside: Stand-ins for the cotangents of what states inside of the step are read from (see
            `Reading`), that of the state before the step first; empty if none are read.
        evaluations: Evaluations of f per transposed step.
        vjps: Transposed evaluations of f per transposed step.
    """

    graph: GraphModule
    forward: GraphModule
    kept: Leaves
    summed: tuple[int, ...]
    rows: Leaves
    stacks: tuple[tuple[int, ...], ...]
    deferred: tuple[Deferred, ...]
    timed: bool
    inside: Leaves
    evaluations: int
    vjps: int

    @property
    def n_timed(self) -> int:
        """How many of the results are there for the sake of times."""
        return 2 + len(self.inside) if self.timed else 0


class _Split(NamedTuple):
    """The first attributes of a `Pullback`."""

    graph: GraphModule
    forward: GraphModule
    kept: Leaves
    summed: tuple[int, ...]
    rows: Leaves
    stacks: tuple[tuple[int, ...], ...]
    deferred: tuple[Deferred, ...]


def trace_pullback(
    fakes: Fakes,
    field: VectorField,
    scheme: Scheme,
    y: Sequence[Tensor],
    carry: Sequence[Tensor],
    p: Sequence[Tensor],
    wanted: Sequence[bool],
    timed: bool,
    keeps: bool,
    reading: Reading | None = None,
    time_shape: tuple[int, ...] = (),
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
        keeps: Whether the forward sweep keeps what the transpose needs.
        reading: What states inside of the step are read from, or None if there are none.
        time_shape: The shape of t and dt.

    Raises:
        NotCompilable: If the step cannot be differentiated as a graph.
    """
    n_y, n_c, n_p = len(y), len(carry), len(p)
    reached: list[int] = []

    def function(t: Tensor, dt: Tensor, *given: Tensor) -> list[Tensor | None]:
        y, carry = given[:n_y], given[n_y : n_y + n_c]
        p_, grads = given[n_y + n_c : n_y + n_c + n_p], given[n_y + n_c + n_p :]
        grads, within = grads[: n_y + n_c], grads[n_y + n_c :]
        p_ = tuple(x.detach().requires_grad_(w) for x, w in zip(p_, wanted, strict=True))
        found = scheme.step_vjp(
            field, t, dt, y, carry, p_, grads[:n_y], grads[n_y:] or None,
            reads=reading.reads(within) if reading is not None else (),
        )  # fmt: skip
        reached[:] = [i for i, g in enumerate(found.p) if g is not None]
        times = [found.t, found.dt] if timed else []
        grad_y = found.y
        if reading is not None:
            grad_y = tuple(a + g[0] for a, g in zip(grad_y, within, strict=True))
            if timed:
                step = scheme.step(field, t, dt, y, carry, p_)
                times += reading.values(scheme, field, t, dt, y, step, p_)
        return [*times, *grad_y, *(found.carry or ()), *(found.p[i] for i in reached)]

    time = fakes.empty(time_shape, torch.float64, y[0].device)
    rows = 0 if reading is None else reading.degree + 1
    inside = [fakes.empty((rows, *x.shape), x.dtype, x.device) for x in y if rows]
    counts = field.evaluations, field.transposes
    module = fakes.trace(function, [time, time, *y, *carry, *p, *y, *carry, *inside])
    evaluations, vjps = field.evaluations - counts[0], field.transposes - counts[1]
    field.evaluations, field.transposes = counts
    split = _split(module, reached, n_y + n_c, inside, timed, keeps)
    return Pullback(
        *split,
        timed=timed,
        inside=tuple(inside),
        evaluations=0 if keeps else evaluations,
        vjps=vjps,
    )


def _split(
    module: GraphModule,
    reached: Sequence[int],
    n_state: int,
    inside: Sequence[Tensor],
    timed: bool,
    keeps: bool,
) -> _Split:
    """Splits off what can be put off, and what the forward sweep keeps.

    Arguments:
        module: The transpose of a step as it was traced.
        reached: The parameters whose cotangents come last in what it returns.
        n_state: How many leaves state and carry have.
        inside: Stand-ins for `Pullback.inside`.
        timed: As for `trace_pullback`.
        keeps: As for `trace_pullback`.
    """
    given, outputs = inputs(module), results(module.graph)
    n_first, n_grads = len(outputs) - len(reached), n_state + len(inside)
    terms = {i: _terms(node) for i, node in zip(reached, outputs[n_first:], strict=True)}
    grads = given[len(given) - n_grads :]
    first = given[: len(given) - n_grads]
    late = depends_on(module.graph, grads)
    changing = depends_on(module.graph, first[2 : 2 + n_state])
    plan = Plan(terms)
    kept: list[Node] = []
    if keeps:
        needed = [*plan.rows, *(x for n in late for x in n.all_input_nodes)]
        needed += outputs[2 : 2 + len(inside)] if timed else []
        kept = _residuals(x for x in needed if x in changing and x not in late)
        plan = Plan(terms, kept)
    sums = _summed(module, plan.rest)
    outputs = [*outputs[:n_first], *sums.values(), *plan.rows]
    return _Split(
        graph=extract(module, [*first, *kept, *grads], outputs),
        forward=extract(module, first, kept),
        kept=_stands(kept),
        summed=tuple(sums),
        rows=_stands(plan.rows),
        stacks=tuple(plan.stacks),
        deferred=tuple(plan.deferred),
    )


def _stands(nodes: Sequence[Node]) -> Leaves:
    return tuple(node.meta["val"] for node in nodes)


def _residuals(needed: Iterable[Node]) -> list[Node]:
    """What to keep so that `needed` can be had: not views, nor what costs less than reading it."""
    found: dict[Node, None] = {}
    for node in needed:
        while node.op == "call_function" and node.target in _VIEWS:
            node = node.all_input_nodes[0]
        if node.op == "call_function":
            found[node] = None
    return [node for node in found if not _is_cheap(node, found)]


def _is_cheap(node: Node, kept: Mapping[Node, None]) -> bool:
    """Whether a value takes a few elementwise operations on what is there anyway."""
    if node.target not in _ELEMENTWISE and node.target not in _VIEWS:
        return False
    sources = [x for x in node.all_input_nodes if x.op == "call_function"]
    return all((x in kept and x.target not in _ELEMENTWISE) or _is_cheap(x, kept) for x in sources)


def _summed(module: GraphModule, rest: Mapping[int, Sequence[Node]]) -> dict[int, Node]:
    """The sums of terms, as nodes, for the parameters that have any."""
    sums: dict[int, Node] = {}
    graph = module.graph
    with graph.inserting_before(graph.output_node()):
        for p, nodes in rest.items():
            for node in nodes:
                old = sums.get(p)
                sums[p] = node if old is None else graph.call_function(aten.add.Tensor, (old, node))
    return sums


_VIEWS = (
    *SAME,
    *(aten.t.default, aten.transpose.int, aten.permute.default),
    *(aten.view.default, aten._unsafe_view.default, aten.expand.default),
    *(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default),
)
_ELEMENTWISE = (
    *(aten._to_copy.default, aten.neg.default, aten.abs.default, aten.zeros_like.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.rsub.Scalar, aten.ones_like.default),
    *(aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.where.self, aten.clamp.default),
    *(aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.eq.Scalar),
)


_SINGLE = (torch.float32, torch.complex64)


def _widens(node: Node) -> bool:
    """Whether a node turns half precision into single."""
    if node.target is not aten._to_copy.default:
        return False
    (x,), dtype = node.args, node.kwargs.get("dtype")
    return isinstance(x, Node) and is_half(x.meta["val"]) and dtype in _SINGLE


def _terms(node: Node) -> list[Node]:
    """The summands of a sum that is used for nothing else."""
    if node.target in SAME or _widens(node):  # sums are formed in single precision anyway
        return _terms(node.args[0])  # pyright: ignore[reportArgumentType]
    if node.target is aten.add.Tensor and len(node.args) == 2 and not node.kwargs:
        a, b = node.args
        if isinstance(a, Node) and isinstance(b, Node):
            return _terms(a) + _terms(b)
    return [node]
