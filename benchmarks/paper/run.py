"""Runs the parts, draws the pictures and writes the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.memory.parts import Record, Say, check_table
from benchmarks.paper import (
    density,
    inconsistency,
    integral,
    labels,
    lagrange,
    tangent,
    transpose,
)
from benchmarks.paper.figures import FIGURES, save
from benchmarks.paper.page import PAGE, render

__all__ = ["DOCS", "PARTS", "run"]

DOCS = Path(__file__).parents[2] / "docs"
NAME = "paper"
PARTS: dict[str, Any] = {
    "inconsistency": inconsistency,
    "transpose": transpose,
    "integral": integral,
    "labels": labels,
    "lagrange": lagrange,
    "density": density,
    "tangent": tangent,
}
"""Each has ``measure(quick, say)``, which returns a record with checks."""


def run(parts: Sequence[str], quick: bool, out: Path, docs: Path, say: Say) -> None:
    """Measures, and writes ``paper.json``, the pictures in ``paper/`` and, of all parts, ``paper.md``.

    The file keeps what earlier calls have measured of the other parts.

    Arguments:
        parts: Which parts.
        quick: Whether small problems will do, to see that everything runs.
        out: The folder for the results.
        docs: The folder for the page.
        say: Is told what happens.
    """
    found: dict[str, Record] = results.read(out, NAME).get("parts", {})
    for name in parts:
        start = time.perf_counter()
        record = PARTS[name].measure(quick, say)
        found[name] = {"quick": quick, "seconds": time.perf_counter() - start, **record}
        results.write(out, NAME, {}, {"parts": {x: found[x] for x in PARTS if x in found}})
        print(f"\n{check_table(record['checks'])}\n", flush=True)
    written = results.read(out, NAME)  # with the digits that are kept
    for name, (part, _) in FIGURES.items():
        if part in parts:
            say(f"written: {save(docs / NAME, name, written['parts'][part])}")
    if all(name in written["parts"] for name in PARTS):
        path = docs / PAGE
        path.write_text(render(written), "utf-8")
        say(f"written: {path}")
