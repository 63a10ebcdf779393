"""What the steps of a solve need in memory, by the kind of schedule that they are kept with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from odegrad.checkpoints import Blockwise, Checkpoints, Every, Keep, Rewind, StoreAll
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, Time, nbytes
from odegrad.sweeps import Run

__all__ = ["Kind", "Needs", "kind_of", "state_bytes"]


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


def kind_of(checkpoints: Checkpoints, n: int, known: bool) -> Kind:
    """The kind of a schedule for n steps; all are on the tape if they are a single block."""
    bounds = checkpoints.bounds(n, known)
    keep = bounds.keep
    if isinstance(checkpoints, StoreAll) or (known and bounds.tape >= n):
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
        work: The working set beside many rows.
        few: A bound of the working set beside few rows: the peak may lie elsewhere then.
        measured: The working set by the numbers of rows that were measured, many being the most of them.
        beyond: The budget from which on more rows would have been measured; None if none would.
    """

    row: int
    work: int = 0
    few: int = 0
    measured: dict[int, int] = field(default_factory=dict[int, int])
    beyond: int | None = None

    def serves(self, budget: int | None) -> bool:
        """Whether no more would be measured with that budget."""
        return self.beyond is None or (budget is not None and budget < self.beyond)

    def beside(self, rows: int) -> int:
        """The working set of sweeps with so many rows on the tape."""
        many = max(self.measured, default=0)
        return self.measured.get(rows, self.work if rows >= many else self.few)


def state_bytes(run: Run, scheme: Scheme, t: Time, y0: Leaves, p: Leaves) -> int:
    """The bytes of a state with its carry, and with generators and buffers that are kept beside it."""
    f, carry = run.field, Leaves()
    evaluations, snapshot = f.evaluations, f.snapshot()
    if len(run.times) > 1:
        with torch.no_grad():
            carry = f.bound(p, lambda: scheme.init(f, t, y0, p))
    f.evaluations = evaluations
    if snapshot is None:
        return nbytes((*y0, *carry))
    snapshot.restore()
    return nbytes((*y0, *carry)) + snapshot.nbytes
