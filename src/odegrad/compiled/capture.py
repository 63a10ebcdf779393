"""A function as a graph with all that it reads as inputs.

What cannot be seen as one graph (branches on values, calls into code that PyTorch does not know) is
reported by `NotCompilable` with Dynamo's reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.compiled.dynamo import FieldGraph, see, too_many
from odegrad.compiled.tracing import NotCompilable
from odegrad.state import Leaves, Structure

__all__ = ["CapturedFunction", "capture_function"]


@dataclass(frozen=True)
class CapturedFunction:
    """A graph together with the meaning of its inputs: a pure function of (t, y, *p).

    Attributes:
        graph: The graph.
        roles: For each input of the graph its place in (t, *y leaves, *p).
        structure: How to put the result together, or None for a single tensor.
    """

    graph: FieldGraph
    roles: tuple[int, ...]
    structure: Structure | None

    def __call__(self, t: Tensor, y: Any, *p: Tensor) -> Any:
        """The function's result at (t, y), reading p."""
        leaves = (t, *torch.utils._pytree.tree_leaves(y), *p)  # pyright: ignore
        given = [leaves[role] for role in self.roles]
        if torch.is_grad_enabled():
            leaves = self.graph.module(*given)
        else:
            # The graph was seen with gradients enabled, and a derivative inside it relies on that.
            with torch.enable_grad():
                leaves = [x.detach() for x in self.graph.module(*(x.detach() for x in given))]
        # Behind the results are tensors that f stores somewhere.
        if self.structure is None:
            return leaves[0]
        return self.structure.unflatten(leaves[: self.structure.n_leaves])


def capture_function(
    f: Callable[..., Any],
    t: Tensor,
    y: Leaves,
    state: Structure,
    args: tuple[Any, ...],
    p: list[Tensor],
    *,
    scalar: bool,
) -> CapturedFunction:
    """Captures f(t, y, *args).

    Arguments:
        f: The function.
        t: A time, 0-dim.
        y: The leaves of a state.
        state: The structure of the state.
        args: Further arguments; their tensors become inputs.
        p: The tensors that functions captured before read; those that only f reads are appended.
        scalar: Whether f returns a single tensor rather than a state.

    Raises:
        NotCompilable: If f is not one graph.
    """
    t, y = t.detach(), tuple(leaf.detach().requires_grad_() for leaf in y)
    known: list[Any] = [t, *y]
    seen = see(f, t, state.unflatten(y), args, 1 if scalar else state.n_leaves)
    if seen.graph is None:
        raise NotCompilable(
            "f computes nothing from tensors, or torch.compile is switched off (by a stance such as "
            "force_eager, or TORCHDYNAMO_DISABLE)"
        )
    if too_many(seen.graph):
        raise NotCompilable(
            f"its graph changed {seen.graph.variants - 1} times: a Python number or attribute that f "
            "reads changes from call to call; pass it in args as a tensor"
        )
    roles: list[int] = []
    for x in seen.inputs:
        if not isinstance(x, Tensor):
            raise NotCompilable(f"f depends on a {type(x).__name__} that changes from call to call")
        places = [i for i, z in enumerate([*known, *p]) if z is x]
        if not places:
            p.append(x)
        roles.append(places[0] if places else len(known) + len(p) - 1)
    return CapturedFunction(seen.graph, tuple(roles), None if scalar else state)
