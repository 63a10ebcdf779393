"""The exact gradient of the computed numbers, by the transposed steps, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from odegrad.budget import Share, budget_bytes, check_budget
from odegrad.checkpoints import Blockwise, Checkpoints, Every, Keep, Rewind, StoreAll
from odegrad.errors import InvalidTypeError, InvalidValueError, RandomFieldError
from odegrad.gradients.base import Gradient, landing_times, may_need_gradient
from odegrad.gradients.node import Rule, apply, plainly
from odegrad.gradients.planning import Plan, check_plan, chosen, planned
from odegrad.gradients.rehearsal import Rehearsal
from odegrad.grid import Clock, stack_times
from odegrad.state import Leaves, OptionalLeaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps import Kept, Landings, Run, backward, forward
from odegrad.sweeps.forward import replay
from odegrad.sweeps.steps import fixed_grid

if TYPE_CHECKING:
    from odegrad.compiled import Programs

__all__ = ["Discrete"]


@dataclass(frozen=True)
class Discrete(Gradient):
    """The discrete adjoint: the transpose of every accepted step, in reverse order.

    Equal to `Tape` up to rounding, in as much memory as `checkpoints` or `memory` say. Second and higher
    derivatives are exact, too, at the memory of `Tape`.

    f is evaluated again in the backward sweep, with the same parameters, buffers, training mode,
    autocast state and random numbers of torch's default generators. What else f may depend on (a
    generator of its own, NumPy's, a counter in Python) has to give the same again: it is not replayed,
    and such a field needs `Tape` or ``StoreAll(keep=Keep.GRAPH)``, which keeps the graph of every step:
    as fast as backpropagation and in as much memory, f being evaluated again for second derivatives
    only.

    Arguments:
        checkpoints: What to keep: a schedule such as `StoreAll`, `Every`, `Binomial`, `Online`,
            `Blockwise`, `Tiered` or `Rewind`. None leaves it to `memory`.
        memory: The most bytes that the solve and its gradient may take: all that is kept, the outputs and
            their cotangents, and the working set of a transposed step, which is measured once for an f.
            An int, a text such as ``"256MiB"``, or a `Share` of the free memory. If there are
            `checkpoints`, they are checked against it, else the schedule is chosen that takes the fewest
            steps again. `odegrad.plan` shows it. None (default) is no limit: without `checkpoints`,
            `StoreAll` then, whatever memory is free.

    Raises:
        InvalidTypeError: If `checkpoints` is not a schedule, or `memory` not a size.
        InvalidValueError: If `memory` is not positive or has an unknown unit.
        MemoryBudgetError: When solving, before the first step, if the memory is too little.

    Example:
        >>> import odegrad
        >>> small = odegrad.Discrete(memory="64MiB")
        >>> optimal = odegrad.Discrete(odegrad.Binomial(8))
    """

    checkpoints: Checkpoints | None = None
    memory: int | str | Share | None = None

    def __post_init__(self) -> None:
        given = self.checkpoints
        if isinstance(given, type) or not (given is None or isinstance(given, Checkpoints)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                "checkpoints must be a schedule such as StoreAll() or Binomial(8), "
                f"received {self.checkpoints!r}"
            )
        if self.memory is not None:
            check_budget(self.memory)

    @property
    def rewinds(self) -> bool:
        """Whether steps are taken back."""
        return isinstance(self.checkpoints, Rewind)

    def chunk_bytes(self) -> int:
        """The most bytes that a chunk of steps of the compiled engine should fill.

        A power of two, so that few sizes are compiled, and an eighth of the budget at most.
        """
        from odegrad.compiled import CHUNK_BYTES

        if self.memory is None or isinstance(self.memory, Share):
            return CHUNK_BYTES
        allowed = budget_bytes(self.memory, torch.device("cpu")) // 8
        return min(CHUNK_BYTES, 1 << max(10, allowed.bit_length() - 1))

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves inside one autograd node."""
        checkpoints = self.checkpoints or StoreAll()
        if self.memory is not None and len(run.times) > 1:
            plan = self.plan(run, y0, p, ts, None)
            checkpoints = plan.checkpoints
            run.stats.working_bytes = plan.output_bytes + plan.working_bytes
        _check_field(run, checkpoints)
        wanted = tuple(map(may_need_gradient, (*p, ts)))
        if run.programs is not None:
            rule = _compiled(run, run.programs, checkpoints, len(y0), wanted)
        else:
            rule = _eager(run, checkpoints, len(y0), wanted)
        return apply(rule, (*y0, *p, ts))

    def plan(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor, n_steps: int | None) -> Plan:
        """The schedule that `solve` would run, and what it would need.

        Arguments:
            run: The solve, before it was run.
            y0: The initial state.
            p: The tensors that f reads.
            ts: The landing times.
            n_steps: How many steps to expect where that is not known in advance, or None.

        Raises:
            MemoryBudgetError: If the memory is too little.
        """
        wanted = tuple(map(may_need_gradient, (*p, ts)))
        n_y = len(y0)

        def planning(inputs: Leaves) -> Plan:
            rehearsal = _rehearsal(run, inputs[:n_y], inputs[n_y:-1], inputs[-1], wanted)
            return self._plan(run, rehearsal, inputs[0].device, n_steps)

        return plainly(planning, (*y0, *p, ts))

    def _plan(
        self, run: Run, rehearsal: Rehearsal, device: torch.device, n_steps: int | None
    ) -> Plan:
        n = None
        if isinstance(run.stepsize, FixedStepSize):
            n = fixed_grid(run, run.stepsize).n_steps
        budget = None if self.memory is None else budget_bytes(self.memory, device)
        outputs = 0 if run.loss is not None else len(run.times)
        checkpoints = self.checkpoints
        if checkpoints is None and budget is not None:
            compiled = run.programs is not None
            checkpoints = chosen(rehearsal, budget, n, outputs, compiled)
        checkpoints = checkpoints or StoreAll()
        if run.programs is not None:
            checkpoints = _in_chunks(checkpoints, rehearsal.chunk(Keep.GRAPH))
        expected = n_steps if n is None else n
        plan = planned(rehearsal, checkpoints, budget, expected, n is not None, outputs)
        check_plan(plan)
        return plan


def _check_field(run: Run, checkpoints: Checkpoints) -> None:
    """Whether the scheme and the field go with a schedule that rewinds."""
    if not isinstance(checkpoints, Rewind):
        return
    if not run.scheme.reversible:
        raise InvalidValueError(
            f"Rewind takes steps back, which {run.scheme} cannot: use scheme=odegrad.ALF(), "
            f"ReversibleHeun(), or Reversible({run.scheme})"
        )
    if run.field.stochastic or run.field.changes_buffers:
        raise RandomFieldError(
            "Rewind takes steps back, in another order than that in which f drew random numbers or "
            "changed buffers; use another schedule, such as Binomial(8), or model.eval()"
        )


def _rehearsal(run: Run, y0: Leaves, p: Leaves, ts: Tensor, wanted: tuple[bool, ...]) -> Rehearsal:
    n_y, programs = len(y0), run.programs

    def chunk(keep: Keep | None) -> int:
        if programs is None:
            return 1
        if keep is not Keep.GRAPH:
            return programs.rows(None)
        return programs.rows(programs.pullback(wanted[: programs.n_read], wanted[-1], True))

    def both(
        run: Run, checkpoints: Checkpoints, y0: Leaves, p: Leaves, ts: Tensor, grads: OptionalLeaves
    ) -> None:
        if run.programs is not None:
            rule = _compiled(run, run.programs, checkpoints, n_y, wanted)
        else:
            rule = _eager(run, checkpoints, n_y, wanted)
        inputs = (*y0, *p, ts)
        with torch.no_grad():
            outputs, tensors = rule.primal(inputs)
            rule.transpose(inputs, tensors, grads, (*(True for _ in y0), *wanted), False)
        del outputs

    shapes = tuple((x.shape, x.dtype, x.device) for x in (*y0, *p))
    loss = None if run.loss is None else id(run.loss.function)
    key = (run.scheme, shapes, wanted, run.field.key, loss)
    owner = run.field.owner if programs is None else programs
    return Rehearsal(run, y0, p, ts, both, chunk, owner, key)


def _eager(
    run: Run,
    checkpoints: Checkpoints,
    n_y: int,
    wanted: Sequence[bool],
) -> Rule:
    """The solve as a map (y0, p, ts) ↦ outputs, step by step in Python.

    Which of p and ts may need a cotangent has to be known before a forward sweep that keeps graphs.
    """
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
        inputs: Leaves,
        tensors: Leaves,
        grads: OptionalLeaves,
        needs: Sequence[bool],
        retain: bool,
    ) -> OptionalLeaves:
        assert all(w or not need for w, need in zip(wanted, needs[n_y:], strict=True))
        if again:
            run.check_unchanged()
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y:-1], needs[n_y:-1])
        landings = landing_times(ts).detach() if needs[-1] else None
        kept = left[0][0].with_tensors(tensors, left[0][1], retain)
        found = run.field.bound(
            p, lambda: backward(run, y0, p, landings, checkpoints, kept, grads, retain)
        )
        if again:
            run.mark()
        grad_ts = stack_times(found.times, ts) if needs[-1] else None
        cotangents = (*found.y0, *_zeros(found.p, p), grad_ts)
        return tuple(g if need else None for g, need in zip(cotangents, needs, strict=True))

    return Rule(primal, transpose, lambda inputs: _again(run, n_y, inputs), "Discrete")


def _keeps_graphs(checkpoints: Checkpoints) -> bool:
    """Whether the compiled engine keeps what the transposes need, not states alone."""
    return checkpoints.bounds(1, known=True).keep in (Keep.GRAPH, None)


def _in_chunks(checkpoints: Checkpoints, rows: int) -> Checkpoints:
    """The schedule that the compiled engine follows: step by step is chunk by chunk there."""
    if isinstance(checkpoints, Every):
        return checkpoints.blocks
    if isinstance(checkpoints, StoreAll | Blockwise):
        return checkpoints
    return Blockwise(checkpoints, rows, Keep.GRAPH)


def _compiled(
    run: Run,
    programs: Programs,
    checkpoints: Checkpoints,
    n_y: int,
    wanted: Sequence[bool],
) -> Rule:
    """The same map with both sweeps in compiled chunks of steps."""
    from odegrad.sweeps import compiled  # what it imports takes its time

    left: list[tuple[Kept, list[int]]] = []  # places only
    keeps = _keeps_graphs(checkpoints)
    # If the step has no transpose that is one graph, that has to come out now.
    n = programs.n_read
    pull = programs.pullback(tuple(wanted[:n]), wanted[-1], keeps)
    checkpoints = _in_chunks(checkpoints, programs.rows(pull))

    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, p = inputs[:n_y], inputs[n_y:-1]
        outputs, kept = compiled.forward(run, programs, y0, p, checkpoints, pull)
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
        y0, ts = inputs[:n_y], inputs[-1]
        p = run.field.own(inputs[n_y:-1], needs[n_y:-1])
        kept = left[0][0].with_tensors(tensors, left[0][1], retain)
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
