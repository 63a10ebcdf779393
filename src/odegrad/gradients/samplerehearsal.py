"""What a round of a batch needs in memory, in which every sample has steps of its own.

As `odegrad.gradients.rehearsal`, with rounds for steps. Their number N is known: adaptive steps are
searched for before anything is kept. Beside the rest the solve holds the steps themselves, on the CPU,

    N B (24 + 2 + 16) bytes,  and 16 more for cotangents of times and steps:

the grid, which of its steps are taken and which land, and its rounds in time. While these are made and
transposed there is as much again for a moment.

A round that some samples sit out holds more than one that all of them take, of which there are copies
then; and one that is evaluated on a part of the samples holds the rows of what belongs to these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from odegrad.allocations import peak_bytes
from odegrad.checkpoints import Checkpoints
from odegrad.gradients.needs import Kind, Needs, state_bytes
from odegrad.gradients.rehearsal import Rehearsal, short_steps
from odegrad.grid import Grid, Uniform
from odegrad.samplegrid import SampleGrid
from odegrad.samplestops import SampleStops
from odegrad.state import nbytes
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps import Run
from odegrad.sweeps.samples import SampleRun, SampleStats, record_bytes, trial
from odegrad.sweeps.saved import step_graph

__all__ = ["SampleRehearsal", "most_reads", "sizes_of_rounds"]

_GRID_BYTES, _CLOCK_BYTES, _TIMED_BYTES = 24 + 2, 16, 16
"""For each step: in the grid, in time, and its cotangents."""
_MOMENT_BYTES = 41
"""More than that for a moment, while the steps are put in time once more, or transposed."""
_GENERATORS = 3 * 5056
"""The states of torch's random number generator on the CPU."""
_TIME_BYTES = 40
"""For each time of each sample, its cotangent, and while it is added up."""
_READ_BYTES = 64
"""For each time of each sample, where it is read, or that it is landed on."""
_READ_STATES = 3
"""For each time that is read in a round: the states there, their cotangents, what becomes of these."""
_FAILED = 10
"""How often the states that are put out are held if samples may have failed: else twice."""


def sizes_of_rounds(run: SampleRun, grid: SampleGrid | None) -> tuple[int, ...]:
    """How many samples take part in the rounds to rehearse, for all kinds of rounds that there are.

    Arguments:
        run: The solve.
        grid: Its steps; None if they are not known.
    """
    size, failed = run.n_samples, len(run.failures)

    def compact(n: int) -> bool:
        """Whether f is evaluated on n samples alone; see `PerSample`."""
        return run.cut is not None and n > 0 and (4 * n <= 3 * size or failed > 0)

    most = size - failed
    if grid is None:
        found = set(range(1, size + 1))
    else:
        found = set(grid.active.sum(1).tolist())
    parts: list[int] = []
    if any(n < size and not compact(n) for n in found):
        parts.append(max(n for n in range(size) if not compact(n) and n <= most))
    elif size in found:
        parts.append(size)
    if any(compact(n) for n in found):
        parts.append(max(n for n in range(1, size) if compact(n) and n <= most))
    return tuple(parts) or (size,)


def most_reads(run: SampleRun, grid: SampleGrid) -> int:
    """How often a sample is read in a single round, at most."""
    if run.stops is None or not run.stops.reads:
        return 0
    clock = run.rounds_of(grid)
    return max((clock.count_reads(n) for n in range(grid.n_steps)), default=0)


class SampleRehearsal(Rehearsal):
    """Measures what the rounds of a solve need.

    Arguments:
        run: The solve.
        n_steps: The number of rounds.
        parts: What `sizes_of_rounds` says.
        reads: How often samples are read in a round, about, and how often more at most.
        rest: As for `Rehearsal`, which see.
    """

    run: SampleRun

    def __init__(
        self,
        run: SampleRun,
        n_steps: int,
        parts: tuple[int, ...],
        reads: tuple[int, int],
        **rest: object,
    ) -> None:
        self._n, self._parts, self._part = n_steps, parts, parts[0]
        self._reads, self._more_reads = reads
        super().__init__(run, **rest)  # pyright: ignore[reportArgumentType]
        if run.salvage and (run.failures or isinstance(run.stepsize, FixedStepSize)):
            self.outputs = _FAILED * self.outputs // 2

    @property
    def rounds(self) -> int:
        """N."""
        return self._n

    @property
    def held(self) -> int:
        """See `Rehearsal.held`."""
        return self._of_steps(self._n, _GRID_BYTES)

    @property
    def steps(self) -> int:
        """See `Rehearsal.steps`."""
        return self._steps_bytes(self._n)

    def peak_about(self, kind: Kind, work: int) -> int:
        """See `Rehearsal.peak_about`: with what is beside, and copies for samples that sit out."""
        copied = 3 * work // 2 if self.run.cut is None else 2 * work
        return self.held + self._beside(*self._shortest(kind)) + copied + _GENERATORS

    def beside_steps(self, work: int, n: int) -> int:
        """The working set of a solve in n rounds, with the steps themselves.

        Arguments:
            work: That of a round.
            n: How many there are.
        """
        reads = _READ_STATES * self._more_reads * nbytes(self.y0)
        return work + reads + self._steps_bytes(n) + self._times_bytes

    def search_bytes(self, n: int) -> int:
        """The peak of a search that finds n rounds."""
        run, count = self.run, len(self.run.times)
        work = self._remembered(("search", count), self._search_needs).work
        # Besides what was reached by samples that fail, and all that one attempt may come by.
        copies = 1 + run.salvage + (run.stops is not None)
        record = record_bytes(n, run.n_samples) if self.device.type == "cpu" else 0
        return work + copies * count * self._output + record + self._times_bytes

    def most_rounds(self) -> int:
        """How many rounds a search may find within the budget; 0 if there is no room for it."""
        assert self.budget is not None
        low, high = 0, 1
        while self.search_bytes(high) <= self.budget and high < 1 << 40:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (middle, high) if self.search_bytes(middle) <= self.budget else (low, middle)
            )
        return low

    def _search_needs(self) -> Needs:
        run, field = self.run, self.run.field
        counts, snapshot = field.evaluations, field.snapshot()

        def search() -> None:
            tried = replace(run, monitor=None, stats=SampleStats(), failures={}, reached=None)
            field.bound(self._p, lambda: trial(tried, self.y0, self._p))
            field.forget()

        try:
            search()
            outputs = len(run.times) * self._output
            return Needs(0, work=peak_bytes(search, self.device) - outputs)
        finally:
            field.evaluations = counts
            if snapshot is not None:
                snapshot.restore()

    @property
    def _times_bytes(self) -> int:
        """What is held for the times of the samples."""
        run = self.run
        each = _TIME_BYTES * self.timed + _READ_BYTES * (run.stops is not None)
        return each * run.outputs_at.numel() if self.device.type == "cpu" else 0

    def _of_steps(self, n: int, each: int) -> int:
        return n * self.run.n_samples * each if self.device.type == "cpu" else 0

    def _steps_bytes(self, n: int) -> int:
        return self._of_steps(n, _GRID_BYTES + _MOMENT_BYTES) + self._clock_bytes(n)

    def _clock_bytes(self, n: int) -> int:
        return self._of_steps(n, _CLOCK_BYTES + (_TIMED_BYTES if self.timed else 0))

    # What `Rehearsal` asks for.

    def _counted(self) -> tuple[int, int]:
        return self._n, 1

    def _state_needs(self) -> Needs:
        scheme, start = self.run.persample(self.y0), self.run.landings[:, 0].contiguous()
        return Needs(state_bytes(self.run, scheme, start, self.y0, self._p))

    def _step_graph(self) -> tuple[int, int, int]:
        run = self.run
        p, start = run.field.own(self._p, self._wanted), run.landings[:, 0].contiguous()
        first = 1e-3 * (run.landings[:, -1] - start)
        graph, nodes, count = step_graph(
            run.field, run.persample(self.y0), start, first, self.y0, p
        )
        # Besides those of f: the state and the slopes with samples that sit out, and what is read.
        more = (count + 4 + 4 * self._reads) * nbytes(self.y0)
        return graph + more, nodes, count

    def _states(self, checkpoints: Checkpoints, n: int) -> int:
        # The grid was there before.
        return super()._states(checkpoints, n) + self._clock_bytes(n)

    def _beside(self, checkpoints: Checkpoints, n: int) -> int:
        """With the grid, and the times that are read, of the rehearsal itself."""
        read = self._of_steps(self._n_times(n), _READ_BYTES) if self.run.stops is not None else 0
        return self._states(checkpoints, n) + self._of_steps(n, _GRID_BYTES) + read

    def _measured(self, kind: Kind) -> Needs:
        found: list[Needs] = []
        for part in self._parts:
            self._part = part
            found.append(super()._measured(kind))
        return _worst(found)

    def _n_times(self, n: int) -> int:
        if self.run.stops is None:
            return super()._n_times(n)
        return 2 + (n > 1) + n * self._reads

    def _rehearsed(self, n: int, labels: int) -> tuple[Run, Tensor]:
        run, size = self.run, self.run.n_samples
        segments = short_steps(n, labels)
        ends: list[float] = list(accumulate((len(x) for x in segments), initial=0))
        source = list(range(len(ends)))
        if run.stops is not None:  # between these, samples are read in each step
            segments = (Uniform(1), Uniform(n - 1)) if n > 1 else (Uniform(1),)
            some = range(1, self._reads + 1)
            inside = [i + k / (len(some) + 1) for i in range(n) for k in some]
            source = [len(inside) + k for k in range(len(segments) + 1)]
            ends = [*inside, *(0.0, 1.0, float(n))[: len(segments)], float(n)]
        place = torch.tensor(ends, dtype=torch.float64, device="cpu") / n
        start = run.landings[:, :1]
        landings = times = start + 1e-3 * place * (run.landings[:, -1:] - start)
        stops = None
        if run.stops is not None:
            stops = SampleStops.of(times, times.new_zeros(0), [source] * size)
            landings = stops.landings(times)
        grid = SampleGrid.of([Grid(segments)] * size).without(self._idle())
        rehearsed = replace(
            run,
            times=tuple(times[0].tolist()),
            landings=landings,
            times_by_sample=times,
            stops=stops,
            max_steps=None,
            monitor=None,
            stats=SampleStats(),
            steps=grid,
            failures=dict(run.failures),
            reached=None,
            initial=None,
            check_finite=False,
            fingerprints={},
        )
        return rehearsed, (times if self._ts.ndim == 2 else times[0]).to(self._ts)

    def _idle(self) -> Tensor:
        """Which samples sit the rehearsed rounds out, bool of shape [B]."""
        healthy = (~self.run.failed).nonzero().squeeze(1)
        idle = torch.ones(self.run.n_samples, dtype=torch.bool, device="cpu")
        idle[healthy[: self._part]] = False
        return idle


def _worst(found: Sequence[Needs]) -> Needs:
    """What is enough for rounds of several kinds."""
    if len(found) == 1:
        return found[0]
    common = set.intersection(*(set(x.measured) for x in found))
    few, alike = max(x.few for x in found), all(set(x.measured) == common for x in found)
    work = max(x.work for x in found)
    beyond = [x.beyond for x in found if x.beyond is not None]
    return Needs(
        max(x.row for x in found),
        work if alike else max(work, few),
        few if alike else max(work, few),
        {m: max(x.measured[m] for x in found) for m in common},
        min(beyond, default=None),
    )
