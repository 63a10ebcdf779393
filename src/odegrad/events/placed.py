"""A stretch on the autograd graph.

One solve along the steps that were taken reads the user's times, and the points that determine the dense
output of the steps in which something occurred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.assemble import Problem
from odegrad.dense import along, once_more
from odegrad.events.curve import Curve, Span
from odegrad.events.march import Marched
from odegrad.state import Leaves
from odegrad.sweeps import Stats

__all__ = ["Placed", "Solver", "placed", "steps_again"]

Solver = Callable[[Problem], Leaves]
"""The outputs of a solve, on the graph if that is wanted."""


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
