"""The two pictures of a fit. matplotlib is imported when they are drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from odegrad.fit.data import Series
from odegrad.fit.fitted import Fitted
from odegrad.fit.training import Outcome

__all__ = ["draw_fit", "draw_loss"]

POINTS = 400  # of a smooth curve
PANELS = 6  # at most so many states are drawn
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b5ea7", "#b8860b", "#4a4a4a")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no display and no global state
    return figure


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    os.replace(part, path)


def draw_fit(fitted: Fitted, series: Series, n_train: int, path: Path) -> None:
    """Draws data, trajectory and, shaded, the held-out rows with the forecast; one panel per state."""
    from matplotlib.ticker import MaxNLocator

    times, states = series.times, series.states[:PANELS]
    fine = torch.linspace(float(times[0]), float(times[-1]), POINTS, dtype=torch.float64)
    curve = fitted.predict(fine).numpy()
    t, x, cut = fine.numpy(), series.values.numpy(), float(times[n_train - 1])
    seen = t <= cut
    figure = _figure(8.0, 1.2 + 2.3 * len(states))
    panels = figure.subplots(len(states), 1, sharex=True, squeeze=False)[:, 0]
    for i, (axes, name) in enumerate(zip(panels, states, strict=True)):
        _tidy(axes)
        colour = COLOURS[i]
        if n_train < len(times):
            axes.axvspan(cut, t[-1], color="#f1ead9", zorder=0, label="held out")
            future = t >= t[seen][-1]
            axes.plot(t[future], curve[future, i], "--", color=colour, lw=2, label="forecast")
            still = [x[n_train - 1, i]] * 2
            axes.plot([cut, t[-1]], still, ":", color="#777777", lw=1.4, label="persistence")
        axes.plot(t[seen], curve[seen, i], color=colour, lw=2, label="fitted trajectory")
        ts = times.numpy()
        axes.plot(ts[:n_train], x[:n_train, i], "o", color=colour, ms=5, label="data")
        axes.plot(ts[n_train:], x[n_train:, i], "o", color=colour, ms=5, mfc="white", mew=1.4)
        if float(x[:, i].min()) >= 0:
            axes.set_ylim(bottom=0)
        axes.set_ylabel(name)
        axes.margins(x=0.02)
    panels[-1].set_xlabel(series.time)
    if bool((times == times.round()).all()):
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda k: _LEGEND.index(labels[k]))
    figure.legend(
        [handles[k] for k in order],
        [labels[k] for k in order],
        loc="outside lower center",
        ncols=len(order),
        frameon=False,
    )
    kind = "neural ODE" if fitted.config.model == "mlp" else "Lotka–Volterra"
    note = "" if len(states) == len(series.states) else f" (first {PANELS} states)"
    figure.suptitle(f"{series.path.stem}: {kind} fitted to {n_train} rows{note}")
    _save(figure, path)


_LEGEND = ["data", "fitted trajectory", "forecast", "persistence", "held out"]


def draw_loss(outcome: Outcome, path: Path) -> None:
    """Draws the loss over the epochs; a change of shade marks a longer horizon."""
    epochs = outcome.epochs
    figure = _figure(8.0, 4.2)
    axes = figure.subplots()
    _tidy(axes)
    if epochs:
        axes.semilogy([e.n for e in epochs], [e.loss for e in epochs], color=COLOURS[0], lw=1.4)
        spans = _spans(outcome)
        for i, (first, last, rows) in enumerate(spans):
            if len(spans) > 1:
                axes.axvspan(
                    first - 0.5, last + 0.5, color="#f1ead9", alpha=(i + 1) / len(spans), lw=0
                )
                place = ((first + last) / 2, 0.97)
                transform = axes.get_xaxis_transform()
                axes.text(*place, f"{rows} rows", transform=transform, ha="center", va="top")
        axes.margins(x=0)
    if outcome.best is not None:
        label = f"best: {outcome.best.loss:.3g} at epoch {outcome.best.n}"
        axes.plot(
            outcome.best.n, outcome.best.loss, "o", color=COLOURS[1], label=label, clip_on=False
        )
        axes.legend(loc="lower right")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean squared error of transformed values")
    axes.set_title("Training loss" + (" (interrupted)" if outcome.interrupted else ""))
    _save(figure, path)


def _spans(outcome: Outcome) -> list[tuple[int, int, int]]:
    """(first epoch, last epoch, rows) of every stretch of epochs with the same horizon."""
    spans: list[tuple[int, int, int]] = []
    for epoch in outcome.epochs:
        if spans and spans[-1][2] == epoch.rows:
            spans[-1] = (spans[-1][0], epoch.n, epoch.rows)
        else:
            spans.append((epoch.n, epoch.n, epoch.rows))
    return spans
