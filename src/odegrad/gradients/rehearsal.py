"""What a step needs in memory, measured by rehearsing a few steps with the engine that will run them.

The peak of a solve and its gradient is a sum of what is kept, by the bounds of the schedule, and a
working set that does not depend on the number of steps:

    peak = 2 T D_y + (states) D + (steps on the tape) R + W,

with T D_y the outputs and as much again for their cotangents, D a state with its carry, R what the tape
keeps of a step, and W the most that the sweeps hold besides: the graphs and cotangents of one transposed
step, the sums of the parameter gradient, copies of states. D follows from shapes. R and W come from the
peaks of two rehearsals of different length, which run the real sweeps on a few steps at the start of the
solve and count all that torch allocates.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.allocations import peak_bytes
from odegrad.checkpoints import Binomial, Blockwise, Checkpoints, Every, Keep, Rewind, StoreAll
from odegrad.grid import Grid, Uniform
from odegrad.state import Leaves, OptionalLeaves, nbytes
from odegrad.storage import DEVICE_ROWS, IN_FLIGHT
from odegrad.sweeps import Run, Stats
from odegrad.sweeps.graphs import STRETCH
from odegrad.sweeps.saved import Meter

__all__ = ["Kind", "Needs", "Rehearsal", "kind_of", "results_of"]


class Kind(NamedTuple):
    """What decides over the working set of a schedule.

    Attributes:
        shape: ``"all"`` steps on the tape, ``"block"`` by block, ``"starts"`` the
            same with the start of every block stored, ``"unit"``: step by step without a tape,
            or ``"rewind"``.
        keep: What the tape keeps.
    """

    shape: str
    keep: Keep | None


def kind_of(checkpoints: Checkpoints) -> Kind:
    """The kind of a schedule."""
    keep = checkpoints.bounds(1, known=True).keep
    if isinstance(checkpoints, StoreAll):
        return Kind("all", keep)
    if isinstance(checkpoints, Rewind):
        return Kind("rewind", None)
    inner = checkpoints.schedule if isinstance(checkpoints, Blockwise) else None
    if isinstance(checkpoints, Every) or isinstance(inner, StoreAll):
        return Kind("starts", keep)
    return Kind("block" if keep is not None else "unit", keep)


@dataclass(frozen=True)
class Needs:
    """What the steps of one kind need, in bytes.

    Attributes:
        row: What the tape keeps of a step (of the compiled engine: of a chunk of steps).
        work: The working set.
    """

    row: int
    work: int


Sweeps = Callable[[Run, Checkpoints, Leaves, Leaves, Tensor, OptionalLeaves], None]
"""Both sweeps of a solve with a schedule: given run, schedule, y0, p, ts and the outputs' cotangents."""


_KNOWN: weakref.WeakKeyDictionary[object, dict[Hashable, Needs]] = weakref.WeakKeyDictionary()
"""The results, by what they belong to."""
_MOST_KNOWN = 16
"""How many results to remember of one owner: the latest."""


def results_of(owner: object) -> dict[Hashable, Needs]:
    """The results that belong to something, usually the user's f; they go when it does."""
    try:
        return _KNOWN.setdefault(owner, {})
    except TypeError:  # nothing that can be referred to weakly
        return {}


class Rehearsal:
    """Measures what the steps of a solve need; results are kept for later solves with the same f.

    Arguments:
        run: The solve; nothing of it is changed.
        y0: The initial state.
        p: The tensors that f reads.
        ts: The landing times.
        wanted: Which of p need a cotangent.
        sweeps: Runs both sweeps.
        chunk: How many steps the engine takes at a time when it keeps what.
        known: Results of earlier rehearsals.
        key: What they depend on.
        retained: Whether the sweeps have to leave what was kept as it is.
        budget: The bytes allowed, or None.

    Attributes:
        state: D.
        output: D_y, 0 if no states are put out.
        chunk: As given.
    """

    def __init__(
        self,
        run: Run,
        y0: Leaves,
        p: Leaves,
        ts: Tensor,
        wanted: Sequence[bool],
        sweeps: Sweeps,
        chunk: Callable[[Keep | None], int],
        known: dict[Hashable, Needs],
        key: Hashable,
        retained: bool,
        budget: int | None,
    ) -> None:
        self._run, self._p, self._ts, self._sweeps = run, p, ts, sweeps
        self._y0 = tuple(x.detach() for x in y0)
        self.chunk, self._key = chunk, key
        snapshot = run.field.snapshot()
        carry = self._carry()
        self.state = nbytes((*y0, *carry)) + (0 if snapshot is None else snapshot.nbytes)
        self._sums = nbytes([x for x, want in zip(p, wanted, strict=False) if want])
        self.output = nbytes(y0) if run.loss is None else 0
        self._results, self._retained, self._budget = known, retained, budget
        self._wanted = wanted[: len(p)]

    def needs(self, kind: Kind) -> Needs:
        """What the steps of a kind need."""
        compiled = self._run.programs is not None
        lengths = (2, 3) if compiled else (4, 5)
        if self._budget is not None and not compiled and kind.keep is Keep.GRAPH:
            lengths = (4, 5) if 6 * self.step_graph <= self._budget else (1, 2)
        key = (self._key, kind, lengths)
        found = self._results.get(key)
        if found is None:
            found = self._measured(kind, lengths)
            if torch.autograd._profiler_enabled() and not compiled:  # pyright: ignore
                return found  # not seen by the same means
            while len(self._results) >= _MOST_KNOWN:
                del self._results[next(iter(self._results))]
            self._results[key] = found
        return found

    def predicted(self, checkpoints: Checkpoints, n: int, known: bool, outputs: int) -> int:
        """The peak, in bytes, of a solve in n steps with so many outputs."""
        bounds, needs = checkpoints.bounds(n, known), self.needs(kind_of(checkpoints))
        states = bounds.device + bounds.held
        if self._y0[0].device.type == "cpu":
            states += bounds.ram + (IN_FLIGHT if bounds.disk else 0)
        elif bounds.ram:
            states += DEVICE_ROWS
        if self._retained and checkpoints.holds is not None:
            states += bounds.device  # what is stored again takes new room
        rows = -(-bounds.tape // self.chunk(bounds.keep))
        kept = 2 * outputs * self.output + states * self.state + rows * needs.row
        return kept + self.working(checkpoints, n, known)

    def working(self, checkpoints: Checkpoints, n: int, known: bool) -> int:
        """The working set of such a solve."""
        bounds, needs = checkpoints.bounds(n, known), self.needs(kind_of(checkpoints))
        more = needs.work
        if bounds.keep is Keep.GRAPH and self._run.monitor is not None:
            more += bounds.tape * nbytes(self._y0)  # states to be shown
        if bounds.keep is Keep.GRAPH and self._run.loss is not None:
            # The cotangents of all labels in the stretch of graphs that is pulled back.
            more += min(len(self._run.times), bounds.tape, STRETCH) * nbytes(self._y0)
        if checkpoints == StoreAll(Keep.GRAPH) and self._run.programs is None and n > STRETCH:
            # The sums of the parameter gradient, once the first stretch is gone.
            last = (n - 1) % STRETCH + 1
            more += max(0, self._sums - last * needs.row)
        return more

    def fits(self, kind: Kind, budget: int) -> bool:
        """Whether a rehearsal of this kind may fit into a budget: a guess."""
        if self._run.programs is not None or kind.keep is Keep.STAGES:
            return True
        return (1 if kind.keep is None else 2) * self.step_graph <= budget

    @cached_property
    def step_graph(self) -> int:
        """About what the graphs of one step save: those of one evaluation, times their number."""
        key = (self._key, "graph")
        if key not in self._results:
            self._results[key] = Needs(self._measured_graph(), 0)
        return self._results[key].row

    def _measured_graph(self) -> int:
        run, field, before = self._run, self._run.field, self._run.field.evaluations
        snapshot, p = field.snapshot(), field.own(self._p, self._wanted)
        try:
            with torch.no_grad():
                field.bound(p, lambda: self._step(p))
            count = field.evaluations - before
            meter = Meter(p)
            with torch.enable_grad():
                y = tuple(x.detach().requires_grad_() for x in self._y0)
                meter.measure(field.bound(p, lambda: field(run.times[0], y, p)))
            return count * meter.nbytes(1)
        finally:
            field.evaluations = before
            field.forget()
            if snapshot is not None:
                snapshot.restore()

    def _step(self, p: Leaves) -> None:
        run, t = self._run, self._run.times
        dt = 1e-3 * (t[-1] - t[0])
        carry = run.scheme.init(run.field, t[0], self._y0, p)
        run.scheme.step(run.field, t[0], dt, self._y0, carry, p)

    def _measured(self, kind: Kind, lengths: tuple[int, int]) -> Needs:
        k, keep = self.chunk(kind.keep), kind.keep
        if kind.shape == "rewind":
            return self._one(Rewind(), 3)
        if keep is None:
            return self._one(Binomial(2), 4)
        if kind.shape == "all":
            return self._two([(StoreAll(keep), m * k) for m in lengths])
        if kind.shape == "starts":
            every = [(Every(m * k, keep), 3 * m * k) for m in lengths]
            return self._two(every)
        # Three blocks and one stored state: the first is taken again before the second is.
        return self._two([(Blockwise(Binomial(1), m * k, keep), 3 * m * k) for m in lengths])

    def _one(self, checkpoints: Checkpoints, n: int) -> Needs:
        bounds = checkpoints.bounds(n, known=True)
        peak = self._peak(checkpoints, n)[0] - 2 * self._n_times * self.output
        return Needs(0, peak - (bounds.device + bounds.held) * self.state)

    def _two(self, pair: Sequence[tuple[Checkpoints, int]]) -> Needs:
        """Two that differ by one row of the tape, and in nothing else."""
        (first, kept), (second, more) = (self._peak(*x) for x in pair)
        # A peak of few rows may lie where none is left: what was kept tells the row then.
        row, bounds = max(second - first, more - kept, 0), pair[1][0].bounds(pair[1][1], known=True)
        rest = 2 * self._n_times * self.output + (bounds.device + bounds.held) * self.state
        return Needs(row, second - rest - bounds.tape // self.chunk(bounds.keep) * row)

    @property
    def _n_times(self) -> int:
        """How many landing times a rehearsal has: one inside if the solve has."""
        return min(3, len(self._run.times))

    def _carry(self) -> Leaves:
        run = self._run
        if len(run.times) < 2:
            return ()
        evaluations, snapshot = run.field.evaluations, run.field.snapshot()
        with torch.no_grad():
            carry = run.field.bound(
                self._p, lambda: run.scheme.init(run.field, run.times[0], self._y0, self._p)
            )
        run.field.evaluations = evaluations
        if snapshot is not None:
            snapshot.restore()
        return carry

    def _peak(self, checkpoints: Checkpoints, n: int) -> tuple[int, int]:
        """The peak of a solve in n short steps, from the initial state on, and what was kept of it."""
        run, field = self._run, self._run.field
        span = run.times[-1] - run.times[0]
        # With a landing after the first step: not at the end of a chunk of steps.
        fractions = (0.0, 1e-3 / n, 1e-3) if self._n_times == 3 else (0.0, 1e-3)
        segments = (Uniform(1), Uniform(max(1, n - 1))) if self._n_times == 3 else (Uniform(n),)
        rehearsed = replace(
            run,
            times=tuple(run.times[0] + span * x for x in fractions),
            stepsize=Grid(segments),
            max_steps=None,
            monitor=None,
            stats=Stats(working_bytes=0),
            grid=None,
            initial=None,
        )
        ts = self._ts.new_tensor(rehearsed.times)
        counts, snapshot = (field.evaluations, field.transposes), field.snapshot()

        def both() -> None:
            y = self._y0
            if run.loss is None:
                grads = tuple(x.new_zeros((self._n_times, *x.shape)) for x in y)
            else:
                one = torch.ones((), dtype=field.time_dtype, device=field.device)
                grads = (one, *(torch.ones_like(x) for x in y[field.n_state :]))
            self._sweeps(rehearsed, checkpoints, y, self._p, ts, grads)

        try:
            both()  # what is allocated once, and never again, is not what is looked for
            field.forget()
            peak = peak_bytes(both, self._y0[0].device, run.programs is not None)
            return peak, rehearsed.stats.peak_bytes or 0
        finally:
            field.evaluations, field.transposes = counts
            if snapshot is not None:
                snapshot.restore()
