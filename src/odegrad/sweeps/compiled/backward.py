"""The backward sweep in compiled chunks of steps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from odegrad.checkpoints import Advance, Checkpoints, Drop, Restore, Store, Transpose
from odegrad.compiled import Blocks, Programs, Pullback, Rows, Ticks, Transposed
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.compiled.chunks import (
    number,
    padded,
    plain,
    rows_like,
    selected,
    take_steps,
    watched,
    zeros,
)
from odegrad.sweeps.cotangents import Cotangents
from odegrad.sweeps.run import Run

__all__ = ["backward"]


def backward(
    run: Run,
    programs: Programs,
    y0: Leaves,
    p: Leaves,
    landings: Tensor | None,
    checkpoints: Checkpoints,
    pull: Pullback,
    blocks: Blocks,
    grad_ys: OptionalLeaves,
) -> Cotangents:
    """Transposes a solve whose forward sweep is through; see `sweeps.backward.backward`."""
    with watched(run, programs, "backward"):
        engine = _Backward(run, programs, y0, p, landings, pull, blocks, grad_ys)
        for action in checkpoints.backward(run.accepted_grid.n_steps):
            match action:
                case Advance(start, stop, every) if stop is not None:
                    engine.advance(start, stop, every)
                case Store(i):
                    engine.store(i)
                case Restore(i):
                    engine.current = (i, blocks.get(i))
                case Drop(i):
                    blocks.drop(i)
                case Transpose(start, stop):
                    engine.transpose(start, stop)
                case _:
                    raise AssertionError(f"{action} has no place in a backward sweep")
        return engine.finish()


def _put_labels(labels: Leaves, row: int, grad_ys: OptionalLeaves, j: int) -> None:
    for buffer, g in zip(labels, grad_ys, strict=True):
        if g is not None:
            buffer[row] = g[j]


class _Backward:
    """Executes a schedule's actions in chunks."""

    def __init__(
        self,
        run: Run,
        programs: Programs,
        y0: Leaves,
        p: Leaves,
        landings: Tensor | None,
        pull: Pullback,
        blocks: Blocks,
        grad_ys: OptionalLeaves,
    ) -> None:
        self.run, self.programs, self.y0 = run, programs, y0
        self.p, self.data, self.device = p, plain(p[: programs.n_read]), programs.device
        self.blocks, self.grad_ys, self.timed = blocks, grad_ys, pull.timed
        times = torch.tensor(run.times, dtype=torch.float64) if landings is None else landings
        self.times, self.ticks = times, Ticks(run.accepted_grid, times)
        self.current: tuple[int, Leaves] = (0, ())
        carry = programs.new_carry()
        self.grads: Leaves = (*map(zeros, y0), *carry)
        self.grad_p: list[Tensor | None] = [None] * len(p)
        self.grad_times = torch.zeros_like(times)
        self.pull, self.size = pull, programs.pulled_rows(pull)
        self.sums: Leaves = tuple(zeros(p[i]) for i in pull.summed)
        self.written = Rows(pull.rows, pull.stacks, self.size)
        self.grad_steps = [
            torch.empty(self.size, dtype=torch.float64, device=self.device)
            for _ in range(2 * self.timed)
        ]
        self.labels: Leaves = ()

    def advance(self, start: int, stop: int, every: int | None) -> None:
        """Takes steps again."""
        current, state = self.current
        assert current == start, f"state {current} is current, not {start}"
        size, programs = self.programs.rows(None), self.programs
        while start < stop:
            n, rows = min(size, stop - start), rows_like(state, size)
            state = take_steps(
                self.run, programs, None, self.ticks, start, n, state, rows, self.data
            )
            if every is not None:
                numbers = [i for i in range(start, start + n, every) if i not in self.blocks]
                if numbers:
                    self.blocks.put(numbers, selected(rows, [i - start for i in numbers]))
            start += n
            self.run.stats.recomputed += n
        self.current = (stop, state)

    def store(self, i: int) -> None:
        assert self.current[0] == i, f"state {self.current[0]} is current, not {i}"
        self.blocks.put([i], tuple(x.unsqueeze(0).clone() for x in self.current[1]))
        self.run.stats.kept_bytes = max(self.run.stats.kept_bytes, self.blocks.nbytes)

    def transpose(self, start: int, stop: int) -> None:
        """Transposes steps, chunk by chunk from the last."""
        size = self.size
        inside = [n for _, n in self.ticks.landings(start, stop) if n != stop]
        labelled = any((n - start) % size for n in inside)
        program = self.programs.transposed(self.pull, labelled)
        if labelled and not self.labels:
            self.labels = tuple(zeros(x, size) for x in self.y0)
        for begin in reversed(range(start, stop, size)):
            self._chunk(program, begin, min(begin + size, stop), labelled)

    def _chunk(self, program: Transposed, start: int, stop: int, labelled: bool) -> None:
        run, pull, size, n = self.run, self.pull, self.size, stop - start
        rows = self.blocks.rows(start, stop, size)
        t, dt = (padded(x, size, self.device) for x in self.ticks.step(start, stop))
        for j, i in self.ticks.landings(start, stop):
            if labelled:
                _put_labels(self.labels, i - 1 - start, self.grad_ys, j)
            else:
                self._inject(j)
        found = program.loop(
            number(n - 1, self.device),
            *self.grads,
            *self.sums,
            *(t, dt),
            *rows,
            *(self.labels if labelled else ()),
            *self.grad_steps,
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
            self.ticks.step_vjp(start, grad_t, grad_dt, self.grad_times)
        run.field.evaluations += n * pull.evaluations
        run.field.transposes += n * pull.vjps
        if labelled:
            for buffer in self.labels:
                buffer.zero_()
        if run.monitor is not None:
            self._report(start, n, rows)

    def _report(self, start: int, n: int, rows: Leaves) -> None:
        run = self.run
        assert run.monitor is not None
        run.count()
        t, dt = (x.tolist() for x in self.ticks.step(start, start + n))
        for r in reversed(range(n)):
            y = tuple(x[r] for x in rows[: len(self.y0)])
            run.monitor.step("backward", start + r, t[r], dt[r], y, run.stats)

    def finish(self) -> Cotangents:
        """Transposes `init`, and adds the cotangent of the output at the start."""
        for i, total in zip(self.pull.summed, self.sums, strict=True):
            self._accumulate(i, total)
        n_y, run = len(self.y0), self.run
        if self.grads[n_y:] and run.accepted_grid.n_steps:
            carry = self.grads[n_y:]
            start = partial(run.scheme.init_vjp, run.field, self.times[0], self.y0, self.p, carry)
            found = run.field.bound(self.p, start)
            self.grads = tuple(a + b for a, b in zip(self.grads, found.y, strict=False))
            for i, g in enumerate(found.p):
                if g is not None:
                    self._accumulate(i, g)
            if self.timed and found.t is not None:
                self.grad_times[0] += found.t
        self._inject(0)
        times: list[Tensor | None] = [None] * len(run.times)
        if self.timed:
            times = list(self.grad_times.unbind())
        return Cotangents(self.grads[:n_y], tuple(self.grad_p), times)

    def _inject(self, j: int) -> None:
        """Adds the cotangent of output j."""
        ends = self.grads[: len(self.y0)]
        added = (a if g is None else a + g[j] for a, g in zip(ends, self.grad_ys, strict=True))
        self.grads = (*added, *self.grads[len(self.y0) :])

    def _accumulate(self, i: int, more: Tensor) -> None:
        old = self.grad_p[i]
        if old is None:
            self.grad_p[i] = more
        else:
            old += more
