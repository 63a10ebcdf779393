"""Telling functions from each other where they are made anew for every call, as lambdas are."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["owner", "signature"]


def owner(f: Callable[..., Any]) -> object:
    """What lives as long as f can be made again: its code, the object it is a method of, or f."""
    if isinstance(f, types.FunctionType):
        return f.__code__
    return getattr(f, "__self__", f)


def signature(f: Callable[..., Any]) -> Hashable:
    """What f closes over and was given as defaults, beside its code.

    Numbers and texts by their value, anything else by its identity: two functions with one signature
    do the same, unless the things themselves have changed.
    """
    if not isinstance(f, types.FunctionType):
        return (id(getattr(f, "__self__", f)), getattr(f, "__name__", None))
    values = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
    for cell in f.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return (f.__code__, *map(_value, values))


def _value(x: object) -> Hashable:
    if isinstance(x, bool | int | float | complex | str | None):
        return (type(x), x)
    if isinstance(x, types.FunctionType):
        return x.__code__
    return id(x)
