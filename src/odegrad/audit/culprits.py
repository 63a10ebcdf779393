"""Which module draws random numbers, changes its buffers, or is not a function of its input.

Forward hooks note, for each call of each module during one step, what went in and came out, whether a
generator moved and which buffers changed. Two such recordings that begin in the same world are compared
call by call: the first call with equal inputs and unequal outputs is the culprit, inner ones first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odegrad.audit.names import Names
from odegrad.replay import Snapshot

__all__ = ["Call", "culprit", "same", "watched"]

T = TypeVar("T")


@dataclass
class Call:
    """One call of one module.

    Attributes:
        name: Of the module.
        inputs: Copies of the tensors that went in.
        outputs: Copies of those that came out.
        draws: Whether it drew random numbers, and none of the modules that it called did.
        changed: The buffers of its own that it changed.
    """

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor] = field(default_factory=list[Tensor])
    draws: bool = False
    changed: list[str] = field(default_factory=list[str])


@dataclass
class _Open:
    """A call that is under way."""

    call: Call
    generators: Snapshot
    buffers: dict[str, Tensor]
    inner_draws: bool = False


def watched(names: Names, device: torch.device, thunk: Callable[[], T]) -> tuple[T, list[Call]]:
    """thunk(), and the calls of modules during it, in the order in which they ended."""
    calls: list[Call] = []
    under_way: list[_Open] = []

    def begins(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            buffers = {k: b.detach().clone() for k, b in module.named_buffers(recurse=False)}
            call = Call(name, _copies(inputs))
            under_way.append(_Open(call, Snapshot.take(device, ()), buffers))

        return hook

    def ends(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            del inputs
            opened = under_way.pop()
            while opened.call.name != name:  # that call did not end: f caught its exception
                opened = under_way.pop()
            call, drew = (
                opened.call,
                not opened.generators.same_generators(Snapshot.take(device, ())),
            )
            call.outputs = _copies(outputs)
            call.draws = drew and not opened.inner_draws
            if drew and under_way:
                under_way[-1].inner_draws = True
            now = dict(module.named_buffers(recurse=False))
            call.changed = [k for k, b in opened.buffers.items() if not same([b], [now[k]])]
            calls.append(call)

        return hook

    with ExitStack() as stack:
        for name, module in names.modules.items():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            stack.callback(module.register_forward_pre_hook(begins(name)).remove)
            stack.callback(module.register_forward_hook(ends(name)).remove)
        return thunk(), calls


def culprit(first: list[Call], second: list[Call]) -> str | None:
    """The name of the first module whose outputs differ though its inputs do not."""
    for a, b in zip(first, second, strict=False):
        if a.name != b.name:
            return None
        if same(a.inputs, b.inputs) and not same(a.outputs, b.outputs):
            return a.name
    return None


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal to the last bit (NaN equals NaN)."""
    return len(a) == len(b) and all(
        x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())
        for x, y in zip(a, b, strict=True)
    )


def _copies(tree: Any) -> list[Tensor]:
    return [x.detach().clone() for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]
