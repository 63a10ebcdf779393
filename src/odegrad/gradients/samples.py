"""Gradients of a solve in which every sample has steps of its own: `Discrete` and `Tape`.

The gradient is that of the accepted steps of each sample, as for any solve. A sample that failed takes no
part in the sweeps. If a cotangent reaches its outputs, its rows of the gradient are NaN, and so is the
gradient of everything that the samples share; if none does, it has no share in the gradient, like any
sample that the loss does not look at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.checkpoints import Checkpoints, Keep, StoreAll
from odegrad.gradients.base import may_need_gradient
from odegrad.gradients.discrete import Discrete, check_rewinding
from odegrad.gradients.node import Rule, apply
from odegrad.gradients.planning import Plan
from odegrad.gradients.rules import Backward, sweeping_rule
from odegrad.gradients.sampleplan import plan_samples
from odegrad.gradients.tape import Tape
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps import Cotangents, Kept
from odegrad.sweeps.samples import SampleRun, ahead, pull, replayed, taped

__all__ = ["sample_plan", "sample_times", "solve_samples", "with_failed"]


def solve_samples(
    gradient: Discrete | Tape, run: SampleRun, y0: Leaves, p: Leaves, ts: Tensor
) -> Leaves:
    """Solves, such that autograd reaches y0, p and ts.

    Returns:
        Leaves of shape [T, B, …]; what they are for samples that failed means nothing.
    """
    if isinstance(gradient, Tape):
        landings = sample_times(ts, run.n_samples)
        with torch.enable_grad():
            outputs = run.field.bound(p, lambda: taped(run, y0, p, landings))
    else:
        checkpoints = gradient.checkpoints or StoreAll()
        if gradient.memory is not None and run.n_samples and run.landings.shape[1] > 1:
            plan = plan_samples(gradient, run, y0, p, ts, _rule, counted=False)
            checkpoints = plan.checkpoints
            run.stats.working_bytes = plan.output_bytes + plan.working_bytes
        check_rewinding(run, checkpoints)
        run.replay_check = gradient.replay_check
        wanted = tuple(map(may_need_gradient, (*p, ts)))
        rule = _chunked if run.programs is not None else _rule
        outputs = apply(rule(run, checkpoints, len(y0), wanted), (*y0, *p, ts))
    return outputs


def sample_plan(
    gradient: Discrete, run: SampleRun, y0: Leaves, p: Leaves, ts: Tensor, n_steps: int | None
) -> Plan:
    """The schedule that `solve_samples` would run, and what it would need, in so many rounds.

    Raises:
        MemoryBudgetError: If the memory is too little.
        SolveError: If `n_steps` is None and the search for the steps fails.
    """
    return plan_samples(gradient, run, y0, p, ts, _rule, n_steps)


def sample_times(ts: Tensor, size: int) -> Tensor:
    """Times of shape [T] or [B, T] as float64 of shape [B, T] on the CPU."""
    ts = ts.to(device="cpu", dtype=torch.float64)
    return ts.expand(size, -1) if ts.ndim == 1 else ts


def _rule(run: SampleRun, checkpoints: Checkpoints, n_y: int, wanted: Sequence[bool]) -> Rule:
    """The solve as a map (y0, p, ts) ↦ outputs, and its transpose."""
    graphs = checkpoints.bounds(1, known=True).keep is Keep.GRAPH
    again = not (isinstance(checkpoints, StoreAll) and graphs)

    def forth(y0: Leaves, p: Leaves, ts: Tensor) -> tuple[Leaves, Kept | None]:
        del ts
        if graphs:
            p = run.field.own(p, wanted[:-1])
        sweep = run.repeatable if again else run.observed
        found = sweep(p, lambda: ahead(run, y0, p, checkpoints, wanted[-1]))
        run.mark()
        return found

    def back(given: Backward) -> Cotangents:
        y0, p, timed = given.y0, given.p, given.needs[-1]
        found = run.field.bound(
            p,
            lambda: pull(run, y0, p, timed, checkpoints, given.kept, given.grads, given.retain),
        )
        if again:
            run.mark()
        return found._replace(times=_rows(found.times, given.ts))

    rule = sweeping_rule(run, n_y, forth, back, run.check_unchanged if again else None)
    return _replayed(run, n_y, rule)


def _chunked(run: SampleRun, checkpoints: Checkpoints, n_y: int, wanted: Sequence[bool]) -> Rule:
    """The same map and its transpose in compiled chunks."""
    from odegrad.compiled import SamplePrograms  # what it imports takes its time
    from odegrad.gradients.samplechunks import chunked_rule

    assert isinstance(run.programs, SamplePrograms)
    return _replayed(run, n_y, chunked_rule(run, run.programs, checkpoints, n_y, wanted, _rows))


def _replayed(run: SampleRun, n_y: int, rule: Rule) -> Rule:
    """A rule whose second derivatives are those of the rounds as ordinary operations."""

    def replay(inputs: Leaves, highest: int) -> Leaves:
        del highest
        run.field.check_draws()
        run.check_unchanged()
        y0, p, ts = inputs[:n_y], inputs[n_y:-1], inputs[-1]
        landings = sample_times(ts, run.n_samples)
        return run.field.bound(p, lambda: replayed(run, y0, p, landings))

    return Rule(rule.primal, rule.transpose, replay, "Discrete")


def _rows(times: list[Tensor | None], like: Tensor) -> list[Tensor | None]:
    """The cotangent of times, [B, T], as the rows of one in the shape of `like`."""
    if not times:
        return []
    total = times[0]
    assert total is not None
    return list((total.sum(0) if like.ndim == 1 else total).unbind())


def with_failed(run: SampleRun, outputs: Leaves, inputs: Leaves, n_y: int, nan: bool) -> Leaves:
    """The outputs, with NaN or what was reached of the samples that failed.

    Arguments:
        run: The solve.
        outputs: What `solve_samples` returned.
        inputs: Initial state, tensors that f reads, times.
        n_y: The number of leaves of the state.
        nan: Whether it is NaN.
    """
    reached, failed, size = run.reached, run.failed, run.n_samples
    assert reached is not None
    if nan:
        reached = tuple(torch.full_like(x, float("nan")) for x in reached)
    device = outputs[0].device
    cut = run.cut or ()

    def is_per_sample(i: int) -> bool:
        """Whether input i belongs to single samples."""
        last = i == len(inputs) - 1
        if last:
            return inputs[i].ndim == 2
        return i < n_y or (i - n_y < len(cut) and cut[i - n_y])

    def primal(x: Leaves) -> tuple[Leaves, Leaves]:
        del x
        return tuple(y.clone() for y in reached), ()

    def transpose(
        x: Leaves, kept: Leaves, grads: OptionalLeaves, needs: Sequence[bool], retain: bool
    ) -> OptionalLeaves:
        del kept, retain
        hit = torch.zeros(size, dtype=torch.bool, device=device)
        for g in grads:
            if g is not None:
                hit |= (g.transpose(0, 1) != 0).flatten(1).any(1)
        hit &= failed.to(device)
        found: list[Tensor | None] = []
        for i, (a, need) in enumerate(zip(x, needs, strict=True)):
            if not need:
                found.append(None)
            elif is_per_sample(i):
                rows = hit.to(a.device).reshape(-1, *[1] * (a.ndim - 1))
                found.append(torch.zeros_like(a).masked_fill(rows, float("nan")))
            else:
                found.append(torch.zeros_like(a).masked_fill(hit.any().to(a.device), float("nan")))
        return tuple(found)

    parts = apply(Rule(primal, transpose, None, "a failed solve"), inputs)
    pairs = zip(outputs, parts, strict=True)
    return tuple(
        torch.where(failed.to(device).reshape(1, -1, *[1] * (a.ndim - 2)), b, a) for a, b in pairs
    )
