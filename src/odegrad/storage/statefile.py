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
from odegrad.storage.jobs import Make, Place, Read, Write
from odegrad.storage.layout import Buffer, Layout
from odegrad.storage.records import Records
from odegrad.storage.slots import Slots
from odegrad.storage.worker import Worker

__all__ = ["MAX_READS", "MAX_WRITES", "StateFile", "Token"]

MAX_WRITES = 2
"""The most states that wait to be written."""

MAX_READS = 2
"""The most states that are read ahead."""


class Token:
    """Held by all that use a file: when it is gone, the background thread closes the file."""

    __slots__ = ("__weakref__",)


class StateFile:
    """The file.

    Arguments:
        layout: The layout of a state.
        rows: How many states to reserve room for.
        directory: Where to make the file, or None for the system's temporary directory.
        token: Held by the stores that use the file.

    Raises:
        CheckpointStorageError: If there is no room, or the directory cannot be written.
    """

    def __init__(
        self,
        layout: Layout,
        rows: int,
        directory: str | os.PathLike[str] | None,
        token: Token,
    ) -> None:
        self._layout = layout
        self._records = Records(layout, directory)
        self._slots = Slots()
        self._lock = threading.RLock()  # never held by the background thread
        self._writes: deque[Write] = deque()
        self._reads: list[weakref.ref[Read]] = []
        self._spare: deque[Buffer] = deque(maxlen=MAX_WRITES)
        self._pid = os.getpid()
        self._token = weakref.ref(token)
        self._worker = Worker(token, self._records.file.close)
        del token  # a traceback may keep this frame
        make = Make(self._records, rows)
        self._worker.submit(make)
        make.wait()
        if make.error is not None:
            raise CheckpointStorageError(str(make.error)) from (make.error.__cause__ or make.error)

    @property
    def nbytes(self) -> int:
        """The bytes of the file."""
        return self._records.file.nbytes

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that made the file: then it may only read."""
        return self._pid != os.getpid()

    def join(self) -> None:
        """Waits until the file is closed, if no store uses it any more."""
        if self._token() is not None:
            return
        if self.foreign:
            self._records.file.close()
        else:
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
            write = place.write = Write(place, self._records, buffer, self._spare)
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
                place.write.wait()  # it is over; whether it went well is about to be known
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
            read = Read(place, self._records)
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

    def _unwritten(self, write: Write) -> CheckpointStorageError:
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
