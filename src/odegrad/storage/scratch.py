"""A file without a name, which is gone when the process is.

On POSIX the name is removed as soon as the file is open: the operating system frees the space when the
last descriptor is closed, also after SIGKILL. Where an open file keeps its name (Windows), `close`
removes it. All reads and writes name their offset, so that threads and forked processes can share it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import threading

from odegrad.errors import CheckpointStorageError

__all__ = ["ScratchFile", "full_error"]

_CHUNK = 1 << 24
"""The most bytes of one system call: after as many, a file that is being closed is noticed."""

_POSITIONAL = hasattr(os, "preadv") and hasattr(os, "pwrite")
_SEEK = threading.Lock()  # held between seek and access where there is no positional access
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
    """A private file of a given size.

    Arguments:
        directory: Where to make it, or None for the system's temporary directory.
        nbytes: The bytes to reserve.

    Raises:
        CheckpointStorageError: If it cannot be made, or there is no room for it.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, nbytes: int) -> None:
        self._pid = os.getpid()
        self._fd = -1
        self._folder: str | None = None
        self._abandoned = False
        self.nbytes = 0
        self.directory = (
            "the system's temporary directory" if directory is None else os.fsdecode(directory)
        )
        try:
            try:
                self._open(tempfile.gettempdir() if directory is None else os.fsdecode(directory))
            except OSError as error:
                raise full_error(self.directory, nbytes, error) from error
            self.reserve(nbytes)
        except BaseException:
            self.close()
            raise

    def reserve(self, nbytes: int) -> None:
        """Makes the file `nbytes` bytes long, all of which can be written."""
        try:
            _allocate(self._fd, self.nbytes, nbytes - self.nbytes, self.directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.nbytes)  # frees what was found
            raise full_error(self.directory, nbytes - self.nbytes, error) from error
        self.nbytes = nbytes

    def write(self, data: memoryview, offset: int) -> None:
        """Writes all of `data`."""
        while data:
            self._check()
            n = _write(self._fd, data[:_CHUNK], offset)
            data, offset = data[n:], offset + n

    def read(self, into: memoryview, offset: int) -> bool:
        """Fills `into`; returns False if the file ends before."""
        while into:
            self._check()
            n = _read(self._fd, into[:_CHUNK], offset)
            if n == 0:
                return False
            into, offset = into[n:], offset + n
        return True

    def abandon(self) -> None:
        """Lets reads and writes that are under way fail."""
        self._abandoned = True

    def close(self) -> None:
        """Closes the file, which frees its space."""
        fd, self._fd = self._fd, -1
        folder, self._folder = self._folder, None
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        if folder is not None and self._pid == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)

    def _open(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        self._folder = tempfile.mkdtemp(prefix=f"odegrad-{self._pid}-", dir=self.directory)
        path = os.path.join(self._folder, "states")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._fd = os.open(path, flags, 0o600)
        with contextlib.suppress(OSError):  # Windows refuses
            os.unlink(path)
            os.rmdir(self._folder)
            self._folder = None

    def _check(self) -> None:
        if self._abandoned or self._fd < 0:
            raise OSError(errno.EBADF, "the file was closed")


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


def _write(fd: int, data: memoryview, offset: int) -> int:
    if _POSITIONAL:
        return os.pwrite(fd, data, offset)
    with _SEEK:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def _read(fd: int, into: memoryview, offset: int) -> int:
    if _POSITIONAL:
        return os.preadv(fd, [into], offset)
    with _SEEK:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(into))
    into[: len(data)] = data
    return len(data)
