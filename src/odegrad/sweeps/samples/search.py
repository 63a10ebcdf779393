"""The search for the steps of each sample: adaptive, without gradients.

One attempt is one step of the whole batch, t and h being of shape [B]. Each sample accepts or rejects it
for itself, as `odegrad.sweeps.adaptive` does: the numbers that are kept there in Python are float64
tensors of shape [B] here, and every `if` is a `torch.where`. A sample that is at its end, or has failed,
sits out. Nothing is differentiated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odegrad.errors import RejectStep, SolveError, annotate
from odegrad.samplegrid import SampleGrid
from odegrad.samplestops import Reading
from odegrad.schemes.base import Step
from odegrad.state import Leaves, choose, number
from odegrad.stepsize import PID
from odegrad.stepsize.persample import Judged, judge, sample_norms
from odegrad.stepsize.pid import starting_size
from odegrad.sweeps.adaptive import DEFAULT_MAX_STEPS
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.obstacle import Stuck, obstacle
from odegrad.sweeps.samples.outputs import Buffers
from odegrad.sweeps.samples.reads import rejecting, wanted_at
from odegrad.sweeps.samples.record import StepRecord
from odegrad.sweeps.samples.tape import SampleTape

__all__ = ["March", "first_sizes", "search"]

_CAUTIOUS = 1e-3
"""The first attempt as a part of the whole, if f rejects the step by which it is estimated."""


def search(
    run: SampleRun, y: Leaves, p: Leaves, outputs: Buffers, tape: SampleTape | None
) -> SampleGrid:
    """Finds the steps of each sample; those that failed are in `run.failures`, and have none.

    Arguments:
        run: The solve.
        y: The initial state.
        p: The tensors that f reads, bound.
        outputs: Takes in the states at the times of the samples.
        tape: Takes in the states before all steps, or None.
    """
    with torch.no_grad():
        march = March(run, y, p)
        while march.goes_on:
            if tape is not None:
                tape.put(march.accepted, (*march.y, *march.carry))
            march.attempt(outputs, tape)
        run.stats.tell(march.accepted, march.rejected_steps)
        return march.grid()


def first_sizes(run: SampleRun, y: Leaves, p: Leaves) -> Tensor:
    """The size of the first attempt of each sample, float64 of shape [B], on the CPU."""
    control, times = run.stepsize, run.landings
    assert isinstance(control, PID)
    if control.dt0 is not None:
        return torch.full_like(times[:, 0], control.dt0)
    start = times[:, 0].contiguous().to(y[0].device)
    direction = torch.where(times[:, -1] < times[:, 0], -1.0, 1.0).to(start)

    def norm(x: Leaves, y0: Leaves, y1: Leaves) -> Tensor:
        return sample_norms(control, x, y0, y1)

    try:
        h = starting_size(run.field, norm, run.scheme.order, start, direction, y, p)
    except RejectStep:
        h = _CAUTIOUS * (times[:, -1] - times[:, 0]).abs()
    return h.to(device="cpu", dtype=torch.float64).clamp(min=control.dt_min)


class March:
    """Where the samples are.

    Arguments:
        run: The solve.
        y: The initial state.
        p: The tensors that f reads, bound.
    """

    def __init__(self, run: SampleRun, y: Leaves, p: Leaves) -> None:
        control, order = run.stepsize, run.scheme.error_order
        assert isinstance(control, PID)
        assert order is not None
        self._run, self._control, self._order, self._p = run, control, order, p
        self._scheme, size = run.persample(y), run.n_samples
        self._times = run.landings
        self._last_segment = run.segments
        self._reading = None if run.stops is None else Reading(run.stops)
        self._limit = run.max_steps or DEFAULT_MAX_STEPS
        self._extent = (self._times[:, -1] - self._times[:, 0]).abs()
        self._all = torch.arange(size, device="cpu")
        # Per sample: the segment, what of it is done, what the controller remembers.
        self._j = torch.zeros(size, dtype=torch.int64, device="cpu")
        self._sigma = torch.zeros(size, dtype=torch.float64, device="cpu")
        self._last = self._before = torch.ones(size, dtype=torch.float64, device="cpu")
        self._rejected = torch.zeros(size, dtype=torch.bool, device="cpu")
        self._remembers = control.p != 0.0 or control.d != 0.0
        self.accepted, self.rejected_steps = torch.zeros_like(self._j), torch.zeros_like(self._j)
        self._set_active(self._last_segment > 0)
        self._segment = self._located()
        # A little larger than the steps that are too small, which are looked at exactly.
        extent = torch.maximum(self._times.abs().amax(1), self._extent) if size else self._extent
        tiny = extent * (16.0 * torch.finfo(torch.float64).eps)
        self._tiny = tiny.clamp(min=control.dt_min)
        self._record = StepRecord(size, self._times.shape[1] - 1, run.most_rounds)
        self.y, self.carry = y, Leaves(())
        self._h = torch.ones_like(self._sigma)
        if self.goes_on:
            self._h = first_sizes(run, y, p)
            start = self._times[:, 0].contiguous()
            self.carry = self._scheme.init(run.field, start, y, p)

    def _located(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the segment of each sample begins, how far it goes, and how long it is."""
        start = self._times[self._all, self._j]
        span = self._times[self._all, torch.minimum(self._j + 1, self._last_segment)] - start
        return start, span, span.abs()

    def _set_active(self, active: Tensor) -> None:
        """Takes note of which samples are under way."""
        self.active, self._part = active, None
        self.goes_on, self._whole = bool(active.any()), bool(active.all())

    def sit_out(self, b: int) -> None:
        """Sample b takes no further step, unless there is no other one."""
        if len(self._all) > 1:
            self._set_active(self.active & (self._all != b))

    def attempt(self, outputs: Buffers, tape: SampleTape | None) -> None:
        """One step of all samples that are active."""
        run, control = self._run, self._control
        start, span, length = self._segment
        size = self._h if control.dt_max == math.inf else self._h.clamp(max=control.dt_max)
        left = length * (1.0 - self._sigma)
        lands = size >= left * (1.0 - 1e-10)
        following = torch.where(lands, number(1.0), self._sigma + size / length)
        width = following - self._sigma
        t, dt, taken = start + span * self._sigma, span * width, length * width
        run.stats.rounds += 1
        step, ratio = self._take(t, self._of_active(dt), tape)
        judged = judge(control, ratio, self._last, self._before, self._rejected, self._order)
        accept = judged.accept if self._whole else judged.accept & self.active
        landed = accept & lands
        lands_any = bool(landed.any())
        self._record.put(accept, self._j, self._sigma, width)
        self._plan(accept, judged, size, taken, (lands, left) if lands_any else None)
        if self._reading is not None:
            self._read(outputs, self._reading.inside(accept, self._j, following), t, dt, step)
        self._accept(accept, (step.y, step.carry))
        stuck = self._stuck(landed)
        forward = torch.where(lands, number(0.0), following) if lands_any else following
        self._sigma = torch.where(accept, forward, self._sigma)
        if lands_any:
            b = landed.nonzero().squeeze(1)
            self._j = self._j + landed
            stops = run.stops
            place = (self._j[b], b) if stops is None else stops.labels(self._j[b], b)
            outputs.put(*place, self.y)
            self._set_active(self.active & (self._j < self._last_segment))
            self._segment = self._located()
        if bool(stuck.any()):
            self._look(stuck, t, taken, ratio)
        if run.monitor is not None and bool(accept.any()):
            dt = dt.masked_fill(~accept, float("nan"))
            run.monitor.step("forward", run.stats.rounds - 1, t, dt, self.y, run.stats)  # pyright: ignore

    def _of_active(self, dt: Tensor) -> Tensor:
        """Steps, NaN where samples sit out."""
        return dt if self._whole else torch.where(self.active, dt, number(math.nan))

    def _plan(
        self,
        accept: Tensor,
        judged: Judged,
        size: Tensor,
        taken: Tensor,
        landing: tuple[Tensor, Tensor] | None,
    ) -> None:
        """The size of the next attempt, and what the controller remembers of this one.

        This is what `odegrad.sweeps.adaptive` does after a step that is accepted, and after one that is
        not. An accepted step of no length, between equal times, leaves no trace.

        Arguments:
            accept: Which samples accept it.
            judged: The controller's decisions.
            size: The size that was asked for.
            taken: The length that was taken.
            landing: Which attempts end at a landing time, and how much was left; None if none that is
                accepted does.
        """
        control, h = self._control, self._h
        moved, reject = accept & (taken > 0.0), self.active ^ accept
        stays = accept ^ moved
        grown = retried = taken * judged.factor
        if control.dt_min > 0.0:
            grown = retried.clamp(min=control.dt_min)
            retried = torch.where(torch.minimum(size, taken) > control.dt_min, grown, retried)
        if landing is not None:
            lands, left = landing
            cut = lands & (left < h) & ~self._rejected
            grown = torch.where(cut, torch.maximum(h, grown), grown)
        follows = grown if grown is retried else torch.where(accept, grown, retried)
        self._h = torch.where(stays, h, follows)
        if self._remembers:
            self._before = torch.where(moved, self._last, self._before)
            self._last = torch.where(moved, judged.last, self._last)
        self._rejected = reject | (self._rejected & stays)
        self.accepted, self.rejected_steps = self.accepted + accept, self.rejected_steps + reject

    def _take(
        self, t: Tensor, dt: Tensor, tape: SampleTape | None, half: bool = False
    ) -> tuple[Step, Tensor]:
        """A step of the samples whose dt is a number, and the error ratios.

        If f rejects the step, halves of the samples take it, to find for which it does.
        """
        run, n = self._run, self._run.field.n_state
        if self._part is None:
            self._part = self._scheme.part(self.active, self._p)
        part = None if half else self._part
        try:
            step = self._scheme.attempt(run.field, t, dt, self.y, self.carry, self._p, part)
        except RejectStep:
            b = (~torch.isnan(dt)).nonzero().squeeze(1)
            if len(b) <= 1:
                return Step(self.y, self.carry), torch.full_like(t, math.inf)
            some = torch.zeros_like(self.active)
            some[b[: len(b) // 2]] = True
            nan = float("nan")
            one, ratio = self._take(t, dt.masked_fill(~some, nan), tape, half=True)
            two, other = self._take(t, dt.masked_fill(some, nan), tape, half=True)
            both = _either(some.to(self.y[0].device), one, two)
            return both, torch.where(some, ratio, other)
        except Exception as error:
            annotate(error, f"in round {run.stats.rounds - 1} of a solve with batch=0")
            raise
        assert step.error is not None
        if tape is not None:
            tape.put_slopes(self.accepted, step.dense, dt)
        ratio = sample_norms(self._control, step.error[:n], self.y[:n], step.y[:n])
        return step, ratio.to(device="cpu", dtype=torch.float64)

    def _read(
        self,
        outputs: Buffers,
        places: list[tuple[Tensor, Tensor]],
        t: Tensor,
        dt: Tensor,
        step: Step,
    ) -> None:
        """Puts out the states of samples at their times inside of a step."""
        run = self._run
        wanted = wanted_at(run.outputs_at, places)
        found, failed = rejecting(run, self._scheme, wanted, t, dt, self.y, step, self._p)
        for place, y in found:
            outputs.put(*place, y)
        for b, error in failed.items():
            self._fail(b, error)

    def _accept(self, accept: Tensor, after: tuple[Leaves, Leaves]) -> None:
        if self._whole and bool(accept.all()):
            self.y, self.carry = after
            return
        self.y, self.carry = choose(accept, after[0], self.y), choose(accept, after[1], self.carry)

    # Failures.

    def _stuck(self, landed: Tensor) -> Tensor:
        """The samples that have to be looked at: the next step is very small, or there were many."""
        stuck = (self._h < self._tiny) & ~landed
        if self._run.stats.rounds >= self._limit:
            done = landed & (self._j + 1 >= self._last_segment)
            stuck = stuck | ((self.accepted + self.rejected_steps >= self._limit) & ~done)
        return stuck & self.active

    def _look(self, stuck: Tensor, t: Tensor, taken: Tensor, ratio: Tensor) -> None:
        """Samples that cannot go on fail."""
        for b in stuck.nonzero().squeeze(1).tolist():
            at = Stuck(
                b,
                t=float(t[b]),
                taken=float(taken[b]),
                ratio=float(ratio[b]),
                h=float(self._h[b]),
                extent=float(self._extent[b]),
                end=float(self._times[b, -1]),
                accepted=int(self.accepted[b]),
                rejected=int(self.rejected_steps[b]),
            )
            error = obstacle(at, self._control, self._limit)
            if error is not None:
                self._fail(b, error)

    def _fail(self, b: int, error: SolveError) -> None:
        """A sample fails: it takes no further step."""
        run = self._run
        run.stats.tell(self.accepted, self.rejected_steps)
        run.fail(b, error)
        self._set_active(self.active & (self._all != b))
        self._scheme = run.persample(self._scheme.y0)

    def grid(self) -> SampleGrid:
        """The accepted steps; what was found of them is gone then."""
        grid = self._record.grid()
        return grid.without(self._run.failed) if self._run.failures else grid


def _either(mask: Tensor, one: Step, two: Step) -> Step:
    """A step of samples of which some, where the mask is set, took the first, and others the second."""
    dense = one.dense or two.dense  # none is known of a sample for which f rejects it
    if one.dense and two.dense:
        dense = tuple(choose(mask, a, b) for a, b in zip(one.dense, two.dense, strict=True))
    return Step(choose(mask, one.y, two.y), choose(mask, one.carry, two.carry), dense=dense)
