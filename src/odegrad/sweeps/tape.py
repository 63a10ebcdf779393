"""The tape of the eager engine, for states and stages; `odegrad.sweeps.graphs` is that for graphs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from odegrad.checkpoints import Keep
from odegrad.replay import Snapshot
from odegrad.state import Leaves
from odegrad.sweeps.slab import Slab

__all__ = ["Tape"]


class Tape:
    """The states before consecutive steps, and with `Keep.STAGES` the slopes of their stages.

    Arguments:
        keep: `Keep.STATE` or `Keep.STAGES`.
        rows: How many steps it will hold, if known.
    """

    def __init__(self, keep: Keep, rows: int | None) -> None:
        assert keep is not Keep.GRAPH
        self.keep = keep
        self._slab = Slab(rows, rows)
        self._width = 0

    def put(
        self, n: int, state: Leaves, snapshot: Snapshot | None, slopes: Sequence[Leaves]
    ) -> None:
        """Adds step n."""
        self._width = len(state)
        if self.keep is Keep.STAGES:
            state = (*state, *(x for slope in slopes for x in slope))
        self._slab.put(n, state, snapshot)

    def get(self, n: int, n_leaves: int) -> tuple[Leaves, Snapshot | None, list[Leaves] | None]:
        """The state before step n, what was kept with it, and the slopes; slopes have n_leaves leaves."""
        values, snapshot = self._slab.get(n)
        state, rest = values[: self._width], values[self._width :]
        if self.keep is not Keep.STAGES:
            return state, snapshot, None
        return state, snapshot, [rest[k : k + n_leaves] for k in range(0, len(rest), n_leaves)]

    def clear(self) -> None:
        """Forgets all steps; their places are free for others."""
        self._slab.clear()

    def tensors(self) -> Leaves:
        """The tensors that hold the data."""
        return self._slab.tensors()

    def forget_data(self) -> None:
        """Lets go of these tensors (someone else holds them)."""
        self._slab.forget_data()

    def with_tensors(self, tensors: Sequence[Tensor], retain: bool) -> Tape:
        """The same steps, with `tensors` for what `tensors` gave; see `Slab.with_tensors`."""
        other = Tape(self.keep, None)
        other._slab, other._width = self._slab.with_tensors(tensors, retain), self._width
        return other

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return self._slab.nbytes

    @property
    def room(self) -> int:
        """The same."""
        return self._slab.nbytes
