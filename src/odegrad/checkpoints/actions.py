"""The actions of a checkpoint schedule: integers only, no tensors.

State i is the state (with its carry) before step i. An engine has one *current* state and a *store* of
numbered ones. The idea of a schedule as an iterator of such actions, interpreted by something that
knows nothing of its plan, is that of Dolci et al., *checkpoint_schedules*, JOSS 9 (2024).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

__all__ = ["Action", "Advance", "Drop", "Restore", "Store", "Transpose"]


class Advance(NamedTuple):
    """Take the steps start … stop − 1 from the current state, which is state `start`.

    With `every` = k the states start, start + k, … before the steps taken are stored on the way.
    `stop` = None means the end of the solve, which may not be known yet.
    """

    start: int
    stop: int | None
    every: int | None = None


class Store(NamedTuple):
    """Store the current state, which is state `i`."""

    i: int


class Restore(NamedTuple):
    """Make the stored state `i` current."""

    i: int


class Drop(NamedTuple):
    """Forget the stored state `i`."""

    i: int


class Transpose(NamedTuple):
    """Transpose the steps stop − 1, …, start, in this order.

    All states start … stop − 1 are stored, or the graphs of these steps are kept.
    """

    start: int
    stop: int


Action: TypeAlias = Advance | Store | Restore | Drop | Transpose
