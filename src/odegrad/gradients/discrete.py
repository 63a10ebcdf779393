"""The exact gradient of the computed numbers, by the transposed steps, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from odegrad.checkpoints import Blockwise, Checkpoints, Every, Keep, StoreAll
from odegrad.errors import InvalidTypeError
from odegrad.gradients.base import Gradient, landing_times, may_need_gradient
from odegrad.gradients.node import Rule, apply, graph_is_retained
from odegrad.grid import Clock, stack_times
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps import Kept, Landings, Run, backward, forward
from odegrad.sweeps.forward import replay

if TYPE_CHECKING:
    from odegrad.compiled import Programs

__all__ = ["Discrete"]


@dataclass(frozen=True)
class Discrete(Gradient):
    """The discrete adjoint: the transpose of every accepted step, in reverse order.

    Equal to `Tape` up to rounding, without keeping the graph of any evaluation: between the sweeps
    only the states that `checkpoints` names are kept. Second and higher derivatives are exact, too,
    at the memory of `Tape`.

    f is evaluated again in the backward sweep, with the same parameters, buffers, training mode,
    autocast state and random numbers of torch's default generators. What else f may depend on (a
    generator of its own, NumPy's, a counter in Python) has to give the same again: it is not replayed,
    and such a field needs `Tape` or ``StoreAll(keep=Keep.GRAPH)``, which keeps the graph of every step:
    as fast as backpropagation and in as much memory, f being evaluated again for second derivatives
    only.

    Arguments:
        checkpoints: What to keep; `StoreAll` (default) or `Every(k)`.

    Raises:
        InvalidTypeError: If `checkpoints` is not a schedule.
    """

    checkpoints: Checkpoints = field(default_factory=StoreAll)

    def __post_init__(self) -> None:
        if isinstance(self.checkpoints, type) or not isinstance(self.checkpoints, Checkpoints):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                "checkpoints must be a schedule such as StoreAll() or Every(10), "
                f"received {self.checkpoints!r}"
            )

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves inside one autograd node."""
        if run.programs is not None:
            rule = _compiled(run, run.programs, self.checkpoints, len(y0), p, ts)
        else:
            rule = _eager(run, self.checkpoints, len(y0), (*p, ts))
        return apply(rule, (*y0, *p, ts))


def _eager(run: Run, checkpoints: Checkpoints, n_y: int, others: Leaves) -> Rule:
    """The solve as a map (y0, p, ts) ↦ outputs, step by step in Python.

    Which of `others`, p and ts, may need a cotangent has to be known before a forward sweep that keeps
    graphs.
    """
    wanted = [may_need_gradient(x) for x in others]
    bounds = checkpoints.bounds(1, known=True)
    graphs = bounds.keep is Keep.GRAPH
    again = not (isinstance(checkpoints, StoreAll) and graphs) or run.loss is not None
    left: list[tuple[Kept, list[int]]] = []  # places and graphs; the other data is kept by autograd

    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, p, ts = inputs[:n_y], inputs[n_y:-1], inputs[-1]
        landings: Landings = run.times
        if graphs:
            p = run.field.own(p, wanted[:-1])
            if wanted[-1]:
                landings = tuple(x.detach().requires_grad_() for x in landing_times(ts))
        sweep = run.repeatable if again else run.observed
        outputs, kept = sweep(p, lambda: forward(run, y0, p, landings, checkpoints))
        run.mark()
        assert kept is not None
        tensors = kept.tensors()
        left.append((kept, kept.forget_data()))
        return outputs, tensors

    def transpose(
        inputs: Leaves, tensors: Leaves, grads: OptionalLeaves, needs: Sequence[bool]
    ) -> OptionalLeaves:
        assert all(w or not need for w, need in zip(wanted, needs[n_y:], strict=True))
        if again:
            run.check_unchanged()
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y:-1], needs[n_y:-1])
        landings = landing_times(ts).detach() if needs[-1] else None
        retain = graph_is_retained()
        kept = left[0][0].with_tensors(tensors, left[0][1], retain)
        found = run.field.bound(
            p, lambda: backward(run, y0, p, landings, checkpoints, kept, grads, retain)
        )
        run.mark()
        grad_ts = stack_times(found.times, ts) if needs[-1] else None
        cotangents = (*found.y0, *_zeros(found.p, p), grad_ts)
        return tuple(g if need else None for g, need in zip(cotangents, needs, strict=True))

    return Rule(primal, transpose, lambda inputs: _again(run, n_y, inputs), "Discrete")


def _compiled(
    run: Run, programs: Programs, checkpoints: Checkpoints, n_y: int, p: Leaves, ts: Tensor
) -> Rule:
    """The same map with both sweeps in compiled chunks of steps."""
    from odegrad.sweeps import compiled  # what it imports takes its time

    left: list[tuple[Kept, list[int]]] = []  # places only
    if isinstance(checkpoints, Every):
        checkpoints = checkpoints.blocks
    in_chunks = not isinstance(checkpoints, StoreAll | Blockwise)
    keeps = in_chunks or checkpoints.bounds(1, known=True).keep is Keep.GRAPH
    # If the step has no transpose that is one graph, that has to come out now.
    n = programs.n_read
    pull = programs.pullback(tuple(map(may_need_gradient, p[:n])), may_need_gradient(ts), keeps)
    if in_chunks:
        checkpoints = Blockwise(checkpoints, programs.rows(pull), Keep.GRAPH)

    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, p = inputs[:n_y], inputs[n_y:-1]
        outputs, kept = compiled.forward(run, programs, y0, p, checkpoints, pull)
        assert kept is not None
        tensors = kept.tensors()
        left.append((kept, kept.forget_data()))
        return outputs, tensors

    def transpose(
        inputs: Leaves, tensors: Leaves, grads: OptionalLeaves, needs: Sequence[bool]
    ) -> OptionalLeaves:
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y:-1], needs[n_y:-1])
        kept = left[0][0].with_tensors(tensors, left[0][1], graph_is_retained())
        # What was kept is for all that may need a gradient; else only what does is computed.
        used = pull
        if not keeps:
            used = programs.pullback(tuple(needs[n_y : n_y + n]), needs[-1], keeps)
        landings = landing_times(ts).detach() if used.timed else None
        found = compiled.backward(run, programs, y0, p, landings, checkpoints, used, kept, grads)
        grad_ts = stack_times(found.times, ts) if needs[-1] else None
        cotangents = (*found.y0, *_zeros(found.p, p), grad_ts)
        return tuple(g if need else None for g, need in zip(cotangents, needs, strict=True))

    return Rule(primal, transpose, lambda inputs: _again(run, n_y, inputs), "Discrete")


def _again(run: Run, n_y: int, inputs: Leaves) -> Leaves:
    """The solve once more, as an ordinary differentiable program."""
    run.field.check_draws()
    run.check_unchanged()
    y0, p, ts = inputs[:n_y], inputs[n_y:-1], inputs[-1]
    landings = landing_times(ts) if ts.requires_grad else run.times
    clock = Clock(run.accepted_grid, landings)
    return run.field.bound(p, lambda: replay(run, clock, y0, p, landings[0]))


def _zeros(grads: OptionalLeaves, like: Leaves) -> OptionalLeaves:
    """Zeros for parameters that f never touched, as DistributedDataParallel expects."""
    return tuple(
        torch.zeros_like(x) if g is None and x.requires_grad else g
        for g, x in zip(grads, like, strict=True)
    )
