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

from collections.abc import Iterator, Sequence

from odegrad.budget import size
from odegrad.checkpoints import (
    Binomial,
    Blockwise,
    Checkpoints,
    Keep,
    Online,
    StoreAll,
    advances,
)
from odegrad.errors import MemoryBudgetError
from odegrad.gradients.forecast import predicted_peak
from odegrad.gradients.ladder import sums_held
from odegrad.gradients.needs import Kind
from odegrad.gradients.rehearsal import Rehearsal
from odegrad.state import is_half

__all__ = ["MANY", "chosen"]

MANY = 1 << 40
"""More steps than any solve takes."""
_UNIT, _LEAN = Kind("unit", None), Kind("block", Keep.STAGES)


def chosen(rehearsal: Rehearsal, budget: int) -> Checkpoints:
    """The schedule that takes the fewest extra steps within a budget.

    Raises:
        MemoryBudgetError: If none keeps to it.
    """
    fitting: list[tuple[float, int, Checkpoints]] = []
    least: int | None = None
    n = MANY if rehearsal.n_steps is None else rehearsal.n_steps
    for extra, checkpoints, smallest in _candidates(rehearsal, budget, fitting):
        peak = predicted_peak(rehearsal, checkpoints, n)
        if peak > budget:
            least = min(least or peak, peak) if smallest else least
        else:
            fitting.append((extra, peak, checkpoints))
            if extra == 0:
                break
    if fitting:
        return min(fitting, key=lambda x: x[:2])[2]
    raise MemoryBudgetError(_too_little(rehearsal, budget, least))


def _too_little(rehearsal: Rehearsal, budget: int, least: int | None) -> str:
    needed = "more" if least is None else f"at least {size(1.02 * least)}"
    out = rehearsal.outputs
    steps = f", the steps of the samples {size(rehearsal.steps)}" if rehearsal.steps else ""
    message = (
        f"memory={size(budget)} is too little: the gradient of this solve needs {needed}. "
        f"The {len(rehearsal.run.times)} outputs with their cotangents take {size(out)} of it, a state "
        f"{size(rehearsal.state)}{steps}; the rest is the working set of one step. "
    )
    if 2 * out > budget:
        return message + "Use loss_at, which puts out no states, or raise memory"
    return message + "Raise memory, or split the batch"


def _candidates(
    rehearsal: Rehearsal, budget: int, fitting: Sequence[object]
) -> Iterator[tuple[float, Checkpoints, bool]]:
    """(extra steps, schedule, whether it is the smallest of its kind); `fitting` has those that fit."""
    n, compiled = rehearsal.n_steps, rehearsal.run.programs is not None
    few = n is not None
    if n is not None and not compiled:
        few = n * rehearsal.step_graph < 2 * budget
    if few and _fits(rehearsal, Kind("all", Keep.GRAPH), budget, False):
        yield 0, StoreAll(Keep.GRAPH), False
    for kind in _kinds(compiled):
        if not _fits(rehearsal, kind, budget, bool(fitting)):
            continue
        needs, chunk = rehearsal.needs(kind), rehearsal.chunk(kind.keep)
        most = (budget - rehearsal.outputs - needs.work) // max(1, needs.row)
        for length in _lengths(kind, n, most, chunk):
            slots = _slots(rehearsal, kind, length, budget)
            if n is None:
                # Evaluations of a step; then, the more states the better.
                extra = (1.0 if kind.keep in (None, Keep.GRAPH) else 2.0) + 1.0 / slots
            else:
                blocks = -(-n // length)
                slots = min(slots, max(1, blocks - 1))
                extra = length * (advances(blocks, slots) - (blocks - 1)) + _once(kind, n, length)
            smallest = slots == 1 and length == chunk
            yield extra, _schedule(kind, n is not None, length, slots), smallest


def _fits(rehearsal: Rehearsal, kind: Kind, budget: int, found: bool) -> bool:
    """Whether a rehearsal of this kind may fit into a budget: a guess, a bold one unless one is found."""
    if rehearsal.run.programs is not None or (kind.keep is Keep.STAGES and not found):
        return True
    if kind.keep is Keep.GRAPH and any(map(is_half, rehearsal.y0)):
        return False  # on it autograd would add up in half precision
    graph, count = rehearsal.step_graph, rehearsal.evaluations
    one = graph // count
    least = 2 * rehearsal.sums + graph
    if found:  # it is no loss not to know whether another kind fits, too
        held = one if kind.keep is Keep.STAGES else graph
        held += 2 * one + 2 * count * rehearsal.state
        least = sums_held(rehearsal, kind.keep) * rehearsal.sums + held
    return rehearsal.peak_about(kind, least) <= budget


def _slots(rehearsal: Rehearsal, kind: Kind, length: int, budget: int) -> int:
    """How many states there is room for beside a block, at least 1."""
    known = rehearsal.n_steps is not None
    n = MANY if rehearsal.n_steps is None else rehearsal.n_steps
    free = budget - predicted_peak(rehearsal, _schedule(kind, known, length, 1), n)
    copies = 2 if rehearsal.retained else 1  # what is stored again takes new room
    return 1 + max(0, free) // max(1, copies * rehearsal.state)


def _schedule(kind: Kind, known: bool, length: int, slots: int) -> Checkpoints:
    """So many states, of blocks if there is something on the tape."""
    states = Binomial(slots) if known else Online(slots)
    return states if kind.keep is None else Blockwise(states, length, kind.keep)


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
