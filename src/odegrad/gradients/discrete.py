"""The exact gradient of the computed numbers, by the transposed steps, in little memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from odegrad.budget import Share, budget_bytes, check_budget
from odegrad.checkpoints import Checkpoints, Keep, Rewind, StoreAll
from odegrad.errors import InvalidTypeError, InvalidValueError, RandomFieldError
from odegrad.gradients.base import Gradient, may_need_gradient, transformed
from odegrad.gradients.choice import chosen
from odegrad.gradients.node import apply, plainly
from odegrad.gradients.planning import Plan, check_bounded, check_plan, planned
from odegrad.gradients.rehearsal import Rehearsal, results_of
from odegrad.gradients.rules import compiled_rule, eager_rule, in_chunks, rehearsed
from odegrad.gradients.second import second
from odegrad.identity import owner
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps import Run

__all__ = ["Discrete", "check_rewinding"]


@dataclass(frozen=True)
class Discrete(Gradient):
    """The discrete adjoint: the transpose of every accepted step, in reverse order.

    Equal to `Tape` up to rounding, in as much memory as `checkpoints` or `memory` say. So are second
    derivatives (`odegrad.hvp`), over states twice as large; those with respect to `ts` or of streamed
    losses, and higher ones, take the memory of `Tape`.

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
        replay_check: Whether to look, in the first transposed step, if f gives again what it gave.

    Raises:
        InvalidTypeError: If `checkpoints` is not a schedule, or `memory` not a size.
        InvalidValueError: If `memory` is not positive or has an unknown unit.
        MemoryBudgetError: When solving, before the first step, if the memory is too little.
        NonDeterministicFieldError: In the backward pass, if f does not give again what it gave.

    Example:
        >>> import odegrad
        >>> small = odegrad.Discrete(memory="64MiB")
        >>> optimal = odegrad.Discrete(odegrad.Binomial(8))
    """

    checkpoints: Checkpoints | None = None
    memory: int | str | Share | None = None
    replay_check: bool = True

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

    @property
    def limited(self) -> bool:
        """Whether memory was asked to be kept small."""
        return not (self.checkpoints is None and self.memory is None)

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
            plan = self.plan(run, y0, p, ts, counted=False)
            checkpoints = plan.checkpoints
            run.stats.working_bytes = plan.output_bytes + plan.working_bytes
        check_rewinding(run, checkpoints)
        run.replay_check = self.replay_check
        wanted = tuple(map(may_need_gradient, (*p, ts)))
        curved = partial(second, run, self._lifted_schedule, len(y0))
        if run.programs is not None:
            rule = compiled_rule(run, run.programs, checkpoints, len(y0), wanted, curved)
        else:
            rule = eager_rule(run, checkpoints, len(y0), wanted, second=curved)
        return apply(rule, (*y0, *p, ts))

    def _lifted_schedule(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Checkpoints:
        """What to keep in the sweeps for second derivatives: states twice as large, by the same rule."""
        if self.memory is None or len(run.times) < 2:
            return self.checkpoints or StoreAll()
        return self.plan(run, y0, p, ts, counted=False).checkpoints

    def plan(
        self,
        run: Run,
        y0: Leaves,
        p: Leaves,
        ts: Tensor,
        n_steps: int | None = None,
        counted: bool = True,
    ) -> Plan:
        """The schedule that `solve` would run, and what it would need.

        Arguments:
            run: The solve, before it was run.
            y0: The initial state.
            p: The tensors that f reads.
            ts: The landing times.
            n_steps: How many steps to expect where that is not known in advance, or None.
            counted: Whether to count evaluations.

        Raises:
            MemoryBudgetError: If the memory is too little.
        """
        check_rewinding(run, self.checkpoints)
        wanted = tuple(map(may_need_gradient, (*p, ts)))
        n_y, retained = len(y0), transformed()  # transforms retain what was kept

        def planning(inputs: Leaves) -> Plan:
            y, p = inputs[:n_y], inputs[n_y:-1]
            budget = None if self.memory is None else budget_bytes(self.memory, y[0].device)
            rehearsal = _rehearsal(run, y, p, inputs[-1], wanted, retained, budget)
            return self.settled(run, rehearsal, budget, n_steps, counted)

        return plainly(planning, (*y0, *p, ts))

    def settled(
        self,
        run: Run,
        rehearsal: Rehearsal,
        budget: int | None,
        n_steps: int | None,
        counted: bool,
    ) -> Plan:
        """The plan from what a rehearsal says, in so many bytes; the rest as for `plan`."""
        checkpoints = self.checkpoints
        if checkpoints is None and budget is not None:
            checkpoints = chosen(rehearsal, budget)
        checkpoints = checkpoints or StoreAll()
        if budget is not None and rehearsal.n_steps is None:
            check_bounded(checkpoints, budget)
        if run.programs is not None:
            checkpoints = in_chunks(checkpoints, rehearsal.chunk(Keep.GRAPH))
        plan = planned(rehearsal, checkpoints, budget, n_steps, counted)
        check_plan(plan)
        return plan


def check_rewinding(run: Run, checkpoints: Checkpoints | None) -> None:
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


def _rehearsal(
    run: Run,
    y0: Leaves,
    p: Leaves,
    ts: Tensor,
    wanted: tuple[bool, ...],
    retained: bool,
    budget: int | None,
) -> Rehearsal:
    n_y, programs = len(y0), run.programs

    def chunk(keep: Keep | None) -> int:
        if programs is None:
            return 1
        if keep is not Keep.GRAPH:
            return programs.rows(None)
        read = run.reads
        return programs.rows(programs.pullback(wanted[: programs.n_read], wanted[-1], True, read))

    def sweeps(
        run: Run,
        checkpoints: Checkpoints,
        y0: Leaves,
        p: Leaves,
        ts: Tensor,
        grads: OptionalLeaves | None,
    ) -> None:
        if run.programs is not None:
            rule = compiled_rule(run, run.programs, checkpoints, n_y, wanted)
        else:
            rule = eager_rule(run, checkpoints, n_y, wanted)
        rehearsed(rule, (*y0, *p, ts), grads, n_y, wanted, retained)

    shapes = tuple((x.shape, x.dtype, x.device) for x in (*y0, *p))
    loss = None if run.loss is None else run.loss.key
    whose, function = owner(run.field.function), run.field.key
    if programs is not None:
        whose, function = programs, None  # they were made for one f
    inner = len(run.times) > 2, run.stops is not None
    key = (run.scheme, shapes, wanted, inner, function, loss, retained)
    known = results_of(whose)
    return Rehearsal(run, y0, p, ts, wanted, sweeps, chunk, known, key, retained, budget)
