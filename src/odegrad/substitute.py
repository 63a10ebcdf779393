"""Making code read other tensors than its own: by name in modules, by identity elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,  # pyright: ignore[reportPrivateUsage]
)

__all__ = ["Host", "Substitute", "substituted"]


class Host(nn.ModuleList):
    """Holds the root modules, so that functional_call reaches all of them at once."""

    def forward(self, thunk: Callable[[], Any]) -> Any:
        """thunk()."""
        return thunk()


class Substitute(TorchFunctionMode):
    """Replaces tensors by others, by identity, in the arguments of every torch function."""

    def __init__(self, replacements: dict[int, Tensor]) -> None:
        super().__init__()
        self.replacements = replacements

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
            return self.replacements.get(id(tree), tree)
        if type(tree) is tuple or type(tree) is list:
            return type(tree)([self._swap(x) for x in cast("list[Any]", tree)])
        if type(tree) is dict:
            return {key: self._swap(x) for key, x in cast("dict[Any, Any]", tree).items()}
        return tree


def substituted(x: Any) -> Any:
    """x, or what stands for it in a sweep around this one (a solve inside a vector field)."""
    if isinstance(x, Tensor):
        for mode in _get_current_function_mode_stack():
            if isinstance(mode, Substitute):
                x = mode.replacements.get(id(x), x)
    return x
