"""What odegrad is to reach, as data, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from benchmarks.systems import SYSTEMS
from benchmarks.tables import aligned
from odegrad.bench import (
    COMPILED,
    COMPILED_GRAPH,
    EACH,
    EACH_COMPILED,
    ENGINES,
    GRAPH,
    STATES,
    TORCHDIFFEQ,
    TORCHDIFFEQ_ADJOINT,
)

__all__ = ["LIMIT", "SLOPE", "TARGETS", "Measured", "Target", "targets_table"]

Measured = Mapping[str, Mapping[str, float]]
"""Quantity ↦ system ↦ number. The name of a workload is the quantity of its seconds."""

LIMIT = "time ÷ limit, "  # and the name of a workload
SLOPE = "|slope − 1|"


@dataclass(frozen=True)
class Target:
    """An upper bound, inclusive, of pick(ours), or of pick(ours) / min(theirs).

    Arguments:
        quantity: What is compared.
        ours: Systems, of which `pick` chooses.
        at_most: The bound.
        theirs: Systems, of which the least counts; none if a number itself is bounded.
        pick: `min` for the best of ours, `max` if all have to meet the bound.
    """

    quantity: str
    ours: tuple[str, ...]
    at_most: float
    theirs: tuple[str, ...] = ()
    pick: Callable[[Iterable[float]], float] = min

    def value(self, measured: Measured) -> float | None:
        """What the bound applies to, or None if it was not measured."""
        numbers = measured.get(self.quantity, {})
        ours = [numbers[name] for name in self.ours if name in numbers]
        theirs = [numbers[name] for name in self.theirs if name in numbers]
        if not ours or (self.theirs and not theirs):
            return None
        return self.pick(ours) / min(theirs) if self.theirs else self.pick(ours)

    def verdict(self, measured: Measured) -> str:
        """Met, missed, or not measured."""
        value = self.value(measured)
        return "not measured" if value is None else "met" if value <= self.at_most else "missed"


_OURS = tuple(engine.name for engine in ENGINES)
_EAGER = (GRAPH.name, STATES.name)
_COMPILED = (COMPILED.name, COMPILED_GRAPH.name)
_STATES = (STATES.name, COMPILED.name)
_EACH = (EACH.name, EACH_COMPILED.name)
_EXACT_PEERS = tuple(s.name for s in SYSTEMS.values() if s.exact and s.name not in (*_OURS, *_EACH))
_ODEINT = (TORCHDIFFEQ.name,)
_ADJOINT = (TORCHDIFFEQ_ADJOINT.name,)
_DIFFRAX = ("diffrax",)

TARGETS = (
    Target("tiny-rk4-100", _COMPILED, 0.20, _ODEINT),
    Target("tiny-rk4-100", _COMPILED, 0.10, _ADJOINT),
    Target("tiny-rk4-1000", _COMPILED, 0.20, _ODEINT),
    Target("tiny-rk4-1000", _COMPILED, 0.10, _ADJOINT),
    Target("tiny-rk4-1000", _COMPILED, 0.90, _DIFFRAX),
    Target("tiny-dopri5", _COMPILED, 1.20, _DIFFRAX),
    Target("tiny-rk4-100", _EAGER, 1.00, _ODEINT),
    Target("tiny-rk4-1000", _EAGER, 1.00, _ODEINT),
    Target("medium-rk4", _OURS, 1.03, _EXACT_PEERS),
    Target("conv-rk4", _OURS, 1.03, _EXACT_PEERS),
    Target("medium-rk4", _STATES, 1.35, _ODEINT),
    Target("vdp-dopri5", _OURS, 1.00, _EXACT_PEERS),
    Target("cnf-dopri5", _OURS, 1.00, _EXACT_PEERS),
    Target("vdp-tsit5", (EACH.name,), 1.00, ("torchode-each",)),
    Target("vdp-tsit5", (EACH_COMPILED.name,), 1.00, ("torchode-each",)),
    Target(f"{LIMIT}medium-rk4", _OURS, 1.15),
    Target(f"{LIMIT}conv-rk4", _OURS, 1.15),
    Target(SLOPE, _OURS, 0.05, pick=max),
)


def targets_table(measured: Measured, targets: Iterable[Target] = TARGETS) -> str:
    """A table of the targets with what was measured."""
    rows: list[list[str]] = []
    for target in targets:
        value = target.value(measured)
        rows.append(
            [
                target.quantity,
                _names(target.ours, "worst of " if target.pick is max else "best of "),
                _names(target.theirs, "fastest of "),
                f"≤ {target.at_most:.2f}",
                "–" if value is None else f"{value:.3f}",
                target.verdict(measured),
            ]
        )
    return aligned(["target", "ours", "÷ theirs", "bound", "value", ""], rows, left=3)


_GROUPS = {
    _OURS: "odegrad",
    _EXACT_PEERS: "exact peers",
    _EAGER: "states, graph",
    _COMPILED: "compiled",
    _STATES: "those that keep states",
}


def _names(names: tuple[str, ...], several: str) -> str:
    if len(names) < 2:
        return "".join(names)
    return several + _GROUPS.get(names, ", ".join(names))
