"""What a step needs in memory, measured by rehearsing a few steps with the engine that will run them.

The peak of a solve and its gradient is a sum of what is kept, by the bounds of the schedule, and a
working set that does not depend on the number of steps:

    peak = 2 T D_y + (states) D + (steps on the tape) R + W,

with T D_y the outputs and as much again for their cotangents, D a state with its carry, R what the tape
keeps of a step, and W the most that the sweeps hold besides: the graphs and cotangents of one transposed
step, the sums of the parameter gradient, copies of states. D follows from shapes. R and W come from the
peaks of rehearsals of different length, which run the real sweeps on a few steps at the start of the
solve and count all that torch allocates.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from odegrad.allocations import peak_bytes
from odegrad.checkpoints import Binomial, Blockwise, Checkpoints, Every, Keep, Rewind, StoreAll
from odegrad.gradients.needs import Kind, Needs
from odegrad.grid import Grid, Uniform
from odegrad.state import Leaves, OptionalLeaves, nbytes
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps import Run, Stats
from odegrad.sweeps.saved import step_graph_bytes
from odegrad.sweeps.steps import fixed_grid

__all__ = ["Rehearsal", "results_of"]


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
        run: As given, like y0, chunk, retained.
        device: Where the state is.
        state: D.
        outputs: 2 T D_y, 0 if no states are put out.
        sums: The bytes of the parameter gradient.
        n_steps: The number of steps, None if it is not known in advance.
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
        self.run, self._p, self._ts, self._sweeps = run, p, ts, sweeps
        self.y0 = tuple(x.detach() for x in y0)
        self.device = y0[0].device
        self.chunk, self.retained, self._budget = chunk, retained, budget
        self._results, self._key, self._wanted = known, key, wanted[: len(p)]
        self.n_steps: int | None = None
        if isinstance(run.stepsize, FixedStepSize):
            self.n_steps = fixed_grid(run, run.stepsize).n_steps
        self.state = self._remembered("state", self._state_bytes)
        self.outputs = 2 * len(run.times) * self._output
        self.sums = nbytes([x for x, want in zip(p, wanted, strict=False) if want])

    @property
    def _output(self) -> int:
        """D_y, 0 if no states are put out."""
        return nbytes(self.y0) if self.run.loss is None else 0

    def is_dense(self, keep: Keep | None) -> bool:
        """Whether a rehearsal has a label after every step, since about every step of the solve has one.

        Not with streamed losses and graphs: of these labels only those of one stretch count at a time.
        """
        labels = len(self.run.times) - 1
        if labels < 2 or (self.run.loss is not None and keep is Keep.GRAPH):
            return False
        return self.n_steps is None or 2 * labels >= self.n_steps

    def needs(self, kind: Kind) -> Needs:
        """What the steps of a kind need."""
        compiled = self.run.programs is not None
        lengths = (2, 3) if compiled else (4, 5)
        if self._budget is not None and not compiled and kind.keep is Keep.GRAPH:
            lengths = (4, 5) if 6 * self.step_graph <= self._budget else (2, 3)
        key = (self._key, kind, lengths, self.is_dense(kind.keep))
        found = self._results.get(key)
        if found is None:
            found = self._measured(kind, lengths)
            # Under a profiler it was not seen by the same means.
            if compiled or not torch.autograd._profiler_enabled():  # pyright: ignore
                self._remember(key, found)
        return found

    def _remember(self, key: Hashable, found: Needs) -> None:
        while len(self._results) >= _MOST_KNOWN:
            del self._results[next(iter(self._results))]
        self._results[key] = found

    def _remembered(self, what: str, measure: Callable[[], int]) -> int:
        """A number that is measured once."""
        key = (self._key, what)
        if key not in self._results:
            self._remember(key, Needs(measure(), 0))
        return self._results[key].row

    def fits(self, kind: Kind, budget: int) -> bool:
        """Whether a rehearsal of this kind may fit into a budget: a guess."""
        if self.run.programs is not None or kind.keep is Keep.STAGES:
            return True
        return (1 if kind.keep is None else 3) * self.step_graph <= budget

    @cached_property
    def step_graph(self) -> int:
        """About what the graphs of one step save: those of one evaluation, times their number."""
        p = self.run.field.own(self._p, self._wanted)
        return self._remembered("graph", lambda: step_graph_bytes(self.run, self.y0, p))

    def _measured(self, kind: Kind, lengths: tuple[int, int]) -> Needs:
        k, keep = self.chunk(kind.keep), kind.keep
        if keep is None:
            # Up to four steps are taken again in a row: what they hold does not grow any more then.
            checkpoints, n = (Rewind(), 5) if kind.shape == "rewind" else (Binomial(1), 6)
            return Needs(0, self._beyond_states(checkpoints, n)[0])
        makes: dict[str, Callable[[int], tuple[Checkpoints, int]]] = {
            "all": lambda m: (StoreAll(keep), m),
            "starts": lambda m: (Every(m, keep), 3 * m),
            # One stored state, from which steps are taken again before those of a block are.
            "block": lambda m: (Blockwise(Binomial(1), m, keep), (6 if m == k else 3) * m),
        }
        found = {m: self._beyond_states(*makes[kind.shape](m * k)) for m in (1, *lengths)}
        (first, kept), (second, more) = (found[m] for m in lengths)
        # A peak of few rows may lie where none is left: what was kept tells the row then.
        row = max(second - first, more - kept, 0)
        return Needs(row, max(peak - m * row for m, (peak, _) in found.items()))

    def _beyond_states(self, checkpoints: Checkpoints, n: int) -> tuple[int, int]:
        """The peak of a rehearsal, and what it kept, without outputs and stored states."""
        bounds = checkpoints.bounds(n, known=True)
        peak, kept = self._peak(checkpoints, n)
        states = (bounds.device + bounds.held) * self.state
        outputs = 2 * self._n_times(n, bounds.keep) * self._output
        return peak - outputs - states, kept - states

    def _n_times(self, n: int, keep: Keep | None) -> int:
        """How many landing times a rehearsal of n steps has."""
        return n + 1 if self.is_dense(keep) else min(3, len(self.run.times))

    def _state_bytes(self) -> int:
        """D, with the generators and buffers that are kept beside each state."""
        snapshot = self.run.field.snapshot()
        return nbytes((*self.y0, *self._carry())) + (0 if snapshot is None else snapshot.nbytes)

    def _carry(self) -> Leaves:
        run = self.run
        if len(run.times) < 2:
            return ()
        evaluations, snapshot = run.field.evaluations, run.field.snapshot()
        with torch.no_grad():
            carry = run.field.bound(
                self._p, lambda: run.scheme.init(run.field, run.times[0], self.y0, self._p)
            )
        run.field.evaluations = evaluations
        if snapshot is not None:
            snapshot.restore()
        return carry

    def _peak(self, checkpoints: Checkpoints, n: int) -> tuple[int, int]:
        """The peak of a solve in n short steps, from the initial state on, and what was kept of it."""
        run, field = self.run, self.run.field
        span = run.times[-1] - run.times[0]
        labels = self._n_times(n, checkpoints.bounds(n, known=True).keep)
        # With a label inside, but for the last, it is after the first step: not at the end of a chunk.
        segments = {2: (Uniform(n),), 3: (Uniform(1), Uniform(max(1, n - 1)))}.get(
            labels, tuple(Uniform(1) for _ in range(n))
        )
        ends = accumulate((len(x) for x in segments), initial=0)
        rehearsed = replace(
            run,
            times=tuple(run.times[0] + span * 1e-3 * i / n for i in ends),
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
            y = self.y0
            if run.loss is None:
                grads = tuple(x.new_zeros((labels, *x.shape)) for x in y)
            else:
                one = torch.ones((), dtype=field.time_dtype, device=field.device)
                grads = (one, *(torch.ones_like(x) for x in y[field.n_state :]))
            self._sweeps(rehearsed, checkpoints, y, self._p, ts, grads)

        try:
            both()  # what is allocated once, and never again, is not what is looked for
            field.forget()
            peak = peak_bytes(both, self.y0[0].device, run.programs is not None)
            return peak, rehearsed.stats.peak_bytes or 0
        finally:
            field.evaluations, field.transposes = counts
            if snapshot is not None:
                snapshot.restore()
