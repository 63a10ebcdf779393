"""Does a graph end in the tensors it is differentiated for, and in no others?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from odegrad.errors import UnreachableTensorError

__all__ = ["MOST_NODES", "check_reachable", "formal"]

MOST_NODES = 10_000
"""How far to walk. If Python has met a chain of some 20 000 nodes of a graph, torch 2.13 overflows the
stack when it frees that graph.
"""


_MARK = "_odegrad_formal"


def formal(x: Tensor) -> Tensor:
    """x, marked as a leaf on which nothing depends that is computed with it.

    Of a map that is linear in x, the derivative is constant; but a node of a graph that was written in
    Python tells only what it has been given.
    """
    setattr(x, _MARK, True)
    return x


def check_reachable(outputs: Sequence[Tensor], inputs: Sequence[Tensor], name: str = "f") -> None:
    """Walks the graph of `outputs` to `inputs` and to its leaves, or as far as `MOST_NODES` reach.

    Arguments:
        outputs: What was computed.
        inputs: What it is differentiated for.
        name: What to call the function that computed it.

    Raises:
        UnreachableTensorError: If a leaf is not one of `inputs`: its gradient would be lost.
    """
    allowed = {id(x) for x in inputs}
    for x in outputs:
        if x.is_leaf and x.requires_grad and id(x) not in allowed:
            _raise(x, name)
    ends = {x.grad_fn for x in inputs}
    nodes = [x.grad_fn for x in outputs if x.grad_fn is not None and x.grad_fn not in ends]
    seen = {*nodes, *ends}
    for node in nodes:  # grows
        following = node.next_functions
        for other, _ in following:
            if other is not None and other not in seen:
                seen.add(other)
                nodes.append(other)
        if len(nodes) > MOST_NODES:
            return
        if not following:  # where a gradient accumulates
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in allowed and not hasattr(leaf, _MARK):
                _raise(leaf, name)


def _raise(leaf: Tensor, name: str) -> None:
    raise UnreachableTensorError(
        f"{name} used a tensor of shape {list(leaf.shape)} that requires grad and that is neither y, t, "
        f"a tensor in args, nor one that scanning and tracing {name} found and can follow, so its "
        f"gradient would be lost. Pass it in args=(…), make it an attribute of a module that {name} "
        f"calls, or detach it. (If {name} detaches y and marks the copy with requires_grad_(), use y "
        "itself.)"
    )
