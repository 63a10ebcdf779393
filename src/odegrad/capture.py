"""Which tensors a function reads without being passed them, and how to make it read others.

A vector field is any callable: a module, a closure over modules, a partial, a bound method. For its
gradient to be complete, every tensor that requires grad and that it reads must become an input of the
one autograd node of a solve. Two searches are united:

* a *static scan* of the callable (module parameters and buffers, closure cells, globals its code
  names, partials, ``__self__`` and attributes of plain objects), which also sees what a branch on t
  hides from any single call;
* a *trace* of one call, under `torch.overrides.TorchFunctionMode`, which also sees what no scan can
  (tensors made by other functions, held in unusual containers).

Making the function read other tensors (its ``p``) is needed when those it would read are not the ones
to differentiate: under `torch.func.functional_call` and the transforms of `torch.func`, and for
captured tensors that have a history of their own. Tensors that belong to a module are substituted by
name, through `torch.func.functional_call`, for a whole sweep at once; the others by identity, through
a function mode. In the plain case nothing is substituted: the module reads its own parameters.

Known limits: a captured tensor that only code outside Python's function-override protocol reads (the
arguments of a custom `torch.autograd.Function`, the inside of a TorchScript module) cannot be
substituted by identity; `VectorField` detects it while differentiating and raises.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from odegrad.replay import Snapshot
from odegrad.scan import Scan
from odegrad.state import Leaves

__all__ = ["Captured", "Captures", "capture", "is_differentiable"]

T = TypeVar("T")


def is_differentiable(x: object) -> bool:
    """Whether x is a tensor whose gradient someone may ask for."""
    return isinstance(x, Tensor) and x.requires_grad


@dataclass(frozen=True, eq=False)
class Captured:
    """One tensor that the function reads.

    Arguments:
        tensor: The tensor as it was met.
        name: How a person would find it, for messages.
        owner: The module that holds it, if any.
        attribute: Its attribute name there.
        root: The index of the module among the captured root modules.
        path: Its qualified name from that root.
        is_buffer: Whether it is a buffer of the module.
    """

    tensor: Tensor
    name: str
    owner: nn.Module | None = None
    attribute: str = ""
    root: int = -1
    path: str = ""
    is_buffer: bool = False

    def current(self) -> Tensor:
        """The tensor that the function would read in this place now."""
        if self.owner is None:
            return self.tensor
        return cast("Tensor", getattr(self.owner, self.attribute))


@dataclass(eq=False)
class Captures:
    """All tensors that a function reads and that may need a gradient, in a fixed order.

    Arguments:
        modules: The modules found, none inside another.
        items: The captured tensors.
        buffers: Buffers of those modules that need no gradient but have to be the same whenever the
            function is called again.
        stochastic: Whether the traced call drew random numbers.
        stateful: Whether the traced call changed buffers.
    """

    modules: list[nn.Module] = field(default_factory=list[nn.Module])
    items: list[Captured] = field(default_factory=list[Captured])
    buffers: list[Captured] = field(default_factory=list[Captured])
    stochastic: bool = False
    stateful: bool = False

    def tensors(self) -> Leaves:
        """The captured tensors."""
        return tuple(item.tensor for item in self.items)

    def bind(self, p: Leaves, thunk: Callable[[], T]) -> T:
        """thunk(), with the function reading `p` instead of what it would read.

        Arguments:
            p: One tensor for each captured one, in order. Those that the function would read anyway
                cost nothing.
            thunk: What to run.
        """
        named: dict[str, Tensor] = {}
        identical: dict[int, Tensor] = {}
        for item, tensor in zip(self.items, p, strict=True):
            if item.current() is not tensor:
                if item.owner is None:
                    identical[id(item.tensor)] = tensor
                else:
                    named[f"{item.root}.{item.path}"] = tensor
        for item in self.buffers:
            if item.current() is not item.tensor:
                named[f"{item.root}.{item.path}"] = item.tensor
        mode: AbstractContextManager[Any] = _Substitute(identical) if identical else nullcontext()
        if not named:
            with mode:
                return thunk()
        with mode:
            result = torch.func.functional_call(_Host(self.modules), named, (thunk,))
        return cast("T", result)


class _Host(nn.ModuleList):
    """Holds the root modules, so that functional_call reaches all of them at once."""

    def forward(self, thunk: Callable[[], Any]) -> Any:
        return thunk()


class _Substitute(TorchFunctionMode):
    """Replaces tensors by others, by identity, in the arguments of every torch function."""

    def __init__(self, replacements: dict[int, Tensor]) -> None:
        super().__init__()
        self._replacements = replacements

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        return func(*self._swap(args), **self._swap(kwargs or {}))

    def _swap(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self._replacements.get(id(tree), tree)
        if type(tree) is tuple or type(tree) is list:
            return type(tree)([self._swap(x) for x in cast("list[Any]", tree)])
        if type(tree) is dict:
            return {key: self._swap(x) for key, x in cast("dict[Any, Any]", tree).items()}
        return tree


class _Trace(TorchFunctionMode):
    """Collects the differentiable tensors that enter torch functions and did not come out of one."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {id(x): x for x in known}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        for x in pytree.tree_leaves((args, kwargs)):
            if is_differentiable(x) and id(x) not in self._made:
                self.found[id(x)] = x
        out = func(*args, **kwargs)
        for x in pytree.tree_leaves(out):
            if is_differentiable(x) and id(x) not in self.found:
                self._made[id(x)] = x  # keeps it alive, so that its id is not used again
        return out


def capture(
    functions: Iterable[Callable[..., Any]],
    call: Callable[[], Any],
    known: Iterable[Tensor],
    device: torch.device,
) -> Captures:
    """Finds what `functions` read; generators and buffers are left as they were.

    Arguments:
        functions: The callables to scan.
        call: Calls them once; under `torch.no_grad`, so that every differentiable tensor it meets
            existed before.
        known: Tensors that `call` passes as arguments; they are not captured.
        device: Where random numbers may be drawn.
    """
    known = list(known)
    scan = Scan()
    for function in functions:
        scan.visit(function, "f", depth=0)
    captures = Captures(modules=_roots(scan.modules))
    members = [m for r, module in enumerate(captures.modules) for m in _members(module, r)]
    captures.buffers = [m for m in members if m.is_buffer and not is_differentiable(m.tensor)]

    before = Snapshot.take(device, [b.tensor for b in captures.buffers])
    trace = _Trace(known)
    try:
        with torch.no_grad(), _uncompiled(), trace:
            call()
        after = Snapshot.take(device, before.buffers)
        captures.stochastic = not before.same_generators(after)
        captures.stateful = not before.same_buffers(after)
    finally:
        if captures.stochastic or captures.stateful or sys.exc_info()[0] is not None:
            before.restore()

    others = [
        *scan.tensors.values(),
        *((x, "a tensor met while calling f") for x in trace.found.values()),
    ]
    seen = {id(x) for x in known}
    for item in [
        *(m for m in members if is_differentiable(m.tensor)),
        *(Captured(tensor, f"{name}, shape {list(tensor.shape)}") for tensor, name in others),
    ]:
        if id(item.tensor) not in seen:
            seen.add(id(item.tensor))
            captures.items.append(item)
    return captures


def _uncompiled() -> AbstractContextManager[Any]:
    """Runs compiled functions eagerly, so that the trace sees their tensors."""
    if "torch._dynamo" not in sys.modules:  # importing it takes a second: nothing is compiled
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _roots(modules: list[nn.Module]) -> list[nn.Module]:
    inside = {id(m) for root in modules for m in list(root.modules())[1:]}
    return [m for m in modules if id(m) not in inside]


def _members(root: nn.Module, index: int) -> Iterator[Captured]:
    for prefix, module in root.named_modules():
        for table in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
            for attribute, tensor in table.items():
                if tensor is not None:
                    path = f"{prefix}.{attribute}" if prefix else attribute
                    is_buffer = table is module._buffers  # pyright: ignore[reportPrivateUsage]
                    yield Captured(tensor, path, module, attribute, index, path, is_buffer)
