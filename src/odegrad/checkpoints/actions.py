"""The actions of a checkpoint schedule: integers only, no tensors.

State i is the state (with its carry) before step i. An engine that executes a schedule has

* one *current* state;
* a *store* of numbered states;
* a *tape*: of one range of consecutive steps, what their transposes need (see `Keep`).

State 0 is current when the forward sweep begins, and the one that `Checkpoints.holds` names when the
backward sweep does; what is on the tape then is what the forward sweep left there. The idea of a
schedule as an iterator of such actions, interpreted by something that knows nothing of its plan, is
that of Dolci et al., *checkpoint_schedules*, JOSS 9 (2024).
"""

from __future__ import annotations

import enum
from typing import NamedTuple, TypeAlias

__all__ = ["Action", "Advance", "Drop", "Keep", "Restore", "Store", "Tier", "Transpose", "Unstep"]


class Keep(enum.Enum):
    """What is kept of a step for its transpose.

    With F the cost of evaluating f and V that of its transpose, D the bytes of a state and A those that
    the graph of one evaluation saves, each of the s evaluations of a step costs, in both sweeps together,

    * `STATE`: 2F + V. D bytes per step; s·A while one step is transposed.
    * `STAGES`: 2F + V. (s + 1)·D bytes per step, for the slopes; A while one step is transposed.
    * `GRAPH`: F + V, which is what backpropagation costs. s·A bytes per step. Of a state in half
      precision autograd then adds up cotangents in half precision; the others do in single precision.
    """

    STATE = "state"
    STAGES = "stages"
    GRAPH = "graph"

    def __repr__(self) -> str:
        return f"Keep.{self.name}"


class Tier(enum.Enum):
    """Where a state is stored: on its device, in (pinned) CPU memory, or in a file.

    For states on the CPU the first two are the same.
    """

    DEVICE = "device"
    RAM = "ram"
    DISK = "disk"

    def __repr__(self) -> str:
        return f"Tier.{self.name}"


class Advance(NamedTuple):
    """Take the steps start … stop − 1 from the current state, which is state `start`.

    `stop` = None means the end of the solve, which may not be known yet. State `stop` is current then.

    With `every` = k, in the forward sweep only, the states start, start + k, … before the steps taken are
    stored on the way. With `keep`, these steps are on the tape afterwards, in place of what was there; in
    the backward sweep no state is current then.
    """

    start: int
    stop: int | None
    every: int | None = None
    keep: Keep | None = None


class Store(NamedTuple):
    """Store the current state, which is state `i`."""

    i: int
    tier: Tier = Tier.DEVICE


class Restore(NamedTuple):
    """Make the stored state `i` current."""

    i: int


class Drop(NamedTuple):
    """Forget the stored state `i`."""

    i: int


class Transpose(NamedTuple):
    """Transpose the steps stop − 1, …, start, in this order.

    Either the tape holds exactly these steps, and is empty afterwards; or it is one step, and the state
    before it is current, and stays so.
    """

    start: int
    stop: int


class Unstep(NamedTuple):
    """Make state `stop` current by taking the steps start − 1, …, stop back from state `start`.

    The current state is state `start`; the scheme has to be reversible.
    """

    start: int
    stop: int


Action: TypeAlias = Advance | Store | Restore | Drop | Transpose | Unstep
