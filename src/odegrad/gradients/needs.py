"""What the steps of a solve need in memory, by the kind of schedule that they are kept with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from odegrad.checkpoints import Blockwise, Checkpoints, Every, Keep, Rewind, StoreAll

__all__ = ["Kind", "Needs", "kind_of"]


class Kind(NamedTuple):
    """What decides over the working set of a schedule.

    Attributes:
        shape: ``"all"`` steps on the tape, ``"block"`` by block, ``"starts"`` the
            same with the start of every block stored, ``"unit"``: step by step without a tape,
            or ``"rewind"``.
        keep: What the tape keeps.
    """

    shape: str
    keep: Keep | None


def kind_of(checkpoints: Checkpoints) -> Kind:
    """The kind of a schedule."""
    keep = checkpoints.bounds(1, known=True).keep
    if isinstance(checkpoints, StoreAll):
        return Kind("all", keep)
    if isinstance(checkpoints, Rewind):
        return Kind("rewind", None)
    inner = checkpoints.schedule if isinstance(checkpoints, Blockwise) else None
    if isinstance(checkpoints, Every) or isinstance(inner, StoreAll):
        return Kind("starts", keep)
    return Kind("block" if keep is not None else "unit", keep)


@dataclass(frozen=True)
class Needs:
    """What the steps of one kind need, in bytes.

    Attributes:
        row: What the tape keeps of a step (of the compiled engine: of a chunk of steps).
        work: The working set.
    """

    row: int
    work: int
