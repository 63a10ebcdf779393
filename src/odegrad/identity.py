"""What a function belongs to, where it is made anew for every call, as lambdas are."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

__all__ = ["owner"]


def owner(f: Callable[..., Any]) -> object:
    """What lives as long as f can be made again: its code, the object it is a method of, or f."""
    if isinstance(f, types.FunctionType):
        return f.__code__
    return getattr(f, "__self__", f)
