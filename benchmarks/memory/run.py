"""The memory benchmark: parts that are measured, printed and kept one by one."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.memory import budget, complexity, labels, million, online, prediction
from benchmarks.memory.parts import Effort, Record, Say, check_table
from benchmarks.plots import draw_memory

__all__ = ["PARTS", "run"]

NAME = "memory"
PARTS: dict[str, Any] = {
    "prediction": prediction,
    "budget": budget,
    "million": million,
    "labels": labels,
    "complexity": complexity,
    "online": online,
}
"""Each has ``measure(effort, say)``, which returns a record with checks, and ``table(record)``."""


def run(parts: Sequence[str], effort: Effort, out: Path, say: Say) -> None:
    """Measures, prints tables, and writes ``memory.json`` and ``memory.png``.

    The file keeps what earlier calls have measured of the other parts.

    Arguments:
        parts: Which parts.
        effort: How much is measured.
        out: The folder for the results.
        say: Is told what happens.
    """
    found: dict[str, Record] = results.read(out, NAME).get("parts", {})
    path = None
    for name in parts:
        record = PARTS[name].measure(effort, say)
        today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
        found[name] = {"date": today, "quick": effort.quick, "repeats": effort.repeats, **record}
        path = results.write(out, NAME, {}, {"parts": {x: found[x] for x in PARTS if x in found}})
        print(f"\n{PARTS[name].table(record)}\n\n{check_table(record['checks'])}\n", flush=True)
    picture = results.save_figure(out, NAME, draw_memory(found))
    say(f"written: {path}, {picture}")
