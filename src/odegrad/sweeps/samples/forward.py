"""The forward sweep of a batch: a search for the steps, or the rounds of steps that are known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor

from odegrad.checkpoints import Checkpoints, Keep, StoreAll
from odegrad.errors import RejectStep
from odegrad.samplegrid import SampleGrid
from odegrad.state import Leaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps.kept import Kept
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.fixed import fail_if_not_finite, fixed_steps, note_reached
from odegrad.sweeps.samples.outputs import Buffers
from odegrad.sweeps.samples.rounds import remembered, replayed
from odegrad.sweeps.samples.search import search
from odegrad.sweeps.samples.tape import SampleTape
from odegrad.sweeps.samples.walk import Walk
from odegrad.sweeps.store import StateStore

__all__ = ["ahead", "prepare", "taped"]


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
        grid, run.prepared = run.prepared, None
        if grid is None:
            grid, found = _steps_of(run, y, p, checkpoints)
            if found is not None:
                return found
        return _walked(run, grid, y, p, checkpoints, timed)
    finally:
        run.count()
        run.stats.forward_evaluations = run.stats.f_evaluations
        if run.monitor is not None:
            run.monitor.stop()


def prepare(run: SampleRun, y: Leaves, p: Leaves) -> SampleGrid:
    """Finds the steps of a solve that is still to come, which then has no need to.

    Arguments:
        run: The solve; its steps and failures are filled in.
        y: The initial state.
        p: The tensors that f reads, bound.
    """
    run.initial = run.field.snapshot()
    with torch.no_grad():
        steps, _ = _steps_of(run, tuple(leaf.clone() for leaf in y), p, None, alone=True)
    run.prepared = steps
    return steps


def _steps_of(
    run: SampleRun, y: Leaves, p: Leaves, checkpoints: Checkpoints | None, alone: bool = False
) -> tuple[SampleGrid, tuple[Leaves, Kept | None] | None]:
    """The steps, and what a sweep would return, if a search leaves it behind.

    Arguments:
        run: The solve.
        y: The initial state.
        p: The tensors that f reads, bound.
        checkpoints: What to keep, or None.
        alone: Whether the steps are all that is wanted.
    """
    run.failures, run.reached = dict(run.excluded), None
    if isinstance(run.stepsize, FixedStepSize):
        run.steps = fixed_steps(run)
        counts = run.steps.counts
        run.stats.tell(counts, torch.zeros_like(counts))
        return run.steps, None
    tape = None
    if isinstance(checkpoints, StoreAll) and checkpoints.keep is not Keep.GRAPH:
        tape = SampleTape(checkpoints.keep)
    # What f draws and counts in a search is not what it does in the rounds: these come once more.
    serves = run.initial is None and not alone and (checkpoints is None or tape is not None)
    outputs = Buffers(y, run.outputs_at.shape[1])
    try:
        with contextlib.nullcontext() if serves else run.quiet():
            run.steps = search(run, y, p, outputs, tape if serves else None)
    finally:
        if run.initial is not None:
            run.initial.restore()
    found = outputs.result()
    if run.failures:
        run.reached = tuple(x.clone() for x in found)
    if not serves:
        return run.steps, None
    kept = None
    if checkpoints is not None:
        kept = Kept(StateStore(checkpoints.bounds(1, known=True), y, known=False), tape)
        run.fingerprints = remembered(run, run.steps, tuple(x[-1] for x in found), p)
        run.stats.note(kept)
    return run.steps, (found, kept)


def _walked(
    run: SampleRun,
    grid: SampleGrid,
    y: Leaves,
    p: Leaves,
    checkpoints: Checkpoints | None,
    timed: bool,
) -> tuple[Leaves, Kept | None]:
    """The outputs along known steps, and what is kept; once more if samples fail on a fixed grid."""
    before, rounds, outputs = run.failed, run.stats.rounds, Buffers(y, run.outputs_at.shape[1])
    try:
        walk = Walk(run, grid, y, p, outputs, checkpoints, timed)
        walk.follow()
    except RejectStep as error:
        if not run.salvage:
            raise
        walk, reason = None, error.with_traceback(None)  # whose frames hold what was kept
        found = outputs.result()
    else:
        found = outputs.result()
        if not (run.check_finite and fail_if_not_finite(run, found)):
            if run.reached is None:
                note_reached(run, found, _those(run, run.excluded))
            return found, walk.kept
        walk, reason = None, None  # what was kept is not needed any more
    with run.quiet():
        run.stats.rounds = rounds
        if reason is not None:
            under_way = [b for b in range(run.n_samples) if b not in run.failures]
            for b in _rejected(run, grid, y, p, under_way) or under_way:
                run.fail(b, reason)
            note_reached(run, found, before)
        if run.initial is not None:
            run.initial.restore()
        run.steps = grid.without(run.failed)
        del outputs, found
        return _walked(run, run.steps, y, p, checkpoints, timed)


def _rejected(
    run: SampleRun, grid: SampleGrid, y: Leaves, p: Leaves, samples: list[int]
) -> list[int]:
    """Those of some samples for which f raises `RejectStep` along known steps, found by halving.

    Arguments:
        run: The solve.
        grid: The steps.
        y: The initial state.
        p: The tensors that f reads, bound.
        samples: Samples of which f does so for at least one, or for none by itself.
    """
    if len(samples) == 1:
        return samples
    found: list[int] = []
    for half in (samples[: len(samples) // 2], samples[len(samples) // 2 :]):
        if run.initial is not None:
            run.initial.restore()
        rounds, outputs = run.stats.rounds, Buffers(y, run.outputs_at.shape[1])
        try:
            Walk(run, grid.without(~_those(run, half)), y, p, outputs, None, False).follow()
        except RejectStep:
            found += _rejected(run, grid, y, p, half)
        run.stats.rounds = rounds
    return found


def _those(run: SampleRun, samples: Iterable[int]) -> Tensor:
    """Samples by number as bool of shape [B]."""
    found = torch.zeros(run.n_samples, dtype=torch.bool, device="cpu")
    found[list(samples)] = True
    return found


def taped(run: SampleRun, y: Leaves, p: Leaves, times: Tensor) -> Leaves:
    """The outputs on the autograd graph; the steps are searched for off it first."""
    run.initial = run.field.snapshot()
    if run.monitor is not None:
        run.monitor.start("forward")
    try:
        with torch.no_grad():
            own = tuple(x.detach().clone() for x in y)
            if isinstance(run.stepsize, FixedStepSize) and run.salvage and run.check_finite:
                _find_failures(run, own, p)
            else:
                _steps_of(run, own, p, None, alone=True)
        outputs = replayed(run, tuple(x.clone() for x in y), p, times)
        if isinstance(run.stepsize, FixedStepSize):
            run.stats.rounds += run.accepted_steps.n_steps
        if run.check_finite and not run.salvage:
            fail_if_not_finite(run, tuple(x.detach().clone() for x in outputs))
        return outputs
    finally:
        run.count()
        run.stats.forward_evaluations = run.stats.f_evaluations
        if run.monitor is not None:
            run.monitor.stop()


def _find_failures(run: SampleRun, y: Leaves, p: Leaves) -> None:
    """Finds the samples that fail on a fixed grid, by a sweep that leaves nothing else behind."""
    rounds = run.stats.rounds
    try:
        with run.quiet():
            grid, _ = _steps_of(run, y, p, None)
            _walked(run, grid, y, p, None, timed=False)
    finally:
        run.stats.rounds = rounds
        if run.initial is not None:
            run.initial.restore()
