"""The backward sweep of a batch: the transposes of its rounds, from the last to the first."""

from __future__ import annotations

import torch

from odegrad.checkpoints import Checkpoints, Keep, Tier
from odegrad.replay import Snapshot
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.cotangents import Cotangents
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.costate import SampleCostate
from odegrad.sweeps.samples.rounds import graphed, rounds
from odegrad.sweeps.samples.tape import SampleGraphs, SampleTape
from odegrad.sweeps.tape import Tape
from odegrad.sweeps.transposing import transposed

__all__ = ["pull"]


def pull(
    run: SampleRun,
    y0: Leaves,
    p: Leaves,
    timed: bool,
    checkpoints: Checkpoints,
    kept: Kept,
    grads: OptionalLeaves,
    retain: bool,
) -> Cotangents:
    """Transposes a solve whose forward sweep is through.

    Arguments:
        run: The solve.
        y0: The initial state.
        p: The tensors that f reads, bound; those that require grad get a cotangent.
        timed: Whether the times get cotangents.
        checkpoints: The schedule that the forward sweep followed.
        kept: What it kept.
        grads: The cotangents of its outputs; None is zero.
        retain: Whether what was kept has to serve again.

    Returns:
        The cotangents; those of the times as one tensor of shape [B, T], in a list.
    """
    engine = _Engine(run, y0, p, timed, checkpoints, kept, grads, retain)
    n = run.accepted_steps.n_steps
    return transposed(run, p, kept, checkpoints.backward(n, known=True) if n else (), engine)


class _Engine:
    """Executes a schedule's actions round by round."""

    def __init__(
        self,
        run: SampleRun,
        y0: Leaves,
        p: Leaves,
        timed: bool,
        checkpoints: Checkpoints,
        kept: Kept,
        grads: OptionalLeaves,
        retain: bool,
    ) -> None:
        self._run, self._p, self._kept, self._timed, self._retain = run, p, kept, timed, retain
        self._clock = run.rounds_of(run.accepted_steps)
        self._scheme = run.persample(y0, timed)
        self.costate = SampleCostate(run, y0, p, self._clock, timed, grads)
        self._n_leaves, self.current, self._first = len(y0), kept.current(), kept.tape
        n = run.accepted_steps.n_steps
        self._rows = checkpoints.bounds(n, known=True).tape if n else 0

    def restore(self, i: int) -> None:
        """Makes a stored state the current one."""
        self.current = Current(i, *self._kept.store.get(i))

    def store(self, i: int, tier: Tier) -> None:
        """Stores the current state."""
        self._kept.store.put(i, *self.at(i), tier)
        self._run.stats.note(self._kept)

    def at(self, i: int) -> tuple[Leaves, Snapshot | None]:
        """The current state, which has to be state i, and what belongs to it."""
        assert self.current is not None
        assert self.current.i == i, f"state {self.current.i} is current, not {i}"
        return self.current.state, self.current.snapshot

    def advance(self, start: int, stop: int, keep: Keep | None) -> None:
        """Takes rounds again."""
        state, snapshot = self.at(start)
        if snapshot is not None:
            snapshot.restore()
        run, kept, n = self._run, self._kept, self._n_leaves
        parts = (state[:n], state[n:])
        run.stats.recomputed += stop - start - (keep is not None)
        if keep is Keep.GRAPH:
            kept.tape = graphs = SampleGraphs(self._p, self._timed)
            walk = graphed(run, self._scheme, self._clock, start, stop, parts, self._p, graphs)
            for _ in walk:
                pass
            self.current = None
            run.stats.note(kept)
            return
        tape: Tape | None = None
        if keep is not None:
            kept.tape = tape = Tape(keep, self._rows)
        # Of a round that is on the tape by its state, nothing else is needed.
        end = stop - 1 if keep is Keep.STATE else stop
        with torch.no_grad():
            for found in rounds(run, self._scheme, self._clock, start, end, *parts, self._p):
                if tape is not None:
                    before = (*found.y, *found.carry)
                    tape.put(found.n, before, found.snapshot, found.step.dense)
                parts = (found.step.y, found.step.carry)
        after, here = (*parts[0], *parts[1]), run.field.snapshot()
        if tape is not None and keep is Keep.STATE:
            tape.put(end, after, here, ())
        self.current = Current(stop, after, here) if keep is None else None
        run.stats.note(kept)

    def unstep(self, start: int, stop: int) -> None:
        """Takes rounds back."""
        state, _ = self.at(start)
        y, carry = state[: self._n_leaves], state[self._n_leaves :]
        with torch.no_grad():
            for n in reversed(range(stop, start)):
                t, dt = self._clock.step(n)
                y, carry = self._scheme.unstep(self._run.field, t, dt, y, carry, self._p)
        self.current = Current(stop, (*y, *carry), None, rewound=True)

    def transpose(self, start: int, stop: int) -> None:
        """Transposes rounds."""
        tape = self._kept.tape
        if tape is None:
            assert stop == start + 1
            self.costate.pull_round(self._scheme, start, *self.at(start), None)
            return
        if isinstance(tape, SampleGraphs):
            retain = self._retain and tape is self._first
            for kept in tape.backwards(retain):
                self.costate.pull_graph(tape, kept, retain)
        else:
            assert isinstance(tape, Tape | SampleTape)
            for n in reversed(range(start, stop)):
                self.costate.pull_round(self._scheme, n, *tape.get(n, self._n_leaves))
            if isinstance(tape, Tape):
                tape.clear()
        self._kept.tape = None

    def finish(self) -> Cotangents:
        """What came of it."""
        return self.costate.finish()
