"""The place of a state in a file, and what the background thread does with it."""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING

from odegrad.storage.layout import Buffer
from odegrad.storage.records import Records
from odegrad.storage.slots import Slot, Slots
from odegrad.storage.worker import Job

if TYPE_CHECKING:
    from odegrad.storage.statefile import StateFile

__all__ = ["Make", "Place", "Read", "Write"]


class Place(Slot):
    """The record of one state; free again when no store refers to it.

    Attributes:
        file: The file.
        i: The number of the state.
        write: What writes it, until that is known to be done.
        read: What reads it ahead.
    """

    __slots__ = ("file", "i", "read", "write")

    def __init__(self, slots: Slots, file: StateFile, i: int) -> None:
        super().__init__(slots)
        self.file, self.i = file, i
        self.write: Write | None = None
        self.read: Read | None = None


class Make(Job):
    """Makes the file: in the background, where no Ctrl-C can come between it and its name."""

    def __init__(self, records: Records, rows: int) -> None:
        super().__init__()
        self._records, self._rows = records, rows

    def work(self) -> None:
        """Makes it."""
        self._records.make(self._rows)


class Write(Job):
    """Writes the state in `buffer`, which is None when that is done."""

    def __init__(
        self, place: Place, records: Records, buffer: Buffer, spare: deque[Buffer]
    ) -> None:
        super().__init__()
        self.place = weakref.ref(place)
        self.buffer: Buffer | None = buffer
        self.i, self._record = place.i, place.index
        self._records, self._spare = records, spare

    def work(self) -> None:
        """Writes it, and gives the buffer back."""
        assert self.buffer is not None
        try:
            self._records.write(self._record, self.i, self.buffer)
        finally:
            buffer, self.buffer = self.buffer, None
            self._spare.append(buffer)


class Read(Job):
    """Reads a state into `state`."""

    def __init__(self, place: Place, records: Records) -> None:
        super().__init__()
        self.place = weakref.ref(place)
        self.state = records.layout.empty()
        self._i, self._record, self._records = place.i, place.index, records

    def work(self) -> None:
        """Reads it, if a store still wants it."""
        if self.place() is not None:
            self._records.read(self._record, self._i, self.state)
