"""Adaptive steps in compiled chunks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from odegrad.compiled import March, Pullback, constants, inside_of
from odegrad.errors import SolveError
from odegrad.grid import Grid, Nodes, Segment
from odegrad.state import Leaves
from odegrad.stepsize import PID
from odegrad.sweeps.adaptive import DEFAULT_MAX_STEPS, check_count, check_size, first_size
from odegrad.sweeps.compiled.chunks import number, rows_like
from odegrad.sweeps.compiled.march import Forward

__all__ = ["Adaptive"]


class Adaptive(Forward):
    """Steps as the controller says: attempted in a loop on the device, looked at between chunks."""

    def begin(self, y: Leaves, p: Leaves) -> None:
        """The size of the first step."""
        run, control = self.run, self.run.stepsize
        assert isinstance(control, PID)
        self.control, self.landed = control, [run.times[j] for j in run.landed]
        h = run.field.bound(p, partial(first_size, run, control, y, p))
        self.march = March.start(number(h, self.device))
        self.vector = constants(control, self.device)
        self.fractions, self.segments = [0.0], list[Segment]()
        size, n = 1 << (len(self.landed) - 1).bit_length(), len(self.landed)
        padding = [self.landed[-1]] * (size - n)
        landings = torch.tensor([*self.landed, *padding], dtype=torch.float64, device="cpu")
        self.landings = landings.to(self.device)

    def through(self) -> bool:
        """Whether all segments are complete."""
        return len(self.segments) == len(self.landed) - 1

    def take(self, rows: Leaves, stop: int | None, pull: Pullback | None) -> tuple[Leaves, int]:
        """Attempts steps until the buffers are full, or state `stop` is reached, or the end."""
        run, control = self.run, self.control
        limit = DEFAULT_MAX_STEPS if run.max_steps is None else run.max_steps
        segments = number(len(self.landed) - 1, self.device)
        read = run.reads
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
            check_count(self.run, numbers[0], numbers[1])
            check_size(self.run, control, *numbers, self.state[: self.n_y], self.p)
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
            ends = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (t, dt))
            self.read(inside_of(self.times, numbers, steps, *ends), rows, inside)
        for j, r in landed:
            self.outputs.put(j, self.row(rows, r, n)[: self.n_y])
        self.report(rows, n, lambda: (t, dt))
        if self.through():
            self.run.grid = Grid(tuple(self.segments))
