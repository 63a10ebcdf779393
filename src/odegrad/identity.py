"""Telling functions from each other where they are made anew for every call, as lambdas are."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

__all__ = ["owner", "signature"]

_DEPTH = 4


def owner(f: Callable[..., Any]) -> object:
    """What lives as long as f can be made again: its code, the object it is a method of, or f."""
    if isinstance(f, types.FunctionType):
        return f.__code__
    return getattr(f, "__self__", f)


def signature(f: Callable[..., Any]) -> Hashable:
    """What tells f from other functions with the same code: its closure and its defaults.

    Numbers and texts count by value, tensors by their shape, containers by what they hold, and other
    objects by identity, without being kept alive: two functions with equal signatures take the same
    memory, unless such an object has changed.
    """
    return _value(f, _DEPTH)


def _value(x: Any, depth: int) -> Hashable:
    if isinstance(x, bool | int | float | complex | str | bytes | None):
        return (type(x), x)
    if isinstance(x, Tensor):
        return (x.shape, x.dtype, x.device, x.requires_grad)
    if depth == 0:
        return _same(x)
    if isinstance(x, types.FunctionType):
        values = [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
        for cell in x.__closure__ or ():
            try:
                values.append(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
        return (x.__code__, *(_value(v, depth - 1) for v in values))
    if isinstance(x, types.MethodType):
        return (_value(x.__func__, depth - 1), _same(x.__self__))
    if isinstance(x, list | tuple):
        return (type(x), *(_value(v, depth - 1) for v in x))
    if isinstance(x, dict):
        return (dict, *((_value(k, 1), _value(v, depth - 1)) for k, v in x.items()))
    return _same(x)


def _same(x: object) -> Hashable:
    try:
        return _Same(x)
    except TypeError:  # nothing that can be referred to weakly: like nothing else
        return object()


class _Same:
    """Equal for the same object, and to nothing once it is gone."""

    def __init__(self, x: object) -> None:
        self._ref, self._hash = weakref.ref(x), id(x)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        mine = self._ref()
        return isinstance(other, _Same) and mine is not None and mine is other._ref()
