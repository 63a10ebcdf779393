"""The shapes of a solve as stand-ins, the sizes of its buffers, and where its programs are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from odegrad.compiled.inductor import Backend, current_backend, using_backend
from odegrad.compiled.pullback import Pullback
from odegrad.compiled.reading import Reading
from odegrad.compiled.tracing import LOCK, Fakes, device_of
from odegrad.errors import OdegradWarning
from odegrad.field import VectorField
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, nbytes, wide

__all__ = ["CHUNK_BYTES", "Shapes"]

_MOST_ROWS = 128
"""Longer chunks gain nothing: a chunk costs about as much as a step."""
CHUNK_BYTES = 32 << 20
_SCRATCH_BYTES = 4 << 20
"""What the backward sweep writes and reads again at once should stay in a cache."""


def _chunk(most_bytes: int, like: Sequence[Tensor]) -> int:
    """How many rows like these to put into a chunk."""
    return max(1, min(_MOST_ROWS, most_bytes // max(1, nbytes(like))))


class Shapes:
    """What the programs for one vector field, scheme, and shape of state have in common.

    Arguments:
        field: Makes the vector field, a pure function of (t, y, p), for tensors like y and p.
        scheme: The scheme.
        y: A state, with its quadratures.
        n_state: How many leaves f reads.
        p: The tensors that f reads.
        chunk_bytes: The most bytes that a chunk of steps fills in the forward sweep.
        size: B, if each sample of a batch is at a time of its own: then `scheme` is a `Masked`.

    Attributes:
        n_read: How many tensors f reads.
        time_shape: The shape of times and steps.
        device: Where the numbers of the time stepping are: that of the state's first leaf.
        reading: What states inside of steps are read from.
        announce: Entered while something is being compiled.
    """

    def __init__(
        self,
        field: Callable[[Leaves, Leaves], VectorField],
        scheme: Scheme,
        y: Leaves,
        n_state: int,
        p: Leaves,
        chunk_bytes: int = CHUNK_BYTES,
        size: int | None = None,
    ) -> None:
        self.scheme, self.chunk_bytes = scheme, chunk_bytes
        self._backend: Backend = current_backend()
        self._fakes = Fakes()
        self._y, self._p = self._fakes.like(y), self._fakes.like(p)
        self.n_read = len(p)
        self.time_shape = () if size is None else (size,)
        # On stand-ins, so that nothing of the solve that made it is held.
        self._field = field(tuple(self._y[:n_state]), tuple(self._p))
        self.device = y[0].device
        self._made: dict[Any, Any] = {}
        self._told = False
        self.announce: Callable[[], AbstractContextManager[object]] = nullcontext
        self._time = self._fakes.empty(self.time_shape, torch.float64, self.device)
        if size is not None:
            self._p += self._fakes.like([self._time, *self._y])  # as `Masked` wants it
        self._carry = self._trace_init()
        self.reading = Reading(scheme.read_degree)
        # Stand-ins for the values that states inside of a step are read from.
        d, empty = self.reading.degree, self._fakes.empty
        self._inside = [empty((d, *x.shape), x.dtype, x.device) for x in self._y]
        self._evaluations: dict[bool, int] = {}

    def _trace_init(self) -> list[Tensor]:
        with self._fakes.mode, torch.no_grad(), self._autocast():
            carry = self.scheme.init(self._field, self._time, tuple(self._y), tuple(self._p))
        return self._fakes.like(carry)

    def new_carry(self) -> Leaves:
        """A cotangent of the carry that is zero."""
        return tuple(torch.zeros(x.shape, dtype=x.dtype, device=device_of(x)) for x in self._carry)

    def rows(self, pull: Pullback | None) -> int:
        """The most steps in a chunk of the forward sweep."""
        kept = pull.kept if pull else ()
        # Of states alone fewer bytes gain as much: what they are for is not made at once.
        most = self.chunk_bytes if kept else self.chunk_bytes // 8
        return _chunk(most, [*self._y, *self._carry, *kept])

    def pulled_rows(self, pull: Pullback) -> int:
        """The most steps in a chunk of the backward sweep."""
        return (
            min(self.rows(pull), _chunk(min(_SCRATCH_BYTES, self.chunk_bytes), pull.rows))
            if pull.rows
            else self.rows(pull)
        )

    def _rows(self, like: Sequence[Tensor], n: int) -> list[Tensor]:
        return [self._fakes.empty((n, *x.shape), x.dtype, x.device) for x in like]

    def _times(self, n: int) -> list[Tensor]:
        shape = (n, *self.time_shape)
        return [self._fakes.empty(shape, torch.float64, self.device) for _ in range(2)]

    def _count(self) -> Tensor:
        return self._fakes.empty((), torch.int64, self.device)

    def inside(self, size: int) -> Leaves:
        """Buffers for what `march` writes of each of so many steps if states are read inside them."""
        return tuple(
            torch.empty((size, *x.shape), dtype=x.dtype, device=device_of(x)) for x in self._inside
        )

    def _sums(self, pull: Pullback) -> list[Tensor]:
        """Stand-ins for the sums of terms: in single precision at least."""
        with self._fakes.mode:
            return [wide(self._p[i]) for i in pull.summed]

    def _make(self, key: Any, make: Callable[[], Any]) -> Any:
        with LOCK:
            if key not in self._made:
                with self.announce(), using_backend(self._backend), self._autocast():
                    self._made[key] = make()
            return self._made[key]

    def _autocast(self) -> AbstractContextManager[object]:
        """The autocast state in which f was captured, whatever it is now."""
        kind, dtype, enabled = self._field.autocast
        return torch.autocast(kind, dtype, enabled)

    def _tell(self, message: str) -> None:
        """Warns, once, that something is not compiled."""
        if not self._told:
            self._told = True
            warnings.warn(f"compile=True helps less than it could: {message}", OdegradWarning, 2)
