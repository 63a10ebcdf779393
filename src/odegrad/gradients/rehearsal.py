"""What a step needs in memory, measured by rehearsing a few steps with the engine that will run them.

The peak of a solve and its gradient is a sum of what is kept, by the bounds of the schedule, and a
working set that does not depend on the number of steps:

    peak = 2 T D_y + (states) D + (steps on the tape) R + W,

with T D_y the outputs and as much again for their cotangents, D a state with its carry, R what the tape
keeps of a step, and W the most that the sweeps hold besides: the graphs and cotangents of one transposed
step, the sums of the parameter gradient, copies of states. D follows from shapes. R and W come from the
peaks of rehearsals of different length, which run the real sweeps on a few steps at the start of the
solve and count all that torch allocates.

As a function of the rows on the tape the peak is the largest of several straight lines, one for each
moment that it may lie at; R is the steepest of the slopes. Beyond what was measured the line through
the last point is a bound, and the line of slope R over all points is one between them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import accumulate

import torch
from torch import Tensor

from odegrad.allocations import peak_bytes
from odegrad.checkpoints import Binomial, Blockwise, Checkpoints, Every, Keep, Rewind, StoreAll
from odegrad.gradients.ladder import Ladder
from odegrad.gradients.needs import Kind, Needs, state_bytes
from odegrad.grid import Grid, Stops, Uniform
from odegrad.state import Leaves, OptionalLeaves, nbytes
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps import Run, Stats
from odegrad.sweeps.graphs import in_half, stretch_length
from odegrad.sweeps.saved import step_graph
from odegrad.sweeps.steps import fixed_grid

__all__ = ["Rehearsal", "Sweeps", "results_of", "short_steps"]


Sweeps = Callable[[Run, Checkpoints, Leaves, Leaves, Tensor, OptionalLeaves | None], None]
"""Both sweeps, given run, schedule, y0, p, ts and the outputs' cotangents; the first alone with None."""


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
        wanted: Which of p, and then of ts, need a cotangent.
        sweeps: Runs both sweeps.
        chunk: How many steps the engine takes at a time when it keeps what.
        known: Results of earlier rehearsals.
        key: What they depend on.
        retained: Whether the sweeps have to leave what was kept as it is.
        budget: The bytes allowed, or None.

    Attributes:
        run: As given, like y0, chunk, retained, budget; device is that of y0.
        state: D.
        outputs: 2 T D_y, 0 if no states are put out.
        sums: The bytes of the parameter gradient.
        timed: Whether the landing times need a cotangent.
        n_steps: The number of steps, None if it is not known in advance.
        spacing: The fewest steps from one landing to the next.
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
        self.y0, self.device = tuple(x.detach() for x in y0), y0[0].device
        self.chunk, self.retained, self.budget = chunk, retained, budget
        self._results, self._key, self._wanted = known, key, wanted[: len(p)]
        self._found: dict[Hashable, Needs] = {}  # also what is not to be remembered
        self.n_steps, self.spacing = self._counted()
        self.state = self._remembered("state", self._state_needs).row
        self.outputs = 2 * len(run.times) * self._output
        self.sums = nbytes([x for x, want in zip(p, wanted, strict=False) if want])
        self.timed = wanted[-1]

    def _counted(self) -> tuple[int | None, int]:
        """The number of steps, if it is known, and the fewest from one landing to the next."""
        control = self.run.stepsize
        if not isinstance(control, FixedStepSize):
            return None, 1
        grid = fixed_grid(self.run, control)
        return grid.n_steps, min(map(len, grid.segments), default=1)

    def _state_needs(self) -> Needs:
        run, t = self.run, self.run.times[0]
        return Needs(state_bytes(run, run.scheme, t, self.y0, self._p))

    @property
    def held(self) -> int:
        """What is held of the solve while steps are rehearsed."""
        return 0

    @property
    def steps(self) -> int:
        """The bytes of the steps themselves, where they are tensors."""
        return 0

    @property
    def _output(self) -> int:
        """D_y, 0 if no states are put out."""
        return nbytes(self.y0) if self.run.loss is None else 0

    @property
    def is_dense(self) -> bool:
        """Whether rehearsals have a label after every step: about every step of the solve has one."""
        labels = len(self.run.times) - 1
        return labels > 1 and (self.n_steps is None or 2 * labels >= self.n_steps)

    def needs(self, kind: Kind) -> Needs:
        """What the steps of a kind need."""
        key = (self._key, kind, self.is_dense)
        found = self._found.get(key) or self._recalled(key)
        if found is None or not found.serves(self.budget):
            self._found[key] = found = self._measured(kind)
            # Under a profiler it was not seen by the same means.
            if self.run.programs is not None or not torch.autograd._profiler_enabled():  # pyright: ignore
                self._remember(key, found)
        return found

    def _recalled(self, key: Hashable) -> Needs | None:
        """What is remembered, as what was used last: the rest is forgotten first."""
        found = self._results.pop(key, None)
        if found is not None:
            self._results[key] = found
        return found

    def _remember(self, key: Hashable, found: Needs) -> None:
        while len(self._results) >= _MOST_KNOWN:
            del self._results[next(iter(self._results))]
        self._results[key] = found

    def _remembered(self, what: Hashable, measure: Callable[[], Needs]) -> Needs:
        """Something that is measured once."""
        key = (self._key, what)
        if self._recalled(key) is None:
            self._remember(key, measure())
        return self._results[key]

    @property
    def step_graph(self) -> int:
        """About what the graphs of one step save: those of one evaluation, times their number."""
        return self._graph.row

    @property
    def evaluations(self) -> int:
        """About how often a step evaluates f."""
        return max(1, self._graph.few)

    @property
    def stretch(self) -> int:
        """How many steps a stretch of graphs has at least."""
        half = in_half((*self.y0, *self._p), self.run.field.autocast[2])
        return stretch_length(self._graph.work, half)

    @cached_property
    def _graph(self) -> Needs:
        return self._remembered("graph", lambda: Needs(*self._step_graph()))

    def _step_graph(self) -> tuple[int, int, int]:
        run, times = self.run, self.run.times
        p = run.field.own(self._p, self._wanted)
        first = 1e-3 * (times[-1] - times[0])
        return step_graph(run.field, run.scheme, times[0], first, self.y0, p)

    def peak_about(self, kind: Kind, work: int) -> int:
        """About the peak of the shortest rehearsal of a kind, given about what its steps hold."""
        del kind
        return work

    def _measured(self, kind: Kind) -> Needs:
        if kind.keep is None:
            return Needs(0, work=self._beyond_states(*self._shortest(kind))[0])
        ladder = Ladder(self, kind, lambda m: self._beside(*self._with_rows(kind, m)))
        for m in ladder:
            ladder.take(m, *self._beyond_states(*self._with_rows(kind, m)))
        return ladder.needs()

    def _shortest(self, kind: Kind) -> tuple[Checkpoints, int]:
        """The schedule and the number of steps of the shortest rehearsal of a kind."""
        if kind.keep is None:
            return (Rewind(), 5) if kind.shape == "rewind" else (Binomial(1), 6)
        return self._with_rows(kind, 1)

    def _with_rows(self, kind: Kind, chunks: int) -> tuple[Checkpoints, int]:
        """Those with the rows of so many chunks on the tape."""
        k, keep = self.chunk(kind.keep), kind.keep
        assert keep is not None
        m = chunks * k
        if kind.shape == "all":
            return StoreAll(keep), m
        if kind.shape == "starts":
            return Every(m, keep), 3 * m
        # One stored state, from which steps are taken again before those of a block are: four in a row,
        # what they hold does not grow any more then.
        return Blockwise(Binomial(1), m, keep), m * max(3, 2 - -4 * k // m)

    def label_cotangent(self, keep: Keep | None) -> int:
        """What is held for the label of a step while the graphs of its stretch are pulled back."""
        streamed = self.run.loss is not None and self.run.programs is None and keep is Keep.GRAPH
        return nbytes(self.y0) if streamed and self.is_dense else 0

    def _beyond_states(self, checkpoints: Checkpoints, n: int) -> tuple[int, int]:
        """The peaks of a rehearsal and of its forward sweep, without outputs and stored states."""
        states, outputs = self._states(checkpoints, n), self._n_times(n) * self._output
        both, ahead = self._peaks(checkpoints, n)
        return both - states, ahead - states + outputs

    def _states(self, checkpoints: Checkpoints, n: int) -> int:
        """The outputs, their cotangents and the stored states of a rehearsal."""
        bounds = checkpoints.bounds(n, known=True)
        outputs = 2 * self._n_times(n) * self._output
        return outputs + (bounds.device + bounds.held) * self.state

    def _beside(self, checkpoints: Checkpoints, n: int) -> int:
        """What there is while steps are rehearsed besides what is looked for."""
        return self._states(checkpoints, n)

    def _n_times(self, n: int) -> int:
        """How many landing times a rehearsal of n steps has."""
        return n + 1 if self.is_dense else min(3, len(self.run.times))

    def _cotangents(self, labels: int) -> Leaves:
        """Some of the outputs at so many landing times."""
        y, field = self.y0, self.run.field
        if self.run.loss is None:
            return tuple(x.new_zeros((labels, *x.shape)) for x in y)
        one = torch.ones((), dtype=field.time_dtype, device=field.device)
        return (one, *(torch.ones_like(x) for x in y[field.n_state :]))

    def _peaks(self, checkpoints: Checkpoints, n: int) -> tuple[int, int]:
        """The peaks of both sweeps in n short steps, from the start on, and of the first alone."""
        field, labels = self.run.field, self._n_times(n)
        rehearsed, ts = self._rehearsed(n, labels)
        counts, snapshot = (field.evaluations, field.transposes), field.snapshot()

        def sweeps(grads: Callable[[int], Leaves] | None) -> None:
            given = None if grads is None else grads(labels)
            self._sweeps(rehearsed, checkpoints, self.y0, self._p, ts, given)
            field.forget()

        try:
            sweeps(self._cotangents)  # not looked for: what is allocated once, and never again
            compiled = self.run.programs is not None
            peak = partial(peak_bytes, device=self.device, compiled=compiled)
            return peak(partial(sweeps, self._cotangents)), peak(partial(sweeps, None))
        finally:
            field.evaluations, field.transposes = counts
            if snapshot is not None:
                snapshot.restore()

    def _rehearsed(self, n: int, labels: int) -> tuple[Run, Tensor]:
        """The solve in n short steps with so many landing times, and these as the user gave them."""
        run, span = self.run, self.run.times[-1] - self.run.times[0]
        segments = short_steps(n, labels)
        last = len([j for j in range(len(run.times)) if run.label(j) is not None]) - 1
        ends: list[float] = list(accumulate((len(x) for x in segments), initial=0))
        if run.stops is not None:  # they are read inside steps
            segments = (Uniform(n),)
            ends = [*(max(0.0, i - 0.5) for i in ends[:-1]), ends[-1]]
        times = tuple(run.times[0] + span * 1e-3 * i / n for i in ends)
        rehearsed = replace(
            run,
            times=times,
            stops=None if run.stops is None else Stops(times, (0, len(times) - 1)),
            stepsize=Grid(segments),
            max_steps=None,
            monitor=None,
            stats=Stats(),
            grid=None,
            initial=None,
            labels=tuple(min(j, last) for j in range(labels)),  # there are no others
        )
        return rehearsed, self._ts.new_tensor(times)


def short_steps(n: int, labels: int) -> tuple[Uniform, ...]:
    """The segments of n steps between so many landing times.

    With one inside, but for the last, it is after the first step: not at the end of a chunk.
    """
    segments = {2: (Uniform(n),), 3: (Uniform(1), Uniform(max(1, n - 1)))}
    return segments.get(labels, tuple(Uniform(1) for _ in range(n)))
