"""Numbered slots that are free again when nothing refers to them.

States that several stores share need no counting of their own: each store refers to the slots of its
states, and Python counts.
"""

from __future__ import annotations

import weakref
from collections import deque

__all__ = ["Slot", "Slots"]


class Slots:
    """The numbers 0, 1, …, each in use or free."""

    def __init__(self) -> None:
        self._watches: dict[int, _Watch] = {}
        self._free: deque[_Watch] = deque()

    def take(self, slot: Slot) -> int:
        """A number that is free again when `slot` is gone: one that was used before, if there is one."""
        index = self._free.pop().index if self._free else len(self._watches)
        # What runs when a slot goes is written in C: neither locks nor Ctrl-C can get in its way.
        watch = self._watches[index] = _Watch(slot, self._free.append)
        watch.index = index
        return index


class Slot:
    """A number taken from `slots`."""

    __slots__ = ("__weakref__", "index")

    def __init__(self, slots: Slots) -> None:
        self.index = slots.take(self)


class _Watch(weakref.ref[Slot]):
    __slots__ = ("index",)

    index: int
