"""The cotangents of states that were read inside of compiled steps, and of their times."""

from __future__ import annotations

from torch import Tensor

from odegrad.compiled import Inside, Programs, Pullback
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.compiled.chunks import zeros

__all__ = ["Reads"]


class Reads:
    """What goes between the outputs inside of steps and the transposed steps of a chunk.

    Arguments:
        programs: The compiled steps.
        pull: The transpose of one.
        y0: The initial state.
        outputs: The cotangents of the outputs; None is zero.
        size: How many steps a chunk has.

    Attributes:
        grads: Buffers for the cotangents of what states are read from, one row per step.
        values: Buffers for what they are read from; empty if times get no cotangents.
    """

    def __init__(
        self,
        programs: Programs,
        pull: Pullback,
        y0: Leaves,
        outputs: OptionalLeaves,
        size: int,
    ) -> None:
        self._reading, self._y0, self._outputs, self._size = programs.reading, y0, outputs, size
        self.grads: Leaves = tuple(zeros(x, size) for x in pull.inside)
        self.values: Leaves = programs.inside(size) if pull.inside and pull.timed else ()

    def put(self, at: Inside) -> None:
        """Adds the cotangents of the states at some times to `grads`."""
        for piece in at.pieces(self._size):
            self._reading.states_vjp(piece, self._cotangents(piece), self.grads)

    def times_vjp(
        self,
        at: Inside,
        rows: Leaves,
        dt: Tensor,
        grad_t: Tensor,
        grad_dt: Tensor,
        grad_times: Tensor,
    ) -> None:
        """Adds the cotangents of the times, and what they owe to those of the steps they lie in.

        Arguments:
            at: The times.
            rows: The states before the steps.
            dt: The lengths of the steps.
            grad_t: The cotangents of their starts, added to.
            grad_dt: Those of their lengths, added to.
            grad_times: Those of the times of the solve, added to.
        """
        for piece in at.pieces(self._size):
            y, grads = rows[: len(self._y0)], self._cotangents(piece)
            rate = self._reading.rates(piece, y, self.values, grads) / piece.take(dt)
            piece.add_times(grad_times, rate)
            piece.add(grad_t, -rate)
            piece.add(grad_dt, -piece.x * rate)

    def _cotangents(self, at: Inside) -> Leaves:
        """Those of the states at the times, one row each."""
        return tuple(
            at.zeros(x) if g is None else at.outputs(g)
            for x, g in zip(self._y0, self._outputs, strict=True)
        )
