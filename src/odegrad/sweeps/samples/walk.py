"""The march of a forward sweep along known rounds, which keeps what a schedule says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from odegrad.checkpoints import Advance, Checkpoints, Drop, Hold, Keep, Store, Tier
from odegrad.samplegrid import SampleGrid
from odegrad.state import Leaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.outputs import Buffers
from odegrad.sweeps.samples.reads import Found, states_inside
from odegrad.sweeps.samples.rounds import graphed, remembered, rounds
from odegrad.sweeps.samples.tape import SampleGraphs
from odegrad.sweeps.store import StateStore
from odegrad.sweeps.tape import Tape

__all__ = ["Walk"]


class Walk:
    """The march.

    Arguments:
        run: The solve.
        grid: The steps.
        y: The initial state.
        p: The tensors that f reads, bound.
        outputs: Takes in the states at the times of the samples.
        checkpoints: The schedule, or None to keep nothing.
        timed: Whether the times are to get cotangents.

    Attributes:
        kept: What is kept.
    """

    def __init__(
        self,
        run: SampleRun,
        grid: SampleGrid,
        y: Leaves,
        p: Leaves,
        outputs: Buffers,
        checkpoints: Checkpoints | None,
        timed: bool,
    ) -> None:
        self._run, self._p, self._outputs, self._timed = run, p, outputs, timed
        self._n, self._stop, self._grid = 0, grid.n_steps, grid
        self._clock, self._scheme = run.rounds_of(grid), run.persample(y)
        carry: Leaves = ()
        if self._stop:
            with torch.no_grad():
                carry = self._scheme.init(run.field, run.landings[:, 0].contiguous(), y, p)
        self._state = (y, carry)
        self.kept: Kept | None = None
        self._checkpoints = checkpoints
        if checkpoints is not None:
            bounds = checkpoints.bounds(max(1, self._stop), known=True)
            self.kept, self._rows = Kept(StateStore(bounds, (*y, *carry), True)), bounds.tape

    def follow(self) -> None:
        """Goes to the end, as the schedule says."""
        run, kept, checkpoints = self._run, self.kept, self._checkpoints
        if checkpoints is None or kept is None:
            self._advance(self._stop, None, None)
            return
        field = run.field
        for action in checkpoints.forward(self._stop) if self._stop else ():
            match action:
                case Advance(start, stop, every, keep):
                    assert start == self._n
                    if checkpoints.holds is Hold.LAST:
                        kept.held = Current(start, self._flat(), field.snapshot())
                    self._advance(self._stop if stop is None else stop, every, keep)
                case Store(i, tier):
                    assert i == self._n
                    kept.store.put(i, self._flat(), field.snapshot(), tier)
                case Drop(i):
                    kept.store.drop(i)
                case _:
                    raise AssertionError(f"{action} has no place in a forward sweep")
        if checkpoints.holds is Hold.END and self._stop:
            kept.held = Current(self._n, self._flat(), field.snapshot())
        kept.settle()
        run.fingerprints = remembered(run, self._grid, self._state[0], self._p)
        run.stats.note(kept)

    def _flat(self) -> Leaves:
        return tuple(x.detach() for x in chain(*self._state))

    def _advance(self, stop: int, every: int | None, keep: Keep | None) -> None:
        """Takes rounds until state `stop`."""
        kept, start, run = self.kept, self._n, self._run
        tape: Tape | None = None
        graphs: SampleGraphs | None = None
        if kept is not None and keep is Keep.GRAPH:
            kept.tape = graphs = SampleGraphs(self._p, self._timed)
        elif kept is not None and keep is not None:
            kept.tape = tape = Tape(keep, self._rows)
        if graphs is not None:
            self._graphed(graphs, stop)
            return
        with torch.no_grad():
            walk = rounds(run, self._scheme, self._clock, start, stop, *self._state, self._p)
            for found in walk:
                state = (*found.y, *found.carry)
                if kept is not None and every is not None and (found.n - start) % every == 0:
                    kept.store.put(found.n, state, found.snapshot, Tier.DEVICE)
                if tape is not None:
                    tape.put(found.n, state, found.snapshot, found.step.dense)
                n, t, dt, step = found.n, found.t, found.dt, found.step
                wanted = self._clock.reads(n)
                inside = states_inside(run, self._scheme, wanted, t, dt, found.y, step, self._p)
                self._accept(n, t, dt, (step.y, step.carry), inside)

    def _graphed(self, graphs: SampleGraphs, stop: int) -> None:
        walk = graphed(
            self._run, self._scheme, self._clock, self._n, stop, self._state, self._p, graphs
        )
        for n, t, dt, state, inside in walk:
            self._accept(n, t, dt, state, inside)

    def _accept(
        self,
        n: int,
        t: Tensor,
        dt: Tensor,
        state: tuple[Leaves, Leaves],
        inside: Sequence[Found],
    ) -> None:
        self._state, self._n, run = state, n + 1, self._run
        for place, y in inside:
            self._outputs.put(*place, y)
        at = self._clock.landing(n)
        if at is not None:
            self._outputs.put(*at, state[0])
        if isinstance(run.stepsize, FixedStepSize):
            run.stats.rounds += 1
        if run.monitor is not None:
            run.monitor.step("forward", n, t, dt, state[0], run.stats)  # pyright: ignore
