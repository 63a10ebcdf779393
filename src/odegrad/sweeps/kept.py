"""What a forward sweep keeps for the backward sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from odegrad.replay import Snapshot
from odegrad.state import Leaves, nbytes
from odegrad.sweeps.graphs import Graphs
from odegrad.sweeps.store import StateStore

__all__ = ["Current", "Kept", "Rows"]


class Rows(Protocol):
    """A tape of tensors."""

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        ...

    @property
    def room(self) -> int:
        """These, and the bytes that were made room for and never written."""
        ...

    def tensors(self) -> Leaves:
        """The tensors that hold the data."""
        ...

    def forget_data(self) -> None:
        """Lets go of these tensors (someone else holds them), keeping the places."""
        ...

    def with_tensors(self, tensors: Sequence[Tensor], retain: bool) -> Rows:
        """The same places, with `tensors` for the data, which has to serve again if `retain`."""
        ...


@dataclass(frozen=True)
class Current:
    """The current state of a sweep.

    Attributes:
        i: Its number.
        state: State and carry.
        snapshot: Generators and buffers before step i.
        rewound: Whether it was reconstructed from a later state.
    """

    i: int
    state: Leaves
    snapshot: Snapshot | None
    rewound: bool = False


@dataclass
class Kept:
    """What is kept.

    Its tensors are kept by autograd between the sweeps: see `tensors`.

    Attributes:
        store: The numbered states.
        tape: The tape, or None if nothing was put on it.
        held: The state that is current when the backward sweep begins (empty if it is stored), or None.
        end: The last state, if the backward sweep needs it for a streamed loss.
    """

    store: StateStore
    tape: Rows | Graphs | None = None
    held: Current | None = None
    end: Leaves = ()

    def settle(self) -> None:
        """Makes a copy of the held state, unless it is stored: f may hand out tensors of the user's."""
        if self.held is not None:
            stored = self.held.i in self.store
            state = () if stored else tuple(x.clone() for x in self.held.state)
            self.held = replace(self.held, state=state)

    def current(self) -> Current | None:
        """The state that is current when the backward sweep begins."""
        if self.held is None or self.held.state:
            return self.held
        return Current(self.held.i, *self.store.get(self.held.i))

    @property
    def room(self) -> int:
        """These, and the bytes that were made room for and never written."""
        if self.tape is None or isinstance(self.tape, Graphs):
            return self.nbytes
        return self.nbytes - self.tape.nbytes + self.tape.room

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        tape = 0 if self.tape is None else self.tape.nbytes
        held = 0 if self.held is None else nbytes(self.held.state)
        return self.store.nbytes + tape + held + nbytes(self.end)

    def tensors(self) -> Leaves:
        """The tensors that hold the data, but those of graphs."""
        return tuple(x for part in self._parts() for x in part)

    def forget_data(self) -> list[int]:
        """Lets go of these tensors (someone else holds them), keeping the places."""
        sizes = [len(part) for part in self._parts()]
        self.store.forget_data()
        if self.tape is not None and not isinstance(self.tape, Graphs):
            self.tape.forget_data()
        if self.held is not None:
            self.held = replace(self.held, state=())
        self.end = ()
        return sizes

    def with_tensors(self, tensors: Sequence[Tensor], sizes: Sequence[int], retain: bool) -> Kept:
        """The same places, whose data `tensors` hold as this one's `tensors` did.

        Arguments:
            tensors: The data.
            sizes: What `forget_data` returned.
            retain: Whether they have to serve again.
        """
        parts: list[Leaves] = []
        for size in sizes:
            parts.append(tuple(tensors[:size]))
            tensors = tensors[size:]
        stored, taped, held, end = parts
        tape = self.tape
        if tape is not None and not isinstance(tape, Graphs):
            tape = tape.with_tensors(taped, retain)
        current = None if self.held is None else replace(self.held, state=held)
        return Kept(self.store.with_tensors(stored, retain), tape, current, end)

    def _parts(self) -> tuple[Leaves, Leaves, Leaves, Leaves]:
        tape = self.tape
        taped = () if tape is None or isinstance(tape, Graphs) else tape.tensors()
        held = () if self.held is None else self.held.state
        return self.store.tensors(), taped, held, self.end
