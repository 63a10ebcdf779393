"""The one place where odegrad meets autograd: a map with a transpose of its own, as a node.

A `Rule` is a function of tensors together with its transpose. `apply` makes it a node of the autograd
graph. The construction keeps to what composes with everything PyTorch does:

* each sweep runs inside the `forward` of some `torch.autograd.Function`, where no transform is active
  and tensors are plain;
* `backward` calls nothing but another Function, one order higher, so that it can be differentiated in
  turn: order 0 is the map, order 1 its transpose, order k + 1 the transpose of order k;
* context is set up in `setup_context`; whatever the map kept for its transpose is returned as
  non-differentiable outputs and saved by autograd, so that it is freed with the graph, checked for
  changes in place, and seen by saved-tensor hooks.

Orders 2 and higher differentiate `Rule.replay`, the map as an ordinary differentiable program, unless the
rule has a cheaper way to order 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from odegrad.errors import SPENT, GradientUnavailableError
from odegrad.reach import check_reachable
from odegrad.state import Leaves, OptionalLeaves, off_graph

__all__ = ["Rule", "apply", "plainly"]

T = TypeVar("T")

Second: TypeAlias = Callable[
    [Leaves, Sequence[int], OptionalLeaves, Leaves], "tuple[OptionalLeaves, Leaves] | None"
]


@dataclass(frozen=True)
class Rule:
    """A map of tensors and its transpose.

    Attributes:
        primal: inputs ↦ (outputs, kept).
        transpose: (inputs, kept, cotangents of the outputs, which inputs need one, whether what was
            kept has to serve again) ↦ cotangents of the inputs.
        replay: (inputs, k) ↦ outputs on the autograd graph, whose derivatives up to order k are right;
            None if orders above 1 do not exist.
        name: What to call it in messages.
        second: (inputs, the places of those that take part, cotangents of the outputs, one direction u
            per taking part) ↦ (∇⟨g, S'u⟩ for each taking part, S'u for each output), in little memory;
            None, or returning None, if `replay` has to do.
    """

    primal: Callable[[Leaves], tuple[Leaves, Leaves]]
    transpose: Callable[[Leaves, Leaves, OptionalLeaves, Sequence[bool], bool], OptionalLeaves]
    replay: Callable[[Leaves, int], Leaves] | None
    name: str
    second: Second | None = None


def apply(rule: Rule, inputs: Leaves) -> Leaves:
    """The outputs of `rule` at `inputs`, differentiable through its transpose."""
    call = _Call(rule, len(inputs))
    return tuple(_Map.apply(call, *inputs)[: call.n_outputs])


def plainly(thunk: Callable[[Leaves], T], inputs: Leaves) -> T:
    """thunk(inputs) as a sweep would be run: no transform is active, and tensors are plain."""
    found: list[T] = []

    def primal(x: Leaves) -> tuple[Leaves, Leaves]:
        found.append(thunk(x))
        return (), (torch.zeros((), device="cpu"),)

    def transpose(*_: object) -> OptionalLeaves:
        raise AssertionError("nothing depends on this")

    _Map.apply(_Call(Rule(primal, transpose, None, "plainly"), len(inputs)), *inputs)
    return found[0]


def _graph_is_retained() -> bool:
    """Whether the backward pass in progress keeps its graph; True if torch does not tell."""
    query = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)  # pyright: ignore
    return query is None or bool(query())


@dataclass
class _Call:
    """One application of a rule."""

    rule: Rule
    n_inputs: int
    n_outputs: int = 0
    spent: bool = False  # whether a pass has begun that uses what was kept for the last time


@dataclass(frozen=True)
class _Nested:
    """Which inputs and outputs take part in derivatives of order 2 and higher, and the rest."""

    rule: Rule
    inputs: tuple[Tensor | None, ...]  # None where a differentiated input goes
    present: tuple[int, ...]

    def map(self, order: int, v: Sequence[Tensor], highest: int | None = None) -> Leaves:
        """The map of order k on the graph; its arguments are those of order k − 1 and a cotangent.

        `highest` is the order for which it is made, k if None.
        """
        assert self.rule.replay is not None
        highest = order if highest is None else highest
        if order == 0:
            given = iter(v)
            inputs = tuple(next(given) if x is None else x for x in self.inputs)
            outputs = self.rule.replay(inputs, highest)
            check_reachable(outputs, v)
            return tuple(outputs[i] for i in self.present)
        n = self.n_arguments(order - 1)
        arguments, cotangents = v[:n], v[n:]
        outputs = self.map(order - 1, arguments, highest)
        pairs = [(x, g) for x, g in zip(outputs, cotangents, strict=True) if x.requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(x) for x in arguments)
        grads = torch.autograd.grad(
            [x for x, _ in pairs],
            list(arguments),
            [g for _, g in pairs],
            create_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        return tuple(grads)

    def second(self, v: Sequence[Tensor]) -> Leaves | None:
        """The map of order 2 in little memory, if the rule can do that."""
        if self.rule.second is None:
            return None
        active = [i for i, x in enumerate(self.inputs) if x is None]
        n, m = len(active), len(active) + len(self.present)
        given = iter(v)
        inputs = tuple(next(given) if x is None else x for x in self.inputs)
        cotangents = dict(zip(self.present, v[n:m], strict=True))
        n_outputs = max(self.present, default=-1) + 1
        found = self.rule.second(
            inputs, active, tuple(cotangents.get(i) for i in range(n_outputs)), tuple(v[m:])
        )
        if found is None:
            return None
        gradients, tangents = found
        pairs = zip(gradients, v, strict=False)
        filled = (torch.zeros_like(x) if g is None else g for g, x in pairs)
        return (*filled, *(tangents[i] for i in self.present))

    def n_arguments(self, order: int) -> int:
        """How many tensors the map of an order takes."""
        active = sum(x is None for x in self.inputs)
        sizes = [active, active + len(self.present)]
        for _ in range(2, order + 1):
            sizes.append(sizes[-1] + sizes[-2])
        return sizes[order]


def _one_by_one(
    apply: Callable[..., Sequence[Any]], info: Any, in_dims: Sequence[Any], args: Any
) -> Any:
    """The rule for vmap: one sweep per entry of the batch, since a sweep looks at numbers."""
    found: list[Sequence[Any]] = []
    for b in range(info.batch_size):
        pairs = zip(args, in_dims, strict=True)
        found.append(apply(*(x.select(d, b) if isinstance(d, int) else x for x, d in pairs)))
    columns = list(zip(*found, strict=True))
    results = tuple(None if column[0] is None else torch.stack(column) for column in columns)
    return results, tuple(None if x is None else 0 for x in results)


class _Map(Function):
    """Order 0: inputs ↦ (outputs, kept)."""

    @staticmethod
    def forward(call: _Call, *inputs: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        outputs, kept = call.rule.primal(inputs)
        call.n_outputs = len(outputs)
        return (*outputs, *kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]
        kept = output[ctx.call.n_outputs :]
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*inputs[1:], *kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        call: _Call = ctx.call
        needs = tuple(ctx.needs_input_grad[1:])
        # Transforms of torch.func do not retain the graph, but a derivative of this backward pass comes
        # through this node again, where it is that of an outer level.
        retain = _graph_is_retained() or torch.is_grad_enabled()
        try:
            saved = ctx.saved_tensors
        except RuntimeError as error:
            if call.spent and "inplace" in str(error):
                raise GradientUnavailableError(SPENT) from error
            raise
        call.spent = not retain
        tensors = (*saved, *grads[: call.n_outputs])
        return (None, *_Transpose.apply(call, needs, retain, *tensors))


class _Transpose(Function):
    """Order 1: (inputs, kept, cotangents of outputs) ↦ cotangents of inputs."""

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: Any, call: _Call, needs: Any, retain: bool, *tensors: Any
    ) -> Any:
        del retain  # what was kept serves for every entry
        args = (call, needs, True, *tensors)
        return _one_by_one(_Transpose.apply, info, in_dims, args)

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        call: _Call, needs: tuple[bool, ...], retain: bool, *tensors: Tensor | None
    ) -> OptionalLeaves:
        n, m = call.n_inputs, len(tensors) - call.n_outputs
        inputs: Any = tensors[:n]
        kept: Any = tensors[n:m]
        return call.rule.transpose(inputs, kept, tensors[m:], needs, retain)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: OptionalLeaves) -> None:
        del output
        call, needs, _, *tensors = inputs
        ctx.call, ctx.needs, ctx.n_kept = call, needs, len(tensors) - call.n_inputs - call.n_outputs
        grads = tensors[len(tensors) - call.n_outputs :]
        ctx.save_for_backward(*tensors[: call.n_inputs], *grads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        call: _Call = ctx.call
        if call.rule.replay is None:
            raise GradientUnavailableError(
                f"{call.rule.name} has no second derivative: its gradient is not the derivative of "
                "the computed numbers. Use gradient=Discrete() or Tape()"
            )
        n = call.n_inputs
        inputs, cotangents = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        # An input that is constant for one level of torch.func may be differentiated for at another.
        now = ctx.needs_input_grad[3 : 3 + n]
        active = [i for i, need in enumerate(ctx.needs) if need or now[i]]
        present = [i for i, g in enumerate(cotangents) if g is not None]
        nested = _Nested(
            call.rule,
            tuple(None if i in active else x.detach() for i, x in enumerate(inputs)),
            tuple(present),
        )
        v = [*(inputs[i] for i in active), *(cotangents[i] for i in present)]
        weights = [torch.zeros_like(inputs[i]) if (g := grads[i]) is None else g for i in active]
        found = _Higher.apply(nested, 2, *v, *weights)
        result: list[Tensor | None] = [None] * (n + ctx.n_kept + call.n_outputs)
        places = [*active, *(n + ctx.n_kept + i for i in present)]
        for place, grad in zip(places, found, strict=True):
            result[place] = grad
        return (None, None, None, *result)


class _Higher(Function):
    """Order k ≥ 2, on the graph of `Rule.replay`; order 2 by `Rule.second`, if possible."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _one_by_one(_Higher.apply, info, in_dims, args)

    @staticmethod
    def forward(nested: _Nested, order: int, *v: Tensor) -> Leaves:  # pyright: ignore[reportIncompatibleMethodOverride]
        if order == 2 and (found := nested.second(v)) is not None:
            return found
        with torch.enable_grad():
            leaves = tuple(off_graph(x).requires_grad_() for x in v)
            return tuple(map(off_graph, nested.map(order, leaves)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Leaves) -> None:
        del output
        ctx.nested, ctx.order = inputs[0], inputs[1]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, None, *_Higher.apply(ctx.nested, ctx.order + 1, *ctx.saved_tensors, *grads))
