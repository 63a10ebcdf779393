"""Is the gradient the derivative of the computed loss? Taylor remainders on the frozen grid.

    R(e) = |L(x + e v) − L(x) − e ⟨g, v⟩| = O(e²)     for e = e0 / 2, e0 / 4, …

A gradient that is off by δ leaves R ≈ e |⟨δ, v⟩|, whose rate is 1. Rates are measured above round-off
only, whose size is that of R at a few e that are too small for anything else. Unlike duality this sees
what differentiation is told to leave out: a part of f behind ``detach`` or ``no_grad``.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch

from odegrad.audit.check import Check
from odegrad.audit.subject import Subject
from odegrad.state import Leaves, inner

__all__ = ["slope_along", "taylor"]

_RATE = 1.95
_ABOVE = 50.0
"""How far above round-off a remainder has to be for its rate to mean something."""
_LAST = 3
"""Over how many remainders, the smallest clean ones, the rate is measured."""
_DOUBTFUL, _LONG = 1.5, 16.0
"""A rate above the first is not held against a gradient if measured over a range shorter than this."""
_DOUBLE = 1e-12


def taylor(subject: Subject, generator: torch.Generator, left_out: Collection[str]) -> Check:
    """Measures the rate along one random direction of all groups but those left out."""
    chosen = [name not in left_out for name in subject.groups]
    directions = tuple(
        v if use else torch.zeros_like(v)
        for v, use in zip(subject.directions(generator), chosen, strict=True)
    )
    slope = slope_along(subject, directions)
    base, _ = subject.evaluate(directions, 0.0)

    def remainder(e: float) -> float:
        value, _ = subject.evaluate(directions, e)
        return abs(value - base - e * slope)

    noise = max(remainder(k * subject.eps) for k in (16, 32, 64))
    noise = max(noise, subject.eps * abs(base))
    sizes: list[float] = []
    remainders: list[float] = []
    for k in range(6, 28, 2) if subject.eps < _DOUBLE else range(3, 14):
        found = remainder(2.0**-k)
        sizes.append(2.0**-k)
        remainders.append(found)
        if found < noise:
            break
    numbers: dict[str, Any] = {"e": sizes, "remainders": remainders, "noise": noise, "slope": slope}
    return _judged(subject, directions, numbers)


def slope_along(subject: Subject, directions: Leaves) -> float:
    """⟨g, v⟩."""
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    return float(inner(directions, subject.first.grads, zero))


def _judged(subject: Subject, directions: Leaves, numbers: dict[str, Any]) -> Check:
    sizes: list[float] = numbers["e"]
    remainders: list[float] = numbers["remainders"]
    noise: float = numbers["noise"]
    name = "taylor"
    clean = _clean(remainders, _ABOVE * noise)
    if not clean and remainders[0] <= _ABOVE * noise:
        text = f"the remainder is round-off ({noise:.0e}) at every e: the loss is linear along v"
        return Check(name, "passed", text, numbers)
    last = clean[-_LAST:]
    if len(last) < 2:
        text = (
            "rounding leaves no range of e in which a rate could be measured (remainders "
            f"{remainders[0]:.0e} … {remainders[-1]:.0e}, round-off {noise:.0e}); use float64"
        )
        return Check(name, "unknown", text, numbers)
    a, b = last[0], last[-1]
    rate = math.log(remainders[a] / remainders[b]) / math.log(sizes[a] / sizes[b])
    numbers |= {"rate": rate, "clean": [sizes[clean[0]], sizes[b]]}
    span = f"down to e = {sizes[b]:.0e}, R = {remainders[b]:.0e}"
    if rate >= _RATE:
        return Check(
            name, "passed", f"remainders fall at the rate {rate:.2f} (2 if exact), {span}", numbers
        )
    if rate > _DOUBTFUL and sizes[a] / sizes[b] < _LONG:
        text = (
            f"remainders fall at the rate {rate:.2f} (2 if exact), but rounding leaves only e = "
            f"{sizes[a]:.0e} … {sizes[b]:.0e} to measure it; use float64"
        )
        return Check(name, "unknown", text, numbers)
    broken = _groups(subject, directions)
    numbers["groups"] = broken
    which = ", ".join(f"{key} by {x:.0e}" for key, x in broken.items()) or "no single group alone"
    text = (
        f"remainders fall at the rate {rate:.2f} instead of 2, {span}: the gradient is not the "
        f"derivative of the loss. Off along: {which}. (If duality holds, f reads this through detach, "
        ".data, no_grad or numpy, or is not smooth.)"
    )
    return Check(
        name, "flagged", text, numbers, f"Taylor remainders fall at the rate {rate:.2f}, not 2"
    )


def _clean(remainders: list[float], least: float) -> list[int]:
    """The first stretch of remainders that are finite and above round-off."""
    found: list[int] = []
    for i, x in enumerate(remainders):
        if math.isfinite(x) and x > least:
            found.append(i)
        elif found:
            break
    return found


def _groups(subject: Subject, directions: Leaves) -> dict[str, float]:
    """The groups whose derivative, by a central difference, is not that of the gradient."""
    e = subject.eps ** (1 / 3)
    broken: dict[str, float] = {}
    for k, name in enumerate(subject.groups):
        v = tuple(x if i == k else torch.zeros_like(x) for i, x in enumerate(directions))
        found = subject.evaluate(v, e)[0] - subject.evaluate(v, -e)[0]
        difference, slope = found / (2 * e), slope_along(subject, v)
        size = max(abs(difference), abs(slope))
        if size and abs(difference - slope) > max(1e-6, 100 * e * e) * size:
            broken[name] = abs(difference - slope) / size
    return broken
