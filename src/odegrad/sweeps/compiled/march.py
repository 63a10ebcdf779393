"""The forward sweep in compiled chunks of steps: what fixed and adaptive steps have in common."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial

import torch

from odegrad.checkpoints import Advance, Checkpoints, Drop, Hold, Keep, Store, Tier
from odegrad.compiled import Blocks, Inside, Programs, Pullback
from odegrad.state import Leaves
from odegrad.sweeps.compiled.chunks import plain, rows_like
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.labels import Sink
from odegrad.sweeps.run import Run
from odegrad.sweeps.store import StateStore

__all__ = ["Chunked", "Forward"]


class Chunked(ABC):
    """The resumable march of a forward sweep along steps, chunk by chunk.

    Arguments:
        run: The solve.
        programs: The compiled steps.
        n_y: How many leaves the state has.
        p: What the programs read.
        pull: Says what is kept of the steps on the tape.

    Attributes:
        n: How many steps are taken.
        state: State and carry there.
        known: How many there are to be taken, or None.
        kept: What is kept.
    """

    state: Leaves
    known: int | None
    kept: Kept | None

    def __init__(
        self, run: Run, programs: Programs, n_y: int, p: Leaves, pull: Pullback | None
    ) -> None:
        self.run, self.programs, self.n_y, self.p = run, programs, n_y, p
        self.pull, self.n, self.device = pull, 0, programs.device
        self.inside: Leaves = ()  # what states inside of the steps of a chunk are read from

    def keep(self, known: int | None, checkpoints: Checkpoints | None) -> None:
        """Gets ready to keep what a schedule says of so many steps; None keeps nothing."""
        self.known, self.kept = known, None
        if checkpoints is not None:
            n = sys.maxsize if known is None else max(1, known)
            bounds = checkpoints.bounds(n, known is not None)
            self.kept = Kept(StateStore(bounds, self.state, known is not None))

    @abstractmethod
    def through(self) -> bool:
        """Whether the end is reached."""

    @abstractmethod
    def take(self, rows: Leaves, stop: int | None, pull: Pullback | None) -> tuple[Leaves, int]:
        """Takes steps until the buffers are full, or state `stop` is reached, or the end.

        Returns:
            The rows of these steps, and how many they are.
        """

    def follow(self, checkpoints: Checkpoints) -> None:
        """Does what the schedule says, as far as the solve goes."""
        kept, actions = self.kept, checkpoints.forward(self.known)
        assert kept is not None
        while not self.through():
            match next(actions):
                case Advance(start, stop, every, keep):
                    if checkpoints.holds is Hold.LAST:
                        kept.held = Current(start, self.state, None)
                    self.advance(start, stop, every, keep)
                case Store(i, tier):
                    assert i == self.n, f"state {self.n} is current, not {i}"
                    kept.store.put(i, self.state, None, tier)
                case Drop(i):
                    kept.store.drop(i)
                case action:
                    raise AssertionError(f"{action} has no place in a forward sweep")
        kept.settle()
        if self.run.loss is not None:
            kept.end = tuple(x.clone() for x in self.state[: self.n_y])
        self.run.stats.note(kept)

    def advance(self, start: int, stop: int | None, every: int | None, keep: Keep | None) -> None:
        """Takes steps until state `stop`, or the end."""
        assert start == self.n, f"state {self.n} is current, not {start}"
        kept, pull = self.kept, None if keep is None else self.pull
        size, scratch, tape = self.programs.rows(pull), None, Blocks()
        if kept is not None and keep is not None:
            kept.tape = tape
        while not self.through() and (stop is None or self.n < stop):
            like = (*self.state, *(pull.kept if pull is not None else ()))
            rows = scratch or rows_like(like, size)
            if self.run.reads and not (self.inside and len(self.inside[0]) == size):
                self.inside = self.programs.inside(size)
            first = self.n
            rows, n = self.take(rows, stop, pull)
            scratch = rows if keep is None and len(rows[0]) == size else None
            if keep is not None:  # rows that were not written take no memory where it is virtual
                tape.put(first, n, rows)
            if every is not None:
                assert kept is not None
                for i in range(first + (start - first) % every, first + n, every):
                    kept.store.put(i, self.row(rows, i - first, n), None, Tier.DEVICE)

    def row(self, rows: Leaves, r: int, n: int) -> Leaves:
        """The state before step r of a chunk of n steps, or after its last."""
        return self.state if r == n else tuple(x[r] for x in rows[: len(self.state)])


class Forward(Chunked):
    """The march of a solve whose samples take their steps together.

    Arguments:
        run: The solve.
        programs: The compiled steps.
        y: The initial state.
        p: The tensors that f reads.
        outputs: Takes in the states at the times of the solve.
        pull: Says what is kept of the steps on the tape.
        checkpoints: What to keep; None keeps nothing.
    """

    def __init__(
        self,
        run: Run,
        programs: Programs,
        y: Leaves,
        p: Leaves,
        outputs: Sink,
        pull: Pullback | None,
        checkpoints: Checkpoints | None,
    ) -> None:
        super().__init__(run, programs, len(y), plain(p[: programs.n_read]), pull)
        self.outputs = outputs
        outputs.put(0, y)
        self.times = torch.tensor(run.times, dtype=torch.float64, device="cpu")
        carry: Leaves = ()
        if len(run.times) > 1:
            start = partial(run.scheme.init, run.field, run.times[0], y, p)
            carry = run.field.bound(p, start)
        self.state = (*(x.clone() for x in plain(y)), *plain(carry))
        self.begin(y, p)
        self.keep(None if run.grid is None else run.grid.n_steps, checkpoints)

    @abstractmethod
    def begin(self, y: Leaves, p: Leaves) -> None:
        """Gets ready; fills in the grid of the solve if it is known."""

    def read(self, at: Inside | None, rows: Leaves, inside: Leaves) -> None:
        """Puts out the states at times inside of the steps of a chunk."""
        for piece in [] if at is None else at.pieces(len(rows[0])):
            found = self.programs.reading.states(piece, rows[: self.n_y], inside)
            self.outputs.put_all(piece.numbers.tolist(), found)

    def report(self, rows: Leaves, n: int, step: Callable[[], Iterable[list[float]]]) -> None:
        """Counts the steps of a chunk and tells the monitor."""
        run = self.run
        if run.monitor is None:
            run.stats.accepted += n
        else:
            run.count()
            t, dt = step()
            for r, (a, b) in enumerate(zip(t, dt, strict=True)):
                run.stats.accepted += 1
                y = self.row(rows, r + 1, n)[: self.n_y]
                run.monitor.step("forward", self.n + r, a, b, y, run.stats)
        self.n += n
