"""The static search: which modules and tensors a callable can reach, without calling it.

Followed are closure cells, globals that the code names, default arguments, partials, bound methods and
their ``__self__``, containers, and attributes of plain objects and modules. Functions of libraries are
not entered.
"""

from __future__ import annotations

import dis
import functools
import types
from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, cast

from torch import Tensor, nn

__all__ = ["Scan", "global_names"]

_LIBRARIES = ("torch.", "numpy.", "scipy.", "builtins", "odegrad.")
_GLOBAL_READS = ("LOAD_GLOBAL", "LOAD_NAME")
_MOST_ENTRIES = 10_000  # of a container: a field over a large list must not pay for it every time


class Scan:
    """Collects modules and tensors that callables can reach.

    Attributes:
        modules: The modules found, in the order of discovery.
        tensors: By id, the differentiable tensors found outside modules, each with a name.
        constants: The other tensors found outside modules.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.tensors: dict[int, tuple[Tensor, str]] = {}
        self.constants: list[Tensor] = []
        self._visited: set[int] = set()

    def visit(self, x: Any, name: str, depth: int, *, attribute: bool = False) -> None:
        """Looks into x; `attribute` says that x hangs on an object rather than on code."""
        if depth > 8 or id(x) in self._visited or isinstance(x, (str, bytes, int, float, type)):
            return
        self._visited.add(id(x))
        if isinstance(x, Tensor):
            # An object may keep tensors of an earlier graph that f never reads (a logged loss):
            # a non-leaf attribute counts only if the trace meets it.
            if x.requires_grad and (x.is_leaf or not attribute):
                self.tensors[id(x)] = (x, name)
            elif not x.requires_grad:
                self.constants.append(x)
        elif isinstance(x, nn.Module):
            self.modules.append(x)
            for module in x.modules():
                self._attributes(module, name, depth)
        elif isinstance(x, functools.partial):
            for i, part in enumerate([x.func, *x.args, *x.keywords.values()]):
                self.visit(part, f"{name}.partial[{i}]", depth + 1)
        elif isinstance(x, types.MethodType):
            self.visit(x.__func__, name, depth + 1)
            self.visit(x.__self__, f"{name}.__self__", depth + 1)
        elif isinstance(x, types.FunctionType):
            self._function(x, name, depth)
        elif isinstance(x, (list, tuple, set, frozenset, deque)):
            # A container may be a log of earlier results: its entries count like attributes.
            for i, part in enumerate(islice(cast("Iterable[Any]", x), _MOST_ENTRIES)):
                self.visit(part, f"{name}[{i}]", depth + 1, attribute=True)
        elif isinstance(x, Mapping):
            items = islice(cast("Mapping[Any, Any]", x).items(), _MOST_ENTRIES)
            for key, part in items:
                self.visit(part, f"{name}[{key!r}]", depth + 1, attribute=True)
        elif not type(x).__module__.startswith(_LIBRARIES) and not isinstance(x, types.ModuleType):
            self._attributes(x, name, depth)
            self.visit(vars(type(x)).get("__call__"), name, depth + 1)

    def _attributes(self, x: object, name: str, depth: int) -> None:
        for key, part in list(getattr(x, "__dict__", {}).items()):
            if key not in ("_parameters", "_buffers", "_modules") and not key.endswith("_hooks"):
                self.visit(part, f"{name}.{key}", depth + 1, attribute=True)

    def _function(self, x: types.FunctionType, name: str, depth: int) -> None:
        if x.__module__ and f"{x.__module__}.".startswith(_LIBRARIES):
            return
        wrapped = getattr(x, "__wrapped__", None)
        if wrapped is not None:
            self.visit(wrapped, name, depth + 1)
        for key, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
            try:
                self.visit(cell.cell_contents, f"captured variable {key!r}", depth + 1)
            except ValueError:  # an empty cell: the variable is not bound yet
                continue
        for key in global_names(x.__code__):
            if key in x.__globals__:
                self.visit(x.__globals__[key], f"global variable {key!r}", depth + 1)
        for part in [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]:
            self.visit(part, f"default argument of {x.__qualname__}", depth + 1)


@lru_cache(maxsize=1024)
def global_names(code: types.CodeType) -> frozenset[str]:
    """The global names that a code object and those nested in it may read."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in _GLOBAL_READS}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return frozenset(names)
