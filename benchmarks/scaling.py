"""Time and peak memory of one gradient against the number of steps N: both should grow like N at most."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.plots import draw_scaling
from benchmarks.resident import Peak, measure_peak
from benchmarks.tables import aligned, number
from benchmarks.targets import SLOPE, TARGETS, targets_table
from odegrad import Discrete, Every
from odegrad.bench import ENGINES, WORKLOADS, Engine, measure
from odegrad.budget import size
from odegrad.stepsize import Steps

__all__ = ["SCALING", "run", "slope"]

NAME = "scaling"
WORKLOAD = WORKLOADS["tiny-rk4-1000"]  # its steps are replaced
STEPS = (100, 1_000, 10_000, 100_000)
EAGER_STEPS = 10_000  # more take minutes and gigabytes
EVERY = Engine("odegrad-every-100", Discrete(Every(100)))

SCALING: dict[str, Engine] = {engine.name: engine for engine in (*ENGINES, EVERY)}


def run(
    engines: Sequence[Engine],
    repeats: int,
    most: int,
    everything: bool,
    memory: bool,
    out: Path,
    say: Callable[[str], object],
) -> None:
    """Measures, prints a table, and writes ``scaling.json`` and ``scaling.png``.

    Arguments:
        engines: Who is measured.
        repeats: Samples of each.
        most: The most steps.
        everything: Whether the eager engines take more than `EAGER_STEPS`, too.
        memory: Whether to measure peak memory, in a process each.
        out: The folder for the results.
        say: Is told what happens.
    """
    points: dict[str, list[dict[str, Any]]] = {engine.name: [] for engine in engines}
    for n in (n for n in STEPS if n <= most):
        workload = dataclasses.replace(WORKLOAD, name=f"{n} steps", stepsize=Steps(n))
        able = [e for e in engines if e.compiles or n <= EAGER_STEPS or everything]
        timed = measure(workload, able, repeats, say=say)
        for name, result in timed.found.items():
            say(f"{n} steps: peak memory of {name}")
            peak = measure_peak(WORKLOAD.name, name, n) if memory else None
            nbytes = peak.nbytes if isinstance(peak, Peak) else None
            seconds = result.timing.median
            points[name].append({"steps": n, "median_s": seconds, "peak_bytes": nbytes})
    systems = {
        name: {"slope": slope([(x["steps"], x["median_s"]) for x in found]), "points": found}
        for name, found in points.items()
        if len(found) > 1
    }
    targets = {SLOPE: {name: abs(x["slope"] - 1.0) for name, x in systems.items()}}
    content = {"workload": WORKLOAD.description, "systems": systems, "targets": targets}
    path = results.write(out, NAME, {"repeats": repeats}, content)
    picture = results.save_figure(out, NAME, draw_scaling(systems))
    print(f"\n{_table(systems)}\n")
    print(targets_table(targets, [x for x in TARGETS if x.quantity == SLOPE]))
    say(f"written: {path}, {picture}")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of log y against log x, by least squares.

    Example:
        >>> f"{slope([(1.0, 3.0), (10.0, 300.0), (100.0, 30000.0)]):.3f}"
        '2.000'
    """
    x, y = [math.log(a) for a, _ in points], [math.log(b) for _, b in points]
    return statistics.linear_regression(x, y).slope


def _table(systems: dict[str, Any]) -> str:
    header = ["engine", "steps", "seconds", "µs per step", "peak", "bytes per step"]
    rows: list[list[str]] = []
    for name, record in systems.items():
        for x in record["points"]:
            n, peak = x["steps"], x["peak_bytes"]
            rows.append(
                [
                    name,
                    str(n),
                    number(x["median_s"]),
                    number(1e6 * x["median_s"] / n),
                    "–" if peak is None else size(max(0, peak)),
                    "–" if peak is None else number(peak / n, ".0f"),
                ]
            )
        rows.append([f"  slope {record['slope']:.3f}", *[""] * 5])
    return aligned(header, rows)
