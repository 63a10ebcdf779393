"""What all stores of numbered states do."""

from __future__ import annotations

from typing import Protocol

from odegrad.state import Leaves

__all__ = ["Shelf"]


class Shelf(Protocol):
    """A store of numbered states, all with the same shapes, dtypes and devices.

    One thread at a time uses a shelf; a shelf and its forks may be used by different threads.
    """

    def put(self, i: int, state: Leaves) -> None:
        """Stores state i; does nothing if it is stored already.

        The work may go on after the return; `state` may be changed or freed at once.
        """
        ...

    def get(self, i: int) -> Leaves:
        """State i to the last bit, in fresh tensors where the state was."""
        ...

    def prefetch(self, i: int) -> None:
        """Begins to read state i, which `get` will ask for soon; only a hint."""
        ...

    def drop(self, i: int) -> None:
        """Forgets state i; its place is free for another."""
        ...

    def __contains__(self, i: int) -> bool: ...

    def fork(self) -> Shelf:
        """A shelf with the same states; from now on neither sees what the other puts and drops.

        The states are shared, not copied. What both hold together may need more room than was
        reserved: it is taken when it is needed.
        """
        ...

    @property
    def nbytes(self) -> int:
        """The bytes that it and its forks occupy together."""
        ...

    def close(self) -> None:
        """Forgets all states; what they occupied is free when all forks are closed or gone."""
        ...
