"""Loops over steps as compiled programs: the only file that touches torch's private loop operator.

A *loop* carries a few tensors, the first of which is an index. In each iteration it reads row `index`
of some buffers, calls a pure body, and writes the body's results into row `index` of others, in place:
no buffer is copied, so the cost of a step does not depend on how many rows there are. What the body
computes from stable inputs alone is computed before the loop.

On the CPU the whole loop is one Inductor program around `torch.ops.higher_order.while_loop`. Elsewhere,
and where Inductor cannot compile that, the body alone is compiled and Python turns the loop, on CUDA
around a recorded graph (`odegrad.compiled.recorded`); where even that fails, the body runs as the graph
it is.

Written against torch 2.13, where that operator is a prototype. It is called directly: the public
wrapper would run Dynamo once more at every trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule

from odegrad.compiled import inductor
from odegrad.compiled.recorded import Record, Recorded, again, cuda_graph
from odegrad.compiled.rewrite import REWRITES
from odegrad.compiled.tracing import (
    Fakes,
    NotCompilable,
    hoist,
    inputs,
    narrowed,
    unaliased,
)
from odegrad.state import Leaves

__all__ = ["Loop", "Sizes", "build"]


@dataclass(frozen=True)
class Sizes:
    """How many tensors of each kind a loop has, in the order in which it takes them."""

    carried: int
    reads: int
    writes: int


Loop: TypeAlias = Callable[..., Leaves]
"""(*carried, *read buffers, *written buffers, *stable, count=None) ↦ carried at the end.

`count` is the number of iterations, where it is known: then a loop outside a program does not have to
look at a condition.
"""

_RECORDS: dict[str, Record] = {"cuda": cuda_graph, "recorded": again}


def build(
    fakes: Fakes,
    body: Callable[..., Sequence[Tensor]],
    more: Callable[..., Tensor],
    sizes: Sizes,
    examples: Sequence[Tensor],
    tell: Callable[[str], object],
) -> Loop:
    """Compiles a loop, as far as it can be.

    Arguments:
        fakes: The stand-ins that `examples` are made of.
        body: (*carried, *read rows, *stable) ↦ (*carried, *written rows), pure.
        more: (*carried, *stable) ↦ whether to go on, a 0-dim bool.
        sizes: How many of each there are.
        examples: Stand-ins for (carried, read buffers, written buffers, stable).
        tell: Is told what cannot be compiled, and why.
    """
    n, r, w = sizes.carried, sizes.reads, sizes.writes
    examples = fakes.like(examples)
    carried, reads, stable = examples[:n], examples[n : n + r], examples[n + r + w :]
    rows = [fakes.empty(x.shape[1:], x.dtype, x.device) for x in reads]
    traced = fakes.trace(body, [*carried, *rows, *stable], REWRITES)
    before, inner = hoist(unaliased(traced), n + r)
    goes_on = fakes.trace(lambda *given: [more(*given)], [*carried, *stable])
    with fakes.mode:
        stable = fakes.like([*stable, *before(*stable)])
    # A loop hands its body and its condition every stable tensor in each iteration: only those read.
    read = [x.users for x in inputs(inner)[n + r :]]
    asked = [x.users for x in inputs(goes_on)[n:]]
    used = [i for i, users in enumerate(read) if users or (i < len(asked) and asked[i])]
    inner = narrowed(inner, [*range(n + r), *(n + r + i for i in used)])
    goes_on = narrowed(goes_on, [*range(n), *(n + i for i in used if i < len(asked))])
    examples = [*examples[: n + r + w], *(stable[i] for i in used)]
    for node, x in zip(inputs(inner), [*carried, *rows, *examples[n + r + w :]], strict=True):
        node.meta["val"] = x  # what is hoisted was a view with strides of its own
    loop, backend = None, inductor.current_backend()
    if backend == "inductor" and carried[0].device.type == "cpu":
        try:
            loop = _one_program(fakes, inner, goes_on, sizes, examples)
        except NotCompilable as reason:
            tell(f"the loop over steps cannot be compiled as a whole: {reason}")
    if loop is None:
        turned = _Turned(fakes, inner, goes_on, sizes, examples, tell)
        loop = turned
        record = _RECORDS.get(carried[0].device.type if backend != "recorded" else backend)
        if record is not None:
            loop = Recorded(turned.iterate, turned.goes_on, n, r + w, record)

    def run(*given: Tensor, count: int | None = None) -> Leaves:
        stable = given[n + r + w :]
        stable = (*stable, *(x.contiguous() for x in before(*stable)))
        return loop(*given[: n + r + w], *(stable[i] for i in used), count=count)

    return run


def _take(buffer: Tensor, index: Tensor) -> Tensor:
    return buffer.index_select(0, index.reshape(1)).squeeze(0)


def _put(buffer: Tensor, index: Tensor, row: Tensor) -> None:
    buffer.index_copy_(0, index.reshape(1), row.unsqueeze(0))


def _one_program(
    fakes: Fakes,
    inner: GraphModule,
    goes_on: GraphModule,
    sizes: Sizes,
    examples: Sequence[Tensor],
) -> Loop:
    """The loop as one Inductor program."""
    n, r, w = sizes.carried, sizes.reads, sizes.writes
    n_asked = len(inputs(goes_on))

    def body(*given: Tensor) -> tuple[Tensor, ...]:
        state, buffers, stable = given[:n], given[n : n + r + w], given[n + r + w :]
        rows = [_take(b, state[0]) for b in buffers[:r]]
        found = inner(*state, *rows, *stable)
        for buffer, row in zip(buffers[r:], found[n:], strict=True):
            _put(buffer, state[0], row)
        return tuple(found[:n])

    def more(*given: Tensor) -> Tensor:
        return goes_on(*given[:n], *given[n + r + w : r + w + n_asked])[0]

    def whole(*given: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.higher_order.while_loop(
            more,
            body,
            tuple(given[:n]),
            tuple(given[n:]),
            mutated_arg_indices=",".join(str(i) for i in range(n + r, n + r + w)),
        )

    program = inductor.inductor_program(fakes.trace(whole, examples), examples)

    def run(*given: Tensor, count: int | None = None) -> Leaves:
        del count  # the program knows when to stop
        return program(*given)

    return run


class _Turned:
    """The same loop turned by Python, around the compiled body."""

    def __init__(
        self,
        fakes: Fakes,
        inner: GraphModule,
        goes_on: GraphModule,
        sizes: Sizes,
        examples: Sequence[Tensor],
        tell: Callable[[str], object],
    ) -> None:
        self._sizes, self._more, self._n_asked = sizes, goes_on, len(inputs(goes_on))
        n, r, w = sizes.carried, sizes.reads, sizes.writes
        rows = [fakes.empty(x.shape[1:], x.dtype, x.device) for x in examples[n : n + r]]
        self._inner = inductor.compile_graph(
            inner, [*examples[:n], *rows, *examples[n + r + w :]], tell
        )

    def __call__(self, *given: Tensor, count: int | None = None) -> Leaves:
        state, rest = given[: self._sizes.carried], given[self._sizes.carried :]
        if count is not None:
            for _ in range(count):
                state = self.iterate(*state, *rest)
        else:
            while bool(self.goes_on(*state, *rest)):
                state = self.iterate(*state, *rest)
        return state

    def iterate(self, *given: Tensor) -> Leaves:
        """What is carried after one iteration; its rows are written."""
        n, r, w = self._sizes.carried, self._sizes.reads, self._sizes.writes
        state, buffers, stable = given[:n], given[n : n + r + w], given[n + r + w :]
        rows = [_take(b, state[0]) for b in buffers[:r]]
        found = self._inner(*state, *rows, *stable)
        for buffer, row in zip(buffers[r:], found[n:], strict=True):
            _put(buffer, state[0], row)
        return tuple(found[:n])

    def goes_on(self, *given: Tensor) -> Tensor:
        """Whether there is another iteration."""
        n, r, w = self._sizes.carried, self._sizes.reads, self._sizes.writes
        return self._more(*given[:n], *given[n + r + w : r + w + self._n_asked])[0]
