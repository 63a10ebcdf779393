"""Rehearsals with more and more rows on the tape, as far as a budget allows.

Before a rehearsal it is estimated whether its peak is within the budget, from those before it: with row
the bytes that the forward sweeps of the last two differ by, for each row,

    peak(m) = peak(l) + (m − l) row.

From one row to two, a third copy of the sums of the parameter gradient may come, which autograd makes
where a graph has two evaluations of f. What is not rehearsed, since it takes too much, is not chosen
either: the solve would hold no less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from odegrad.checkpoints import Keep
from odegrad.gradients.needs import Kind, Needs
from odegrad.sweeps import Run

__all__ = ["Ladder", "Rehearsed", "sums_held"]


class Rehearsed(Protocol):
    """What a rehearsal knows before its steps are taken; see `odegrad.gradients.rehearsal`."""

    run: Run
    budget: int | None
    retained: bool
    state: int
    sums: int

    @property
    def step_graph(self) -> int:
        """See there."""
        ...

    @property
    def evaluations(self) -> int:
        """See there."""
        ...

    def label_cotangent(self, keep: Keep | None) -> int:
        """See there."""
        ...


def sums_held(rehearsal: Rehearsed, keep: Keep | None) -> int:
    """About how many copies of the parameter gradient a step with one row on the tape holds at once.

    The sum over the steps and the share of one; with several evaluations in a step their sum, too, and
    without a graph of the whole step a copy of that while it is added up.
    """
    if rehearsal.evaluations == 1:
        return 2
    return 3 if keep is Keep.GRAPH else 4


class Ladder:
    """The numbers of rows to rehearse, and what was found.

    Arguments:
        rehearsal: What is known of the solve.
        kind: What is rehearsed, with something on the tape.
        beside: The bytes of outputs and states in the rehearsal with so many rows.
    """

    def __init__(self, rehearsal: Rehearsed, kind: Kind, beside: Callable[[int], int]) -> None:
        self._rehearsal, self._kind, self._beside = rehearsal, kind, beside
        self._found: dict[int, tuple[int, int]] = {}
        self._beyond: int | None = None

    def __iter__(self) -> Iterator[int]:
        """1, 2, and then 4 and 5, or else 3; fewer if they would not be within the budget."""
        if self._rehearsal.run.programs is not None:
            yield from (1, 2, 3)
            return
        yield 1
        if not self._affordable(2):
            return
        yield 2
        if self._affordable(5):
            yield from (4, 5)
        elif self._affordable(3):
            yield 3

    def take(self, m: int, both: int, ahead: int) -> None:
        """Takes in the peaks with m rows: of both sweeps and of the forward sweep, without the rest."""
        self._found[m] = (both, ahead)

    def needs(self) -> Needs:
        """What was found."""
        row, last = self._row(), max(self._found)
        if last > 2:
            # A peak of few rows may lie where none is left: the forward sweep tells the row then.
            row = max(row, self._found[last][0] - self._found[last - 1][0])
        beside = {m: peak - m * row for m, (peak, _) in self._found.items()}
        more = self._third(last)
        return Needs(row, beside[last] + more, max(beside.values()) + more, beside, self._beyond)

    def _row(self) -> int:
        """The bytes of a row, from two forward sweeps; those of the graph if there is but one."""
        rehearsal, keep = self._rehearsal, self._kind.keep
        copies = 2 if rehearsal.retained and self._kind.shape != "all" else 1
        if len(self._found) > 1:
            m = max(self._found)
            before = max(x for x in self._found if x < m)
            more = (self._found[m][1] - self._found[before][1]) // (m - before)
        elif keep is Keep.GRAPH:
            more = rehearsal.step_graph + rehearsal.state
        else:
            more = rehearsal.state * (1 + rehearsal.evaluations * (keep is Keep.STAGES))
        return max(0, copies * more + rehearsal.label_cotangent(keep))

    def _affordable(self, m: int) -> bool:
        """Whether m rows are likely to be within the budget."""
        rehearsal, last = self._rehearsal, max(self._found)
        if rehearsal.budget is None:
            return True
        held = self._found[last][0] + self._third(last)
        peak = self._beside(m) + held + (m - last) * self._row()
        if peak <= rehearsal.budget:
            return True
        self._beyond = peak if self._beyond is None else min(self._beyond, peak)
        return False

    def _third(self, m: int) -> int:
        """What comes beside more than m rows as the third copy of the sums."""
        rehearsal, kind = self._rehearsal, self._kind
        if m > 1 or kind.keep is not Keep.GRAPH or kind.shape == "all":
            return 0
        three = 3 * rehearsal.sums + rehearsal.step_graph
        return rehearsal.sums if self._found[1][0] < three else 0
