"""States in a file."""

from __future__ import annotations

import os

from odegrad.errors import CheckpointStorageError
from odegrad.state import Leaves
from odegrad.storage.jobs import Place
from odegrad.storage.layout import Layout
from odegrad.storage.statefile import MAX_READS, MAX_WRITES, StateFile, Token

__all__ = ["DiskShelf"]


class DiskShelf:
    """A store of numbered states in one file, which leaves nothing behind however the process ends.

    A background thread writes and reads ahead. Each state is checked when it is read. After a fork of
    the process the child can read what is stored; what it stores itself goes to a file of its own. The
    space is free when the child has ended, too.

    Arguments:
        rows: How many states have to fit at once. Their space is reserved now, and more is taken if
            more are stored.
        like: A state: shapes, dtypes and devices.
        directory: Where to make the file, or None for the system's temporary directory.

    Attributes:
        memory_rows: The most states' worth of CPU memory that it holds for states on their way:
            two to be written, two read ahead, and one to be moved if they belong on another device.

    Raises:
        CheckpointStorageError: If there is no room, or the directory cannot be written. Later, from
            `put`, `get` and `close`: if a state could not be written; from `get`: if it cannot be read
            or is not what was written.
    """

    def __init__(
        self, rows: int, like: Leaves, directory: str | os.PathLike[str] | None = None
    ) -> None:
        layout = Layout(like)
        self._make = layout, rows, directory
        self._files: list[StateFile] = []  # several only after a fork of the process
        self._tokens: list[Token] = []  # one for each file, until this store is closed
        self._places: dict[int, Place] = {}
        self.memory_rows = MAX_WRITES + MAX_READS + (not layout.on_cpu)
        self._new_file()

    def put(self, i: int, state: Leaves) -> None:
        """Stores state i; does nothing if it is stored already.

        The state is copied; the return does not wait until it is written, unless two others are.
        """
        assert self._make[0].fits(state), "a state of another shape, dtype or device"
        self._check()
        if i in self._places:
            return
        if self._files[-1].foreign:
            self._new_file()
        self._places[i] = self._files[-1].store(i, state)

    def get(self, i: int) -> Leaves:
        """State i to the last bit, in fresh tensors where the state was."""
        self._check()
        place = self._places[i]
        return place.file.load(place)

    def prefetch(self, i: int) -> None:
        """Begins to read state i; two are held at most."""
        place = self._places.get(i)
        if place is not None:
            place.file.load_ahead(place)

    def drop(self, i: int) -> None:
        """Forgets state i; its place is free for another."""
        del self._places[i]

    def __contains__(self, i: int) -> bool:
        return i in self._places

    def fork(self) -> DiskShelf:
        """A shelf with the same states; from now on neither sees what the other puts and drops.

        Both use the same file, which grows if they need more room together than was reserved.
        """
        self._check()
        other = object.__new__(DiskShelf)
        other._make, other.memory_rows = self._make, self.memory_rows
        other._files, other._tokens = list(self._files), list(self._tokens)
        other._places = dict(self._places)
        return other

    @property
    def nbytes(self) -> int:
        """The bytes of the file, which it shares with its forks."""
        return self._files[-1].nbytes

    def close(self) -> None:
        """Forgets all states; the file is closed when all forks are closed or gone.

        Raises:
            CheckpointStorageError: If a state could not be written.
        """
        try:
            if self._tokens:
                self._files[-1].settle()
        finally:
            self._places.clear()
            self._tokens.clear()
            for file in self._files:
                file.join()

    def _new_file(self) -> None:
        self._tokens.append(Token())
        try:
            self._files.append(StateFile(*self._make, self._tokens[-1]))
        except BaseException:
            self._tokens.pop()
            raise

    def _check(self) -> None:
        if not self._tokens:
            raise CheckpointStorageError(
                "the store of checkpoints on disk was closed: solve again to get new ones"
            )
