"""States in a file, checked when they are read."""

from __future__ import annotations

import os

from odegrad.errors import CheckpointStorageError
from odegrad.state import Leaves
from odegrad.storage.layout import Buffer, Layout
from odegrad.storage.scratch import ScratchFile, full_error

__all__ = ["Records"]


class Records:
    """A file of numbered records, each of which holds one state.

    Arguments:
        layout: The layout of a state.
        directory: Where to make the file, or None for the system's temporary directory.
    """

    def __init__(self, layout: Layout, directory: str | os.PathLike[str] | None) -> None:
        self.layout = layout
        self.file = ScratchFile(directory)

    def make(self, rows: int) -> None:
        """Makes the file, with room for `rows` records.

        Raises:
            CheckpointStorageError: If there is no room, or the directory cannot be written.
        """
        self.file.make(rows * self.layout.nbytes)

    def make_room(self, record: int) -> None:
        """Makes sure that the file has a record of this number."""
        end = (record + 1) * self.layout.nbytes
        if end > self.file.nbytes:
            self.file.reserve(end)

    def write(self, record: int, i: int, buffer: Buffer) -> None:
        """Writes state i.

        Raises:
            OSError: If it cannot be written.
        """
        self.file.write(buffer.sealed(i), record * self.layout.nbytes)

    def read(self, record: int, i: int, into: Leaves) -> None:
        """Reads state i into the tensors that `Layout.empty` gave.

        Raises:
            CheckpointStorageError: If it cannot be read, or is not what was written.
        """
        layout, start = self.layout, record * self.layout.nbytes
        header = memoryview(bytearray(layout.header_nbytes))
        parts = layout.parts(into)
        wanted = [(header, 0), *zip(parts, layout.offsets, strict=True)]
        try:
            whole = all(self.file.read(part, start + offset) for part, offset in wanted)
        except OSError as error:
            raise self._damaged(i, error.strerror or str(error)) from error
        fault = layout.fault(header, i, parts) if whole else "the file ends before it"
        if fault is not None:
            raise self._damaged(i, fault)

    def unwritten(self, i: int, cause: BaseException) -> CheckpointStorageError:
        """The error that state i could not be written."""
        if not isinstance(cause, OSError):
            return CheckpointStorageError(f"state {i} could not be stored: {cause!r}")
        return full_error(self.file.directory, self.layout.nbytes, cause)

    def _damaged(self, i: int, what: str) -> CheckpointStorageError:
        return CheckpointStorageError(
            f"state {i} cannot be read back from the checkpoint file in {self.file.directory!r}: {what}. "
            "The file was changed, or the disk is damaged. Solve again, with a directory on another "
            "disk (directory=...) or without states on disk"
        )
