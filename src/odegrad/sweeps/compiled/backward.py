"""The backward sweep in compiled chunks of steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odegrad.checkpoints import (
    Checkpoints,
    Keep,
    Tier,
)
from odegrad.compiled import Blocks, Programs, Pullback, Rows, Ticks, Transposed
from odegrad.schemes.base import StepGrad
from odegrad.state import Leaves, OptionalLeaves, wide
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.compiled.chunks import (
    number,
    padded,
    plain,
    rows_like,
    take_steps,
    watched,
    zeros,
)
from odegrad.sweeps.compiled.reads import Reads
from odegrad.sweeps.cotangents import Cotangents, Total
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.labels import direct
from odegrad.sweeps.run import Run
from odegrad.sweeps.transposing import execute

__all__ = ["Backward", "backward"]


def backward(
    run: Run,
    programs: Programs,
    y0: Leaves,
    p: Leaves,
    landings: Tensor | None,
    checkpoints: Checkpoints,
    pull: Pullback,
    kept: Kept,
    grads: OptionalLeaves,
    retain: bool,
) -> Cotangents:
    """Transposes a solve whose forward sweep is through; see `sweeps.backward.backward`."""
    with watched(run, programs, "backward"):
        engine = Backward(run, programs, y0, p, landings, pull, kept, grads, retain)
        n, known = run.accepted_grid.n_steps, isinstance(run.stepsize, FixedStepSize)
        execute(checkpoints.backward(n, known) if n else (), kept, engine)
        return engine.finish()


def _put_labels(labels: Leaves, row: int, direct: OptionalLeaves) -> None:
    for buffer, g in zip(labels, direct, strict=True):
        if g is not None:
            buffer[row] = g


class Backward:
    """Executes a schedule's actions in chunks."""

    def __init__(
        self,
        run: Run,
        programs: Programs,
        y0: Leaves,
        p: Leaves,
        landings: Tensor | None,
        pull: Pullback,
        kept: Kept,
        grads: OptionalLeaves,
        retain: bool,
    ) -> None:
        self.run, self.programs, self.y0 = run, programs, y0
        self.p, self.data, self.device = p, self.read(p), programs.device
        self.kept, self.timed, self.retain = kept, pull.timed, retain
        self.first, self.spare = kept.tape, list[Leaves]()  # buffers that may be written again
        self.total = Total(len(p))
        self.direct, self.output_grads = direct(run, p, grads, self.total), grads
        self.below = kept.end  # the state after the step whose turn it is, if the labels need it
        self.follow_clock(landings)
        self.current = kept.current()
        carry = programs.new_carry()
        self.grads: Leaves = (*map(zeros, y0), *carry)
        self.grad_p: list[Tensor | None] = [None] * len(p)
        self.pull, self.size = pull, programs.pulled_rows(pull)
        self.sums: Leaves = tuple(zeros(wide(p[i].detach())) for i in pull.summed)
        self.written = Rows(pull.rows, pull.stacks, self.size)
        self.grad_steps = [
            torch.empty((self.size, *programs.time_shape), dtype=torch.float64, device=self.device)
            for _ in range(2 * self.timed)
        ]
        self.labels: Leaves = ()
        self.reads = Reads(programs, pull, y0, grads, self.size)

    def read(self, p: Leaves) -> Leaves:
        """What the programs read."""
        return plain(p[: self.programs.n_read])

    def follow_clock(self, landings: Tensor | None) -> None:
        """Takes the steps from the accepted grid."""
        run, times = self.run, landings
        if times is None:
            times = torch.tensor(run.times, dtype=torch.float64, device="cpu")
        self.times, self.ticks = times, Ticks(run.accepted_grid, times, run.stops)
        self.grad_times, self.n_steps = torch.zeros_like(times), run.accepted_grid.n_steps
        self.grad_read = self.grad_times

    def init_vjp(self, carry: Leaves) -> StepGrad:
        """The transpose of what came before the first step."""
        return self.run.scheme.init_vjp(self.run.field, self.times[0], self.y0, self.p, carry)

    def told(self, times: Tensor) -> Sequence[Any]:
        """Times as a callback is told of them."""
        return times.tolist()

    def advance(self, start: int, stop: int, keep: Keep | None) -> None:
        """Takes steps again."""
        state, programs, pull, tape = self._take(start), self.programs, None, Blocks()
        if keep is not None:
            self.kept.tape, pull = tape, self.pull
        size, begin = programs.rows(pull), start
        like, scratch = (*state, *(pull.kept if pull is not None else ())), None
        while begin < stop:
            n = min(size, stop - begin)
            if keep is not None and self.spare:
                rows = self.spare.pop()
            else:
                rows = scratch or rows_like(like, size)
            scratch = rows if keep is None else None
            after = take_steps(
                self.run, programs, pull, self.ticks, begin, n, state, rows, self.data
            )
            if keep is not None:
                tape.put(begin, n, rows)
            begin, state = begin + n, after
        self.current = Current(stop, state, None) if keep is None else None
        self.run.stats.recomputed += stop - start - (keep is not None)
        self._note()

    def store(self, i: int, tier: Tier) -> None:
        """Stores the current state."""
        self.kept.store.put(i, self._take(i), None, tier)
        self._note()

    def restore(self, i: int) -> None:
        """Makes a stored state the current one."""
        self.current = Current(i, self.kept.store.get(i)[0], None)

    def unstep(self, start: int, stop: int) -> None:
        """No schedule asks for it: `Rewind` is not compiled."""
        raise AssertionError(f"steps {stop} to {start} are not taken back in chunks")

    def _take(self, i: int) -> Leaves:
        """The current state, which has to be state i."""
        assert self.current is not None
        assert self.current.i == i, f"state {self.current.i} is current, not {i}"
        return self.current.state

    def _note(self) -> None:
        self.run.stats.note(self.kept)

    def transpose(self, start: int, stop: int) -> None:
        """Transposes steps, chunk by chunk from the last."""
        size = self.size
        labelled = self.is_labelled(start, stop)
        program = self.programs.transposed(self.pull, labelled)
        if labelled and not self.labels:
            self.labels = tuple(zeros(x, size) for x in self.y0)
        tape = self.kept.tape
        assert isinstance(tape, Blocks)
        for begin in reversed(range(start, stop, size)):
            end = min(begin + size, stop)
            self._chunk(program, tape.rows(begin, end, size), begin, end, labelled)
        self.kept.tape = None
        if tape is not self.first or not self.retain:
            self.spare = tape.buffers(self.programs.rows(self.pull))

    def is_labelled(self, start: int, stop: int) -> bool:
        """Whether outputs lie inside of a chunk of these steps, and not at its end alone."""
        inside = [n for _, n in self.ticks.landings(start, stop) if n != stop]
        return any((n - start) % self.size for n in inside)

    def put_labels(self, start: int, stop: int, rows: Leaves, labelled: bool) -> None:
        """Adds the cotangents of the outputs of a chunk's steps."""
        for j, i in reversed(self.ticks.landings(start, stop)):
            after = self.below if i == stop else self._state(rows, i - start)
            if labelled:
                _put_labels(self.labels, i - 1 - start, self.direct.at(j, after))
            else:
                self._inject(j, after)

    def _chunk(
        self, program: Transposed, rows: Leaves, start: int, stop: int, labelled: bool
    ) -> None:
        run, pull, size, n = self.run, self.pull, self.size, stop - start
        t, dt = (padded(x, size, self.device) for x in self.ticks.step(start, stop))
        self.put_labels(start, stop, rows, labelled)
        read = self.ticks.inside(start, stop) if pull.inside else None
        if read is not None:
            self.reads.put(read)
        found = program.loop(
            number(n - 1, self.device),
            *self.grads,
            *self.sums,
            *(t, dt),
            *rows,
            *self.reads.grads,
            *(self.labels if labelled else ()),
            *self.grad_steps,
            *self.reads.values,
            *self.written.kinds,
            *self.data,
            count=n,
        )
        n_s = len(self.grads)
        self.grads, self.sums = tuple(found[1 : 1 + n_s]), tuple(found[1 + n_s :])
        for term in pull.deferred:
            self._accumulate(term.p, term.collect(self.written, rows[n_s:], n, self.p[term.p]))
        if self.timed:
            grad_t, grad_dt = (x[:n].to(self.times.device) for x in self.grad_steps)
            if read is not None:
                steps = dt[:n].to(grad_t), grad_t, grad_dt
                self.reads.times_vjp(read, rows, *steps, self.grad_read)
            self.ticks.step_vjp(start, grad_t, grad_dt, self.grad_times)
        run.field.evaluations += n * pull.evaluations
        run.field.transposes += n * pull.vjps
        for buffer in (*(self.labels if labelled else ()), *(self.reads.grads if read else ())):
            buffer.zero_()
        if self.direct.needs_states:
            self.below = tuple(x.clone() for x in self._state(rows, 0))
        if run.monitor is not None:
            self._report(start, n, rows)

    def _state(self, rows: Leaves, r: int) -> Leaves:
        return tuple(x[r] for x in rows[: len(self.y0)])

    def _report(self, start: int, n: int, rows: Leaves) -> None:
        run = self.run
        assert run.monitor is not None
        run.count()
        t, dt = map(self.told, self.ticks.step(start, start + n))
        for r in reversed(range(n)):
            run.monitor.step("backward", start + r, t[r], dt[r], self._state(rows, r), run.stats)

    def finish(self) -> Cotangents:
        """Transposes `init`, and adds the cotangent of the output at the start."""
        for i, total in zip(self.pull.summed, self.sums, strict=True):
            self._accumulate(i, total)
        n_y, run = len(self.y0), self.run
        if self.grads[n_y:] and self.n_steps:
            found = run.field.bound(self.p, partial(self.init_vjp, self.grads[n_y:]))
            self.grads = tuple(a + b for a, b in zip(self.grads, found.y, strict=False))
            for i, g in enumerate(found.p):
                if g is not None:
                    self._accumulate(i, g)
            if self.timed and found.t is not None:
                self.grad_times[0] += found.t
        self._inject(0, self.y0)
        for i, g in enumerate(self.total.result()):
            if g is not None:
                self._accumulate(i, g)
        times: list[Tensor | None] = [None] * len(run.times)
        if self.timed:
            times = list(self.grad_times.unbind())
        return Cotangents(self.grads[:n_y], tuple(self.grad_p), times)

    def _inject(self, j: int, y: Leaves) -> None:
        """Adds the cotangent of the state y at landing j."""
        ends = self.grads[: len(self.y0)]
        pairs = zip(ends, self.direct.at(j, y), strict=True)
        self.grads = (*(a if g is None else a + g for a, g in pairs), *self.grads[len(self.y0) :])

    def _accumulate(self, i: int, more: Tensor) -> None:
        old = self.grad_p[i]
        if old is None:
            self.grad_p[i] = wide(more)
        else:
            old += more
