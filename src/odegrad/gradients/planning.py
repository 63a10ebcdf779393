"""Which schedule to run in a given memory, and what it will need.

Among the schedules whose predicted peak is within the budget, the one that takes the fewest extra steps
is chosen, counting a step taken again and a step whose transpose evaluates it again as one each:

    every graph kept                             0
    blocks of L steps, c starts of blocks        (N − L) + L (t(N/L, c) − (N/L − 1))
    c states                                     N + t(N, c) − (N − 1)
    c states, slopes of a step taken again       2 N + t(N, c) − (N − 1), in the memory of one evaluation

t being the optimum of `odegrad.checkpoints.advances`. With an unknown number of steps, `Online` with as
many states as there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from odegrad.budget import size
from odegrad.checkpoints import (
    Advance,
    Binomial,
    Blockwise,
    Checkpoints,
    Keep,
    Online,
    StoreAll,
    Unstep,
    advances,
)
from odegrad.errors import MemoryBudgetError
from odegrad.gradients.rehearsal import Kind, Rehearsal, kind_of

__all__ = ["Plan", "check_bounded", "check_plan", "chosen", "planned"]

_UNIT, _LEAN = Kind("unit", None), Kind("block", Keep.STAGES)


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
    n: int | None,
    known: bool,
    outputs: int,
    counted: bool,
) -> Plan:
    """What a schedule will need.

    Arguments:
        rehearsal: Knows what steps need.
        checkpoints: The schedule.
        budget: The bytes allowed, or None.
        n: The number of steps, or what it may be; None if there is no idea.
        known: Whether it is certain.
        outputs: How many states are put out.
        counted: Whether to count evaluations: that walks through the schedule.
    """
    needs = rehearsal.needs(kind_of(checkpoints))
    peak, disk, most = None, 0, n if n is not None else _MANY
    if n is not None or _bounded(checkpoints):
        peak = rehearsal.predicted(checkpoints, most, known, outputs)
        disk = checkpoints.bounds(most, known).disk * rehearsal.state
    return Plan(
        checkpoints=checkpoints,
        n_steps=n,
        n_outputs=outputs,
        budget=budget,
        state_bytes=rehearsal.state,
        output_bytes=2 * outputs * rehearsal.output,
        row_bytes=needs.row,
        working_bytes=rehearsal.working(checkpoints, most, known),
        peak_bytes=peak,
        disk_bytes=disk,
        recompute_factor=None
        if n is None or not counted
        else 1.0 + _extra(checkpoints, n, known) / n,
    )


_MANY = 1 << 40
"""More steps than any solve takes."""


def _bounded(checkpoints: Checkpoints) -> bool:
    """Whether what is kept does not grow with the number of steps."""
    return sum(checkpoints.bounds(_MANY, known=False)[:4]) < _MANY >> 20


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


def chosen(
    rehearsal: Rehearsal, budget: int, n: int | None, outputs: int, compiled: bool
) -> Checkpoints:
    """The schedule that takes the fewest extra steps within a budget.

    Raises:
        MemoryBudgetError: If none keeps to it.
    """
    best: tuple[float, int, Checkpoints] | None = None
    least: int | None = None
    for extra, checkpoints, smallest in _candidates(rehearsal, budget, n, outputs, compiled):
        steps = _MANY if n is None else n
        peak = rehearsal.predicted(checkpoints, steps, n is not None, outputs)
        if peak > budget:
            least = min(least or peak, peak) if smallest else least
        elif best is None or (extra, peak) < best[:2]:
            best = (extra, peak, checkpoints)
            if extra == 0:
                break
    if best is not None:
        return best[2]
    raise MemoryBudgetError(_too_little(rehearsal, budget, least, outputs))


def _too_little(rehearsal: Rehearsal, budget: int, least: int | None, outputs: int) -> str:
    needed = "more" if least is None else f"at least {size(1.02 * least)}"
    out = 2 * outputs * rehearsal.output
    message = (
        f"memory={size(budget)} is too little: the gradient of this solve needs {needed}. "
        f"The {outputs} outputs with their cotangents take {size(out)} of it, a state "
        f"{size(rehearsal.state)}; the rest is the working set of one step. "
    )
    if 2 * out > budget:
        return message + "Use loss_at, which puts out no states, or raise memory"
    return message + "Raise memory, or split the batch"


def _candidates(
    rehearsal: Rehearsal, budget: int, n: int | None, outputs: int, compiled: bool
) -> Iterator[tuple[float, Checkpoints, bool]]:
    """(extra steps, schedule, whether it is the smallest of its kind)."""
    few = n is not None
    if n is not None and not compiled:
        few = n * rehearsal.step_graph < 2 * budget
    if few and rehearsal.fits(Kind("all", Keep.GRAPH), budget):
        yield 0, StoreAll(Keep.GRAPH), False
    for kind in _kinds(compiled):
        if not rehearsal.fits(kind, budget):
            continue
        needs = rehearsal.needs(kind)
        fixed = 2 * outputs * rehearsal.output + needs.work
        chunk, most = rehearsal.chunk(kind.keep), (budget - fixed) // max(1, needs.row)
        for length in _lengths(kind, n, most, chunk):
            tape = 0 if kind.keep is None else -(-length // chunk) * needs.row
            free = (budget - fixed - tape) // max(1, rehearsal.state) - 1
            slots = max(1, free)
            smallest = slots == 1 and length == chunk
            if n is None:
                schedule: Checkpoints = Online(slots)
                extra = {None: 1.0, Keep.GRAPH: 1.0, Keep.STATE: 2.0, Keep.STAGES: 2.0}[kind.keep]
            else:
                blocks = -(-n // length)
                slots = min(slots, max(1, blocks - 1))
                schedule = Binomial(slots)
                extra = length * (advances(blocks, slots) - (blocks - 1)) + _once(kind, n, length)
            if kind.keep is not None:
                schedule = Blockwise(schedule, length, kind.keep)
            yield extra, schedule, smallest


def _once(kind: Kind, n: int, length: int) -> int:
    """The evaluations of steps, besides those that a schedule of blocks or states takes."""
    if kind.keep is None:
        return n
    return max(0, n - length) + (0 if kind.keep is Keep.GRAPH else n)


def _kinds(compiled: bool) -> tuple[Kind, ...]:
    if compiled:
        return Kind("block", Keep.GRAPH), Kind("block", Keep.STATE)
    return Kind("block", Keep.GRAPH), _UNIT, _LEAN


def _lengths(kind: Kind, n: int | None, most: int, chunk: int) -> list[int]:
    """Lengths of blocks to consider, of which the tape holds at most `most` rows."""
    if n is None or kind.keep is None or kind.keep is Keep.STAGES:
        return [chunk]
    return [k * chunk for k in _spread(max(1, most), -(-n // chunk))]


def _spread(most: int, n: int) -> list[int]:
    """Numbers from 1 to `most`: all small ones, and those that divide n well."""
    found = set(range(1, 65)) | {-(-n // m) for m in range(1, 65)}
    found |= {int(1.25**k) for k in range(20, 100)}
    return sorted(x for x in found if x <= min(most, n))
