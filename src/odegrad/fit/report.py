"""What the terminal shows at the end of a fit. rich is imported when it is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odegrad.fit.check import GradientCheck
from odegrad.fit.metrics import ErrorRow, Quantity, forecast_verdict

__all__ = ["print_report"]

STATES = 6  # up to so many states get rows of their own


def print_report(
    rows: list[ErrorRow], numbers: list[Quantity], check: GradientCheck | None, out: Path
) -> None:
    """Prints errors, quantities and the gradient check as short tables to standard output."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    console.print(_errors(rows))
    verdict = forecast_verdict(rows)
    if verdict is not None:
        console.print(verdict, style="bold" if verdict.startswith("Persistence") else None)
    console.print(_quantities(numbers))
    if check is not None:
        console.print(_gradients(check))
        console.print(_explanation(check))
    console.print(f"\nSaved in {out}: model.pt, metrics.json, fit.png, loss.png", soft_wrap=True)


def _table(title: str, *columns: str, left: int = 1) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right", no_wrap=i == 0)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _errors(rows: list[ErrorRow]) -> Any:
    forecast = any(row.part == "forecast" for row in rows)
    columns = ["", "RMS log error", "RMSE"]
    if forecast:
        columns = ["", "RMS log error", "persistence", "RMSE", "persistence"]
    table = _table("Errors", *columns)
    crowded = sum(row.state is not None and row.part == "fit" for row in rows) > STATES
    for i, row in enumerate(rows):
        if crowded and row.state is not None:
            continue
        name = f"{row.part}, {row.state or f'all ({row.rows} rows)'}"
        cells = [_number(row.rms_log), _number(row.rmse)]
        if forecast:
            still = (_number(row.persistence_rms_log), _number(row.persistence_rmse))
            cells = [cells[0], still[0], cells[1], still[1]]
        table.add_row(name, *cells, end_section=i + 1 < len(rows) and rows[i + 1].part != row.part)
    return table


def _quantities(numbers: list[Quantity]) -> Any:
    table = _table("Fitted quantities", "", "value", "unit", "meaning")
    for column in table.columns[2:]:
        column.justify = "left"
    for q in numbers:
        table.add_row(q.symbol, _number(q.value), q.unit, q.meaning)
    return table


def _gradients(check: GradientCheck) -> Any:
    title = f"Gradient check on this model ({check.size} parameters)"
    table = _table(title, "gradient", "relative difference to Tape", "time", "peak memory")
    for cost in check.costs:
        difference = "0 (the oracle)" if cost.name == "Tape" else f"{cost.difference:.1e}"
        table.add_row(
            cost.name, difference, f"{1e3 * cost.seconds:.1f} ms", _bytes(cost.peak_bytes)
        )
    return table


def _bytes(n: int) -> str:
    """A size for people.

    Example:
        >>> _bytes(512), _bytes(53720)
        ('512 B', '52.5 KiB')
    """
    size = float(n)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _explanation(check: GradientCheck) -> str:
    solve, stats = check.solve, check.stats
    by_name = {cost.name: cost.difference for cost in check.costs}
    return (
        f"Solve over the training rows: {solve['accepted']} steps, {solve['rejected']} rejected, "
        f"{solve['f_evaluations']} f evaluations; Discrete replays its steps and goes back with "
        f"{stats['f_evaluations']} f evaluations in all and {stats['vjps']} vjps.\n"
        f"Discrete is the derivative of what was computed, to {by_name['Discrete']:.0e}. Backsolve is "
        f"inconsistent with the computed loss, by {by_name['Backsolve']:.0e}. (Compared on a fixed "
        "random weighting of the fitted values, since the loss has no gradient left at its minimum.)"
    )
