"""Everyone who is measured."""

from __future__ import annotations

import odegrad.bench
from benchmarks.diffrax_system import Diffrax
from benchmarks.torchode_system import Torchode
from odegrad.bench import System

__all__ = ["DIFFRAX", "DIFFRAX_BACKSOLVE", "SYSTEMS", "TORCHODES"]

TORCHODES = (
    Torchode("torchode", joint=True),
    Torchode("torchode-each", joint=False),
    Torchode("torchode-compiled", joint=True, compiled=True),
)
DIFFRAX = Diffrax("diffrax", backsolve=False)
DIFFRAX_BACKSOLVE = Diffrax("diffrax-backsolve", backsolve=True)

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        *odegrad.bench.SYSTEMS.values(),
        *TORCHODES,
        DIFFRAX,
        DIFFRAX_BACKSOLVE,
    )
}
