"""Numbered slots that are free again when nothing refers to them.

States that several stores share need no counting of their own: each store refers to the slots of its
states, and Python counts.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Slot", "Slots"]


class Slots:
    """The numbers 0, 1, …, each in use or free."""

    def __init__(self) -> None:
        self._free: deque[int] = deque()
        self._next = 0

    def take(self) -> int:
        """A free number: one that was in use before, if there is one."""
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def give(self, index: int) -> None:
        """Frees a number. Takes no lock: the garbage collector may call this at any moment."""
        self._free.append(index)


class Slot:
    """A number taken from `slots`, which gets it back when this object is gone."""

    __slots__ = ("__weakref__", "_slots", "index")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.index = slots.take()

    def __del__(self) -> None:
        self._slots.give(self.index)
