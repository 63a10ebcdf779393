"""Checkpoint schedules: what the forward sweep keeps, and how the backward sweep gets the rest."""

from odegrad.checkpoints.actions import (
    Action,
    Advance,
    Drop,
    Keep,
    Restore,
    Store,
    Tier,
    Transpose,
    Unstep,
)
from odegrad.checkpoints.base import Bounds, Checkpoints, Hold
from odegrad.checkpoints.binomial import Binomial, advances
from odegrad.checkpoints.blockwise import Blockwise, Every
from odegrad.checkpoints.online import Online
from odegrad.checkpoints.rewind import Rewind
from odegrad.checkpoints.store_all import StoreAll
from odegrad.checkpoints.tiered import Tiered

__all__ = [
    "Action",
    "Advance",
    "Binomial",
    "Blockwise",
    "Bounds",
    "Checkpoints",
    "Drop",
    "Every",
    "Hold",
    "Keep",
    "Online",
    "Restore",
    "Rewind",
    "Store",
    "StoreAll",
    "Tier",
    "Tiered",
    "Transpose",
    "Unstep",
    "advances",
]
