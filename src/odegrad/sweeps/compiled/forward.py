"""The forward sweep in compiled chunks of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch

from odegrad.checkpoints import Advance, Checkpoints, Drop, Keep, Store
from odegrad.compiled import Blocks, March, Programs, Pullback, Ticks, constants
from odegrad.grid import Grid, Nodes, Segment
from odegrad.state import Leaves
from odegrad.stepsize import PID, FixedStepSize
from odegrad.sweeps.adaptive import DEFAULT_MAX_STEPS, check_count, check_size, first_size
from odegrad.sweeps.compiled.chunks import number, plain, rows_like, selected, take_steps, watched
from odegrad.sweeps.run import Run
from odegrad.sweeps.steps import fixed_grid

__all__ = ["forward"]


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
    with watched(run, programs, "forward"):
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
    run.stats.kept_bytes = max(run.stats.kept_bytes, march.blocks.nbytes)
    return march.ys, march.blocks


class _Forward:
    """The resumable march of a forward sweep, chunk by chunk."""

    def __init__(
        self, run: Run, programs: Programs, y: Leaves, p: Leaves, pull: Pullback | None
    ) -> None:
        self.run, self.programs, self.n_y = run, programs, len(y)
        self.p = plain(p[: programs.n_read])
        self.pull, self.size = pull, programs.rows(pull)
        self.blocks, self.n = Blocks(), 0
        self.ys = tuple(x.new_empty((len(run.times), *x.shape)) for x in y)
        self._output(0, y)
        self.times = torch.tensor(run.times, dtype=torch.float64)
        self.device = programs.device
        control = run.stepsize
        self.control = control if isinstance(control, PID) else None
        carry: Leaves = ()
        if isinstance(control, FixedStepSize):
            run.grid = fixed_grid(run, control)
        elif len(run.times) < 2:
            run.grid = Grid(())
        if len(run.times) > 1:
            start = partial(run.scheme.init, run.field, run.times[0], y, p)
            carry = run.field.bound(p, start)
        self.state = (*(x.clone() for x in plain(y)), *plain(carry))
        if self.control is not None:
            h = run.field.bound(p, partial(first_size, run, self.control, y, p))
            self.march = March.start(number(h, self.device))
            self.vector = constants(self.control, self.device)
            self.fractions, self.segments = [0.0], list[Segment]()
            size = 1 << (len(run.times) - 1).bit_length()
            more = self.times[-1:].expand(size - len(run.times))
            self.landings = torch.cat([self.times, more]).to(self.device)
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
            if len(numbers) == n:  # rows that were not written take no memory where it is virtual
                self.blocks.put(numbers, rows)
                scratch = None
            else:
                scratch = rows
                if numbers:
                    self.blocks.put(numbers, selected(rows, [i - first for i in numbers]))

    def _through(self) -> bool:
        if len(self.run.times) < 2:
            return True
        if self.control is not None:
            return len(self.segments) == len(self.run.times) - 1
        return self.n == self.run.accepted_grid.n_steps

    def _buffers(self) -> Leaves:
        kept = self.pull.kept if self.pull is not None else ()
        return rows_like((*self.state, *kept), self.size)

    def _fixed(self, rows: Leaves, stop: int | None) -> int:
        """Takes the steps of a known grid until the buffers are full."""
        end = self.run.accepted_grid.n_steps if stop is None else stop
        n = min(self.size, end - self.n)
        self.state = take_steps(
            self.run, self.programs, self.pull, self.ticks, self.n, n, self.state, rows, self.p
        )
        for j, i in self.ticks.landings(self.n, self.n + n):
            self._output(j, self._row(rows, i - self.n, n))
        self._report(rows, n, partial(self._times, self.n, n))
        return n

    def _times(self, start: int, n: int) -> Iterable[list[float]]:
        return [x.tolist() for x in self.ticks.step(start, start + n)]

    def _adaptive(self, rows: Leaves) -> int:
        """Attempts steps until the buffers are full or the walk is through."""
        run, control = self.run, self.control
        assert control is not None
        limit = DEFAULT_MAX_STEPS if run.max_steps is None else run.max_steps
        segments = number(len(run.times) - 1, self.device)
        loop = self.programs.adaptive_march(control.norm, len(self.landings), self.pull)
        zero = number(0, self.device)
        fraction, place = rows_like((zero.double(), zero), self.size)
        march = self.march._replace(row=zero)
        while True:
            attempts = int(march.attempts)
            found = loop(
                *march,
                *self.state,
                *rows,
                fraction,
                place,
                self.landings,
                self.vector,
                number(limit, self.device),
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
            march = march._replace(stuck=number(False, self.device))
        self.march, n = march, int(march.row)
        run.stats.rejected = int(march.attempts) - self.n - n
        self._note(rows, fraction[:n].tolist(), place[:n].tolist(), int(march.segment))
        return n

    def _note(self, rows: Leaves, fractions: list[float], places: list[int], segment: int) -> None:
        """Completes the grid by the steps of a chunk, and puts out what landed."""
        n, times = len(fractions), self.run.times
        t, dt = list[float](), list[float]()
        for r, (following, j) in enumerate(zip(fractions, places, strict=True)):
            sigma, span = self.fractions[-1], times[j + 1] - times[j]
            t.append(times[j] + span * sigma)
            dt.append(span * (following - sigma))
            self.fractions.append(following)
            if (places[r + 1] if r + 1 < n else segment) > j:
                self.segments.append(Nodes(tuple(self.fractions)))
                self.fractions = [0.0]
                self._output(j + 1, self._row(rows, r + 1, n))
        self._report(rows, n, lambda: (t, dt))
        if self._through():
            self.run.grid = Grid(tuple(self.segments))

    def _row(self, rows: Leaves, r: int, n: int) -> Leaves:
        """The state before step r of a chunk of n steps, or after its last."""
        return self.state if r == n else tuple(x[r] for x in rows[: len(self.state)])

    def _output(self, j: int, state: Leaves) -> None:
        for y, leaf in zip(self.ys, state, strict=False):
            y[j] = leaf

    def _report(self, rows: Leaves, n: int, step: Callable[[], Iterable[list[float]]]) -> None:
        """Counts the steps of a chunk and tells the monitor."""
        run = self.run
        if run.monitor is None:
            run.stats.accepted += n
        else:
            run.count()
            t, dt = step()
            for r, (a, b) in enumerate(zip(t, dt, strict=True)):
                run.stats.accepted += 1
                y = self._row(rows, r + 1, n)[: self.n_y]
                run.monitor.step("forward", self.n + r, a, b, y, run.stats)
        self.n += n
