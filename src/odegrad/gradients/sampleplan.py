"""The schedule of a solve in which every sample has steps of its own, chosen in a memory budget.

The steps are searched for first, without anything being kept: the number of rounds is known then, and the
schedule is one for a known number. What the search holds is rehearsed before it begins; the record of its
steps grows with their number, so that it is told how many there is memory for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from odegrad.budget import budget_bytes, size
from odegrad.checkpoints import Checkpoints, Keep
from odegrad.errors import MemoryBudgetError
from odegrad.gradients.base import may_need_gradient, transformed
from odegrad.gradients.choice import chosen
from odegrad.gradients.discrete import Discrete, check_rewinding
from odegrad.gradients.node import Rule, plainly
from odegrad.gradients.planning import Plan
from odegrad.gradients.rehearsal import results_of
from odegrad.gradients.rules import rehearsed
from odegrad.gradients.samplerehearsal import SampleRehearsal, most_reads, sizes_of_rounds
from odegrad.identity import owner
from odegrad.samplegrid import SampleGrid
from odegrad.state import Leaves, OptionalLeaves
from odegrad.stepsize import FixedStepSize
from odegrad.sweeps import Run
from odegrad.sweeps.samples import SampleRun, prepare

__all__ = ["plan_samples"]

_FEW = 2
"""Rounds of a solve that is as short as can be."""

MakeRule = Callable[..., Rule]
"""The rule of a solve, given run, schedule, the number of leaves of the state, and what is wanted."""


def _one(keep: Keep | None) -> int:
    """How many rounds are taken at a time."""
    del keep
    return 1


class _Planner:
    """Plans one solve; its tensors are plain.

    Arguments:
        gradient: What was asked for.
        run: The solve.
        y0: The initial state.
        p: The tensors that f reads.
        ts: The times.
        wanted: Which of p, and then of ts, need a cotangent.
        retained: Whether the sweeps have to leave what was kept as it is.
        make: Makes the rule.
    """

    def __init__(
        self,
        gradient: Discrete,
        run: SampleRun,
        y0: Leaves,
        p: Leaves,
        ts: Tensor,
        wanted: tuple[bool, ...],
        retained: bool,
        make: MakeRule,
    ) -> None:
        self._gradient, self._run, self._y0, self._p, self._ts = gradient, run, y0, p, ts
        self._wanted, self._retained, self._make = wanted, retained, make
        self._budget: int | None = None
        if gradient.memory is not None:
            self._budget = budget_bytes(gradient.memory, y0[0].device)

    def plan(self, n_steps: int | None, counted: bool) -> Plan:
        """The plan; see `plan_samples`."""
        run, gradient, searched = self._run, self._gradient, False
        if n_steps is None or isinstance(run.stepsize, FixedStepSize):
            searched = not isinstance(run.stepsize, FixedStepSize)
            if searched:
                self._begin()
            grid = run.observed(self._p, lambda: prepare(run, self._y0, self._p))
            rehearsal = self._rehearsal(grid.n_steps, grid)
        else:
            searched, rehearsal = True, self._rehearsal(n_steps, None)
        plan = gradient.settled(run, rehearsal, self._budget, None, counted)
        if searched and plan.peak_bytes is not None:
            search = rehearsal.search_bytes(rehearsal.rounds)
            self._check_search(search)
            plan = replace(plan, peak_bytes=max(plan.peak_bytes, search))
        return plan

    def _begin(self) -> None:
        """Refuses to search if nothing would fit, and says how far a search may go.

        Raises:
            MemoryBudgetError: If there is too little memory for a search, or for two rounds.
        """
        if self._budget is None:
            return
        few = self._rehearsal(_FEW, None)
        if self._gradient.checkpoints is None:
            chosen(few, self._budget)
        self._run.most_rounds = few.most_rounds()
        if not self._run.most_rounds:
            self._check_search(few.search_bytes(1))

    def _check_search(self, needed: int) -> None:
        budget = self._budget
        if budget is not None and needed > budget:
            raise MemoryBudgetError(
                f"memory={size(budget)} is too little: the search for the steps of each sample needs "
                f"{size(needed)}. Raise memory, or split the batch"
            )

    def _rehearsal(self, n: int, grid: SampleGrid | None) -> SampleRehearsal:
        run, n_y, wanted, retained = self._run, len(self._y0), self._wanted, self._retained
        parts, reads, more = sizes_of_rounds(run, grid), 0, 0
        if run.stops is not None and run.stops.reads:
            reads = -(-run.outputs_at.shape[1] // n) if n > _FEW else 1
            more = 0 if grid is None else max(0, most_reads(run, grid) - reads)

        def sweeps(
            run: Run,
            checkpoints: Checkpoints,
            y0: Leaves,
            p: Leaves,
            ts: Tensor,
            grads: OptionalLeaves | None,
        ) -> None:
            assert isinstance(run, SampleRun)
            run.prepared = run.steps  # for each sweep anew
            rule = self._make(run, checkpoints, n_y, wanted)
            rehearsed(rule, (*y0, *p, ts), grads, n_y, wanted, retained)

        inputs = (*self._y0, *self._p)
        shapes = tuple((x.shape, x.dtype, x.device) for x in inputs)
        times = len(run.times) > 2, run.stops is None, reads, self._ts.ndim, self._ts.dtype
        key = (
            "samples",
            run.scheme,
            shapes,
            wanted,
            times,
            run.field.key,
            run.cut,
            parts,
            retained,
        )
        key = (*key, len(run.failures), run.replay_check)
        return SampleRehearsal(
            run, n, parts, (reads, more), y0=self._y0, p=self._p, ts=self._ts, wanted=wanted,
            sweeps=sweeps, chunk=_one, known=results_of(owner(run.field.function)), key=key,
            retained=retained, budget=self._budget,
        )  # fmt: skip


def plan_samples(
    gradient: Discrete,
    run: SampleRun,
    y0: Leaves,
    p: Leaves,
    ts: Tensor,
    make: MakeRule,
    n_steps: int | None = None,
    counted: bool = True,
) -> Plan:
    """The schedule that a solve runs with, and what it needs; finds its steps unless `n_steps` is given.

    Arguments:
        gradient: What was asked for.
        run: The solve, before it was run; its steps are filled in.
        y0: The initial state.
        p: The tensors that f reads.
        ts: The times, shape [T] or [B, T].
        make: Makes the rule of the solve.
        n_steps: With adaptive steps: for how many rounds to plan, without a search.
        counted: Whether to count evaluations.

    Raises:
        MemoryBudgetError: If the memory is too little.
        SolveError: If the search fails.
    """
    check_rewinding(run, gradient.checkpoints)
    run.replay_check = gradient.replay_check
    wanted, retained, n_y = tuple(map(may_need_gradient, (*p, ts))), transformed(), len(y0)

    def planning(inputs: Leaves) -> Plan:
        y, read, times = inputs[:n_y], inputs[n_y:-1], inputs[-1]
        with torch.no_grad():
            planner = _Planner(gradient, run, y, read, times, wanted, retained, make)
            return planner.plan(n_steps, counted)

    return plainly(planning, (*y0, *p, ts))
