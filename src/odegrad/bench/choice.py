"""Choosing workloads and systems by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from odegrad.errors import OdegradError

__all__ = ["BenchError", "chosen"]

T = TypeVar("T")


class BenchError(OdegradError, ValueError):
    """A choice that a benchmark does not offer."""


def chosen(kind: str, offered: Mapping[str, T], names: Sequence[str]) -> list[T]:
    """Those of `offered` that are named, each once, in the order in which they are offered.

    Arguments:
        kind: What they are, for the message.
        offered: By name.
        names: Whole names, or beginnings up to a hyphen: ``tiny`` names ``tiny-rk4`` and ``tiny``.

    Raises:
        BenchError: If a name names nothing.

    Example:
        >>> chosen("workload", {"tiny-rk4": 1, "tiny-dopri5": 2, "medium": 3}, ["tiny"])
        [1, 2]
    """
    found: set[str] = set()
    for name in names:
        matching = {x for x in offered if x == name or x.startswith(f"{name}-")}
        # A whole name means itself, though others may begin with it.
        matching = {name} if name in matching else matching
        if not matching:
            raise BenchError(f"no {kind} is called {name!r}; choose from {', '.join(offered)}")
        found |= matching
    return [value for name, value in offered.items() if name in found]
