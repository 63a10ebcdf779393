"""The compiled programs of a solve in which each sample of a batch has steps of its own.

Rows of known steps are rounds: `Programs.march` and `Programs.transposed` take t and dt of shape
[rows, B], dt being NaN where a sample takes no step. Rows of a search are attempts; what each sample
accepts of them is put in order after a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.compiled.controller import March
from odegrad.compiled.loop import Loop, Sizes
from odegrad.compiled.programs import Norm, Programs
from odegrad.compiled.searching import attempt_each
from odegrad.schemes.base import Step
from odegrad.schemes.masked import Masked
from odegrad.stepsize.pid import CONSTANTS

__all__ = ["SamplePrograms"]


class SamplePrograms(Programs):
    """Programs for one vector field, scheme, and shape of a batch.

    In all of them what f reads is followed by the starts, as `Masked` wants it.
    """

    def search(self, norm: Norm | None, n_times: int, read: bool) -> Loop:
        """A loop over attempted steps.

        (*march, *y, *carry | | *y, *carry, *inside if read, accept, segment, σ, δ rows | times, failed,
        constants, limit, segments, *p, start, *y0) ↦ the march, state and carry when the chunk is full,
        all are through, or one is stuck. Times have the shape [n_times, B], segments [B].

        Arguments:
            norm: The controller's norm, of the leaves of a single sample.
            n_times: The number of landing times.
            read: Whether states inside of the steps are to be read.
        """
        key = ("search", getattr(norm, "__code__", None), n_times, read)
        return self._make(key, lambda: self._search(norm, n_times, read))

    def _search(self, norm: Norm | None, n_times: int, read: bool) -> Loop:
        n_m, n_y, n_s = len(March._fields), len(self._y), len(self._y) + len(self._carry)
        n_state, rows, scheme = self._field.n_state, self.rows(None), self.scheme
        order = scheme.error_order
        assert order is not None
        assert isinstance(scheme, Masked)

        def body(*given: Tensor) -> list[Tensor]:
            march, state = March(*given[:n_m]), given[n_m : n_m + n_s]
            times, failed, vector, limit, segments, *p = given[n_m + n_s :]
            y, carry = state[:n_y], state[n_y:]

            inside: list[Tensor] = []

            def take(t: Tensor, dt: Tensor) -> Step:
                step = scheme.attempt(self._field, t, dt, y, carry, tuple(p))
                inside[:] = self._read(t, dt, y, step, tuple(p), read)
                return step

            active = (march.segment < segments) & ~failed
            found = attempt_each(
                take, march, y, carry, times, segments, active, vector, limit, order, n_state, norm
            )
            return [*found.march, *found.y, *found.carry, *state, *inside, *found.noted]

        def more(*given: Tensor) -> Tensor:
            march = March(*given[:n_m])
            failed, segments = given[n_m + n_s + 1], given[n_m + n_s + 4]
            active = (march.segment < segments) & ~failed
            return (march.row < rows) & active.any() & ~march.stuck.any()

        state, fakes = [*self._y, *self._carry], self._fakes
        with fakes.mode:
            march = March.start(self._time)
        march = fakes.like(march)
        times = fakes.empty((n_times, *self.time_shape), torch.float64, self.device)
        vector = fakes.empty((len(CONSTANTS),), torch.float64, self.device)
        noted = [march[3], march[1], self._time, self._time]
        written = self._rows([*state, *(self._inside if read else ()), *noted], rows)
        stable = [times, march[3], vector, self._count(), march[1], *self._p]
        sizes = Sizes(carried=n_m + n_s, reads=0, writes=len(written))
        return self._counted(body, more, sizes, [*march, *state, *written, *stable], read)
