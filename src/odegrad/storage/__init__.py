"""Stores of numbered states outside of the state's own device memory: CPU memory and disk."""

from __future__ import annotations

from odegrad.storage.disk import DiskShelf
from odegrad.storage.pinned import PinnedShelf
from odegrad.storage.shelf import Shelf
from odegrad.storage.statefile import MAX_READS, MAX_WRITES

IN_FLIGHT = MAX_WRITES + MAX_READS
"""The most states that a `DiskShelf` holds in CPU memory on their way, if they belong there."""

DEVICE_ROWS = 2
"""The most states that a `PinnedShelf` holds on the device on their way."""

__all__ = ["DEVICE_ROWS", "IN_FLIGHT", "DiskShelf", "PinnedShelf", "Shelf"]
