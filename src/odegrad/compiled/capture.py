"""A function as a graph with all that it reads as inputs, kept as long as it stays the same function.

`torch.compile` is used here for one thing: to see f. Its front end (Dynamo) evaluates f's code
symbolically, makes every tensor that f reads an input of the graph, and guards what the graph depends
on besides: shapes, dtypes, Python numbers and flags, the structure of modules. A call whose guards
hold costs microseconds; one whose guards fail captures f anew. The back end given to it computes
nothing: it notes which graph was chosen for which tensors.

What cannot be seen as one graph (branches on values, calls into code that PyTorch does not know) is
reported by `NotCompilable` with Dynamo's reason.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from odegrad.compiled.tracing import NotCompilable, first_line
from odegrad.state import Leaves, Structure

__all__ = ["CapturedFunction", "FieldGraph", "capture_function"]

_MOST_VARIANTS = 32
"""How many graphs of one function are kept: one per shape, dtype and Python value that it reads."""


@dataclass(eq=False)
class FieldGraph:
    """One graph of a function.

    Attributes:
        module: The graph, in terms of torch functions; its inputs are tensors.
        programs: What was compiled for it, by whatever key the compiler chose.
    """

    module: GraphModule
    programs: dict[Any, Any] = field(default_factory=dict[Any, Any])


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


@dataclass
class _Seen:
    """The graph and tensors of the capturing call that runs now, and how many results f has."""

    n_results: int
    graph: FieldGraph | None = None
    inputs: Sequence[Any] = ()


@dataclass
class _Entry:
    """The capturing caller of some f."""

    call: Callable[..., Any]
    warm: bool = False

    @contextlib.contextmanager
    def quietly(self) -> Generator[None]:
        """Hides the warnings of a first capture.

        Dynamo looks at .grad of every tensor and tells of exceptions that it observes. What f itself
        warns of, it says when it is called plainly. Later captures are rare, and hiding warnings costs
        Python its memory of those that were shown.
        """
        if self.warm:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def _hooks_are_guarded() -> contextlib.AbstractContextManager[Any]:
    """So that hooks which are registered on modules later are seen."""
    import torch._dynamo as dynamo

    return dynamo.config.patch(skip_nnmodule_hook_guards=False)  # pyright: ignore


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
    seen = _Seen(1 if scalar else state.n_leaves)
    token = _now.set(seen)
    try:
        entry = _entry(f)
        with torch.enable_grad(), entry.quietly(), _hooks_are_guarded():
            entry.call(f, t, state.unflatten(y), args)
        entry.warm = True
    except NotCompilable:
        raise
    except Exception as error:
        if not type(error).__module__.startswith("torch._dynamo"):
            raise  # f itself raises
        raise NotCompilable(_reason(error)) from error
    finally:
        _now.reset(token)
    if seen.graph is None:
        raise NotCompilable(
            "f computes nothing from tensors, or torch.compile is switched off (by a stance such as "
            "force_eager, or TORCHDYNAMO_DISABLE)"
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


_now: ContextVar[_Seen] = ContextVar("now")


def _backend(module: GraphModule, examples: list[Any]) -> Callable[..., Any]:
    """Notes the graph; what it returns stands for values that nobody looks at."""
    del examples
    graph = FieldGraph(module)
    (outputs,) = module.graph.output_node().args
    fakes = [node.meta["example_value"] for node in outputs]  # pyright: ignore
    results = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in fakes)

    def note(*inputs: Any) -> Any:
        seen = _now.get()
        seen.graph, seen.inputs = graph, inputs
        if len(results) == seen.n_results:
            return results
        with torch.no_grad():  # f stores tensors somewhere: what a user may look at has to be real
            return module(*inputs)

    return note


def _call(f: Callable[..., Any], t: Tensor, y: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """What is captured. The copies make every result an output of the graph, inputs included."""
    return tuple(x.clone() for x in torch.utils._pytree.tree_leaves(f(t, y, *args)))  # pyright: ignore


_entries: weakref.WeakKeyDictionary[Any, _Entry] = weakref.WeakKeyDictionary()


def _entry(f: Callable[..., Any]) -> _Entry:
    """The capturing caller of f, with its cache of graphs; it lives as long as f's module or code."""
    owner = _owner(f)
    found = _entries.get(owner)
    if found is None:
        if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
            raise NotCompilable(
                f"compile=True needs torch 2.13 or newer, this is {torch.__version__}"
            )
        options: Any = {"recompile_limit": _MOST_VARIANTS, "isolate_recompiles": True}
        # Dynamo keeps a limited number of graphs for each code object: this f gets one of its own.
        call = types.FunctionType(_call.__code__.replace(), _call.__globals__, _call.__name__)
        compiled = torch.compile(call, backend=_backend, fullgraph=True, dynamic=False, **options)
        _entries[owner] = found = _Entry(compiled)
    return found


def _owner(f: Any) -> Any:
    """What the graphs of f belong to: a module, or code, which functions made anew share."""
    while isinstance(f, functools.partial):
        f = f.func
    if isinstance(f, types.MethodType):
        f = f.__self__ if isinstance(f.__self__, nn.Module) else f.__func__
    if isinstance(f, types.FunctionType):
        return f.__code__
    called: Any = type(f).__call__
    if not isinstance(f, nn.Module) and isinstance(called, types.FunctionType):
        return called.__code__
    return f


def _reason(error: Exception) -> str:
    """Dynamo's own words, without its advice."""
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return (
            f"its graph had to be made anew {_MOST_VARIANTS} times: a shape, or a Python number or "
            "attribute that f reads, changes from call to call"
        )
    return first_line(error)
