"""What a solve will keep, and what it will need."""

from __future__ import annotations

from dataclasses import dataclass

from odegrad.budget import size
from odegrad.checkpoints import Advance, Binomial, Checkpoints, Keep, Unstep, advances
from odegrad.errors import MemoryBudgetError
from odegrad.gradients.choice import MANY
from odegrad.gradients.forecast import predicted_peak, working_set
from odegrad.gradients.needs import kind_of
from odegrad.gradients.rehearsal import Rehearsal

__all__ = ["Plan", "check_bounded", "check_plan", "planned"]


@dataclass(frozen=True)
class Plan:
    """How a solve will keep what its gradient needs, and what that comes to.

    Attributes:
        checkpoints: The schedule; ``Discrete(checkpoints=plan.checkpoints)`` runs it.
        n_steps: The number of steps: exact for fixed steps, else as given, or None.
        n_outputs: How many states are put out.
        budget: The bytes allowed, or None.
        state_bytes: D: one state with its carry.
        output_bytes: The outputs, and their cotangents.
        row_bytes: What the tape keeps of a step, or of a chunk of steps of the compiled engine.
        working_bytes: The most that is held besides what is kept.
        peak_bytes: The predicted peak of solve and gradient together; of a solve with an unknown number
            of steps, an upper bound; None if there is none.
        disk_bytes: What is kept on disk.
        recompute_factor: How often each step is evaluated, on average: 1 with every graph kept, 2 with
            every state. None if the number of steps is unknown.
    """

    checkpoints: Checkpoints
    n_steps: int | None
    n_outputs: int
    budget: int | None
    state_bytes: int
    output_bytes: int
    row_bytes: int
    working_bytes: int
    peak_bytes: int | None
    disk_bytes: int
    recompute_factor: float | None

    def __str__(self) -> str:
        steps = "unknown in advance" if self.n_steps is None else f"{self.n_steps}"
        rows = [
            ("schedule", f"{self.checkpoints}"),
            ("steps", steps),
            ("a state", size(self.state_bytes)),
            ("the outputs", f"{size(self.output_bytes)}, cotangents included"),
        ]
        if self.row_bytes:
            rows.append(("a row of the tape", size(self.row_bytes)))
        rows.append(("working set", size(self.working_bytes)))
        peak = "no bound" if self.peak_bytes is None else size(self.peak_bytes)
        allowed = "" if self.budget is None else f" of {size(self.budget)}"
        rows.append(("predicted peak", peak + allowed))
        if self.disk_bytes:
            rows.append(("on disk", size(self.disk_bytes)))
        if self.recompute_factor is not None:
            rows.append(("evaluations of a step", f"{self.recompute_factor:.2f}"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def planned(
    rehearsal: Rehearsal,
    checkpoints: Checkpoints,
    budget: int | None,
    n_steps: int | None,
    counted: bool,
) -> Plan:
    """What a schedule will need.

    Arguments:
        rehearsal: Knows what steps need.
        checkpoints: The schedule.
        budget: The bytes allowed, or None.
        n_steps: How many steps to expect where that is not known in advance, or None.
        counted: Whether to count evaluations: that walks through the schedule.
    """
    known, n = rehearsal.n_steps is not None, n_steps
    if rehearsal.n_steps is not None:
        n = rehearsal.n_steps
    most = MANY if n is None else n
    peak, disk, factor = None, 0, None
    if n is not None or _bounded(checkpoints):
        peak = predicted_peak(rehearsal, checkpoints, most)
        disk = checkpoints.bounds(most, known).disk * rehearsal.state
    if n is not None and counted:
        factor = 1.0 + _extra(checkpoints, n, known) / n
    return Plan(
        checkpoints=checkpoints,
        n_steps=n,
        n_outputs=0 if rehearsal.run.loss is not None else len(rehearsal.run.times),
        budget=budget,
        state_bytes=rehearsal.state,
        output_bytes=rehearsal.outputs,
        row_bytes=rehearsal.needs(kind_of(checkpoints, most, known)).row,
        working_bytes=working_set(rehearsal, checkpoints, most),
        peak_bytes=peak,
        disk_bytes=disk,
        recompute_factor=factor,
    )


def _bounded(checkpoints: Checkpoints) -> bool:
    """Whether what is kept does not grow with the number of steps."""
    one, two = (checkpoints.bounds(n, known=False)[:4] for n in (MANY, 2 * MANY))
    return one == two


def _extra(checkpoints: Checkpoints, n: int, known: bool) -> int:
    """How many steps the backward sweep evaluates again, those included that it transposes."""
    keep = checkpoints.bounds(n, known).keep
    transposed = 0 if keep is Keep.GRAPH else n
    if isinstance(checkpoints, Binomial) and known:
        return transposed + advances(n, checkpoints.slots) - (n - 1)
    total = 0
    for action in checkpoints.backward(n, known):
        match action:
            case Advance(start, stop, _, keep) if stop is not None:
                total += stop - start - (keep is Keep.STATE)
            case Unstep(start, stop):
                total += start - stop
            case _:
                pass
    return transposed + total


def check_bounded(checkpoints: Checkpoints, budget: int) -> None:
    """Refuses a schedule that keeps more the more steps there are, if nobody knows how many.

    Raises:
        MemoryBudgetError: If it is one.
    """
    if not _bounded(checkpoints):
        raise MemoryBudgetError(
            f"memory={size(budget)} cannot be kept to by {checkpoints} with adaptive steps, "
            "whose number is not known in advance: leave checkpoints out, or use Online(slots)"
        )


def check_plan(plan: Plan) -> None:
    """Refuses a plan that does not keep to its budget.

    Raises:
        MemoryBudgetError: If it does not.
    """
    if plan.budget is None:
        return
    assert plan.peak_bytes is not None
    if plan.peak_bytes > plan.budget:
        raise MemoryBudgetError(
            f"{plan.checkpoints} needs {size(plan.peak_bytes)}, memory allows {size(plan.budget)}: "
            "leave checkpoints out to have a schedule chosen, or raise memory"
        )
