"""The way into Dynamo, the front end of `torch.compile`: which graph belongs to a call of f.

Dynamo evaluates f's code symbolically, makes every tensor that f reads an input of the graph, and guards
what the graph depends on besides: shapes, dtypes, Python numbers and flags, the structure of modules. A
call whose guards hold costs microseconds; one whose guards fail captures f anew. The back end given to
it computes nothing: it notes which graph was chosen for which tensors.

What is compiled for a graph is kept by its text, so that a graph captured anew (since a counter in f
went on, say) finds it.
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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from odegrad.compiled.tracing import NotCompilable, first_line

__all__ = ["FieldGraph", "Seen", "see", "too_many"]

_MOST_GUARDED = 32
"""How many graphs of one function Dynamo keeps before it starts from nothing."""
_MOST_VARIANTS = 8
"""How many different graphs of one function are compiled for the same kinds of inputs."""


@dataclass(eq=False)
class FieldGraph:
    """One graph of a function.

    Attributes:
        module: The graph, in terms of torch functions; its inputs are tensors.
        programs: What was compiled for it, by whatever key the compiler chose.
        variants: How many different graphs were met for the same kinds of inputs.
    """

    module: GraphModule
    programs: dict[Any, Any]
    variants: int


@dataclass
class Seen:
    """The graph and tensors of the capturing call that runs now, and how many results f has."""

    entry: Entry
    n_results: int
    graph: FieldGraph | None = None
    inputs: Sequence[Any] = ()


_now: ContextVar[Seen] = ContextVar("now")


class Entry:
    """The capturing caller of some f, and the graphs that it met.

    Raises:
        NotCompilable: If torch is too old.
    """

    def __init__(self) -> None:
        if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
            raise NotCompilable(
                f"compile=True needs torch 2.13 or newer, this is {torch.__version__}"
            )
        self._programs: dict[Any, dict[Any, Any]] = {}
        self._variants: dict[Any, set[Any]] = {}
        self.renew()

    def renew(self) -> None:
        """Makes Dynamo forget its graphs of f."""
        options: Any = {"recompile_limit": _MOST_GUARDED, "isolate_recompiles": True}
        # Dynamo keeps a limited number of graphs for each code object: this f gets one of its own.
        call = types.FunctionType(_call.__code__.replace(), _call.__globals__, _call.__name__)
        self._call = torch.compile(call, backend=_backend, fullgraph=True, dynamic=False, **options)
        self.warm = False

    def see(self, f: Callable[..., Any], t: Tensor, y: Any, args: Any, n_results: int) -> Seen:
        """Calls f under Dynamo."""
        seen = Seen(self, n_results)
        token = _now.set(seen)
        try:
            with torch.enable_grad(), self._quietly(), _hooks_are_guarded():
                self._call(f, t, y, args)
        finally:
            _now.reset(token)
        self.warm = True
        return seen

    @contextlib.contextmanager
    def _quietly(self) -> Generator[None]:
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

    def graph(self, module: GraphModule) -> FieldGraph:
        """A graph that was captured, with what was compiled for its like before."""
        kinds = tuple(
            (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else type(x)
            for node in module.graph.find_nodes(op="placeholder")
            for x in [node.meta.get("example_value")]
        )
        holds = bool(
            module.graph.find_nodes(op="get_attr")
        )  # constants, which its text does not show
        text: Any = object() if holds else module.code
        variants = self._variants.setdefault(kinds, set())
        variants.add(text)
        programs: dict[Any, Any] = {}
        if not holds:
            programs = self._programs.setdefault((kinds, text), programs)
        return FieldGraph(module, programs, len(variants))


def _hooks_are_guarded() -> contextlib.AbstractContextManager[Any]:
    """So that hooks which are registered on modules later are seen."""
    import torch._dynamo as dynamo

    return dynamo.config.patch(skip_nnmodule_hook_guards=False)  # pyright: ignore


def _backend(module: GraphModule, examples: list[Any]) -> Callable[..., Any]:
    """Notes the graph; what it returns stands for values that nobody looks at."""
    del examples
    graph = _now.get().entry.graph(module)
    (outputs,) = module.graph.output_node().args
    fakes = [node.meta["example_value"] for node in outputs]  # pyright: ignore
    results = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in fakes)

    def note(*inputs: Any) -> Any:
        seen = _now.get()
        seen.graph, seen.inputs = graph, inputs
        if len(results) == seen.n_results:
            return results
        # f stores tensors somewhere: what a user may look at has to be real. On copies, since f may
        # change what it reads, which is only refused later.
        with torch.no_grad():
            copies = (x.detach().clone() if isinstance(x, Tensor) else x for x in inputs)
            return module(*copies)

    return note


def _call(f: Callable[..., Any], t: Tensor, y: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """What is captured. The copies make every result an output of the graph, inputs included."""
    return tuple(x.clone() for x in torch.utils._pytree.tree_leaves(f(t, y, *args)))  # pyright: ignore


_entries: weakref.WeakKeyDictionary[Any, Entry] = weakref.WeakKeyDictionary()


def see(f: Callable[..., Any], t: Tensor, y: Any, args: tuple[Any, ...], n_results: int) -> Seen:
    """The graph of f(t, y, *args), and the tensors that are its inputs now.

    Raises:
        NotCompilable: If f is not one graph.
    """
    owner = _owner(f)
    entry = _entries.get(owner)
    if entry is None:
        _entries[owner] = entry = Entry()
    try:
        return entry.see(f, t, y, args, n_results)
    except Exception as error:
        if not _is_dynamos(error):
            raise  # f itself raises
        if not entry.warm:
            raise NotCompilable(first_line(error)) from error
    # It went well before: too many graphs by now, or a warning that is an error.
    entry.renew()
    try:
        return entry.see(f, t, y, args, n_results)
    except Exception as error:
        if not _is_dynamos(error):
            raise
        raise NotCompilable(first_line(error)) from error


def _is_dynamos(error: Exception) -> bool:
    return type(error).__module__.startswith("torch._dynamo")


def too_many(graph: FieldGraph) -> bool:
    """Whether a function changes so often that compiling it is a waste."""
    return graph.variants > _MOST_VARIANTS


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
