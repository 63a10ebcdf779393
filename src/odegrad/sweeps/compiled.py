"""The two sweeps with compiled chunks of steps; what `forward` and `backward` do one step at a time.

Python does what is left between chunks: it hands buffers to the programs, keeps the states that the
schedule asks for, adds the cotangents of the outputs, and looks at a step-size controller that is stuck.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from odegrad.checkpoints import Advance, Checkpoints, Drop, Keep, Restore, Store, Transpose
from odegrad.compiled import Blocks, March, Programs, Pullback, Rows, Ticks, Transposed, constants
from odegrad.grid import Grid, Nodes, Segment
from odegrad.state import Leaves, OptionalLeaves
from odegrad.stepsize import PID, FixedStepSize
from odegrad.sweeps.adaptive import DEFAULT_MAX_STEPS, check_count, check_size, first_size
from odegrad.sweeps.cotangents import Cotangents
from odegrad.sweeps.run import Run
from odegrad.sweeps.steps import fixed_grid

__all__ = ["backward", "forward"]


def forward(
    run: Run,
    programs: Programs,
    y: Leaves,
    p: Leaves,
    checkpoints: Checkpoints | None = None,
    pull: Pullback | None = None,
) -> tuple[Leaves, Blocks]:
    """Solves, and returns the states at the landing times and the stored states.

    Arguments:
        run: The solve; its grid and statistics are filled in.
        programs: The compiled steps of its vector field and scheme.
        y: The initial state.
        p: The tensors that f reads.
        checkpoints: Which states to store; None stores nothing.
        pull: Says what to store with them.
    """
    _watch(run, programs, "forward")
    try:
        with torch.no_grad():
            march = _Forward(run, programs, y, p, pull)
            for action in checkpoints.forward() if checkpoints else (Advance(0, None),):
                match action:
                    case Advance(_, stop, every):
                        # Of a step whose values are kept the state is, too.
                        keeps = checkpoints is not None and checkpoints.keep is Keep.GRAPH
                        march.advance(stop, 1 if keeps else every)
                    case Store(i):
                        march.blocks.put([i], march.current_rows(i))
                    case Drop(i):
                        march.blocks.drop(i)
                    case _:
                        raise AssertionError(f"{action} has no place in a forward sweep")
    finally:
        run.count()
        _unwatch(run, programs)
    run.stats.kept_bytes = max(run.stats.kept_bytes, march.blocks.nbytes)
    return march.ys, march.blocks


def _watch(run: Run, programs: Programs, phase: str) -> None:
    if run.monitor is not None:
        run.monitor.start(phase)
        programs.announce = run.monitor.compiling


def _unwatch(run: Run, programs: Programs) -> None:
    programs.announce = nullcontext
    if run.monitor is not None:
        run.monitor.stop()


class _Forward:
    """The resumable march of a forward sweep, chunk by chunk."""

    def __init__(
        self, run: Run, programs: Programs, y: Leaves, p: Leaves, pull: Pullback | None
    ) -> None:
        self.run, self.programs, self.p, self.n_y = run, programs, _plain(p), len(y)
        self.pull, self.size = pull, programs.rows(pull)
        self.blocks, self.n = Blocks(), 0
        self.ys = tuple(x.new_empty((len(run.times), *x.shape)) for x in y)
        self._output(0, y)
        self.times = torch.tensor(run.times, dtype=torch.float64)
        control = run.stepsize
        self.control = control if isinstance(control, PID) else None
        carry: Leaves = ()
        if isinstance(control, FixedStepSize):
            run.grid = fixed_grid(run, control)
        if len(run.times) > 1:
            carry = run.scheme.init(run.field, run.times[0], y, p)
        self.state = (*(x.clone() for x in _plain(y)), *_plain(carry))
        if self.control is not None:
            h = first_size(run, self.control, y, p)
            self.march = March.start(torch.tensor(h, dtype=torch.float64))
            self.vector = constants(self.control)
            self.fractions, self.segments = [0.0], list[Segment]()
            padded = 1 << (len(run.times) - 1).bit_length()
            self.padded = torch.cat([self.times, self.times[-1:].expand(padded - len(run.times))])
        else:
            self.ticks = Ticks(run.accepted_grid, self.times)

    def current_rows(self, i: int) -> Leaves:
        """The current state, which is state i, as buffers of one row."""
        assert i == self.n, f"state {self.n} is current, not {i}"
        return tuple(x.unsqueeze(0).clone() for x in self.state)

    def advance(self, stop: int | None, every: int | None) -> None:
        """Takes steps until state `stop`, or the end, storing every so many."""
        start, scratch = self.n, None
        while not self._through() and (stop is None or self.n < stop):
            rows = scratch or self._buffers()
            n = self._adaptive(rows) if self.control is not None else self._fixed(rows, stop)
            first = self.n - n
            if every is None:
                scratch = rows
                continue
            numbers = [i for i in range(first, self.n) if (i - start) % every == 0]
            kept = [i - first for i in numbers]
            if len(kept) == self.size:
                self.blocks.put(numbers, rows)
                scratch = None
            else:
                scratch = rows
                index = torch.tensor(kept, device=self.state[0].device)
                self.blocks.put(numbers, tuple(x.index_select(0, index) for x in rows))

    def _through(self) -> bool:
        if len(self.run.times) < 2:
            return True
        if self.control is not None:
            return len(self.segments) == len(self.run.times) - 1
        return self.n == self.run.accepted_grid.n_steps

    def _buffers(self) -> Leaves:
        kept = self.pull.kept if self.pull is not None else ()
        return tuple(
            torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
            for x in (*self.state, *kept)
        )

    def _fixed(self, rows: Leaves, stop: int | None) -> int:
        """Takes the steps of a known grid until the buffers are full."""
        end = self.run.accepted_grid.n_steps if stop is None else stop
        n, size = min(self.size, end - self.n), self.size
        t, dt = self.ticks.step(self.n, self.n + n)
        zero = torch.zeros((), dtype=torch.int64)
        count = torch.tensor(n)
        found = self.programs.march(self.pull)(
            zero, *self.state, _padded(t, size), _padded(dt, size), *rows, count, *self.p
        )
        self.state = tuple(found[1:])
        self.run.field.evaluations += n * self.programs.step_evaluations
        for j, number in self.ticks.landings(self.n, self.n + n):
            self._output(j, self._row(rows, number - self.n, n))
        self._report(rows, n, t, dt)
        return n

    def _adaptive(self, rows: Leaves) -> int:
        """Attempts steps until the buffers are full or the walk is through."""
        run, control = self.run, self.control
        assert control is not None
        limit = DEFAULT_MAX_STEPS if run.max_steps is None else run.max_steps
        segments = torch.tensor(len(run.times) - 1)
        loop = self.programs.adaptive_march(control.norm, len(self.padded), self.pull)
        fraction, place = (
            torch.empty(len(rows[0]), dtype=torch.float64),
            torch.empty(len(rows[0]), dtype=torch.int64),
        )
        march = self.march._replace(row=torch.zeros((), dtype=torch.int64))
        while True:
            attempts = int(march.attempts)
            found = loop(
                *march,
                *self.state,
                *rows,
                fraction,
                place,
                self.padded,
                self.vector,
                torch.tensor(limit),
                segments,
                *self.p,
            )
            march = March(*found[: len(march)])
            self.state = tuple(found[len(march) :])
            attempts = int(march.attempts) - attempts
            run.field.evaluations += attempts * self.programs.step_evaluations
            if not bool(march.stuck):
                break
            run.stats.rejected = int(march.attempts) - self.n - int(march.row)
            accepted, run.stats.accepted = run.stats.accepted, self.n + int(march.row)
            numbers = (float(march.t), float(march.taken), float(march.h), float(march.ratio))
            check_size(run, control, *numbers)
            check_count(run, numbers[0], numbers[1])
            run.stats.accepted = accepted
            march = march._replace(stuck=torch.zeros((), dtype=torch.bool))
        self.march, n = march, int(march.row)
        run.stats.rejected = int(march.attempts) - self.n - n
        self._note(rows, fraction[:n].tolist(), place[:n].tolist(), int(march.segment))
        return n

    def _note(self, rows: Leaves, fractions: list[float], places: list[int], segment: int) -> None:
        """Completes the grid by the steps of a chunk, and puts out what landed."""
        n, times = len(fractions), self.run.times
        t: list[float] = []
        dt: list[float] = []
        for r, (following, j) in enumerate(zip(fractions, places, strict=True)):
            sigma, span = self.fractions[-1], times[j + 1] - times[j]
            t.append(times[j] + span * sigma)
            dt.append(span * (following - sigma))
            self.fractions.append(following)
            if (places[r + 1] if r + 1 < n else segment) > j:
                self.segments.append(Nodes(tuple(self.fractions)))
                self.fractions = [0.0]
                self._output(j + 1, self._row(rows, r + 1, n))
        self._report(rows, n, torch.tensor(t), torch.tensor(dt))
        if self._through():
            self.run.grid = Grid(tuple(self.segments))

    def _row(self, rows: Leaves, r: int, n: int) -> Leaves:
        """The state before step r of a chunk of n steps, or after its last."""
        return self.state if r == n else tuple(x[r] for x in rows[: len(self.state)])

    def _output(self, j: int, state: Leaves) -> None:
        for y, leaf in zip(self.ys, state, strict=False):
            y[j] = leaf

    def _report(self, rows: Leaves, n: int, t: Tensor, dt: Tensor) -> None:
        """Counts the steps of a chunk and tells the monitor."""
        run = self.run
        if run.monitor is None:
            run.stats.accepted += n
        else:
            run.count()
            for r, (a, b) in enumerate(zip(t.tolist(), dt.tolist(), strict=True)):
                run.stats.accepted += 1
                y = self._row(rows, r + 1, n)[: self.n_y]
                run.monitor.step("forward", self.n + r, a, b, y, run.stats)
        self.n += n


def _plain(leaves: Leaves) -> Leaves:
    """The values as programs expect them: contiguous and off any graph."""
    return tuple(x.detach().resolve_conj().resolve_neg().contiguous() for x in leaves)


def _padded(x: Tensor, size: int) -> Tensor:
    return x if len(x) == size else torch.cat([x, x.new_zeros(size - len(x))])


def _zeros(x: Tensor, *rows: int) -> Tensor:
    return torch.zeros((*rows, *x.shape), dtype=x.dtype, device=x.device)


def _put_labels(labels: Leaves, row: int, grad_ys: OptionalLeaves, j: int) -> None:
    for buffer, g in zip(labels, grad_ys, strict=True):
        if g is not None:
            buffer[row] = g[j]


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
    _watch(run, programs, "backward")
    try:
        with torch.no_grad():
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
    finally:
        run.count()
        _unwatch(run, programs)


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
        self.run, self.programs, self.p, self.data, self.y0 = run, programs, p, _plain(p), y0
        self.blocks, self.grad_ys, self.timed = blocks, grad_ys, pull.timed
        times = torch.tensor(run.times, dtype=torch.float64) if landings is None else landings
        self.times, self.ticks = times, Ticks(run.accepted_grid, times)
        self.current: tuple[int, Leaves] = (0, ())
        carry = programs.new_carry()
        self.grads: Leaves = (*map(_zeros, y0), *carry)
        self.grad_p: list[Tensor | None] = [None] * len(p)
        self.grad_times = torch.zeros_like(times)
        self.pull, self.size = pull, programs.pulled_rows(pull)
        self.sums: Leaves = tuple(_zeros(p[i]) for i in pull.summed)
        self.written = Rows(pull.rows, pull.stacks, self.size)
        self.grad_steps = [
            torch.empty(self.size, dtype=torch.float64) for _ in range(2 * self.timed)
        ]
        self.labels: Leaves = ()

    def advance(self, start: int, stop: int, every: int | None) -> None:
        """Takes steps again."""
        number, state = self.current
        assert number == start, f"state {number} is current, not {start}"
        size, programs = self.programs.rows(None), self.programs
        while start < stop:
            n = min(size, stop - start)
            t, dt = self.ticks.step(start, start + n)
            rows = tuple(x.new_empty((size, *x.shape)) for x in state)
            zero = torch.zeros((), dtype=torch.int64)
            found = programs.march(None)(
                zero,
                *state,
                _padded(t, size),
                _padded(dt, size),
                *rows,
                torch.tensor(n),
                *self.data,
            )
            state = tuple(found[1:])
            if every is not None:
                numbers = [i for i in range(start, start + n, every) if i not in self.blocks]
                index = torch.tensor([i - start for i in numbers], device=state[0].device)
                self.blocks.put(numbers, tuple(x.index_select(0, index) for x in rows))
            start += n
            self.run.stats.recomputed += n
            self.run.field.evaluations += n * programs.step_evaluations
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
            self.labels = tuple(_zeros(x, size) for x in self.y0)
        for begin in reversed(range(start, stop, size)):
            self._chunk(program, begin, min(begin + size, stop), labelled)

    def _chunk(self, program: Transposed, start: int, stop: int, labelled: bool) -> None:
        run, pull, size, n = self.run, self.pull, self.size, stop - start
        rows = self.blocks.rows(start, stop, size)
        t, dt = self.ticks.step(start, stop)
        for j, number in self.ticks.landings(start, stop):
            if labelled:
                _put_labels(self.labels, number - 1 - start, self.grad_ys, j)
            else:
                self._inject(j)
        found = program.loop(
            torch.tensor(n - 1),
            *self.grads,
            *self.sums,
            *(_padded(t, size), _padded(dt, size)),
            *rows,
            *(self.labels if labelled else ()),
            *self.grad_steps,
            *self.written.kinds,
            *self.data,
        )
        n_s = len(self.grads)
        self.grads, self.sums = tuple(found[1 : 1 + n_s]), tuple(found[1 + n_s :])
        for term in pull.deferred:
            self._accumulate(term.p, term.collect(self.written, rows[n_s:], n, self.p[term.p]))
        if self.timed:
            grad_t, grad_dt = (x[:n] for x in self.grad_steps)
            self.ticks.step_vjp(start, grad_t, grad_dt, self.grad_times)
        run.field.evaluations += n * pull.evaluations
        run.field.transposes += n * pull.vjps
        if labelled:
            for buffer in self.labels:
                buffer.zero_()
        if run.monitor is not None:
            self._report(start, t, dt, rows)

    def _report(self, start: int, t: Tensor, dt: Tensor, rows: Leaves) -> None:
        run = self.run
        assert run.monitor is not None
        run.count()
        for r in reversed(range(len(t))):
            y = tuple(x[r] for x in rows[: len(self.y0)])
            run.monitor.step("backward", start + r, float(t[r]), float(dt[r]), y, run.stats)

    def finish(self) -> Cotangents:
        """Transposes `init`, and adds the cotangent of the output at the start."""
        for i, total in zip(self.pull.summed, self.sums, strict=True):
            self._accumulate(i, total)
        n_y, run = len(self.y0), self.run
        if self.grads[n_y:] and run.accepted_grid.n_steps:
            carry = self.grads[n_y:]
            found = run.scheme.init_vjp(run.field, self.times[0], self.y0, self.p, carry)
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
