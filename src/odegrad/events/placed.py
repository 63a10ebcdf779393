"""A stretch on the autograd graph, and the occurrences of events in it.

One solve along the steps that were taken reads the user's times, and the points that determine the dense
output of the steps in which something occurred. With U_i the states at these points, G(s) = g(s, u(s; U))
is a function of U, s and what g reads, and its root comes from the chord iteration on the graph,

    s ← s − (G(s) − [G(s)]) / c,     from s = τ,     c = [dG/ds] at τ,

where [·] is a number without a derivative. Each of its steps adds an order of derivatives: three of them
make the first, second and third derivative exact. The numbers are those that the march found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.assemble import Problem
from odegrad.dense import along, once_more
from odegrad.errors import GrazingEventError
from odegrad.events.curve import Curve, Span, rate
from odegrad.events.functions import Functions
from odegrad.events.march import Marched
from odegrad.events.watch import Root
from odegrad.state import Leaves, axpy
from odegrad.sweeps import Stats

__all__ = ["Placed", "Solver", "located", "placed", "steps_again"]

Solver = Callable[[Problem], Leaves]
"""The outputs of a solve, on the graph if that is wanted."""

_ORDERS = 3


@dataclass(frozen=True)
class Placed:
    """A stretch on the graph.

    Attributes:
        outputs: The states at the user's times that were reached, leaves of shape [T, *leaf.shape].
        curves: The dense output of the steps in which something occurred.
    """

    outputs: Leaves
    curves: dict[Span, Curve]


def placed(marched: Marched, solver: Solver, stats: Stats) -> Placed:
    """Puts a stretch on the graph, if it is to be differentiated.

    Arguments:
        marched: What became of it.
        solver: Runs it again.
        stats: Filled in by that.
    """
    problem, rows = marched.problem, marched.rows
    wanted = [j for j in problem.places if j in rows]
    curves = {root.curve.span: root.curve for root in marched.roots}
    if not problem.differentiated or not marched.segments:
        n, y = len(wanted), problem.y
        found = tuple(torch.stack(x) for x in zip(*(rows[j] for j in wanted), strict=True))
        if n and len(problem.run.times) < 2:  # nothing but the initial state
            found = tuple(x.expand(n, *x.shape).clone() for x in y)
        return Placed(found or tuple(x.new_empty((0, *x.shape)) for x in y), curves)
    landed = problem.run.landed[: len(marched.segments) + 1]
    inner = [j for j in wanted if j not in landed]
    points = [t for span in curves for t in span.times]
    asked = torch.cat([problem.ts[inner], problem.ts.new_tensor(points)])
    outputs, places = steps_again(marched, landed, asked, solver, stats)
    place = dict(zip((*landed, *inner), places, strict=False))
    at = [place[j] for j in wanted]
    first = len(landed) + len(inner)
    known: dict[Span, Curve] = {}
    for span in curves:
        index = places[first : first + span.m]
        known[span] = Curve(span, tuple(x[index] for x in outputs))
        first += span.m
    return Placed(tuple(x[at] for x in outputs), known)


def steps_again(
    marched: Marched, landed: Sequence[int], asked: Tensor, solver: Solver, stats: Stats | None
) -> tuple[Leaves, list[int]]:
    """The outputs of the steps of a stretch, taken once more, and the places of times among them.

    Arguments:
        marched: The stretch.
        landed: The times between which its segments lie.
        asked: Other times to read.
        solver: Runs it.
        stats: Filled in, or None if nobody wants to know.
    """
    run = marched.problem.run
    again, places = along(marched.problem, landed, asked, marched.grid)
    if stats is not None:
        again.run.stats, again.run.monitor = stats, run.monitor
    return once_more(run, lambda: solver(again)), places


def located(root: Root, curve: Curve, functions: Functions) -> tuple[Tensor, Leaves]:
    """The time of an occurrence, 0-dim, float64, and the state there.

    Arguments:
        root: The occurrence.
        curve: The dense output of its step, on the graph.
        functions: The event functions.

    Raises:
        GrazingEventError: If its derivative is wanted and does not exist.
    """
    time = start = torch.tensor(root.time, dtype=torch.float64)
    found, y = (
        rate(Curve(curve.span, _off(curve.values)), root.time) if root.rate else (),
        curve(time),
    )
    lacking = tuple(a - b for a, b in zip(root.rate, found, strict=True))
    for _ in range(_ORDERS):
        value = functions.value(root.event, time, y)
        if not value.requires_grad:
            break
        if root.grazing:
            raise GrazingEventError(
                f"events[{root.event}] has no derivative at t = {root.time:.9g}, where its g touches "
                f"zero: its slope is {root.slope:.3g} along the solution, zero up to rounding. Solve "
                "under torch.no_grad() for the numbers alone, or choose an event that is crossed"
            )
        time = time - (value - value.detach()) / root.slope
        y = axpy(curve(time), 1.0, (time - start,), (lacking,))
    return time, y


def _off(values: Leaves) -> Leaves:
    return tuple(x.detach() for x in values)
