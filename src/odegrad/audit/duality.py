"""Is the gradient the transpose of the steps? The duality of tangents and costates.

For every direction (ẏ0, ṗ, Ṫ), with ẏ_j the tangent of output j carried forward along the accepted steps,

    Σ_j ⟨ȳ_j, ẏ_j⟩ = ⟨a_0, ẏ0⟩ + ⟨p̄, ṗ⟩ + ⟨T̄, Ṫ⟩,     p̄ = Σ_n θ_n.

Both sides are linear in the direction, so no step parameter takes part, and what is left is rounding: N
steps whose errors add up like a random walk, some ten roundings each, hence the bound 100 ε √N relative
to the sum of all absolute terms. The left side is by torch's forward mode and shares no code with a
backward sweep (where f has no forward mode, see `odegrad.audit.tangents`). What it cannot see is what
both modes leave out: a tensor that f reads through ``detach``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from odegrad.audit.check import Check, short
from odegrad.audit.subject import Subject
from odegrad.audit.tangents import carried
from odegrad.audit.vectors import products
from odegrad.checkpoints import Rewind
from odegrad.errors import OdegradError
from odegrad.gradients import Discrete
from odegrad.state import Leaves

__all__ = ["duality"]

_DIRECTIONS = 3
_MOST_GROUPS = 40


def duality(subject: Subject, generator: torch.Generator) -> Check:
    """Compares both sides for a few random directions, and for one group after another if they differ."""
    rewound = _rewind_error(subject)
    tolerance = subject.rounding + 10 * rewound
    try:
        pairs = [
            _mismatch(subject, subject.directions(generator), range(len(subject.groups)))
            for _ in range(_DIRECTIONS)
        ]
    except (RuntimeError, NotImplementedError, TypeError, OdegradError) as error:
        return Check(
            "duality",
            "unknown",
            f"f has no derivative in torch's forward mode, nor a second one ({short(error)}); see Taylor "
            "remainders",
        )
    found, how = [x for x, _ in pairs], pairs[0][1]
    # `max` would lose a NaN.
    worst = math.inf if any(math.isnan(x) for x in found) else max(found)
    numbers: dict[str, Any] = {
        "relative": worst,
        "tolerance": tolerance,
        "directions": found,
        "by": how,
    }
    bound = f"bound {tolerance:.0e} = 100 ε √N for N = {subject.n_steps} steps"
    if rewound:
        bound += f", and 10 × the reconstruction error {rewound:.0e} of rewinding"
    if worst <= tolerance:
        text = (
            f"the gradient is the transpose of the accepted steps, to {worst:.0e} ({bound}; by {how}, "
            "no step parameter takes part)"
        )
        return Check("duality", "passed", text, numbers)
    broken = _groups(subject, generator, tolerance)
    numbers["groups"] = broken
    which = ", ".join(f"{name} by {x:.0e}" for name, x in broken.items()) or "no single group alone"
    text = f"the gradient is not the transpose of the accepted steps: off by {worst:.0e}"
    summary = f"{text} ({bound}). What breaks it: {which}"
    return Check("duality", "flagged", summary, numbers, text)


def _rewind_error(subject: Subject) -> float:
    gradient, stats = subject.gradient, subject.first.run.stats
    rewinds = isinstance(gradient, Discrete) and isinstance(gradient.checkpoints, Rewind)
    return (stats.rewind_error or 0.0) if rewinds else 0.0


def _groups(subject: Subject, generator: torch.Generator, tolerance: float) -> dict[str, float]:
    """The groups that break the duality, each with its relative mismatch."""
    directions = subject.directions(generator)
    broken: dict[str, float] = {}
    for k, name in list(enumerate(subject.groups))[:_MOST_GROUPS]:
        mismatch, _ = _mismatch(subject, directions, [k])
        if not mismatch <= tolerance:
            broken[name] = mismatch
    return broken


def _mismatch(subject: Subject, directions: Leaves, chosen: range | list[int]) -> tuple[float, str]:
    """|left − right| / Σ |terms| for directions in some of the groups, and how the left was had."""
    moved = tuple(directions[k] for k in chosen)
    tangents, how = carried(subject, [subject.active[k] for k in chosen], moved)
    left, size_left = products(subject.first.cotangents, tangents)
    right, size_right = products(tuple(subject.first.grads[k] for k in chosen), moved)
    size = size_left + size_right
    return (abs(left - right) / size if size else 0.0), how
