"""The exact gradient of the computed numbers, by the transposed steps, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from odegrad.checkpoints import Checkpoints, Keep, StoreAll
from odegrad.errors import InvalidTypeError
from odegrad.gradients.base import Gradient, landing_times, may_need_gradient
from odegrad.gradients.node import Rule, apply, graph_is_retained
from odegrad.grid import Clock, stack_times
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps import Graphs, Run, Slab, backward, forward, pull
from odegrad.sweeps.forward import replay

if TYPE_CHECKING:
    from odegrad.compiled import Blocks, Programs

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
        elif self.checkpoints.keep is Keep.GRAPH:
            rule = _on_graphs(run, self.checkpoints, len(y0), (*p, ts))
        else:
            rule = _from_states(run, self.checkpoints, len(y0), len(p))
        return apply(rule, (*y0, *p, ts))


def _from_states(run: Run, checkpoints: Checkpoints, n_y: int, n_p: int) -> Rule:
    """The solve as a map (y0, p, ts) ↦ ys whose transpose evaluates f again."""
    slabs: list[Slab] = []  # places only: the data is kept by autograd

    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, p = inputs[:n_y], inputs[n_y : n_y + n_p]
        ys, slab = run.repeatable(p, lambda: forward(run, y0, p, run.times, checkpoints))
        run.field.mark()
        kept = slab.tensors()
        slab.forget_data()
        slabs.append(slab)
        return ys, kept

    def transpose(
        inputs: Leaves, kept: Leaves, grad_ys: OptionalLeaves, needs: Sequence[bool]
    ) -> OptionalLeaves:
        run.field.check_unchanged()
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y : n_y + n_p], needs[n_y:-1])
        landings = landing_times(ts).detach() if needs[-1] else None
        slab = slabs[0].with_tensors(kept)
        grads = run.field.bound(
            p, lambda: backward(run, y0, p, landings, checkpoints, slab, grad_ys)
        )
        run.field.mark()
        grad_ts = stack_times(grads.times, ts) if needs[-1] else None
        found = (*grads.y0, *_zeros(grads.p, p), grad_ts)
        return tuple(g if need else None for g, need in zip(found, needs, strict=True))

    return Rule(primal, transpose, lambda inputs: _again(run, n_y, inputs), "Discrete")


def _compiled(
    run: Run, programs: Programs, checkpoints: Checkpoints, n_y: int, p: Leaves, ts: Tensor
) -> Rule:
    """The same map with both sweeps in compiled chunks of steps."""
    from odegrad.sweeps import compiled  # what it imports takes its time

    stored: list[Blocks] = []  # places only
    keeps = checkpoints.keep is Keep.GRAPH
    # If the step has no transpose that is one graph, that has to come out now.
    n = programs.n_read
    pull = programs.pullback(tuple(map(may_need_gradient, p[:n])), may_need_gradient(ts), keeps)

    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, p = inputs[:n_y], inputs[n_y:-1]
        ys, blocks = compiled.forward(run, programs, y0, p, checkpoints, pull)
        kept = blocks.tensors()
        blocks.forget_data()
        stored.append(blocks)
        return ys, kept

    def transpose(
        inputs: Leaves, kept: Leaves, grad_ys: OptionalLeaves, needs: Sequence[bool]
    ) -> OptionalLeaves:
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y:-1], needs[n_y:-1])
        blocks = stored[0].with_tensors(kept)
        # What was kept is for all that may need a gradient; else only what does is computed.
        used = pull
        if not keeps:
            used = programs.pullback(tuple(needs[n_y : n_y + n]), needs[-1], keeps)
        landings = landing_times(ts).detach() if used.timed else None
        grads = compiled.backward(
            run, programs, y0, p, landings, checkpoints, used, blocks, grad_ys
        )
        grad_ts = stack_times(grads.times, ts) if needs[-1] else None
        found = (*grads.y0, *_zeros(grads.p, p), grad_ts)
        return tuple(g if need else None for g, need in zip(found, needs, strict=True))

    return Rule(primal, transpose, lambda inputs: _again(run, n_y, inputs), "Discrete")


def _on_graphs(run: Run, checkpoints: Checkpoints, n_y: int, others: Leaves) -> Rule:
    """The solve as a map (y0, p, ts) ↦ ys that keeps the graphs of its steps.

    Which of `others`, p and ts, may need a cotangent has to be known before the forward sweep.
    """
    wanted = [may_need_gradient(x) for x in others]
    kept: list[Graphs] = []

    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y:-1], wanted[:-1])
        times = None
        if wanted[-1]:
            times = tuple(x.detach().requires_grad_() for x in landing_times(ts))
        graphs = Graphs(p, times, run.monitor is not None)
        with torch.enable_grad():
            ys, _ = run.observed(
                p, lambda: forward(run, y0, p, times or run.times, checkpoints, graphs)
            )
        run.field.mark()
        kept.append(graphs)
        return ys, ()

    def transpose(
        inputs: Leaves, _: Leaves, grad_ys: OptionalLeaves, needs: Sequence[bool]
    ) -> OptionalLeaves:
        assert all(w or not need for w, need in zip(wanted, needs[n_y:], strict=True))
        grads = pull(run, kept[0], inputs[:n_y], grad_ys, graph_is_retained())
        grad_ts = stack_times(grads.times, inputs[-1]) if needs[-1] else None
        found = (*grads.y0, *_zeros(grads.p, kept[0].p), grad_ts)
        return tuple(g if need else None for g, need in zip(found, needs, strict=True))

    return Rule(primal, transpose, lambda inputs: _again(run, n_y, inputs), "Discrete")


def _again(run: Run, n_y: int, inputs: Leaves) -> Leaves:
    """The solve once more, as an ordinary differentiable program."""
    run.field.check_draws()
    run.field.check_unchanged()
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
