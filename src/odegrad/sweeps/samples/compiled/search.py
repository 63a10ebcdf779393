"""The search for the steps of each sample in compiled chunks of attempts."""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.compiled import Blocks, March, SamplePrograms, constants
from odegrad.samplegrid import SampleGrid
from odegrad.state import Leaves
from odegrad.stepsize import PID
from odegrad.sweeps.adaptive import DEFAULT_MAX_STEPS
from odegrad.sweeps.compiled.chunks import number, plain, rows_like
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.compiled.columns import Columns
from odegrad.sweeps.samples.compiled.places import Reader
from odegrad.sweeps.samples.compiled.rounds import labelled, program_inputs, read
from odegrad.sweeps.samples.obstacle import Stuck, obstacle
from odegrad.sweeps.samples.outputs import Buffers
from odegrad.sweeps.samples.search import first_sizes

__all__ = ["search"]


def search(
    run: SampleRun, programs: SamplePrograms, y: Leaves, p: Leaves, outputs: Buffers, keeps: bool
) -> tuple[SampleGrid, Blocks | None]:
    """Finds the steps of each sample; those that failed are in `run.failures`, and have none.

    Arguments:
        run: The solve.
        programs: The compiled steps.
        y: The initial state.
        p: The tensors that f reads.
        outputs: Takes in the states at the landing times.
        keeps: Whether to keep the states before all steps.

    Returns:
        The steps, and these states, one row for each round.
    """
    march = _Search(run, programs, y, p, outputs, keeps)
    while bool(march.active.any()):
        march.chunk()
    return march.result()


class _Search:
    """Where the samples are, on the device; what Python knows of them is on the CPU."""

    def __init__(
        self,
        run: SampleRun,
        programs: SamplePrograms,
        y: Leaves,
        p: Leaves,
        outputs: Buffers,
        keeps: bool,
    ) -> None:
        control, times = run.stepsize, run.landings
        assert isinstance(control, PID)
        self._run, self._programs, self._control, self._outputs = run, programs, control, outputs
        self._y0, self._p, self._n_y, device = y, p, len(y), programs.device
        self._last = times.shape[1] - 1
        self._segments = run.segments
        self._reader = Reader(run.stops) if run.stops is not None and run.reads else None
        self._limit = run.max_steps or DEFAULT_MAX_STEPS
        self.active = self._segments > 0
        sizes, carry = torch.ones_like(times[:, 0]), Leaves(())
        if self._last:
            start, field = times[:, 0].contiguous(), run.field
            sizes = field.bound(p, lambda: first_sizes(run, y, p))
            carry = field.bound(p, lambda: run.persample(y).init(field, start, y, p))
        self._march = March.start(sizes.to(device))
        self._state = (*(x.clone() for x in plain(y)), *plain(carry))
        n = 1 << self._last.bit_length()  # so that few sizes are compiled
        padding = times[:, -1:].expand(-1, n - self._last - 1)
        self._times = torch.cat([times, padding], 1).T.contiguous().to(device)
        self._vector = constants(control, device)
        self._columns, self._keeps = Columns(len(times)), keeps
        self._rows: Leaves = ()  # of states, of what they are read from inside, and of notes
        self._inside: Leaves = ()
        self._noted: Leaves = ()
        self._place()

    def _place(self) -> None:
        """Finds harmless places for samples that sit out."""
        self._data = program_inputs(self._run, self._programs, self._y0, self._p)
        self._failed = self._run.failed.to(self._programs.device)

    def chunk(self) -> None:
        """Attempts steps until a chunk is full, all are through, or a sample is stuck."""
        run, programs, device, march = self._run, self._programs, self._programs.device, self._march
        if not self._rows:
            noted = (march.stuck, march.segment, march.sigma, march.sigma)
            size = programs.rows(None)
            self._rows = rows_like(self._state, size)
            self._inside = programs.inside(size) if run.reads else ()
            self._noted = rows_like(noted, size)
        loop = programs.search(self._control.norm, len(self._times), run.reads)
        found = loop(
            *march,
            *self._state,
            *self._rows,
            *self._inside,
            *self._noted,
            self._times,
            self._failed,
            self._vector,
            number(self._limit, device),
            self._segments.to(device),
            *self._data,
        )
        march = March(*found[: len(march)])
        self._state = tuple(found[len(march) :])
        n = int(march.row)
        run.field.evaluations += n * programs.step_evaluations(run.reads)
        self._take_in(n, march)
        stuck = march.stuck.cpu()
        if bool(stuck.any()):
            self._look(stuck, march)
        self.active = (march.segment.cpu() < self._segments) & ~run.failed
        self._march = march._replace(
            row=torch.zeros_like(march.row), stuck=torch.zeros_like(march.stuck)
        )

    def _take_in(self, n: int, march: March) -> None:
        """Takes in the n attempts of a chunk."""
        states = tuple(x[:n] for x in self._rows)
        accept, segment, sigma, width = (x[:n].cpu() for x in self._noted)
        place = self._columns.places(accept)
        if self._keeps:
            self._columns.put_states(place, states)
        self._columns.put(place, (segment, sigma, width))
        following = torch.cat([segment[1:], march.segment.cpu()[None]])
        landed, n_y = accept & (following > segment), self._n_y
        if self._reader is not None:
            stop = torch.cat([sigma[1:], march.sigma.cpu()[None]]).masked_fill(landed, 1.0)
            at = self._reader.places(accept, segment, stop)
            at = at.inside(self._run.outputs_at, *self._steps(segment, sigma, width))
            read(self._programs.reading, self._outputs, at, states[:n_y], self._inside)
        r, b = landed.nonzero(as_tuple=True)
        place = labelled(self._run.stops, r, following[r, b], b)
        self._outputs.put_rows(*place, states[:n_y], self._state[:n_y])
        if self._run.monitor is not None:
            self._report(accept, segment, sigma, width, states)
        self._run.stats.rounds += n

    def _report(
        self, accept: Tensor, segment: Tensor, sigma: Tensor, width: Tensor, states: Leaves
    ) -> None:
        """Tells the monitor of attempts that some sample accepts."""
        run, n = self._run, len(accept)
        assert run.monitor is not None
        run.count()
        t, dt = self._steps(segment, sigma, width)
        dt = dt.masked_fill(~accept, float("nan"))
        for r in accept.any(1).nonzero().squeeze(1).tolist():
            y = tuple(x[r + 1] for x in states) if r + 1 < n else self._state
            state = y[: self._n_y]
            run.monitor.step("forward", run.stats.rounds + r, t[r], dt[r], state, run.stats)  # pyright: ignore

    def _steps(self, segment: Tensor, sigma: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """(t, h) of attempts, float64 of shape [rows, B]."""
        times = self._run.landings.T
        start = times.gather(0, segment)
        span = times.gather(0, (segment + 1).clamp(max=self._last)) - start
        return start + span * sigma, span * width

    def _look(self, stuck: Tensor, march: March) -> None:
        """Samples that cannot go on fail."""
        run, times = self._run, self._run.landings
        extent = (times[:, -1] - times[:, 0]).abs()
        accepted = self._columns.counts
        rejected = march.attempts.cpu() - accepted
        before = len(run.failures)
        for b in stuck.nonzero().squeeze(1).tolist():
            at = Stuck(
                b,
                t=float(march.t[b]),
                taken=float(march.taken[b]),
                ratio=float(march.ratio[b]),
                h=float(march.h[b]),
                extent=float(extent[b]),
                end=float(times[b, -1]),
                accepted=int(accepted[b]),
                rejected=int(rejected[b]),
            )
            error = obstacle(at, self._control, self._limit)
            if error is not None:
                run.stats.tell(accepted, rejected)
                run.fail(b, error)
        if len(run.failures) > before:
            self._place()

    def result(self) -> tuple[SampleGrid, Blocks | None]:
        """The accepted steps, and the states before them."""
        run, columns = self._run, self._columns
        counts = columns.counts
        run.stats.tell(counts, self._march.attempts.cpu() - counts)
        grid = SampleGrid(*columns.steps(), counts, self._last)
        if run.failures:
            grid = grid.without(run.failed)
        return grid, columns.blocks(self._state) if self._keeps else None
