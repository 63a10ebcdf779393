"""A file of states that several stores share: who holds which record, what is on its way.

Writes and reads ahead are jobs of one background thread, which does them in order: a record may be
given to another state while the old one is still to be written. Whoever waits holds nothing that the
thread needs, and whatever a Ctrl-C interrupts is done again or forgotten.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

from odegrad.errors import CheckpointStorageError
from odegrad.state import Leaves
from odegrad.storage.layout import Buffer, Layout
from odegrad.storage.records import Records
from odegrad.storage.slots import Slot, Slots
from odegrad.storage.worker import Job, Worker

__all__ = ["MAX_READS", "MAX_WRITES", "Place", "StateFile"]

MAX_WRITES = 2
"""The most states that wait to be written."""

MAX_READS = 2
"""The most states that are read ahead."""


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
        self.write: _Write | None = None
        self.read: _Read | None = None


class _Write(Job):
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
        assert self.buffer is not None
        try:
            self._records.write(self._record, self.i, self.buffer)
        except BaseException as error:
            self.error = error  # before the buffer goes, for those who look at it meanwhile
            raise
        finally:
            buffer, self.buffer = self.buffer, None
            self._spare.append(buffer)


class _Read(Job):
    """Reads a state into `state`."""

    def __init__(self, place: Place, records: Records) -> None:
        super().__init__()
        self.place = weakref.ref(place)
        self.state = records.layout.empty()
        self._i, self._record, self._records = place.i, place.index, records

    def work(self) -> None:
        if self.place() is not None:
            self._records.read(self._record, self._i, self.state)


class StateFile:
    """The file.

    Arguments:
        layout: The layout of a state.
        rows: How many states to reserve room for.
        directory: Where to make the file, or None for the system's temporary directory.

    Raises:
        CheckpointStorageError: If there is no room, or the directory cannot be written.
    """

    def __init__(self, layout: Layout, rows: int, directory: str | os.PathLike[str] | None) -> None:
        self._layout = layout
        self._records = Records(layout, rows, directory)
        self._slots = Slots()
        self._worker = Worker()
        self._lock = threading.RLock()  # never held by the background thread
        self._writes: deque[_Write] = deque()
        self._reads: list[weakref.ref[_Read]] = []
        self._spare: deque[Buffer] = deque(maxlen=MAX_WRITES)
        self._users: deque[None] = deque()
        self._pid = os.getpid()

    @property
    def nbytes(self) -> int:
        """The bytes of the file."""
        return self._records.file.nbytes

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that made the file: then it may only read."""
        return self._pid != os.getpid()

    def enter(self) -> None:
        """Counts a store that uses the file."""
        self._users.append(None)

    def leave(self) -> None:
        """Counts it out; the last one closes the file, in the background.

        Neither locks nor waits: the garbage collector may call this at any moment, in any thread. At
        the end of the interpreter it waits, since the background thread does not live longer.
        """
        self._users.pop()
        if self._users:
            return
        self._records.file.abandon()
        if self.foreign:
            self._records.file.close()
            return
        self._worker.stop(self._records.file.close)
        if not threading.main_thread().is_alive():
            self._worker.join()

    def join(self) -> None:
        """Waits until the file is closed, if all stores have left."""
        if not self._users and not self.foreign:
            self._worker.join()

    def store(self, i: int, state: Leaves) -> Place:
        """Begins to write state i; waits while too many others are being written."""
        with self._lock:
            self._report()
            while len(self._writes) >= MAX_WRITES:
                self._writes[0].wait()
                self._report()
            buffer = self._spare.pop() if self._spare else Buffer(self._layout)
            buffer.fill(state)
            place = Place(self._slots, self, i)
            self._records.make_room(place.index)
            write = place.write = _Write(place, self._records, buffer, self._spare)
            self._worker.submit(write)
            self._writes.append(write)  # now that it is sure to be done some time
            return place

    def load(self, place: Place) -> Leaves:
        """The state at a place."""
        if self.foreign:  # the background thread is that of another process
            buffer = None if place.write is None else place.write.buffer
            return self._read(place) if buffer is None else self._copy(buffer)
        with self._lock:
            self._report()
            read, place.read = place.read, None
            if place.write is not None:
                buffer = place.write.buffer
                if buffer is not None:
                    return self._copy(buffer)
                if place.write.error is not None:
                    raise self._unwritten(place.write)
                place.write = None
            if read is None:
                return self._read(place)
            read.wait()
            if read.error is not None:
                raise CheckpointStorageError(str(read.error)) from read.error
            return self._layout.on_device(read.state)

    def load_ahead(self, place: Place) -> None:
        """Begins to read the state at a place, unless too many others are being read.

        One that was read ahead and not asked for gives way.
        """
        if self.foreign or place.read is not None:
            return
        with self._lock:
            self._reads = [read for read in self._reads if read() is not None]
            if len(self._reads) >= MAX_READS and not self._forget_read():
                return
            read = _Read(place, self._records)
            self._worker.submit(read)
            self._reads.append(weakref.ref(read))
            place.read = read

    def settle(self) -> None:
        """Waits until all is written.

        Raises:
            CheckpointStorageError: If a state that a store refers to could not be written.
        """
        if not self.foreign:
            with self._lock:
                for write in tuple(self._writes):
                    write.wait()
                self._report()

    def _report(self) -> None:
        while self._writes and self._writes[0].finished:
            write = self._writes.popleft()
            if write.error is not None and write.place() is not None:
                raise self._unwritten(write)

    def _unwritten(self, write: _Write) -> CheckpointStorageError:
        assert write.error is not None
        error = self._records.unwritten(write.i, write.error)
        error.__cause__ = write.error
        return error

    def _forget_read(self) -> bool:
        for k, reference in enumerate(self._reads):
            read = reference()
            if read is not None and read.finished:
                place = read.place()
                if place is not None:
                    place.read = None
                del self._reads[k]
                return True
        return False

    def _read(self, place: Place) -> Leaves:
        state = self._layout.empty()
        self._records.read(place.index, place.i, state)
        return self._layout.on_device(state)

    def _copy(self, buffer: Buffer) -> Leaves:
        return self._layout.on_device(buffer.copy())
