"""The pictures of the paper's page, one function per picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.memory.parts import Record
from benchmarks.paper.canvas import (
    Figure,
    finish,
    panels,
    plain_numbers,
    powers_of_two,
    sequential,
    write,
)
from benchmarks.plots import COLOURS, INEXACT, OURS, PEER

__all__ = ["FIGURES", "save"]


def inconsistency(record: Record) -> Figure:
    """Distances against the number of steps, one colour per scheme."""
    figure, both = panels(height=4.2)
    from matplotlib.lines import Line2D

    kinds = {
        "inconsistency": ("o-", "Backsolve to the computed loss"),
        "discrete": ("--", "Discrete to the exact solution"),
        "backsolve": (":", "Backsolve to the exact solution"),
    }
    problems = list(dict.fromkeys(x["problem"] for x in record["smooth"]))
    for axes, problem in zip(both, problems, strict=True):
        rows = [x for x in record["smooth"] if x["problem"] == problem]
        for x, colour in zip(rows, COLOURS, strict=False):
            for key, (style, _) in kinds.items():
                axes.plot(record["steps"], x[key], style, color=colour, ms=4, lw=1.4)
            axes.annotate(
                x["scheme"], (record["steps"][-1], x["inconsistency"][-1]), (8, -3),
                textcoords="offset points", fontsize=8, color=colour, annotation_clip=False,
            )  # fmt: skip
        axes.set_yscale("log")
        powers_of_two(axes, record["steps"])
        axes.set_xlim(None, 1.9 * record["steps"][-1])  # room for the names
        finish(axes, f"{problem}: relative distance of gradients", "steps", legend=False)
    handles = [
        Line2D([], [], color=PEER, ls=style.strip("o"), marker="o" if "o" in style else "",
               ms=4, label=label)
        for style, label in kinds.values()
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def backwards(record: Record) -> Figure:
    """Trajectories, and what is reconstructed from their ends."""
    figure, (left, right) = panels()
    plane, series = record["paths"]
    for key, colour, label in (
        ("back", INEXACT, "solved back from y(T)"),
        ("forward", OURS, "the solve"),
    ):
        points = plane[key]["states"]
        left.plot([p[0] for p in points], [p[1] for p in points], ".-", color=colour, lw=1, ms=4,
                  label=label)  # fmt: skip
        path = series[key]
        right.plot(path["times"], [p[0] for p in path["states"]], ".-", color=colour, lw=1.2, ms=4,
                   label=label)  # fmt: skip
    left.plot(*plane["forward"]["states"][0], "o", color=OURS, mfc="white", ms=8)
    left.plot(*plane["back"]["states"][-1], "x", color=INEXACT, ms=8, mew=2)
    left.set_xlim(-2.6, 2.6)
    left.set_ylim(-2.6, 2.6)
    left.set_aspect("equal")
    stop = plane["forward"]["times"][-1]
    right.set_ylim(-4.5, 4.5)
    finish(left, f"{plane['problem']}, T = {stop:g}, rtol {plane['rtol']:g}")
    finish(right, f"{series['problem']}, rtol {series['rtol']:g}: x(t)", "t", loc="upper right")
    return figure


def transpose(record: Record) -> Figure:
    """The errors of all pairs of schemes, and orders of some."""
    from matplotlib.colors import ListedColormap, LogNorm

    figure, (left, right) = panels((1.25, 1.0), height=4.6)
    pairs = record["pairs"]
    names, errors = pairs["names"], pairs["errors"]
    # The same map gives rounding: white.
    shown = [[x if x > 1e-13 else math.nan for x in row] for row in errors]
    colours = sequential()
    map_ = ListedColormap(colours).with_extremes(bad="white")
    image = left.imshow(shown, cmap=map_, norm=LogNorm(1e-8, 1e-1))
    left.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    left.set_yticks(range(len(names)), names)
    left.tick_params(labelsize=7)
    left.set_ylabel("scheme of the solve", fontsize=9)
    left.set_xlabel("scheme that is transposed", fontsize=9)
    left.set_title("Mismatched − Tape, relative (white: rounding)", fontsize=10, loc="left")
    bar = figure.colorbar(image, ax=left, shrink=0.85)
    bar.ax.tick_params(labelsize=8)
    for x, colour in zip(record["orders"], (*COLOURS, "#999999"), strict=False):
        right.plot(x["steps"], x["errors"], "o-", color=colour, ms=4, lw=1.4,
                   label=f"{x['forward']}, {x['back']}: {x['order']:.2f}")  # fmt: skip
    right.set_yscale("log")
    powers_of_two(right, record["orders"][0]["steps"])
    finish(right, "distance to the exact gradient; order", "steps", loc="lower left")
    return figure


def integral(record: Record) -> Figure:
    """Transposed evaluations against the number of parameters; orders of the quadrature."""
    figure, (left, right) = panels()
    numbers = [x["parameters"] for x in record["rows"]]
    styles = ("s-", "s--", "o-", "o--", "o:")
    colours = (INEXACT, INEXACT, COLOURS[2], COLOURS[2], OURS)
    for mode, style, colour in zip(record["modes"], styles, colours, strict=True):
        vjps = [x["modes"][mode]["vjps"] for x in record["rows"]]
        left.plot(numbers, vjps, style, color=colour, ms=4, label=mode)
    left.set_xscale("log")
    left.set_ylim(0, None)
    finish(
        left, "transposed evaluations of f, backward sweep", "parameters", ncols=2, loc=(0.02, 0.02)
    )
    left.set_ylim(-35, None)
    left.set_yticks(range(0, 141, 20))
    rows = [x for x in record["orders"] if x["problem"] != "linear system"]
    for x, colour in zip(rows, COLOURS, strict=False):
        for rule, style in (("own nodes", "o-"), ("Gauss–Kronrod", "x--")):
            both = ", ".join(f"{value:.2f}" for value in x["measured"].values())
            label = f"{x['scheme']}: {both}" if rule == "own nodes" else None
            right.plot(
                x["steps"], x["errors"][rule], style, color=colour, ms=4, lw=1.2, label=label
            )
    right.set_yscale("log")
    powers_of_two(right, rows[0]["steps"])
    finish(right, "Quadrature (dashed: Gauss–Kronrod) to exact; orders", "steps", loc="lower left")
    return figure


def labels(record: Record) -> Figure:
    """Evaluations and seconds against the number of labels."""
    figure, both = panels(height=3.4)
    k = [x["labels"] for x in record["rows"]]
    for axes, key, title in (
        (both[0], "vjps", "transposed evaluations of f"),
        (both[1], "seconds", "seconds, backward"),
    ):
        for suffix, style, colour, label in (
            ("_single", "s-", PEER, "single-point: one sweep per label"),
            ("", "o-", OURS, "multi-point: one sweep"),
        ):
            values = [x[key + suffix] for x in record["rows"]]
            axes.plot(k, values, style, color=colour, ms=4, label=label)
        axes.set_yscale("log")
        powers_of_two(axes, k)
        finish(axes, title, "labels K")
    return figure


def lagrange(record: Record) -> Figure:
    """Errors of the cost and its gradient; remainders of the perturbation identity."""
    figure, (left, right) = panels()
    for x, colour in zip(record["orders"], COLOURS, strict=False):
        left.plot(record["steps"], x["cost"], "x--", color=colour, ms=4, lw=1.2)
        label = f"{x['scheme']}: {x['orders']['cost']:.2f}, {x['orders']['gradient']:.2f}"
        left.plot(record["steps"], x["gradient"], "o-", color=colour, ms=4, lw=1.2, label=label)
    left.set_yscale("log")
    powers_of_two(left, record["steps"])
    finish(left, "errors of J (dashed) and of its gradient; orders", "steps", loc="lower left")
    for x, colour, style in zip(record["remainders"], (OURS, INEXACT), ("o-", "s-"), strict=True):
        label = f"{x['mode']}: order {x['order']:.2f}"
        right.loglog(x["epsilons"], x["remainders"], style, color=colour, ms=4, label=label)
    finish(right, "|J(θ + ε δ) − J(θ) − ε ⟨gradient, δ⟩|", "ε")
    return figure


def density(record: Record) -> Figure:
    """Densities of the linear system, and the best piecewise constant control."""
    figure, (left, right) = panels()
    x = record["picture"]
    for key, found, colour, label in (
        ("u", "found_u", OURS, "for u: Bᵀ a(t)"),
        ("A", "found_A", INEXACT, "for A₁₂: a₁(t) y₂(t)"),
    ):
        left.plot(x["times"], x[key], "-", color=colour, lw=1.2, label=label)
        left.stairs(x[found], x["edges"], baseline=None, color=colour, lw=1.0, alpha=0.8)
    for knot in x["knots"][1:-1]:
        left.axvline(knot, color=PEER, lw=0.8, ls=":")
    finish(left, "density of the gradient: exact, and means over steps", "t")
    x = record["optimal"]
    right.plot(x["times"], x["continuous"], "-", color=PEER, lw=1.4, label="continuous optimum")
    pieces = len(x["values"])
    right.stairs(x["values"], x["knots"], baseline=None, color=OURS, lw=1.4,
                 label=f"{pieces} pieces, by exact gradients")  # fmt: skip
    finish(right, "optimal control u(t)", "t")
    return figure


def oscillator(record: Record) -> Figure:
    """Where the damping of an oscillator learns."""
    figure, (left, right) = panels()
    x = record["oscillator"]
    left.plot(x["edges"], x["x"], color=OURS, lw=1.4)
    finish(
        left, f"Van der Pol, μ = {x['mu']:g}: x(t); labels at the dotted times", "t", legend=False
    )
    right.stairs(x["density"], x["edges"], baseline=0.0, color=INEXACT, fill=True, alpha=0.85)
    finish(right, "density of the gradient for μ", "t", legend=False)
    for axes in (left, right):
        for t in x["labels"]:
            axes.axvline(t, color=PEER, lw=0.8, ls=":")
    return figure


def tangent(record: Record) -> Figure:
    """⟨λ, ẏ⟩ along the steps, and what tangents cost."""
    figure, (left, right) = panels()
    for x, colour, style in zip(
        record["along"], (OURS, COLOURS[4], INEXACT), ("o-", "^-", "s-"), strict=True
    ):
        n = range(record["steps"])
        values = [max(abs(r), 1e-16) for r in x["ratios"][:-1]]
        left.semilogy(n, values, style, color=colour, ms=4, lw=1.2, label=x["mode"])
    left.set_xticks(range(0, record["steps"] + 1, 5))
    finish(left, "|⟨λₙ, ẏₙ⟩ / ⟨λ_N, ẏ_N⟩ − 1|", "step n", loc="center right")
    numbers = [x["numbers"] for x in record["rows"]]
    for key, colour, style, label in (
        ("tangent", INEXACT, "s-", "Tangent"),
        ("discrete", OURS, "o-", "Discrete"),
    ):
        values = [1e3 * x[f"{key}_seconds"] for x in record["rows"]]
        right.loglog(numbers, values, style, color=colour, ms=4, label=label)
    plain_numbers(right)
    finish(right, "ms per gradient", "numbers to differentiate for")
    return figure


FIGURES: Mapping[str, tuple[str, Callable[[Record], Figure]]] = {
    "inconsistency": ("inconsistency", inconsistency),
    "backwards": ("inconsistency", backwards),
    "transpose": ("transpose", transpose),
    "integral": ("integral", integral),
    "labels": ("labels", labels),
    "lagrange": ("lagrange", lagrange),
    "density": ("density", density),
    "oscillator": ("density", oscillator),
    "tangent": ("tangent", tangent),
}
"""By name: the part that is drawn, and how."""


def save(folder: Path, name: str, record: Record) -> Path:
    """Draws a picture; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    write(path, FIGURES[name][1](record))
    return path
