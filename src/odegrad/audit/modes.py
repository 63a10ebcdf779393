"""The gradient modes side by side, on the accepted grid of the audited solve."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from odegrad.allocations import peak_bytes
from odegrad.audit.budget import Budget
from odegrad.audit.check import Check, ModeRow, Status, short
from odegrad.audit.subject import Pulled, Subject
from odegrad.audit.vectors import angle, difference, flat
from odegrad.errors import OdegradError
from odegrad.gradients import Backsolve, Discrete, Gradient, Mismatched, Quadrature, Tangent, Tape
from odegrad.schemes import SCHEMES, ExplicitRungeKutta, Scheme

__all__ = ["candidates", "compare", "spoken", "vector"]

FLAGGED = 1e-3
"""A relative difference of Backsolve from which on it is flagged."""
_FEW = 256
"""Up to so many numbers to differentiate for, Tangent takes part."""
_ROUNDS = 3
_TROUBLE = (OdegradError, RuntimeError, NotImplementedError, TypeError, ValueError)


def spoken(x: Any) -> str:
    """A dataclass as one would write it, without the fields that have their default values.

    Example:
        >>> import odegrad
        >>> spoken(odegrad.PID(rtol=1e-3)), spoken(odegrad.Discrete())
        ('PID(rtol=0.001)', 'Discrete()')
    """
    if not dataclasses.is_dataclass(x) or isinstance(x, type):
        return repr(x)
    shown: list[str] = []
    for field in dataclasses.fields(x):
        value, default = getattr(x, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.init and field.repr and (default is dataclasses.MISSING or value != default):
            shown.append(f"{field.name}={spoken(value)}")
    return f"{type(x).__name__}({', '.join(shown)})"


def candidates(subject: Subject) -> dict[str, Gradient]:
    """What is compared, by name: Tape first, then the user's own."""
    modes: list[Gradient] = [Tape(), subject.gradient, Discrete(), Backsolve(), Quadrature()]
    modes.append(Mismatched(_other(subject.base.scheme)))
    if subject.numbers <= _FEW:
        modes.append(Tangent())
    return {spoken(mode): mode for mode in modes}


def _other(scheme: Scheme) -> Scheme:
    """Another Runge–Kutta scheme of the same order, or of one near it."""
    others = [c for c in SCHEMES if issubclass(c, ExplicitRungeKutta) and not isinstance(scheme, c)]
    order = scheme.order
    return min(others, key=lambda c: (abs(c.tableau.order - order), -c.tableau.order))()


def compare(subject: Subject, budget: Budget) -> tuple[tuple[ModeRow, ...], Check]:
    """Runs every mode, times them in turn, and judges Backsolve."""
    rows: dict[str, ModeRow] = {}
    works: dict[str, Gradient] = {}
    oracle: Tensor | None = None
    for name, mode in candidates(subject).items():
        if oracle is not None and not budget.allows(4 * subject.cost):
            rows[name] = ModeRow(name, failure=budget.skipped(4 * subject.cost))
            continue
        try:
            found, peak = _measured(subject, mode)
        except _TROUBLE as error:
            rows[name] = ModeRow(name, failure=short(error))
            continue
        g = vector(subject, found)
        oracle = g if oracle is None else oracle
        stats = found.run.stats
        evaluations, transposes = stats.f_evaluations, stats.vjps
        rows[name] = ModeRow(
            name, difference(g, oracle), angle(g, oracle), None, peak, evaluations, transposes
        )
        works[name] = mode
    for name, seconds in _timed(subject, works, rows, budget).items():
        rows[name] = dataclasses.replace(rows[name], seconds=seconds)
    found = tuple(rows.values())
    return found, _judged(found, subject.rounding)


def _measured(subject: Subject, mode: Gradient) -> tuple[Pulled, int]:
    """A gradient, and the most bytes that it took."""
    found: list[Pulled] = []
    gc.collect()
    subject.base.field.forget()  # what is freed meanwhile shall not have been there before
    peak = peak_bytes(lambda: found.append(subject.pull(mode)), subject.base.field.device)
    return found[0], peak


def _timed(
    subject: Subject, works: dict[str, Gradient], rows: dict[str, ModeRow], budget: Budget
) -> dict[str, float]:
    """The median seconds of each mode, which take turns."""
    per_round = sum((rows[k].evaluations or 0) + (rows[k].transposes or 0) for k in works)
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(_ROUNDS):
        if not budget.allows(2 * per_round):  # the other checks shall have something left
            break
        for name, mode in works.items():
            start = time.perf_counter()
            subject.pull(mode)
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(x) for name, x in samples.items() if x}


def _judged(rows: Sequence[ModeRow], rounding: float) -> Check:
    numbers = {row.name: row.difference for row in rows}
    texts: list[str] = []
    status: Status = "information"
    for row in rows:
        off = row.difference
        if row.failure is not None:
            texts.append(f"{row.name}: {row.failure}")
        elif off is not None and off <= rounding:
            if off > 0:
                texts.append(f"{row.name} equals Tape to {off:.0e}")
        elif off is not None:
            amount = f"by {off:.0e}" if math.isfinite(off) else "and not finite"
            texts.append(f"{row.name} is inconsistent with the computed loss {amount}")
        if row.name == "Backsolve()" and off is not None and not off <= max(FLAGGED, rounding):
            status = "flagged"
            texts[-1] += f" (flagged above {FLAGGED:.0e})"
    return Check("modes", status, "; ".join(texts), numbers)


def vector(subject: Subject, found: Pulled) -> Tensor:
    """The gradient of initial state and parameters as one float64 vector."""
    return flat(found.grads[: len(subject.groups) - subject.timed])
