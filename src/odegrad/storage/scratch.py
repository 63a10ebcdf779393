"""A file without a name, which is gone when the process is.

On POSIX the name is removed as soon as the file is open: the operating system frees the space when the
last descriptor is closed, also after SIGKILL. Reads and writes name their offset, so that threads and
forked processes can share it. Where an open file keeps its name (Windows), it is removed when it is
closed or the interpreter ends, but not after a kill; there each access holds a lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import threading
import weakref
from contextlib import AbstractContextManager

from odegrad.errors import CheckpointStorageError

__all__ = ["ScratchFile", "full_error"]

_CHUNK = 1 << 24
"""The most bytes of one system call."""

_POSITIONAL = hasattr(os, "preadv") and hasattr(os, "pwrite")
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def full_error(directory: str, nbytes: int, cause: OSError) -> CheckpointStorageError:
    """The error that no room for `nbytes` bytes could be had in `directory`."""
    try:
        free = f"{shutil.disk_usage(directory).free:,} bytes are free"
    except OSError:
        free = "how many are free is unknown"
    return CheckpointStorageError(
        f"checkpoints cannot be stored in {directory!r}: {cause.strerror or cause}. "
        f"{nbytes:,} bytes are needed there, {free}. Free some space, name a directory on another disk "
        "(directory=...), or store fewer states on disk"
    )


class ScratchFile:
    """A private file, which is closed when this object is gone.

    Arguments:
        directory: Where to make it, or None for the system's temporary directory.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self.nbytes = 0
        self.directory = "the temporary directory" if directory is None else os.fsdecode(directory)
        self._default = directory is None
        self._open = _Open()
        self._end = weakref.finalize(self, self._open.close)

    def make(self, nbytes: int) -> None:
        """Makes it and reserves its space.

        Raises:
            CheckpointStorageError: If it cannot be made, or there is no room for it.
        """
        try:
            place = tempfile.gettempdir() if self._default else self.directory
            self.directory = os.path.abspath(place)
            self._open.make(self.directory)
        except OSError as error:
            self.close()
            raise full_error(self.directory, nbytes, error) from error
        # A file without a name needs nothing at the end of the interpreter.
        self._end.atexit = self._open.folder is not None
        try:
            self.reserve(nbytes)
        except CheckpointStorageError:
            self.close()
            raise

    def reserve(self, nbytes: int) -> None:
        """Makes the file `nbytes` bytes long, all of which can be written."""
        fd = self._open.fd
        try:
            _allocate(fd, self.nbytes, nbytes - self.nbytes, self.directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self.nbytes)  # frees what was found
            raise full_error(self.directory, nbytes - self.nbytes, error) from error
        self.nbytes = nbytes

    def write(self, data: memoryview, offset: int) -> None:
        """Writes all of `data`."""
        while data:
            n = _write(self._open, data[:_CHUNK], offset)
            data, offset = data[n:], offset + n

    def read(self, into: memoryview, offset: int) -> bool:
        """Fills `into`; returns False if the file ends before."""
        while into:
            n = _read(self._open, into[:_CHUNK], offset)
            if n == 0:
                return False
            into, offset = into[n:], offset + n
        return True

    def close(self) -> None:
        """Closes the file, which frees its space."""
        self._end()


class _Open:
    """The open file, and its folder if that could not be removed at once."""

    def __init__(self) -> None:
        self.fd = -1
        self.folder: str | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def guard(self) -> AbstractContextManager[object]:
        """Entered for each access: keeps seek and access together, and `close` out of both.

        A file without a name is closed after the last access and needs no lock. In a fork of the
        process, where the lock may be one of a thread that is not there, nothing else uses the file.
        """
        if (_POSITIONAL and self.folder is None) or self._pid != os.getpid():
            return contextlib.nullcontext()
        return self._lock

    def make(self, directory: str) -> None:
        """Opens a new file."""
        self.folder = tempfile.mkdtemp(prefix=f"odegrad-{self._pid}-", dir=directory)
        path = os.path.join(self.folder, "states")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self.fd = os.open(path, flags, 0o600)
        with contextlib.suppress(OSError):  # Windows refuses
            os.unlink(path)
            os.rmdir(self.folder)
            self.folder = None

    def close(self) -> None:
        """Closes it and removes what is left of it."""
        with self.guard():
            fd, self.fd = self.fd, -1
            folder, self.folder = self.folder, None
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        if folder is not None and self._pid == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)


def _allocate(fd: int, offset: int, length: int, directory: str) -> None:
    if offset + length > sys.maxsize:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, offset, length)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    if length > shutil.disk_usage(directory).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, offset + length)


def _write(file: _Open, data: memoryview, offset: int) -> int:
    with file.guard():
        if _POSITIONAL:
            return os.pwrite(file.fd, data, offset)
        os.lseek(file.fd, offset, os.SEEK_SET)
        return os.write(file.fd, data)


def _read(file: _Open, into: memoryview, offset: int) -> int:
    with file.guard():
        if _POSITIONAL:
            return os.preadv(file.fd, [into], offset)
        os.lseek(file.fd, offset, os.SEEK_SET)
        data = os.read(file.fd, len(into))
    into[: len(data)] = data
    return len(data)
