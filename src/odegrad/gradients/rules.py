"""The solve with its exact transpose as a rule for the node, in each engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from odegrad.checkpoints import Blockwise, Checkpoints, Every, Keep, StoreAll
from odegrad.gradients.base import landing_times
from odegrad.gradients.node import Rule, Second
from odegrad.grid import stack_times
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, OptionalLeaves, rounded
from odegrad.sweeps import Cotangents, Kept, Landings, Run, backward, forward
from odegrad.sweeps.forward import replay

if TYPE_CHECKING:
    from odegrad.compiled import Programs

__all__ = [
    "Backward",
    "again",
    "compiled_rule",
    "eager_rule",
    "in_chunks",
    "keeps_graphs",
    "rehearsed",
    "sweeping_rule",
]


def eager_rule(
    run: Run,
    checkpoints: Checkpoints,
    n_y: int,
    wanted: Sequence[bool],
    other: Scheme | None = None,
    second: Second | None = None,
) -> Rule:
    """The solve as a map (y0, p, ts) ↦ outputs, step by step in Python.

    Which of p and ts may need a cotangent has to be known before a forward sweep that keeps graphs.
    With an `other` scheme, its steps are transposed in place of those that were taken.
    """
    graphs = checkpoints.bounds(1, known=True).keep is Keep.GRAPH
    again = not (isinstance(checkpoints, StoreAll) and graphs) or run.loss is not None

    def ahead(y0: Leaves, p: Leaves, ts: Tensor) -> tuple[Leaves, Kept | None]:
        landings: Landings = run.times
        if graphs:
            p = run.field.own(p, wanted[:-1])
            if wanted[-1]:
                landings = tuple(x.detach().requires_grad_() for x in landing_times(ts))
        sweep = run.repeatable if again else run.observed
        found = sweep(p, lambda: forward(run, y0, p, landings, checkpoints))
        run.mark()
        return found

    def back(given: Backward) -> Cotangents:
        landings = landing_times(given.ts).detach() if given.needs[-1] else None
        y0, p, kept, retain = given.y0, given.p, given.kept, given.retain
        found = run.field.bound(
            p, lambda: backward(run, y0, p, landings, checkpoints, kept, given.grads, retain, other)
        )
        if again:
            run.mark()
        return found

    check = run.check_unchanged if again else None
    inexact = None if other is None else "Mismatched"
    return sweeping_rule(run, n_y, ahead, back, check, inexact, second)


def keeps_graphs(checkpoints: Checkpoints) -> bool:
    """Whether the compiled engine keeps what the transposes need, not states alone."""
    return checkpoints.bounds(1, known=True).keep in (Keep.GRAPH, None)


def in_chunks(checkpoints: Checkpoints, rows: int) -> Checkpoints:
    """The schedule that the compiled engine follows: step by step is chunk by chunk there."""
    if isinstance(checkpoints, Every):
        return checkpoints.blocks
    if isinstance(checkpoints, StoreAll | Blockwise):
        return checkpoints
    return Blockwise(checkpoints, rows, Keep.GRAPH)


def compiled_rule(
    run: Run,
    programs: Programs,
    checkpoints: Checkpoints,
    n_y: int,
    wanted: Sequence[bool],
    second: Second | None = None,
) -> Rule:
    """The same map with both sweeps in compiled chunks of steps."""
    from odegrad.sweeps import compiled  # what it imports takes its time

    keeps = keeps_graphs(checkpoints)
    # If the step has no transpose that is one graph, that has to come out now.
    n = programs.n_read
    read = run.reads
    pull = programs.pullback(tuple(wanted[:n]), wanted[-1], keeps, read)
    checkpoints = in_chunks(checkpoints, programs.rows(pull))
    loss = run.loss

    def ahead(y0: Leaves, p: Leaves, ts: Tensor) -> tuple[Leaves, Kept | None]:
        del ts

        def sweep() -> tuple[Leaves, Kept | None]:
            return compiled.forward(run, programs, y0, p, checkpoints, pull)

        if loss is None:  # the graph of f draws no random numbers, and what it reads is given to it
            return sweep()
        found = run.repeatable(p, sweep)
        loss.mark()
        return found

    def back(given: Backward) -> Cotangents:
        # What was kept is for all that may need a gradient; else only what does is computed.
        used, needs = pull, given.needs
        if not keeps:
            used = programs.pullback(tuple(needs[n_y : n_y + n]), needs[-1], keeps, read)
        landings = landing_times(given.ts).detach() if used.timed else None
        y0, p, kept, retain = given.y0, given.p, given.kept, given.retain
        return compiled.backward(
            run, programs, y0, p, landings, checkpoints, used, kept, given.grads, retain
        )

    check = None if loss is None else loss.check_unchanged
    return sweeping_rule(run, n_y, ahead, back, check, None, second)


class Backward(NamedTuple):
    """What a backward sweep is given."""

    y0: Leaves
    p: Leaves
    ts: Tensor
    kept: Kept
    grads: OptionalLeaves
    needs: Sequence[bool]
    retain: bool


def sweeping_rule(
    run: Run,
    n_y: int,
    ahead: Callable[[Leaves, Leaves, Tensor], tuple[Leaves, Kept | None]],
    back: Callable[[Backward], Cotangents],
    check: Callable[[], None] | None,
    inexact: str | None = None,
    second: Second | None = None,
) -> Rule:
    """The rule of two sweeps, of which the second begins with a check.

    Arguments:
        run: The solve.
        n_y: The number of leaves of the state.
        ahead: The forward sweep.
        back: The backward sweep.
        check: What to do before the latter, or None.
        inexact: The name of the gradient mode, if it is not the derivative of what `ahead` computes.
        second: See `Rule`.
    """
    left: list[tuple[Kept, list[int]]] = []  # places and graphs; the other data is kept by autograd

    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        outputs, kept = ahead(inputs[:n_y], inputs[n_y:-1], inputs[-1])
        assert kept is not None
        tensors = kept.tensors()
        left.append((kept, kept.forget_data()))
        return outputs, tensors

    def transpose(
        inputs: Leaves,
        tensors: Leaves,
        grads: OptionalLeaves,
        needs: Sequence[bool],
        retain: bool,
    ) -> OptionalLeaves:
        if check is not None:
            check()
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y:-1], needs[n_y:-1])
        kept = left[0][0].with_tensors(tensors, left[0][1], retain)
        found = back(Backward(y0, p, ts, kept, grads, needs, retain))
        grad_ts = stack_times(found.times, ts) if needs[-1] else None
        cotangents = (*rounded(found.y0, y0), *_finished(found.p, p), grad_ts)
        return tuple(g if need else None for g, need in zip(cotangents, needs, strict=True))

    if inexact is not None:
        return Rule(primal, transpose, None, inexact)
    return Rule(primal, transpose, lambda inputs, _: again(run, n_y, inputs), "Discrete", second)


def rehearsed(
    rule: Rule,
    inputs: Leaves,
    grads: OptionalLeaves | None,
    n_y: int,
    wanted: Sequence[bool],
    retained: bool,
) -> None:
    """Runs a rule and, for cotangents of its outputs, its transpose.

    Arguments:
        rule: The rule.
        inputs: y0, p and ts.
        grads: The cotangents, or None.
        n_y: The number of leaves of the state.
        wanted: Which of p, and then of ts, need a cotangent.
        retained: Whether what was kept has to stay as it is.
    """
    with torch.no_grad():
        outputs, tensors = rule.primal(inputs)
        if grads is not None:
            rule.transpose(inputs, tensors, grads, (*[True] * n_y, *wanted), retained)
    del outputs


def again(run: Run, n_y: int, inputs: Leaves) -> Leaves:
    """The solve once more, as an ordinary differentiable program."""
    run.field.check_draws()
    run.check_unchanged()
    y0, p, ts = inputs[:n_y], inputs[n_y:-1], inputs[-1]
    landings = landing_times(ts) if ts.requires_grad else run.times
    clock = run.clock(landings)
    return run.field.bound(p, lambda: replay(run, clock, y0, p, landings[0]))


def _finished(grads: OptionalLeaves, like: Leaves) -> OptionalLeaves:
    """Sums in the dtypes of the parameters.

    Of those that f never touched they are zeros, as DistributedDataParallel expects.
    """
    return tuple(
        (torch.zeros_like(x) if x.requires_grad else None) if g is None else g.to(x.dtype)
        for g, x in zip(grads, like, strict=True)
    )
