"""The pictures of the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odegrad.bench import EACH, EACH_COMPILED, ENGINES, digits

__all__ = ["draw_memory", "draw_peers", "draw_scaling"]

OURS, PEER, INEXACT = "#1b6ca8", "#555555", "#c8553d"
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b5ea7", "#b8860b", "#4a4a4a")
MIB = 2**20


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no display and no global state
    return figure


def draw_peers(workloads: Mapping[str, Any]) -> Any:
    """One panel per workload: the milliseconds of every system, the fastest on top."""
    from matplotlib.lines import Line2D

    columns = 2 if len(workloads) > 1 else 1
    rows = -(-len(workloads) // columns)
    lines = max(len(record["systems"]) for record in workloads.values())
    figure = _figure(5.2 * columns, 0.9 + rows * (0.7 + 0.2 * lines))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    names = {engine.name for engine in (*ENGINES, EACH, EACH_COMPILED)}
    for axes, (workload, record) in zip(panels, workloads.items(), strict=False):
        found = sorted(record["systems"].items(), key=lambda x: -x[1]["median_s"])
        times = [1e3 * x["median_s"] for _, x in found]
        for i, (name, x) in enumerate(found):
            colour = OURS if name in names else PEER if x["exact"] else INEXACT
            axes.plot(times[i], i, "o", color=colour, ms=6, mfc=colour if x["exact"] else "white")
            axes.annotate(
                digits(times[i]), (times[i], i), (7, 0), textcoords="offset points",
                va="center", fontsize=8, color=colour,
            )  # fmt: skip
        axes.set_yticks(range(len(found)), [name for name, _ in found], fontsize=8)
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.set_xlim(min(times) / 1.4, max(times) * 1.8)
        _logarithmic(axes)
        axes.set_title(workload, fontsize=10, loc="left")
    for axes in panels[len(workloads) :]:
        axes.set_visible(False)
    figure.supxlabel("ms per gradient, forward and backward, one thread (log scale)", fontsize=9)
    kinds = (
        ("odegrad", OURS, OURS),
        ("others, exact", PEER, PEER),
        ("others, continuous adjoint", INEXACT, "white"),
    )
    handles = [
        Line2D([], [], ls="", marker="o", color=colour, mfc=face, label=label)
        for label, colour, face in kinds
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _logarithmic(axes: Any) -> None:
    """A logarithmic x-axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_scaling(systems: Mapping[str, Any]) -> Any:
    """Time and peak memory against the number of steps, one line per engine."""
    figure = _figure(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    for (name, record), colour in zip(systems.items(), COLOURS, strict=False):
        steps = [x["steps"] for x in record["points"]]
        label = f"{name.removeprefix('odegrad-')}, slope {record['slope']:.3f}"
        times = [x["median_s"] for x in record["points"]]
        left.loglog(steps, times, "o-", color=colour, ms=4, label=label)
        known = [(x["steps"], x["peak_bytes"]) for x in record["points"] if x["peak_bytes"]]
        sizes = [max(n / MIB, 0.1) for _, n in known]
        right.loglog([n for n, _ in known], sizes, "o-", color=colour, ms=4)
    for axes, title in ((left, "seconds per gradient"), (right, "peak memory, MiB")):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("steps")
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    return figure


def draw_memory(parts: Mapping[str, Any]) -> Any:
    """Predicted and measured peaks, times against the model, and `Online` against the optimum."""
    drawn = {"prediction": _peaks, "complexity": _times, "online": _ratios}
    shown = [name for name in drawn if name in parts]
    figure = _figure(1.2 + 4.6 * max(1, len(shown)), 5.6)
    for i, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        drawn[name](axes, parts[name])
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _peaks(axes: Any, record: Mapping[str, Any]) -> None:
    rows = record["rows"][::-1]
    places = range(len(rows))
    measured, predicted = ([x[key] / MIB for x in rows] for key in ("measured", "predicted"))
    axes.plot(measured, places, "o", color=OURS, ms=7, mfc="white", label="measured")
    axes.plot(predicted, places, ".", color=INEXACT, ms=5, label="predicted")
    axes.set_yticks(places, [x["name"] for x in rows], fontsize=8)
    _logarithmic(axes)
    axes.set_title("peak of one gradient, MiB", fontsize=10, loc="left")


def _times(axes: Any, record: Mapping[str, Any]) -> None:
    from matplotlib.ticker import LogLocator

    slots = [x["slots"] for x in record["rows"]]
    axes.loglog(slots, [x["median_s"] for x in record["rows"]], "o", color=OURS, label="measured")
    model = [x["model_s"] for x in record["rows"]]
    axes.loglog(slots, model, "-", color=PEER, label="t(N, c) F + N (F + V)")
    axes.set_xticks(slots, [str(c) for c in slots], minor=False)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("stored states c")
    axes.set_title(f"seconds, Binomial(c), N = {record['steps']}", fontsize=10, loc="left")


def _ratios(axes: Any, record: Mapping[str, Any]) -> None:
    slots = [x["slots"] for x in record["rows"]]
    for key, label, style in (
        ("within_max", "most, N ≤ (c + 1)(c + 2)/2", "o-"),
        ("within_mean", "mean", "o--"),
        ("beyond_max", "most, up to 10 times as many", "s-"),
        ("beyond_mean", "mean", "s--"),
    ):
        colour = OURS if key.startswith("within") else INEXACT
        axes.plot(slots, [x[key] for x in record["rows"]], style, color=colour, ms=4, label=label)
    axes.set_xlabel("stored states c")
    axes.set_title("Online: steps ÷ optimum", fontsize=10, loc="left")
