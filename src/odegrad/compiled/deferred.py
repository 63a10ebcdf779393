"""Parameter gradients put off to large products after a loop.

Transposing a step adds Σ_i δ_iᵀ x_i to the gradient of a weight: one small product per stage and layer,
where the call costs more than the work. The sum over all steps of a chunk is one product of the stacked
δ and x instead:

    Σ_n Σ_i δ_{n,i}ᵀ x_{n,i} = Δᵀ X,      Δ, X = the rows of all δ, x below each other.

So a step's graph returns δ and x in place of such terms, the loop writes them into rows, and
`Deferred.collect` forms the products after it. The gradient of a bias, Σ δ, is read off the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from odegrad.compiled.tracing import device_of
from odegrad.state import Leaves

__all__ = ["SAME", "Deferred", "Plan", "Rows"]

aten = torch.ops.aten

SAME = (aten.detach.default, aten.alias.default)
"""Operations that return their argument."""

_FEW = 1 << 18
"""Products of at most this many multiplications are put off."""


class Rows:
    """Buffers with one row per step, where rows that are multiplied together lie together.

    Arguments:
        like: Stand-ins for one row of each kind.
        stacks: The kinds that share a buffer of shape [kinds, size, *row].
        size: The number of rows.

    Attributes:
        kinds: One buffer of shape [size, *row] for each kind.
        stacks: The shared buffers.
    """

    def __init__(self, like: Leaves, stacks: Sequence[tuple[int, ...]], size: int) -> None:
        self.stacks: dict[tuple[int, ...], Tensor] = {}
        found: list[Tensor] = []
        for stack in stacks:
            x = like[stack[0]]
            shape = (len(stack), size, *x.shape)
            self.stacks[stack] = torch.empty(shape, dtype=x.dtype, device=device_of(x))
            found += self.stacks[stack].unbind()
        self.kinds: Leaves = tuple(found)


@dataclass(frozen=True)
class Deferred:
    """Terms Aᵀ B of a parameter's gradient that are formed from rows after a loop.

    Kinds of rows are numbered 0, 1, … if the loop writes them, −1, −2, … if the forward sweep kept them.

    Arguments:
        p: Which parameter.
        left: The kinds that hold A, shape [b, m], one per term.
        right: The kinds that hold B, shape [b, k]; None for the sums of A over b.
        turned: Whether a term is Bᵀ A, shape [k, m], rather than Aᵀ B, shape [m, k].
    """

    p: int
    left: tuple[int, ...]
    right: tuple[int, ...] | None
    turned: bool

    def collect(self, rows: Rows, kept: Leaves, n: int, like: Tensor) -> Tensor:
        """The sum over the terms and the first n rows, shaped like the parameter.

        Arguments:
            rows: What the loop wrote.
            kept: What the forward sweep kept.
            n: How many rows.
            like: The parameter.
        """
        if self.right is None:
            return sum_of(self._matrices(self.left, rows, kept, n)).reshape(like.shape)
        left, right = (self._matrices(x, rows, kept, n) for x in (self.left, self.right))
        if len(left) != len(right):
            left, right = (
                [self._matrix(i, rows, kept, n) for i in x] for x in (self.left, self.right)
            )
        if self.turned:
            left, right = right, left
        total = left[0].t() @ right[0]
        for a, b in zip(left[1:], right[1:], strict=True):
            total.addmm_(a.t(), b)
        return total.reshape(like.shape)

    def _matrices(self, kinds: tuple[int, ...], rows: Rows, kept: Leaves, n: int) -> list[Tensor]:
        """The first n rows of kinds below each other: one matrix, where they lie together."""
        if kinds in rows.stacks:
            return [rows.stacks[kinds][:, :n].flatten(0, 2)]
        return [self._matrix(i, rows, kept, n) for i in kinds]

    def _matrix(self, i: int, rows: Rows, kept: Leaves, n: int) -> Tensor:
        return (rows.kinds[i] if i >= 0 else kept[-1 - i])[:n].flatten(0, 1)


def sum_of(matrices: Sequence[Tensor]) -> Tensor:
    """The sum of all rows of all matrices."""
    total = matrices[0].sum(0)
    for x in matrices[1:]:
        total += x.sum(0)
    return total


class Plan:
    """Which terms of the parameters' gradients are put off, to which rows.

    Arguments:
        terms: The terms, by parameter.
        kept: Nodes whose rows the forward sweep keeps.

    Attributes:
        rows: The nodes that the loop has to write.
        stacks: Which of them lie together.
        deferred: How they are read.
        rest: The terms that are not put off, by parameter.
    """

    def __init__(self, terms: Mapping[int, Sequence[Node]], kept: Sequence[Node] = ()) -> None:
        self.rows: list[Node] = []
        self.stacks: list[tuple[int, ...]] = []
        self.deferred: list[Deferred] = []
        self.rest: dict[int, list[Node]] = {p: [] for p in terms}
        self._kept = {node: -1 - k for k, node in enumerate(kept)}
        for p, nodes in terms.items():
            factors = {node: found for node in nodes if (found := _product(node)) is not None}
            self.rest[p] = [node for node in nodes if node not in factors]
            for turned in (False, True):
                pairs = [(a, b) for a, b, turns in factors.values() if turns == turned]
                if pairs:
                    left, right = (self._place(x) for x in zip(*pairs, strict=True))
                    self.deferred.append(Deferred(p, left, right, turned))
        for p, nodes in self.rest.items():
            summands = {x: s for x in nodes if (s := _row_sum(x)) is not None and s in self.rows}
            if summands:
                self.rest[p] = [x for x in nodes if x not in summands]
                self.deferred.append(
                    Deferred(p, self._place(tuple(summands.values())), None, False)
                )

    def _place(self, nodes: Sequence[Node]) -> tuple[int, ...]:
        """The kinds of rows that hold the values of nodes; new ones are stacked."""
        new = dict.fromkeys(x for x in nodes if x not in self.rows and x not in self._kept)
        same = {(x.meta["val"].shape, x.meta["val"].dtype) for x in new}
        first = len(self.rows)
        self.rows += new
        kinds = range(first, len(self.rows))
        self.stacks += [tuple(kinds)] if len(same) == 1 else [(i,) for i in kinds]
        return tuple(self._kept[x] if x in self._kept else self.rows.index(x) for x in nodes)


def _turned(node: Node) -> tuple[Node, bool]:
    """What a node is a view of, and whether with rows and columns exchanged."""
    flipped = False
    while node.target is aten.t.default or node.target in SAME:
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
    while node.target in (aten.view.default, aten._unsafe_view.default, *SAME):
        node = node.args[0]  # pyright: ignore[reportAssignmentType]
    if node.target is aten.sum.dim_IntList and node.args[1] == [0]:
        return node.args[0]  # pyright: ignore[reportReturnType]
    return None
