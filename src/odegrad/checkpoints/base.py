"""What a checkpoint schedule is."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from odegrad.checkpoints.actions import Action, Keep

__all__ = ["Bounds", "Checkpoints", "Hold"]


class Hold(enum.Enum):
    """Which state stays current between the sweeps, stored or not."""

    LAST = "last"
    """The state from which the last `Advance` of the forward sweep began."""
    END = "end"
    """State n."""


class Bounds(NamedTuple):
    """The most that a schedule has kept at any moment.

    Attributes:
        device: States stored where the state is.
        ram: States stored in CPU memory.
        disk: States stored on disk.
        tape: Steps on the tape.
        keep: What is kept of them.
        directory: Where files are made; None is the system's temporary directory.
        held: States held between the sweeps beside the stored ones, as `Checkpoints.holds` says.
    """

    device: int
    ram: int = 0
    disk: int = 0
    tape: int = 0
    keep: Keep | None = None
    held: int = 0
    directory: str | None = None


@runtime_checkable
class Checkpoints(Protocol):
    """A schedule: two iterators of actions. It has no state of its own.

    Law: the forward sweep takes every step once, in order; the backward sweep transposes every step
    once, from the last to the first; each action finds what it needs; and no more is kept than `bounds`
    says. The number of steps is at least 1 everywhere.
    """

    @property
    def holds(self) -> Hold | None:
        """Which state is current when the backward sweep begins; None: no state is."""
        ...

    def bounds(self, n: int, known: bool) -> Bounds:
        """The most that is kept at any moment of a solve that takes `n` steps."""
        ...

    def forward(self, n: int | None) -> Iterator[Action]:
        """What the forward sweep does.

        Arguments:
            n: The number of steps; None if it is not known in advance. Then the iterator goes on for as
                long as steps are taken (an `Advance` stops where the solve ends), or ends with an
                `Advance` whose stop is None.
        """
        ...

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        """What the backward sweep does.

        Arguments:
            n: The number of steps that the solve has taken.
            known: Whether the forward sweep knew it.
        """
        ...
