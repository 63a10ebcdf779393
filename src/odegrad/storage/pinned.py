"""States of a device in CPU memory, copied while the device computes.

A state goes through one buffer on the device in each direction:

    put:  state → outgoing  on the current stream;  outgoing → row  aside
    get:  row → incoming  aside;  incoming → fresh tensors  on the current stream

So the caller may change and free its tensors at once; what is returned is an ordinary tensor of the
current stream; rows are touched by the stream aside alone, whose order is that of the calls; and the
device memory in use does not depend on how far the host is ahead.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch

from odegrad.errors import CheckpointStorageError
from odegrad.state import Leaves
from odegrad.storage.slots import Slot, Slots
from odegrad.storage.streams import Streams, streams_of

__all__ = ["PinnedRows", "PinnedShelf"]


class PinnedRows:
    """Rows of CPU memory that several stores share, each of which holds one state.

    Arguments:
        rows: How many to make.
        like: A state: shapes, dtypes and devices.
        streams: Gives the streams of a device.

    Raises:
        CheckpointStorageError: If there is no memory for them.
    """

    def __init__(
        self, rows: int, like: Leaves, streams: Callable[[torch.device], Streams] = streams_of
    ) -> None:
        self._like = [(x.shape, x.dtype, x.device) for x in like]
        self._streams = {x.device: streams(x.device) for x in like}
        self._lanes = [self._streams[x.device] for x in like]
        self._slots = Slots()
        self._lock = threading.RLock()
        self._more = max(1, rows // 4)  # rows of each chunk but the first
        self._first = max(1, rows)
        self._chunks: list[Leaves] = [self._chunk(self._first)]
        self._outgoing: Leaves | None = None
        self._incoming: Leaves | None = None
        self._sent: list[torch.Event | None] = []  # aside: outgoing may be overwritten
        self._arrived: list[torch.Event | None] = []  # aside: incoming may be read
        self._taken: list[torch.Event | None] = []  # current: incoming may be overwritten
        self._ahead: weakref.ref[Slot] | None = None  # whose state is in incoming

    @property
    def nbytes(self) -> int:
        """The bytes of CPU memory, which for pinned memory torch rounds up to a power of two."""
        sizes = [
            (x.numel() * x.element_size(), lane.pinned)
            for chunk in self._chunks
            for x, lane in zip(chunk, self._lanes, strict=True)
        ]
        return sum(1 << (n - 1).bit_length() if pinned and n else n for n, pinned in sizes)

    def fits(self, state: Leaves) -> bool:
        """Whether `state` looks as the states have to."""
        return [(x.shape, x.dtype, x.device) for x in state] == self._like

    def store(self, state: Leaves) -> Slot:
        """Begins to copy a state to a free row."""
        with self._lock:
            slot = Slot(self._slots)
            row = self._row(slot)
            if self._outgoing is None:
                self._outgoing = self._on_device()
            outgoing = self._shared(self._outgoing)
            self._wait(self._sent)
            self._copy(outgoing, tuple(x.detach() for x in state))
            self._wait(self._mark(), aside=True)
            self._copy(row, outgoing, aside=True)
            self._sent = self._mark(aside=True)
            return slot

    def load(self, slot: Slot) -> Leaves:
        """The state in a row, in fresh tensors on the device."""
        with self._lock:
            self.load_ahead(slot)
            assert self._incoming is not None
            incoming = self._shared(self._incoming)
            state = self._on_device()
            self._wait(self._arrived)
            self._copy(state, incoming)
            self._taken = self._mark()
            return state

    def load_ahead(self, slot: Slot) -> None:
        """Begins to copy the state in a row to the device, in place of another that is there."""
        with self._lock:
            if self._ahead is not None and self._ahead() is slot:
                return
            self._ahead = None
            if self._incoming is None:
                self._incoming = self._on_device()
                self._taken = self._mark()  # its memory may have had a use that is still queued
            incoming = self._shared(self._incoming)
            self._wait(self._taken, aside=True)
            self._copy(incoming, self._row(slot), aside=True)
            self._arrived = self._mark(aside=True)
            self._ahead = weakref.ref(slot)

    def _row(self, slot: Slot) -> Leaves:
        k, row = 0, slot.index
        if row >= self._first:
            k, row = divmod(row - self._first, self._more)
            k += 1
        while k >= len(self._chunks):
            self._chunks.append(self._chunk(self._more))
        return tuple(column[row] for column in self._chunks[k])

    def _chunk(self, rows: int) -> Leaves:
        try:
            return tuple(
                torch.empty((rows, *shape), dtype=dtype, device="cpu", pin_memory=lane.pinned)
                for (shape, dtype, _), lane in zip(self._like, self._lanes, strict=True)
            )
        except RuntimeError as error:
            n = rows * sum(shape.numel() * dtype.itemsize for shape, dtype, _ in self._like)
            raise CheckpointStorageError(
                f"{n:,} bytes of CPU memory for {rows} checkpoints could not be had: {error}. Store "
                "fewer states in CPU memory (ram=...), or more of them on disk (disk=...)"
            ) from error

    def _on_device(self) -> Leaves:
        return tuple(
            torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in self._like
        )

    def _shared(self, state: Leaves) -> Leaves:
        for lane, x in zip(self._lanes, state, strict=True):
            lane.share(x)
        return state

    def _copy(self, target: Leaves, source: Leaves, aside: bool = False) -> None:
        for lane, x, y in zip(self._lanes, target, source, strict=True):
            lane.copy(x, y, aside)

    def _mark(self, aside: bool = False) -> list[torch.Event | None]:
        return [streams.mark(aside) for streams in self._streams.values()]

    def _wait(self, marks: list[torch.Event | None], aside: bool = False) -> None:
        for streams, mark in zip(self._streams.values(), marks, strict=bool(marks)):
            streams.wait(mark, aside)


class PinnedShelf:
    """A store of numbered states of a device in (pinned) CPU memory.

    Arguments:
        rows: How many states have to fit at once. Their memory is taken now, and more if more are
            stored.
        like: A state: shapes, dtypes and devices, one of which is not the CPU.

    Attributes:
        device_rows: How many states' worth of device memory it uses itself: one leaving, one coming.

    Raises:
        CheckpointStorageError: If there is no CPU memory for the states.
    """

    device_rows = 2

    def __init__(self, rows: int, like: Leaves) -> None:
        assert any(x.device.type != "cpu" for x in like), "these states are in CPU memory already"
        self._rows = PinnedRows(rows, like)
        self._slots: dict[int, Slot] = {}

    def put(self, i: int, state: Leaves) -> None:
        """Stores state i; does nothing if it is stored already. The host does not wait for the copy."""
        assert self._rows.fits(state), "a state of another shape, dtype or device"
        if i not in self._slots:
            self._slots[i] = self._rows.store(state)

    def get(self, i: int) -> Leaves:
        """State i to the last bit, in fresh tensors where the state was."""
        return self._rows.load(self._slots[i])

    def prefetch(self, i: int) -> None:
        """Begins to copy state i to the device; one is there at most."""
        slot = self._slots.get(i)
        if slot is not None:
            self._rows.load_ahead(slot)

    def drop(self, i: int) -> None:
        """Forgets state i; its place is free for another."""
        del self._slots[i]

    def __contains__(self, i: int) -> bool:
        return i in self._slots

    def fork(self) -> PinnedShelf:
        """A shelf with the same states; from now on neither sees what the other puts and drops.

        Both use the same memory; more is taken if they need more together.
        """
        return self._over(self._rows, self._slots)

    @classmethod
    def _over(cls, rows: PinnedRows, slots: dict[int, Slot]) -> PinnedShelf:
        shelf = object.__new__(cls)
        shelf._rows, shelf._slots = rows, dict(slots)
        return shelf

    @property
    def nbytes(self) -> int:
        """The bytes of CPU memory, which it shares with its forks."""
        return self._rows.nbytes

    def close(self) -> None:
        """Forgets all states; the memory is free when the shelf and all forks are gone."""
        self._slots.clear()
