"""Tracing tensor programs to graphs of ATen operations, and taking such graphs apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

__all__ = [
    "LOCK",
    "Fakes",
    "NotCompilable",
    "device_of",
    "depends_on",
    "extract",
    "first_line",
    "hoist",
    "inputs",
    "narrowed",
    "results",
    "unaliased",
]

aten = torch.ops.aten

LOCK = threading.RLock()
"""Held while anything is captured, traced or compiled: torch does these in one thread at a time."""


class NotCompilable(Exception):
    """Why something has to run without being compiled; never reaches the user."""


def device_of(x: Tensor) -> torch.device:
    """The device of a tensor, or the one that a stand-in stands for.

    While another thread runs an operation on stand-ins of the same mode, `x.device` says "meta".
    """
    return getattr(x, "fake_device", None) or x.device


class Fakes:
    """Stand-ins without data, and the tracer that runs on them; shapes are static."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(
            shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True
        )

    def like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Stand-ins for `tensors`, each contiguous and off any graph."""
        return [self.empty(x.shape, x.dtype, x.device) for x in tensors]

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A stand-in for a new tensor."""
        with self.mode:
            return torch.empty(tuple(shape), dtype=dtype, device=device)

    def trace(
        self,
        function: Callable[..., Any],
        examples: Sequence[Tensor],
        rewrites: dict[Any, Callable[..., Tensor]] | None = None,
    ) -> GraphModule:
        """The ATen graph of a function of tensors that returns a flat sequence of tensors.

        Raises:
            NotCompilable: If an operation in it depends on values, or changes an input in place.
        """
        examples = self.like(examples)  # one tensor in two places would become one input
        try:
            with self.mode, torch.no_grad():
                module = make_fx(function, decomposition_table=rewrites)(*examples)
                if _changes_something(module.graph):
                    pure = torch.func.functionalize(module, remove="mutations")  # pyright: ignore
                    module = make_fx(pure)(*examples)
        except Exception as error:
            name = type(error).__name__
            raise NotCompilable(f"a step is not one graph ({name}: {first_line(error)})") from error
        if _changes_something(module.graph):
            raise NotCompilable(
                "f changes a tensor that it reads (as batch normalization in train mode does)"
            )
        for node in inputs(module):  # torch's cache of programs stumbles over string annotations
            node.type = None
        _merge_equal(module.graph)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module


def _changes_something(graph: Graph) -> bool:
    schemas = (getattr(node.target, "_schema", None) for node in graph.nodes)
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _merge_equal(graph: Graph) -> None:
    """Makes each value once: equal operations on equal inputs, and copies, are the same value."""
    met: dict[Any, Node] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _COPIES and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None or torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        key = (node.target, *map(_hashable, (node.args, tuple(node.kwargs.items()))))
        equal = met.setdefault(key, node)
        if equal is not node:
            node.replace_all_uses_with(equal)


_COPIES = (aten.detach.default, aten.clone.default)


def _hashable(x: Any) -> Any:
    """An argument of a node as a key: 1, 1.0 and True differ."""
    if isinstance(x, (tuple, list)):
        return tuple(map(_hashable, x))  # pyright: ignore[reportUnknownVariableType]
    return x if isinstance(x, Node) else (type(x), x)


def first_line(error: Exception) -> str:
    """The first line of an exception's message that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def inputs(module: GraphModule) -> list[Node]:
    """The inputs of a graph."""
    return module.graph.find_nodes(op="placeholder")


def results(graph: Graph) -> list[Node]:
    """The nodes that a graph returns."""
    (found,) = graph.output_node().args
    return list(found)  # pyright: ignore[reportArgumentType]


def depends_on(graph: Graph, sources: Sequence[Node]) -> set[Node]:
    """The nodes whose value depends on one of `sources`, which are included."""
    found = set(sources)
    for node in graph.nodes:
        if any(x in found for x in node.all_input_nodes):
            found.add(node)
    return found


def extract(module: GraphModule, inputs: Sequence[Node], outputs: Sequence[Node]) -> GraphModule:
    """The part of a graph that computes `outputs` from `inputs`."""
    graph, copies = Graph(), dict[Node, Node]()
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in module.graph.nodes:
        new = node not in copies and node.op not in ("placeholder", "output")
        if new and all(x in copies for x in node.all_input_nodes):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[x] for x in outputs))
    part = GraphModule(module, graph)
    part.graph.eliminate_dead_code()
    part.recompile()
    return part


def narrowed(module: GraphModule, kept: Sequence[int]) -> GraphModule:
    """A graph without those of its inputs that it does not read and that are not `kept`."""
    given = inputs(module)
    return extract(module, [given[i] for i in kept], results(module.graph))


def unaliased(module: GraphModule) -> GraphModule:
    """A graph none of whose results is one of its inputs, or another result."""
    graph, met = module.graph, set(inputs(module))
    found = results(graph)
    with graph.inserting_before(graph.output_node()):
        for i, node in enumerate(found):
            if node in met:
                found[i] = graph.call_function(aten.clone.default, (node,))
                found[i].meta = dict(node.meta)
            met.add(node)
    graph.output_node().args = (tuple(found),)
    module.recompile()
    return module


_LARGE = 1 << 20
"""A view of more elements than this is taken anew in every step rather than copied beforehand."""


def hoist(module: GraphModule, n_varying: int) -> tuple[GraphModule, GraphModule]:
    """Moves out of a loop's body what does not change in it.

    Arguments:
        module: The body; its first `n_varying` inputs change from one iteration to the next.
        n_varying: How many.

    Returns:
        A graph from the stable inputs to values computed before the loop, and the body that takes
        (varying inputs, stable inputs, those values).
    """
    given = inputs(module)
    varying, stable = given[:n_varying], given[n_varying:]
    changing = depends_on(module.graph, varying)
    inside = [n for n in module.graph.nodes if n.op == "call_function" and n in changing]
    wanted: list[Node] = []
    for node in inside:
        for x in node.all_input_nodes:
            if x in changing or x in wanted or x.op != "call_function":
                continue
            if not _pays(x):
                continue
            wanted.append(x)
    before = extract(module, stable, wanted)
    inner = extract(module, [*varying, *stable, *wanted], results(module.graph))
    return before, inner


def _pays(node: Node) -> bool:
    """Whether a value is worth computing before a loop: a contiguous view costs nothing in the body."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not node.all_input_nodes or value.numel() > _LARGE:
        return False
    return not (value._is_view() and value.is_contiguous())  # pyright: ignore[reportPrivateUsage]
