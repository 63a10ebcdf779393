"""odegrad against its peers: time, error and peak memory of one gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.accuracy import References, relative_error
from benchmarks.plots import draw_peers
from benchmarks.resident import Peak, measure_peak
from benchmarks.tables import aligned, number
from benchmarks.targets import targets_table
from odegrad.bench import ENGINES, Results, System, Workload, digits, measure, ratio
from odegrad.budget import size
from odegrad.stepsize import Steps

__all__ = ["measured_before", "run"]

NAME = "peers"
Say = Callable[[str], object]


def run(
    workloads: Sequence[Workload],
    systems: Sequence[System],
    repeats: int,
    shortest: float,
    memory: bool,
    out: Path,
    say: Say,
) -> None:
    """Measures, prints the tables and the targets, and writes ``peers.json`` and ``peers.png``.

    Arguments:
        workloads: What is solved.
        systems: Who solves it.
        repeats: Samples of each.
        shortest: The least duration of a sample, in seconds.
        memory: Whether to measure peak memory, in a process each.
        out: The folder for the results.
        say: Is told what happens.
    """
    warnings.simplefilter("ignore")  # those of the peers are not about their speed
    found: dict[str, dict[str, Any]] = {}
    for workload in workloads:
        torch.compiler.reset()  # it compiles a function for so many workloads only, then gives up
        timed = measure(workload, systems, repeats, shortest, say)
        peaks = _peaks(timed, say) if memory else {}
        found[workload.name] = _record(timed, systems, peaks)
        print(f"\n{_table(workload, found[workload.name])}\n", flush=True)
    settings = {"repeats": repeats, "shortest_sample_s": shortest}
    path = results.write(out, NAME, settings, {"workloads": found})
    picture = results.save_figure(out, NAME, draw_peers(found))
    print(f"Ratios are times of odegrad ÷ the time of the row. {_ERRORS}\n")
    print(targets_table(measured_before(out)))
    say(f"written: {path}, {picture}")


_ERRORS = (
    "Errors are relative to the Tape of\nodegrad in float64 on the same scheme, max-norm over y0 and "
    "all parameters together. On equal steps they are\nerrors of the gradient. On adaptive steps each "
    "system accepts its own grid, and the errors of the others contain\nthat difference. "
    "* marks gradients that are not the derivative of the computed numbers."
)


def measured_before(out: Path) -> dict[str, dict[str, float]]:
    """All quantities that the targets speak of, as far as they are found in a folder."""
    found: dict[str, dict[str, float]] = {}
    for workload, record in results.read(out, NAME).get("workloads", {}).items():
        found[workload] = {name: x["median_s"] for name, x in record["systems"].items()}
    for name in ("limit", "scaling"):
        found |= results.read(out, name).get("targets", {})
    return found


def _peaks(timed: Results, say: Say) -> dict[str, Peak]:
    peaks: dict[str, Peak] = {}
    for name in timed.found:
        say(f"{timed.workload.name}: peak memory of {name}")
        peak = measure_peak(timed.workload.name, name)
        if isinstance(peak, Peak):
            peaks[name] = peak
        else:
            say(f"{timed.workload.name}: no peak memory of {name}: {peak}")
    return peaks


def _record(timed: Results, systems: Sequence[System], peaks: Mapping[str, Peak]) -> dict[str, Any]:
    """What is written of one workload."""
    references = References(timed.workload)
    by_name = {system.name: system for system in systems}
    records: dict[str, Any] = {}
    for name, result in timed.found.items():
        peak = peaks.get(name)
        records[name] = {
            "exact": result.exact,
            "median_s": result.timing.median,
            "samples_s": result.timing.samples,
            "calls_per_sample": result.timing.calls,
            "compile_s": result.preparation if by_name[name].compiles else None,
            "accepted": result.counts.accepted,
            "rejected": result.counts.rejected,
            "f_evaluations": result.counts.f_evaluations,
            "error": relative_error(result.gradient, references.of(by_name[name])),
            "peak_bytes": None if peak is None else peak.nbytes,
            "peak_method": None if peak is None else peak.method,
        }
    return {
        "description": timed.workload.description,
        "dtype": str(timed.workload.dtype).removeprefix("torch."),
        "systems": records,
        "missing": timed.missing,
    }


def _table(workload: Workload, record: Mapping[str, Any]) -> str:
    systems = record["systems"]
    ours = [engine.name for engine in ENGINES if engine.name in systems]
    adaptive = not isinstance(workload.stepsize, Steps)
    header = ["system", "ms", *(f"{name.removeprefix('odegrad-')} ÷" for name in ours)]
    header += ["error", "steps", "f evals", "peak", "compile"]
    rows: list[list[str]] = []
    for name, x in systems.items():
        ratios = [ratio(systems[engine]["median_s"], x["median_s"]) for engine in ours]
        steps = f"{x['accepted']:.3g}" + (f" + {x['rejected']:.2g}" if adaptive else "")
        rows.append(
            [
                name if x["exact"] else f"{name} *",
                digits(1e3 * x["median_s"]),
                *(number(r, ".3f") for r in ratios),
                number(x["error"], ".1e"),
                steps,
                number(x["f_evaluations"], "d"),
                "–" if x["peak_bytes"] is None else size(max(0, x["peak_bytes"])),
                "–" if x["compile_s"] is None else f"{x['compile_s']:.1f} s",
            ]
        )
    notes = [f"  {name}: {why}" for name, why in record["missing"].items()]
    title = f"{workload.name}: {record['description']}, {record['dtype']}"
    return "\n".join([title, "", aligned(header, rows), *notes])
