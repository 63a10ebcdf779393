"""Checkpoint schedules: what the forward sweep keeps, and how the backward sweep gets the rest."""

from odegrad.checkpoints.actions import (
    Action,
    Advance,
    Drop,
    Keep,
    Restore,
    Rewind,
    Store,
    Tier,
    Transpose,
)
from odegrad.checkpoints.base import Bounds, Checkpoints, Hold
from odegrad.checkpoints.blockwise import Blockwise, Every
from odegrad.checkpoints.store_all import StoreAll

__all__ = [
    "Action",
    "Advance",
    "Blockwise",
    "Bounds",
    "Checkpoints",
    "Drop",
    "Every",
    "Hold",
    "Keep",
    "Restore",
    "Rewind",
    "Store",
    "StoreAll",
    "Tier",
    "Transpose",
]
