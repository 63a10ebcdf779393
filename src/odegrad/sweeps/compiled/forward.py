"""The forward sweep in compiled chunks of steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from odegrad.checkpoints import Advance, Checkpoints, Drop, Hold, Keep, Store, Tier
from odegrad.compiled import (
    Blocks,
    Inside,
    March,
    Programs,
    Pullback,
    Ticks,
    constants,
    inside_of,
)
from odegrad.errors import SolveError
from odegrad.grid import Grid, Nodes, Segment
from odegrad.state import Leaves
from odegrad.stepsize import PID, FixedStepSize
from odegrad.sweeps.adaptive import DEFAULT_MAX_STEPS, check_count, check_size, first_size
from odegrad.sweeps.compiled.chunks import number, plain, rows_like, take_steps, watched
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.labels import Sink, salvaging, sink
from odegrad.sweeps.run import Run
from odegrad.sweeps.steps import fixed_grid
from odegrad.sweeps.store import StateStore

__all__ = ["forward"]


def forward(
    run: Run,
    programs: Programs,
    y: Leaves,
    p: Leaves,
    checkpoints: Checkpoints | None = None,
    pull: Pullback | None = None,
) -> tuple[Leaves, Kept | None]:
    """Solves, and returns the outputs and what is kept for the backward sweep.

    Arguments:
        run: The solve; its grid and statistics are filled in.
        programs: The compiled steps of its vector field and scheme.
        y: The initial state.
        p: The tensors that f reads.
        checkpoints: What to keep; None keeps nothing.
        pull: Says what is kept of the steps on the tape.
    """
    outputs = sink(run, y, p, on_graph=False)
    with watched(run, programs, "forward"), salvaging(run, outputs, y):
        march = _Forward(run, programs, y, p, outputs, pull, checkpoints)
        if checkpoints is None or len(run.times) < 2:
            march.advance(0, None, None, None)
        else:
            march.follow(checkpoints)
    run.stats.forward_evaluations = run.stats.f_evaluations
    return outputs.result(), march.kept


class _Forward:
    """The resumable march of a forward sweep, chunk by chunk."""

    def __init__(
        self,
        run: Run,
        programs: Programs,
        y: Leaves,
        p: Leaves,
        outputs: Sink,
        pull: Pullback | None,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.run, self.programs, self.n_y = run, programs, len(y)
        self.p = plain(p[: programs.n_read])
        self.pull, self.n = pull, 0
        self.outputs = outputs
        outputs.put(0, y)
        self.times = torch.tensor(run.times, dtype=torch.float64)
        self.device, self.landed = programs.device, [run.times[j] for j in run.landed]
        self.inside: Leaves = ()  # what states inside of the steps of a chunk are read from
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
            size, n = 1 << (len(self.landed) - 1).bit_length(), len(self.landed)
            padding = [self.landed[-1]] * (size - n)
            landings = torch.tensor([*self.landed, *padding], dtype=torch.float64)
            self.landings = landings.to(self.device)
        else:
            self.ticks = Ticks(run.accepted_grid, self.times, run.stops)
        self.known = None if run.grid is None else run.grid.n_steps
        self.kept: Kept | None = None
        if checkpoints is not None:
            n = sys.maxsize if self.known is None else max(1, self.known)
            bounds = checkpoints.bounds(n, self.known is not None)
            self.kept = Kept(StateStore(bounds, self.state, self.known is not None))

    def follow(self, checkpoints: Checkpoints) -> None:
        """Does what the schedule says, as far as the solve goes."""
        kept, actions = self.kept, checkpoints.forward(self.known)
        assert kept is not None
        while not self._through():
            match next(actions):
                case Advance(start, stop, every, keep):
                    if checkpoints.holds is Hold.LAST:
                        kept.held = Current(start, self.state, None)
                    self.advance(start, stop, every, keep)
                case Store(i, tier):
                    assert i == self.n, f"state {self.n} is current, not {i}"
                    kept.store.put(i, self.state, None, tier)
                case Drop(i):
                    kept.store.drop(i)
                case action:
                    raise AssertionError(f"{action} has no place in a forward sweep")
        kept.settle()
        if self.run.loss is not None:
            kept.end = tuple(x.clone() for x in self.state[: self.n_y])
        self.run.stats.note(kept)

    def advance(self, start: int, stop: int | None, every: int | None, keep: Keep | None) -> None:
        """Takes steps until state `stop`, or the end."""
        assert start == self.n, f"state {self.n} is current, not {start}"
        kept, pull = self.kept, None if keep is None else self.pull
        size, scratch, tape = self.programs.rows(pull), None, Blocks()
        if kept is not None and keep is not None:
            kept.tape = tape
        while not self._through() and (stop is None or self.n < stop):
            like = (*self.state, *(pull.kept if pull is not None else ()))
            rows = scratch or rows_like(like, size)
            if self.run.stops is not None and not (self.inside and len(self.inside[0]) == size):
                self.inside = self.programs.inside(size)
            first, taken = self.n, self._adaptive if self.control is not None else self._fixed
            rows, n = taken(rows, stop, pull)
            scratch = rows if keep is None and len(rows[0]) == size else None
            if keep is not None:  # rows that were not written take no memory where it is virtual
                tape.put(first, n, rows)
            if every is not None:
                assert kept is not None
                for i in range(first + (start - first) % every, first + n, every):
                    kept.store.put(i, self._row(rows, i - first, n), None, Tier.DEVICE)

    def _through(self) -> bool:
        if len(self.run.times) < 2:
            return True
        if self.control is not None:
            return len(self.segments) == len(self.landed) - 1
        return self.n == self.run.accepted_grid.n_steps

    def _fixed(self, rows: Leaves, stop: int | None, pull: Pullback | None) -> tuple[Leaves, int]:
        """Takes the steps of a known grid until the buffers are full; returns them, and how many."""
        end = self.run.accepted_grid.n_steps if stop is None else stop
        n = min(len(rows[0]), end - self.n)
        self.state = take_steps(
            self.run, self.programs, pull, self.ticks, self.n, n, self.state, rows, self.p,
            self.inside,
        )  # fmt: skip
        self._read(self.ticks.inside(self.n, self.n + n), rows, self.inside)
        for j, i in self.ticks.landings(self.n, self.n + n):
            self.outputs.put(j, self._row(rows, i - self.n, n)[: self.n_y])
        self._report(rows, n, partial(self._times, self.n, n))
        return rows, n

    def _times(self, start: int, n: int) -> Iterable[list[float]]:
        return [x.tolist() for x in self.ticks.step(start, start + n)]

    def _adaptive(
        self, rows: Leaves, stop: int | None, pull: Pullback | None
    ) -> tuple[Leaves, int]:
        """Attempts steps until the buffers are full, or state `stop` is reached, or the end."""
        run, control = self.run, self.control
        assert control is not None
        limit = DEFAULT_MAX_STEPS if run.max_steps is None else run.max_steps
        segments = number(len(self.landed) - 1, self.device)
        read = run.stops is not None
        loop = self.programs.adaptive_march(control.norm, len(self.landings), pull, read)
        zero, size = number(0, self.device), len(rows[0])
        fraction, place = rows_like((zero.double(), zero), size)
        # A loop ends with its last row: if it has to end earlier, it does not begin with the first.
        begin = 0 if stop is None else max(0, size - (stop - self.n))
        march = self.march._replace(row=number(begin, self.device))
        while True:
            attempts = int(march.attempts)
            found = loop(
                *march,
                *self.state,
                *rows,
                *self.inside,
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
            run.field.evaluations += attempts * self.programs.step_evaluations(read)
            if not bool(march.stuck):
                break
            try:
                self._look(march, control, begin)
            except SolveError:
                self._take_in(march, begin, rows, fraction, place)
                raise
            march = march._replace(stuck=number(False, self.device))
        return self._take_in(march, begin, rows, fraction, place)

    def _look(self, march: March, control: PID, begin: int) -> None:
        """Refuses to go on if steps are too small, or too many."""
        stats, taken = self.run.stats, self.n + int(march.row) - begin
        accepted = stats.accepted
        stats.rejected, stats.accepted = int(march.attempts) - taken, taken
        numbers = (float(march.t), float(march.taken), float(march.h), float(march.ratio))
        try:
            check_size(self.run, control, *numbers, self.state[: self.n_y], self.p)
            check_count(self.run, numbers[0], numbers[1])
        finally:
            stats.accepted = accepted

    def _take_in(
        self, march: March, begin: int, rows: Leaves, fraction: Tensor, place: Tensor
    ) -> tuple[Leaves, int]:
        """Takes in the steps of a chunk, which begin at a row; returns their rows, and how many."""
        self.march, end = march, int(march.row)
        n, rows = end - begin, rows if begin == 0 else tuple(x[begin:] for x in rows)
        self.run.stats.rejected = int(march.attempts) - self.n - n
        fractions, places = fraction[begin:end].tolist(), place[begin:end].tolist()
        inside = tuple(x[begin:] for x in self.inside)
        self._note(rows, inside, fractions, places, int(march.segment))
        return rows, n

    def _note(
        self,
        rows: Leaves,
        inside: Leaves,
        fractions: list[float],
        places: list[int],
        segment: int,
    ) -> None:
        """Completes the grid by the steps of a chunk, and puts out what landed or lies inside."""
        n, times, stops = len(fractions), self.landed, self.run.stops
        t, dt, numbers, steps = list[float](), list[float](), list[int](), list[int]()
        landed = list[tuple[int, int]]()
        for r, (following, j) in enumerate(zip(fractions, places, strict=True)):
            sigma, span = self.fractions[-1], times[j + 1] - times[j]
            t.append(times[j] + span * sigma)
            dt.append(span * (following - sigma))
            if stops is not None:
                found = stops.inside(j, sigma, following)
                numbers += found
                steps += [r] * len(found)
            self.fractions.append(following)
            if (places[r + 1] if r + 1 < n else segment) > j:
                self.segments.append(Nodes(tuple(self.fractions)))
                self.fractions = [0.0]
                landed.append((self.run.landed[j + 1], r + 1))
        if numbers:
            ends = (torch.tensor(x, dtype=torch.float64) for x in (t, dt))
            self._read(inside_of(self.times, numbers, steps, *ends), rows, inside)
        for j, r in landed:
            self.outputs.put(j, self._row(rows, r, n)[: self.n_y])
        self._report(rows, n, lambda: (t, dt))
        if self._through():
            self.run.grid = Grid(tuple(self.segments))

    def _read(self, at: Inside | None, rows: Leaves, inside: Leaves) -> None:
        """Puts out the states at times inside of the steps of a chunk."""
        for piece in [] if at is None else at.pieces(len(rows[0])):
            found = self.programs.reading.states(piece, rows[: self.n_y], inside)
            self.outputs.put_all(piece.numbers, found)

    def _row(self, rows: Leaves, r: int, n: int) -> Leaves:
        """The state before step r of a chunk of n steps, or after its last."""
        return self.state if r == n else tuple(x[r] for x in rows[: len(self.state)])

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
