"""What the modules and tensors that a function reaches are called, for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odegrad.scan import Scan

__all__ = ["Names"]

_VARIABLE = re.compile(r"(?:captured|global) variable '([^']*)'(.*)")


class _NamedScan(Scan):
    """A scan that remembers under which name it met each module."""

    def __init__(self) -> None:
        super().__init__()
        self.met: dict[int, str] = {}

    def visit(self, x: Any, name: str, depth: int, *, attribute: bool = False) -> None:
        if isinstance(x, nn.Module):
            self.met.setdefault(id(x), name)
        super().visit(x, name, depth, attribute=attribute)


class Names:
    """The names of what callables can reach.

    Arguments:
        found: The callables.
        args: Further arguments of theirs.

    Attributes:
        modules: All modules, by name.
    """

    def __init__(self, found: Iterable[Any], args: tuple[Any, ...] = ()) -> None:
        scan = _NamedScan()
        for x in found:
            scan.visit(x, "f", depth=0)
        self.modules: dict[str, nn.Module] = {}
        self._tensors: dict[int, str] = {}
        seen: set[int] = set()
        for root in scan.modules:
            prefix = _spoken(scan.met.get(id(root), "f"))
            for path, module in root.named_modules():
                if id(module) not in seen:
                    seen.add(id(module))
                    self.modules[_joined(prefix, path)] = module
        for prefix, module in self.modules.items():
            for key, x in module.named_parameters(recurse=False):
                self._tensors.setdefault(id(x), _joined(prefix, key))
        for key, (x, name) in scan.tensors.items():
            self._tensors.setdefault(key, name)
            del x
        for path, x in pytree.tree_flatten_with_path(args)[0]:
            self._tensors.setdefault(id(x), f"args{pytree.keystr(path)}")

    def of(self, x: Tensor) -> str:
        """The name of a tensor."""
        return self._tensors.get(id(x), f"a tensor that f reads, shape {list(x.shape)}")

    def described(self, name: str) -> str:
        """A module with its kind, such as ``net.1 (Dropout)``."""
        kind = type(self.modules[name]).__name__
        return f"{name} ({kind})" if name else f"f ({kind})"

    @property
    def frozen(self) -> list[str]:
        """The parameters that require no grad."""
        return [
            _joined(prefix, key)
            for prefix, module in self.modules.items()
            for key, x in module.named_parameters(recurse=False)
            if not x.requires_grad
        ]


def _spoken(name: str) -> str:
    """A name of the scan as one would write it in code."""
    found = _VARIABLE.fullmatch(name)
    if found:
        return found[1] + found[2]
    return name.removeprefix("f").removeprefix(".__self__").removeprefix(".")


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)
