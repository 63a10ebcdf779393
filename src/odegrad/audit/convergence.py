"""How the gradients of the modes depend on the step size.

For fixed steps n, 2 n and 4 n of them; for `PID` ten times the tolerances, the tolerances, and a tenth.
For every mode two distances, relative to the norm of the gradient:

    to the gradient of the computed loss     (Discrete on the same grid: what an optimiser sees),
    to the continuous gradient               (Dopri8 at a tight tolerance: that of the exact solution).

The traditional adjoint is inconsistent with the computed loss, though it is sometimes nearer to the
continuous gradient.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from torch import Tensor

from odegrad.audit.budget import Budget
from odegrad.audit.check import Check, short
from odegrad.audit.modes import candidates, vector
from odegrad.audit.subject import Subject
from odegrad.audit.vectors import difference
from odegrad.errors import OdegradError
from odegrad.gradients import Backsolve, Discrete, Gradient, Mismatched, Quadrature
from odegrad.grid import Grid, Nodes, Segment, Uniform
from odegrad.schemes import Dopri8
from odegrad.stepsize import PID, StepSize

__all__ = ["convergence", "refined"]

_NAME = "convergence"
_NOISE = 100
"""Distances below so many ε say nothing about an order."""
_CHANGE = 1.2
"""Nor do numbers of steps whose ratio is less."""


def convergence(subject: Subject, budget: Budget) -> Check:
    """Measures both distances at three step sizes."""
    if subject.base.field.stochastic:
        return Check(_NAME, "unknown", "f draws random numbers: other steps, other draws")
    exact, note = _continuous(subject, budget)
    modes: dict[str, Gradient] = {
        name: mode
        for name, mode in candidates(subject).items()
        if isinstance(mode, Backsolve | Quadrature | Mismatched)
    }
    levels: list[dict[str, Any]] = []
    skipped: list[str] = [] if note is None else [note]
    for label, factor, stepsize in _levels(subject):
        cost = 4 * subject.cost * (1 + len(modes)) * factor / 2
        if not budget.allows(cost):
            skipped.append(f"{label} {budget.skipped(cost)}")
            continue
        try:
            levels.append(_level(subject, label, stepsize, modes, exact))
        except OdegradError as error:
            skipped.append(f"{label}: {short(error)}")
    orders = {name: _order(levels, name, subject.eps) for name in modes}
    numbers = {"levels": levels, "orders": orders, "reference": exact is not None}
    if len(levels) < 2:
        return Check(_NAME, "unknown", "; ".join(skipped), numbers)
    return Check(_NAME, "information", _summary(levels, orders, skipped), numbers)


def _continuous(subject: Subject, budget: Budget) -> tuple[Tensor | None, str | None]:
    """The continuous gradient, or why there is none."""
    rtol = max(1e-11, 20 * subject.eps)
    size = max(float(x.abs().max()) if x.numel() else 0.0 for x in subject.y[: subject.n_state])
    control = PID(rtol=rtol, atol=rtol * max(size, 1e-3) * 1e-2)
    most = budget.left // (3 * 4 * 13)  # a third of what is left
    if most < 2 * len(subject.times):
        return None, "no continuous reference: the budget is spent"
    before = subject.base.max_steps
    try:
        subject.base.max_steps = most
        found = subject.pull(Discrete(), control, scheme=Dopri8())
    except OdegradError as error:
        return None, f"no continuous reference ({short(error)})"
    finally:
        subject.base.max_steps = before
    return vector(subject, found), None


def _levels(subject: Subject) -> list[tuple[str, float, StepSize]]:
    """(label, cost relative to the audited solve, step sizes), the audited one first."""
    control = subject.stepsize
    if isinstance(control, PID):
        change = 10 ** (1 / subject.base.scheme.order)
        return [
            (
                f"rtol {control.rtol * k:.0e}",
                change ** -math.log10(k),
                dataclasses.replace(control, rtol=control.rtol * k, atol=control.atol * k),
            )
            for k in (10.0, 1.0, 0.1)
        ]
    return [(f"{k * subject.n_steps} steps", k, refined(subject.grid, k)) for k in (1, 2, 4)]


def refined(grid: Grid, k: int) -> Grid:
    """Every step cut into k equal ones.

    Example:
        >>> refined(Grid((Uniform(2), Nodes((0.0, 0.5, 1.0)))), 2).segments
        (Uniform(n=4), Nodes(fractions=(0.0, 0.25, 0.5, 0.75, 1.0)))
    """

    def cut(segment: Segment) -> Segment:
        if isinstance(segment, Uniform):
            return Uniform(segment.n * k)
        assert isinstance(segment, Nodes), "an audited solve has no events"
        starts = segment.fractions
        inner = [a + (b - a) * i / k for a, b in itertools.pairwise(starts) for i in range(k)]
        return Nodes((*inner, 1.0))

    return Grid(tuple(cut(segment) for segment in grid.segments))


def _level(
    subject: Subject,
    label: str,
    stepsize: StepSize,
    modes: dict[str, Gradient],
    exact: Tensor | None,
) -> dict[str, Any]:
    """Both distances of all modes at one step size."""
    found = subject.pull(Discrete(), stepsize)
    grid = found.run.accepted_grid
    computed = vector(subject, found)
    span = abs(subject.times[-1] - subject.times[0])
    level: dict[str, Any] = {
        "label": label,
        "steps": grid.n_steps,
        "h": span / max(1, grid.n_steps),
        "computed": {},
        "continuous": {},
    }
    if exact is not None:
        level["continuous"]["Discrete()"] = difference(computed, exact)
    for name, mode in modes.items():
        try:
            g = vector(subject, subject.pull(mode, grid))
        except OdegradError:  # the comparison of modes says why
            continue
        level["computed"][name] = difference(g, computed)
        if exact is not None:
            level["continuous"][name] = difference(g, exact)
    return level


def _order(levels: list[dict[str, Any]], name: str, eps: float) -> float | None:
    """The observed order of the distance to the gradient of the computed loss."""
    usable = [
        (level["steps"], level["computed"][name])
        for level in levels
        if _NOISE * eps < level["computed"].get(name, math.inf) < math.inf
    ]
    if len(usable) < 2 or usable[-1][0] < _CHANGE * usable[-2][0]:
        return None
    (n1, e1), (n2, e2) = usable[-2:]
    if e2 >= e1:
        return None
    return math.log(e1 / e2) / math.log(n2 / n1)


def _summary(
    levels: list[dict[str, Any]], orders: dict[str, float | None], skipped: list[str]
) -> str:
    texts: list[str] = []
    for name, order in orders.items():
        found = [level["computed"][name] for level in levels if name in level["computed"]]
        if not found:
            continue
        chain = " → ".join(f"{x:.0e}" for x in found)
        observed = "" if order is None else f", observed order {order:.1f}"
        texts.append(f"{name} off the gradient of the computed loss by {chain}{observed}")
    nearer = [
        level["label"]
        for level in levels
        if level["continuous"].get("Backsolve()", math.inf)
        < level["continuous"].get("Discrete()", -math.inf)
    ]
    text = "; ".join(texts)
    known = any(level["continuous"] for level in levels)
    if known and nearer:
        text += (
            ". Backsolve is inconsistent with the computed loss, though nearer to the continuous "
            f"gradient at {', '.join(nearer)}"
        )
    elif known:
        text += ". Backsolve is inconsistent with the computed loss, and nowhere nearer to the continuous"
        text += " gradient"
    return "; ".join([f"at {', '.join(level['label'] for level in levels)}: {text}", *skipped])
