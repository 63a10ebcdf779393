"""The rounds of a batch along known steps: one by one, on graphs of their own, or on one graph."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from odegrad.errors import annotate
from odegrad.replay import Snapshot
from odegrad.samplegrid import SampleClock, SampleGrid
from odegrad.schemes.base import Step
from odegrad.schemes.persample import PerSample
from odegrad.state import Leaves
from odegrad.sweeps.fingerprint import Fingerprint
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.outputs import picked
from odegrad.sweeps.samples.reads import Found, states_inside
from odegrad.sweeps.samples.tape import KeptStep, SampleGraphs

__all__ = ["Round", "graphed", "remembered", "replayed", "rounds"]


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
            step = scheme.advance(field, t, dt, y, carry, p)
        except Exception as error:
            annotate(error, f"in round {n} of a solve with batch=0")
            raise
        count = field.evaluations - before
        sent = yield Round(n, t, dt, y, carry, snapshot, step, count)
        y, carry = sent or (step.y, step.carry)


def graphed(
    run: SampleRun,
    scheme: PerSample,
    clock: SampleClock,
    start: int,
    stop: int,
    state: tuple[Leaves, Leaves],
    p: Leaves,
    graphs: SampleGraphs,
) -> Generator[tuple[int, Tensor, Tensor, tuple[Leaves, Leaves], list[Found]]]:
    """Takes rounds, each on a graph of its own; yields n, t, dt, the state after it and those inside."""
    field, n_y = run.field, len(state[0])
    for n in range(start, stop):
        (t, dt), wanted = clock.step(n), clock.reads(n)
        if graphs.timed:
            t, dt = t.detach().requires_grad_(), dt.detach().requires_grad_()
            wanted = [(place, x.detach().requires_grad_()) for place, x in wanted]
        before = field.evaluations
        inputs = graphs.leaves((*state[0], *state[1]))
        with torch.enable_grad():
            step = scheme.advance(field, t, dt, inputs[:n_y], inputs[n_y:], p)
            inside = states_inside(run, scheme, wanted, t, dt, inputs[:n_y], step, p)
        outputs, times = (*step.y, *step.carry), tuple(time for _, time in wanted)
        count = field.evaluations - before
        graphs.put(KeptStep(n, (t, dt), inputs, outputs, count, times, inside))
        state = (step.y, step.carry)
        yield n, t, dt, state, inside


def remembered(run: SampleRun, grid: SampleGrid, ends: Leaves, p: Leaves) -> dict[int, Fingerprint]:
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


def replayed(run: SampleRun, y: Leaves, p: Leaves, times: Tensor) -> Leaves:
    """The outputs along the accepted steps as an ordinary differentiable program of y, p and times."""
    grid, scheme = run.accepted_steps, run.persample(y)
    clock, states, inside = run.rounds_of(grid, times), [y], list[Found]()
    if grid.n_steps:
        carry = scheme.init(run.field, times[:, 0].contiguous(), y, p)
        for found in rounds(run, scheme, clock, 0, grid.n_steps, y, carry, p):
            states.append(found.step.y)
            wanted, args = clock.reads(found.n), (found.t, found.dt, found.y, found.step, p)
            inside += states_inside(run, scheme, wanted, *args)
            if run.monitor is not None:
                args = (found.n, found.t, found.dt, found.step.y, run.stats)
                run.monitor.step("forward", *args)  # pyright: ignore[reportArgumentType]
    return picked(states, inside, grid, run.stops)
