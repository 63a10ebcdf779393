"""How much the gradient leaves out by holding adaptive steps still.

The interior grid times t_n move with the parameters when a controller chooses them. The term that the
frozen grid neglects, along a direction v, is

    Σ_n t̄_n dt_n/de,     t̄_n the cotangent of the grid time t_n as a free variable,

with dt_n/de from solves at x ± e v if they take as many steps and the times move smoothly; otherwise
Σ_n |t̄_n| h_n is given, what it would be for times that move by a step. The
term is of the order of the tolerance, and no descent information.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.audit.check import Check
from odegrad.audit.subject import Subject
from odegrad.audit.taylor import slope_along
from odegrad.gradients import Discrete
from odegrad.grid import Clock
from odegrad.state import Leaves
from odegrad.stepsize import Steps

__all__ = ["step_term"]

_NAME = "step sizes"
_SIZES = (1e-4, 1e-5, 1e-6, 1e-7)
_LEAST = 1e3
"""In ε: below, rounding moves the steps."""


def step_term(subject: Subject, generator: torch.Generator) -> Check:
    """Measures the neglected term, relative to ⟨g, v⟩."""
    if not subject.adaptive:
        text = "the neglected step-size term is exactly zero: fixed steps do not depend on the solution"
        return Check(_NAME, "information", text, {"relative": 0.0})
    times = subject.grid.times(subject.times)
    clock = Clock(subject.grid, subject.times)
    landed = [clock.node(j) for j in range(len(subject.times))]
    pulled = subject.pull(Discrete(), Steps(1), times=tuple(times), landed=landed)
    inside = torch.ones(len(times), dtype=torch.bool, device="cpu")
    inside[landed] = False
    bars = pulled.grads[-1] * inside
    last = len(subject.groups) - subject.timed
    directions = tuple(
        v if k < last else torch.zeros_like(v) for k, v in enumerate(subject.directions(generator))
    )
    slope = abs(slope_along(subject, directions))
    steps = torch.tensor(times, device="cpu").diff().abs()
    bound = float((bars[:-1].abs() * steps.to(bars)).sum())
    numbers = {"bound": bound, "slope": slope, "interior": int(inside.sum())}
    if not slope:
        return Check(_NAME, "unknown", "the gradient vanishes along the direction tried", numbers)
    rates = _rates(subject, directions)
    if rates is None:
        text = (
            f"grid times that move by a step would change the gradient by {bound / slope:.0e}; how far "
            "they move with the parameters could not be measured, since they do not move smoothly"
        )
        return Check(_NAME, "information", text, numbers | {"relative_of_one_step": bound / slope})
    relative = abs(float((bars * rates).sum())) / slope
    text = (
        f"holding the accepted steps still neglects {relative:.0e} of the gradient along a random "
        f"direction ({numbers['interior']} interior grid times)"
    )
    return Check(_NAME, "information", text, numbers | {"relative": relative})


def _rates(subject: Subject, directions: Leaves) -> Tensor | None:
    """dt_n/de along the direction, if the steps change smoothly: their number stays, rates agree."""
    counts = [len(segment) for segment in subject.grid.segments]

    def moved(size: float) -> Tensor | None:
        _, grid = subject.evaluate(directions, size, subject.stepsize)
        if [len(segment) for segment in grid.segments] != counts:
            return None
        return torch.tensor(grid.times(subject.times), dtype=torch.float64, device="cpu")

    last: Tensor | None = None
    for e in _SIZES:
        if e < _LEAST * subject.eps:
            break
        right, left = moved(e), moved(-e)
        found = None if right is None or left is None else (right - left) / (2 * e)
        # A rejection more or less moves the steps by a jump, not at a rate.
        if found is not None and last is not None and _agree(found, last):
            return found
        last = found
    return None


def _agree(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm()) <= 0.1 * float(a.norm())
