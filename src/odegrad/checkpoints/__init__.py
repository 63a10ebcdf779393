"""Checkpoint schedules: what the forward sweep keeps, and how the backward sweep gets the rest."""

from odegrad.checkpoints.actions import Action, Advance, Drop, Restore, Store, Transpose
from odegrad.checkpoints.schedules import Checkpoints, Every, Keep, StoreAll

__all__ = [
    "Action",
    "Advance",
    "Checkpoints",
    "Drop",
    "Every",
    "Keep",
    "Restore",
    "Store",
    "StoreAll",
    "Transpose",
]
