"""The pictures of a report, as PNG. matplotlib is imported when they are drawn."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

from odegrad.audit.check import Check
from odegrad.errors import MissingDependencyError

__all__ = ["convergence_picture", "costate_picture", "taylor_picture"]

COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b5ea7", "#b8860b", "#4a4a4a")


def taylor_picture(check: Check) -> str | None:
    """Remainders against e, with round-off and a line of slope 2."""
    sizes, remainders = check.numbers.get("e", []), check.numbers.get("remainders", [])
    points = [(e, r) for e, r in zip(sizes, remainders, strict=True) if 0 < r < math.inf]
    if not points:
        return None
    figure, axes = _figure(5.6, 4.0)
    e, r = zip(*points, strict=True)
    axes.loglog(e, r, "o-", color=COLOURS[0], label="R(e)")
    axes.loglog(e, [r[0] * (x / e[0]) ** 2 for x in e], ":", color="#777777", label="slope 2")
    axes.axhline(check.numbers["noise"], color=COLOURS[1], lw=1, label="round-off")
    low = min(*r, check.numbers["noise"]) / 10
    axes.set_ylim(low, 10 * max(r))
    axes.set(xlabel="e", ylabel="|L(x + e v) − L(x) − e ⟨g, v⟩|", title="Taylor remainders")
    axes.legend(frameon=False)
    return _png(figure)


def convergence_picture(check: Check) -> str | None:
    """Both distances of every mode against the mean step size."""
    levels: list[dict[str, Any]] = check.numbers.get("levels", [])
    if not levels:
        return None
    figure, panels = _figure(9.6, 4.0, 2)
    titles = ("to the gradient of the computed loss", "to the continuous gradient")
    names = ["Discrete()", *levels[0]["computed"]]
    for axes, key, title in zip(panels, ("computed", "continuous"), titles, strict=True):
        for colour, name in zip(COLOURS, names, strict=False):
            points = [(x["h"], x[key].get(name, math.nan)) for x in levels]
            shown = [(h, d) for h, d in points if 0 < d < math.inf]
            if shown:
                style = "s--" if name == "Discrete()" else "o-"
                axes.loglog(*zip(*shown, strict=True), style, color=colour, label=name)
        axes.set(xlabel="mean step size", title=f"Distance {title}")
        axes.set_ylabel("relative distance")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def costate_picture(check: Check) -> str | None:
    """The norm of the costate over time, and the share of each step in the parameter gradient."""
    times: Sequence[float] = check.numbers.get("times", [])
    if len(times) < 2:
        return None
    figure, panels = _figure(9.6, 3.6, 2)
    panels[0].plot(times, check.numbers["costate"], color=COLOURS[0])
    if min(check.numbers["costate"]) > 0:
        panels[0].set_yscale("log")
    panels[0].set(xlabel="t", ylabel="‖a(t)‖", title="Costate")
    shares: Sequence[float] = check.numbers["shares"]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(times)]
    widths = [abs(b - a) for a, b in itertools.pairwise(times)]
    rates = [share / width if width else 0.0 for share, width in zip(shares, widths, strict=True)]
    panels[1].bar(middles, rates, width=widths, color=COLOURS[2], edgecolor="white", lw=0.3)
    panels[1].set(xlabel="t", ylabel="‖θₙ‖ / |hₙ|", title="Where the parameter gradient comes from")
    return _png(figure)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "the report in HTML needs the package matplotlib; pip install 'odegrad[cli]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no display and no global state
    panels = figure.subplots(1, columns)
    for axes in [panels] if columns == 1 else panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def _png(figure: Any) -> str:
    """The figure as a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
