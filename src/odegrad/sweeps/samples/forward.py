"""The forward sweep of a batch: a search for the steps, or the rounds of steps that are known."""

from __future__ import annotations

from collections.abc import Generator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.checkpoints import Advance, Checkpoints, Drop, Hold, Keep, Store, StoreAll, Tier
from odegrad.errors import MaxStepsError, NonFiniteStateError, RejectStep, annotate
from odegrad.grid import Grid
from odegrad.replay import Snapshot
from odegrad.samplegrid import SampleClock, SampleGrid
from odegrad.schemes.base import Step
from odegrad.schemes.persample import PerSample
from odegrad.state import Leaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.fingerprint import Fingerprint
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.outputs import Buffers, picked
from odegrad.sweeps.samples.search import search
from odegrad.sweeps.samples.tape import KeptStep, SampleGraphs, SampleTape
from odegrad.sweeps.store import StateStore
from odegrad.sweeps.tape import Tape

__all__ = ["Round", "ahead", "remembered", "replayed", "rounds", "taped"]


class Round(NamedTuple):
    """A round: its number, where it began, and what came out."""

    n: int
    t: Tensor
    dt: Tensor
    y: Leaves
    carry: Leaves
    snapshot: Snapshot | None
    step: Step
    evaluations: int


def rounds(
    run: SampleRun,
    scheme: PerSample,
    clock: SampleClock,
    start: int,
    stop: int,
    y: Leaves,
    carry: Leaves,
    p: Leaves,
) -> Generator[Round, tuple[Leaves, Leaves] | None, None]:
    """Takes the rounds start … stop − 1 from the state before round `start`.

    It may be sent the state and the carry to go on from.
    """
    field = run.field
    for n in range(start, stop):
        t, dt = clock.step(n)
        snapshot, before = field.snapshot(), field.evaluations
        try:
            step = scheme.step(field, t, dt, y, carry, p)
        except Exception as error:
            annotate(error, f"in round {n} of a solve with batch=0")
            raise
        count = field.evaluations - before
        sent = yield Round(n, t, dt, y, carry, snapshot, step, count)
        y, carry = sent or (step.y, step.carry)


def ahead(
    run: SampleRun, y: Leaves, p: Leaves, checkpoints: Checkpoints | None, timed: bool = False
) -> tuple[Leaves, Kept | None]:
    """Solves, and returns the outputs and what is kept for the backward sweep.

    Arguments:
        run: The solve; its steps, failures and statistics are filled in.
        y: The initial state.
        p: The tensors that f reads, bound.
        checkpoints: What to keep; None keeps nothing.
        timed: Whether the times are to get cotangents.

    Returns:
        Leaves of shape [T, B, …], and what was kept.
    """
    y = tuple(leaf.clone() for leaf in y)  # the caller's tensors are never handed to f
    if run.monitor is not None:
        run.monitor.start("forward")
    run.initial = run.field.snapshot()
    try:
        grid, found = steps_of(run, y, p, checkpoints, wanted=checkpoints is None)
        if found is not None:
            return found
        return _walked(run, grid, y, p, checkpoints, timed)
    finally:
        run.count()
        run.stats.forward_evaluations = run.stats.f_evaluations
        if run.monitor is not None:
            run.monitor.stop()


def steps_of(
    run: SampleRun, y: Leaves, p: Leaves, checkpoints: Checkpoints | None, wanted: bool
) -> tuple[SampleGrid, tuple[Leaves, Kept | None] | None]:
    """The steps, and what a sweep would return, if it came out on the way.

    Arguments:
        run: The solve.
        y: The initial state.
        p: The tensors that f reads, bound.
        checkpoints: What to keep, or None.
        wanted: Whether outputs alone are enough.
    """
    run.failures, run.reached = {}, None
    if isinstance(run.stepsize, FixedStepSize):
        run.steps = fixed_steps(run)
        counts = run.steps.counts
        run.stats.tell(counts, torch.zeros_like(counts))
        return run.steps, None
    # What f draws and counts in a search is not what it draws in the rounds: these come once more.
    once = run.initial is None
    all_states = isinstance(checkpoints, StoreAll) and checkpoints.keep is not Keep.GRAPH
    tape = SampleTape(checkpoints.keep) if once and isinstance(checkpoints, StoreAll) and all_states else None
    monitor = run.monitor
    outputs = Buffers(y, run.landings.shape[1])
    try:
        if not (once and (wanted or tape is not None)):
            run.monitor = None
        run.steps = search(run, y, p, outputs, tape)
    finally:
        run.monitor = monitor
        if run.initial is not None:
            run.initial.restore()
    if run.failures:
        run.reached = outputs.result()
    if not once or not (wanted or tape is not None):
        return run.steps, None
    kept = None
    if tape is not None:
        kept = Kept(StateStore(checkpoints.bounds(1, known=True), y, known=False), tape)  # pyright: ignore
        ends = tuple(x[-1] for x in outputs.result())
        run.fingerprints = remembered(run, run.steps, ends, p)
        run.stats.note(kept)
    return run.steps, (tuple(x.clone() for x in outputs.result()), kept)


def fixed_steps(run: SampleRun) -> SampleGrid:
    """The steps of step sizes that do not depend on the solution.

    Raises:
        MaxStepsError: If a sample has more than `run.max_steps`.
    """
    control, size = run.stepsize, run.n_samples
    assert isinstance(control, FixedStepSize)
    n_segments = run.landings.shape[1] - 1
    if isinstance(control, SampleGrid):
        control.check_samples(size, n_segments)
        grid = control
    else:
        control.check(n_segments)
        same: dict[tuple[float, ...], Grid] = {}
        grids: list[Grid] = []
        for times in map(tuple, run.landings.tolist()):
            if times not in same:
                pairs = zip(times, times[1:], strict=False)
                parts = [control.segment(j, a, b, run.eps) for j, (a, b) in enumerate(pairs)]
                same[times] = Grid(tuple(parts))
            grids.append(same[times])
        grid = SampleGrid.of(grids)
    if run.max_steps is not None and grid.n_steps > run.max_steps:
        b = int(grid.counts.argmax())
        raise MaxStepsError(
            f"sample {b} of the batch takes {grid.n_steps} steps, max_steps is {run.max_steps}; "
            "raise max_steps or take larger steps"
        )
    return grid


def _walked(
    run: SampleRun,
    grid: SampleGrid,
    y: Leaves,
    p: Leaves,
    checkpoints: Checkpoints | None,
    timed: bool,
) -> tuple[Leaves, Kept | None]:
    """The outputs along known steps, and what is kept; once more if samples fail on a fixed grid."""
    outputs = Buffers(y, run.landings.shape[1])
    try:
        walk = _Walk(run, grid, y, p, outputs, checkpoints, timed)
        walk.follow()
    except RejectStep as error:  # f says so of the batch as a whole
        for b in range(run.n_samples):
            run.fail(b, error)
        run.reached = outputs.result()
        run.steps = grid.without(run.failed)
        outputs = Buffers(y, run.landings.shape[1])
        walk = _Walk(run, run.steps, y, p, outputs, checkpoints, timed)
        walk.follow()
        return outputs.result(), walk.kept
    if run.check_finite and _fail_if_not_finite(run, outputs.result()):
        run.reached = tuple(x.clone() for x in outputs.result())
        run.steps = grid.without(run.failed)
        if run.initial is not None:
            run.initial.restore()
        return _walked(run, run.steps, y, p, checkpoints, timed)
    return outputs.result(), walk.kept


def _fail_if_not_finite(run: SampleRun, outputs: Leaves) -> bool:
    """Whether there are samples of a fixed grid that fail, since their states are not finite."""
    if not isinstance(run.stepsize, FixedStepSize) or run.failures:
        return False
    finite = torch.ones(outputs[0].shape[:2], dtype=torch.bool, device=outputs[0].device)
    for x in outputs:
        finite &= torch.isfinite(x).flatten(2).all(2) if x.ndim > 2 else torch.isfinite(x)
    finite = finite.cpu()
    for b in (~finite.all(0)).nonzero().squeeze(1).tolist():
        j = int((~finite[:, b]).nonzero()[0])
        t = float(run.landings[b, j])
        run.fail(
            b,
            NonFiniteStateError(
                f"sample {b} of the batch is NaN or infinite at its time {j}, t = {t:.6g}. The steps may "
                "be too large for stability, or the solution may blow up: take smaller steps, or adaptive "
                'ones, which find the place, or go on without this sample: on_failure="nan". '
                "(check_finite=False returns such numbers.)"
            ),
        )
        for x in outputs:
            x[j:, b] = float("nan")
    return bool(run.failures)


class _Walk:
    """The march along known rounds that keeps what a schedule says."""

    def __init__(
        self,
        run: SampleRun,
        grid: SampleGrid,
        y: Leaves,
        p: Leaves,
        outputs: Buffers,
        checkpoints: Checkpoints | None,
        timed: bool,
    ) -> None:
        self._run, self._p, self._outputs, self._timed = run, p, outputs, timed
        self._n, self._stop, self._grid = 0, grid.n_steps, grid
        self._clock, self._scheme = SampleClock(grid, run.landings), run.persample(y)
        carry: Leaves = ()
        if self._stop:
            with torch.no_grad():
                carry = self._scheme.init(run.field, run.landings[:, 0].contiguous(), y, p)
        self._state = (y, carry)
        self.kept: Kept | None = None
        self._checkpoints = checkpoints
        if checkpoints is not None:
            bounds = checkpoints.bounds(max(1, self._stop), known=True)
            self.kept, self._rows = Kept(StateStore(bounds, (*y, *carry), True)), bounds.tape

    def follow(self) -> None:
        """Goes to the end, as the schedule says."""
        run, kept, checkpoints = self._run, self.kept, self._checkpoints
        if checkpoints is None or kept is None:
            self._advance(self._stop, None, None)
            return
        field = run.field
        for action in checkpoints.forward(self._stop) if self._stop else ():
            match action:
                case Advance(start, stop, every, keep):
                    assert start == self._n
                    if checkpoints.holds is Hold.LAST:
                        kept.held = Current(start, self._flat(), field.snapshot())
                    self._advance(self._stop if stop is None else stop, every, keep)
                case Store(i, tier):
                    assert i == self._n
                    kept.store.put(i, self._flat(), field.snapshot(), tier)
                case Drop(i):
                    kept.store.drop(i)
                case _:
                    raise AssertionError(f"{action} has no place in a forward sweep")
        if checkpoints.holds is Hold.END and self._stop:
            kept.held = Current(self._n, self._flat(), field.snapshot())
        kept.settle()
        run.fingerprints = remembered(run, self._grid, self._state[0], self._p)
        run.stats.note(kept)

    def _flat(self) -> Leaves:
        return tuple(x.detach() for x in chain(*self._state))

    def _advance(self, stop: int, every: int | None, keep: Keep | None) -> None:
        """Takes rounds until state `stop`."""
        kept, start, run = self.kept, self._n, self._run
        tape: Tape | None = None
        graphs: SampleGraphs | None = None
        if kept is not None and keep is Keep.GRAPH:
            kept.tape = graphs = SampleGraphs(self._p, self._timed)
        elif kept is not None and keep is not None:
            kept.tape = tape = Tape(keep, self._rows)
        if graphs is not None:
            self._graphed(graphs, stop)
            return
        with torch.no_grad():
            walk = rounds(run, self._scheme, self._clock, start, stop, *self._state, self._p)
            for found in walk:
                state = (*found.y, *found.carry)
                if kept is not None and every is not None and (found.n - start) % every == 0:
                    kept.store.put(found.n, state, found.snapshot, Tier.DEVICE)
                if tape is not None:
                    tape.put(found.n, state, found.snapshot, found.step.dense)
                self._accept(found.n, found.t, found.dt, (found.step.y, found.step.carry))

    def _graphed(self, graphs: SampleGraphs, stop: int) -> None:
        walk = graphed(
            self._run, self._scheme, self._clock, self._n, stop, self._state, self._p, graphs
        )
        for n, t, dt, state in walk:
            self._accept(n, t, dt, state)

    def _accept(self, n: int, t: Tensor, dt: Tensor, state: tuple[Leaves, Leaves]) -> None:
        self._state, self._n, run = state, n + 1, self._run
        at = self._clock.landing(n)
        if at is not None:
            self._outputs.put(*at, state[0])
        if isinstance(run.stepsize, FixedStepSize):
            run.stats.rounds += 1
        if run.monitor is not None:
            run.monitor.step("forward", n, t, dt, state[0], run.stats)  # pyright: ignore


def graphed(
    run: SampleRun,
    scheme: PerSample,
    clock: SampleClock,
    start: int,
    stop: int,
    state: tuple[Leaves, Leaves],
    p: Leaves,
    graphs: SampleGraphs,
) -> Generator[tuple[int, Tensor, Tensor, tuple[Leaves, Leaves]]]:
    """Takes rounds, each on a graph of its own; yields n, t, dt and the state after each."""
    field, n_y = run.field, len(state[0])
    for n in range(start, stop):
        t, dt = clock.step(n)
        if graphs.timed:
            t, dt = t.detach().requires_grad_(), dt.detach().requires_grad_()
        before = field.evaluations
        inputs = graphs.leaves((*state[0], *state[1]))
        with torch.enable_grad():
            step = scheme.step(field, t, dt, inputs[:n_y], inputs[n_y:], p)
        outputs = (*step.y, *step.carry)
        graphs.put(KeptStep(n, (t, dt), inputs, outputs, field.evaluations - before))
        state = (step.y, step.carry)
        yield n, t, dt, state


def remembered(
    run: SampleRun, grid: SampleGrid, ends: Leaves, p: Leaves
) -> dict[int, Fingerprint]:
    """What the first transposed round has to arrive at: the last states of the samples that are in it."""
    n, field = grid.n_steps, run.field
    if not run.replay_check or not n:
        return {}
    dtype = field.autocast[1] if field.autocast[2] else None
    last = grid.active[n - 1].to(ends[0].device)
    state = tuple(
        torch.where(last.reshape(-1, *[1] * (x.ndim - 1)), x.detach(), 0.0)
        for x in ends[: field.n_state]
    )
    return {n: Fingerprint.of(state, p, dtype)}


def replayed(run: SampleRun, y: Leaves, p: Leaves, landings: Tensor) -> Leaves:
    """The outputs along the accepted steps as an ordinary differentiable program of y, p and landings."""
    grid, scheme = run.accepted_steps, run.persample(y)
    clock, states = SampleClock(grid, landings), [y]
    if grid.n_steps:
        carry = scheme.init(run.field, landings[:, 0], y, p)
        for found in rounds(run, scheme, clock, 0, grid.n_steps, y, carry, p):
            states.append(found.step.y)
            if run.monitor is not None:
                args = (found.n, found.t, found.dt, found.step.y, run.stats)
                run.monitor.step("forward", *args)  # pyright: ignore[reportArgumentType]
    return picked(states, grid)


def taped(run: SampleRun, y: Leaves, p: Leaves, landings: Tensor) -> Leaves:
    """The outputs on the autograd graph; the steps are searched for off it first."""
    run.initial = run.field.snapshot()
    if run.monitor is not None:
        run.monitor.start("forward")
    try:
        with torch.no_grad():
            own = tuple(x.detach().clone() for x in y)
            if isinstance(run.stepsize, FixedStepSize) and run.salvage and run.check_finite:
                ahead_run(run, own, p)
            else:
                steps_of(run, own, p, None, wanted=False)
        outputs = replayed(run, tuple(x.clone() for x in y), p, landings)
        if run.check_finite and not run.salvage:
            _fail_if_not_finite(run, tuple(x.detach().clone() for x in outputs))
        return outputs
    finally:
        run.count()
        run.stats.forward_evaluations = run.stats.f_evaluations
        if run.monitor is not None:
            run.monitor.stop()


def ahead_run(run: SampleRun, y: Leaves, p: Leaves) -> None:
    """Finds the samples that fail on a fixed grid, by a sweep that leaves nothing else behind."""
    monitor, run.monitor = run.monitor, None
    try:
        grid, _ = steps_of(run, y, p, None, wanted=True)
        rounds_before = run.stats.rounds
        _walked(run, grid, y, p, None, timed=False)
        run.stats.rounds = rounds_before
    finally:
        run.monitor = monitor
        if run.initial is not None:
            run.initial.restore()
