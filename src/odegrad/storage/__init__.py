"""Stores of numbered states outside of the state's own device memory: CPU memory and disk."""

from __future__ import annotations

from odegrad.storage.disk import DiskShelf
from odegrad.storage.pinned import PinnedShelf
from odegrad.storage.shelf import Shelf

__all__ = ["DiskShelf", "PinnedShelf", "Shelf"]
