"""What the pictures of the page have in common."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

__all__ = ["Figure", "finish", "panels", "plain_numbers", "powers_of_two", "sequential", "write"]

Figure = Any


def panels(widths: tuple[float, ...] = (1.0, 1.0), height: float = 3.9) -> tuple[Figure, Any]:
    """A figure without display and global state, with one panel per entry of widths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(9.6, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, len(widths), width_ratios=widths)


def finish(axes: Any, title: str, x: str = "", legend: bool = True, **options: Any) -> None:
    """Titles, grid and legend."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=8, **options)


def powers_of_two(axes: Any, steps: list[int]) -> None:
    """A logarithmic x-axis with these ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(n) for n in steps])
    axes.minorticks_off()


def plain_numbers(axes: Any) -> None:
    """Logarithmic axes with ticks such as 1, 2, 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def sequential() -> list[tuple[float, float, float]]:
    """From pale to the blue of our own results, then dark."""
    stops = ((0.93, 0.95, 0.98), (0.42, 0.66, 0.83), (0.106, 0.424, 0.659), (0.03, 0.13, 0.28))
    colours: list[tuple[float, float, float]] = []
    for i in range(64):
        x = i / 63 * (len(stops) - 1)
        k = min(int(x), len(stops) - 2)
        s = x - k
        r, g, b = ((1 - s) * u + s * v for u, v in zip(stops[k], stops[k + 1], strict=True))
        colours.append((r, g, b))
    return colours


def write(path: Path, figure: Figure) -> None:
    """Writes a picture with a palette, which is a third of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(255, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
