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
arguments of a custom `torch.autograd.Function`, the inside of a TorchScript function) cannot be
substituted by identity; that is detected while differentiating, by `check_reachable`, and raises.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from odegrad.distributed import alone
from odegrad.replay import Snapshot
from odegrad.scan import Scan
from odegrad.state import Leaves, nbytes
from odegrad.substitute import Host, Substitute

__all__ = ["Captured", "Captures", "Site", "capture", "is_differentiable", "version", "unread"]

T = TypeVar("T")


def is_differentiable(x: object) -> bool:
    """Whether x is a tensor whose gradient someone may ask for."""
    return isinstance(x, Tensor) and x.requires_grad


class Site(NamedTuple):
    """One place in a module where a tensor hangs; `key` is its path from the captured roots."""

    owner: nn.Module
    attribute: str
    key: str

    def current(self) -> Tensor:
        """The tensor that hangs there now."""
        return cast("Tensor", getattr(self.owner, self.attribute))


@dataclass(frozen=True, eq=False)
class Captured:
    """One tensor that the function reads.

    Arguments:
        tensor: The tensor as it was met.
        name: How a person would find it, for messages.
        sites: Where it hangs in modules; more than one place for tied weights.
        direct: Whether the function (also) reads it by other ways than a module.
        is_buffer: Whether it is a buffer of a module.
    """

    tensor: Tensor
    name: str
    sites: tuple[Site, ...] = ()
    direct: bool = False
    is_buffer: bool = False

    def reads(self, tensor: Tensor) -> bool:
        """Whether the function would by itself read `tensor` in place of this one now."""
        if self.direct and self.tensor is not tensor:
            return False
        return all(site.current() is tensor for site in self.sites)


@dataclass(eq=False)
class Captures:
    """All tensors that a function reads, in a fixed order.

    Arguments:
        modules: The modules found, none inside another.
        items: The tensors that may need a gradient.
        constants: The others that hang in modules or closures; those in modules are the same
            whenever the function is called again.
        read: Those of the constants that the traced call read and did not change.
        changing: The buffers that the traced call changed.
        modes: Whether each module was in training mode.
        stochastic: Whether the traced call drew random numbers.
        extent: How many torch functions the traced call called, and the bytes of what they returned:
            calls of the same extent take about the same memory.
    """

    modules: list[nn.Module] = field(default_factory=list[nn.Module])
    items: list[Captured] = field(default_factory=list[Captured])
    constants: list[Captured] = field(default_factory=list[Captured])
    read: list[Captured] = field(default_factory=list[Captured])
    changing: list[Captured] = field(default_factory=list[Captured])
    modes: list[tuple[nn.Module, bool]] = field(default_factory=list[tuple[nn.Module, bool]])
    stochastic: bool = False
    extent: tuple[int, int] = (0, 0)

    def tensors(self) -> Leaves:
        """The captured tensors that may need a gradient."""
        return tuple(item.tensor for item in self.items)

    def changing_buffers(self) -> list[Tensor]:
        """The buffers that calls change, as they hang in their modules now."""
        return [c.sites[0].current() for c in self.changing]

    def own(self, p: Leaves, wanted: Sequence[bool]) -> Leaves:
        """The leaves to differentiate when p is given: the function's own where it can, else copies.

        A leaf that the function reads by itself serves as it is, so that nothing needs to be substituted.
        A tensor with a history, or with hooks, is replaced by a detached copy: the history and the hooks
        are for the caller's graph.

        Arguments:
            p: One tensor for each captured one, in order; others may follow.
            wanted: Which of them need a cotangent.
        """
        items = self.items
        return tuple(
            x
            if want and x.is_leaf and i < len(items) and items[i].reads(x) and not _hooked(x)
            else x.detach().requires_grad_(want)
            for i, (x, want) in enumerate(zip(p, wanted, strict=True))
        )

    def bind(self, p: Leaves, thunk: Callable[[], T]) -> T:
        """thunk(), with the function reading `p` instead of what it would read.

        Modules are in the training or evaluation mode in which they were found.

        Arguments:
            p: One tensor for each captured one, in order. Those that the function would read anyway
                cost nothing.
            thunk: What to run.
        """
        named: dict[str, Tensor] = {}
        identical: dict[int, Tensor] = {}
        for item, tensor in [
            *zip(self.items, p, strict=True),
            *((c, c.tensor) for c in self.constants if c.sites),
        ]:
            if not item.reads(tensor):
                named |= {site.key: tensor for site in item.sites}
                if item.direct:
                    identical[id(item.tensor)] = tensor
        changed = [(module, mode) for module, mode in self.modes if module.training is not mode]
        with ExitStack() as stack:
            for module, mode in changed:
                stack.callback(setattr, module, "training", not mode)
                module.training = mode
            if identical:
                stack.enter_context(Substitute(identical))
            if not named:
                return thunk()
            return cast("T", torch.func.functional_call(Host(self.modules), named, (thunk,)))


class _Trace(TorchFunctionMode):
    """Collects the differentiable tensors that enter torch functions and did not come out of one."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self.met: set[int] = set()
        self._made: dict[int, Tensor] = {id(x): x for x in known}
        self.calls = self.nbytes = 0

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
            self.met.add(id(x))
            if is_differentiable(x) and id(x) not in self._made:
                self.found[id(x)] = x
        out = func(*args, **kwargs)
        results = pytree.tree_leaves(out)
        self.calls += 1
        self.nbytes += nbytes([x for x in results if isinstance(x, Tensor)])
        for x in results:
            if is_differentiable(x) and id(x) not in self.found:
                self._made[id(x)] = x  # keeps it alive, so that its id is not used again
        return out


def unread(found: Iterable[Any], read: Iterable[Tensor]) -> list[Tensor]:
    """The differentiable tensors that callables can reach, or that are given, beside those in `read`."""
    scan = Scan()
    for x in found:
        scan.visit(x, "f", depth=0)
    parameters = (x for module in scan.modules for x in module.parameters() if x.requires_grad)
    known = {id(x) for x in read}
    reached = [*parameters, *(x for x, _ in scan.tensors.values())]
    return list({id(x): x for x in reached if id(x) not in known}.values())


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
        known: Tensors that `call` makes and passes as arguments; they are not captured.
        device: Where random numbers may be drawn.
    """
    known = list(known)
    scan = Scan()
    for function in functions:
        scan.visit(function, "f", depth=0)
    roots = _roots(scan.modules)
    members = _members(roots)
    captures = Captures(modules=roots, modes=[(m, m.training) for r in roots for m in r.modules()])
    constants = [m for m in members if not is_differentiable(m.tensor)]
    held = {id(m.tensor) for m in members}
    constants += [Captured(x, "a captured tensor") for x in scan.constants if id(x) not in held]

    buffers = [c for c in constants if c.is_buffer]
    before = Snapshot.take(device, [b.tensor for b in buffers])
    versions = [version(c.tensor) for c in constants]
    trace = _Trace(known)
    try:
        with alone(), torch.no_grad(), _uncompiled(), trace:
            call()
    finally:
        # Only what changed is put back: writing to other buffers would spoil graphs that saved them.
        changed = [
            not torch.equal(b, v) for b, v in zip(before.buffers, before.values, strict=True)
        ]
        captures.stochastic = not before.same_generators(Snapshot.take(device, ()))
        captures.changing = list(compress(buffers, changed))
        replace(
            before,
            buffers=tuple(compress(before.buffers, changed)),
            values=tuple(compress(before.values, changed)),
        ).restore()

    # Only what f was seen to read is held to stay as it was, and not what f itself changes.
    changing = {id(b.tensor) for b in captures.changing}
    captures.constants = constants
    captures.extent = (trace.calls, trace.nbytes)
    captures.read = [
        c
        for c, v in zip(constants, versions, strict=True)
        if id(c.tensor) in trace.met - changing and (c.sites or version(c.tensor) == v)
    ]
    captures.items = [
        replace(m, direct=id(m.tensor) in scan.tensors)
        for m in members
        if is_differentiable(m.tensor)
    ]
    seen = {id(x) for x in known} | {id(item.tensor) for item in captures.items}
    for tensor, name in [
        *scan.tensors.values(),
        *((x, "a tensor met while calling f") for x in trace.found.values()),
    ]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            name = f"{name}, shape {list(tensor.shape)}"
            captures.items.append(Captured(tensor, name, direct=True))
    return captures


def version(x: Tensor) -> int:
    """How often x was changed in place (0 for an inference tensor, which does not count)."""
    return 0 if x.is_inference() else x._version


def _uncompiled() -> AbstractContextManager[Any]:
    """Runs compiled functions eagerly, so that the trace sees their tensors."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and importing it is slow
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _roots(modules: list[nn.Module]) -> list[nn.Module]:
    inside = {id(m) for root in modules for m in list(root.modules())[1:]}
    return [m for m in modules if id(m) not in inside]


def _members(roots: list[nn.Module]) -> list[Captured]:
    """The parameters and buffers of `roots`, each tensor once with all its places."""
    found: dict[int, Captured] = {}
    for index, root in enumerate(roots):
        for prefix, module in root.named_modules():
            for table in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
                for attribute, tensor in table.items():
                    if tensor is None:
                        continue
                    path = f"{prefix}.{attribute}" if prefix else attribute
                    site = Site(module, attribute, f"{index}.{path}")
                    is_buffer = table is module._buffers  # pyright: ignore[reportPrivateUsage]
                    old = found.get(id(tensor)) or Captured(tensor, path, (), False, is_buffer)
                    found[id(tensor)] = replace(old, sites=(*old.sites, site))
    return list(found.values())


def _hooked(x: Tensor) -> bool:
    """Whether the user put hooks on x, which must see one gradient and not one per evaluation."""
    return bool(x._backward_hooks)  # pyright: ignore[reportPrivateUsage]
