"""What the terminal shows after `odegrad bench`. rich is imported when it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from odegrad.bench.engines import TAPE
from odegrad.bench.machine import Machine
from odegrad.bench.measure import Results
from odegrad.bench.systems import Counts
from odegrad.bench.timing import ratio
from odegrad.bench.workloads import Workload
from odegrad.budget import size
from odegrad.stepsize import PID

__all__ = ["digits", "print_listing", "print_results", "steps"]


def print_results(results: Sequence[Results], machine: Machine) -> None:
    """Prints one table per workload to standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, emoji=False, markup=False)
    console.print(str(machine), soft_wrap=True)
    for found in results:
        workload = found.workload
        title = f"\n{workload.name}: {workload.description}"
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("system", no_wrap=True)
        for name in ("ms", "÷ tape", "kept", "steps", "first"):
            table.add_column(name, justify="right", no_wrap=True)
        reference = found.median(TAPE.name)
        for name, result in found.found.items():
            counts, relative = result.counts, ratio(result.timing.median, reference)
            table.add_row(
                name if result.exact else f"{name} *",
                digits(1e3 * result.timing.median),
                "–" if relative is None else f"{relative:.2f}",
                "–" if counts.kept_bytes is None else size(counts.kept_bytes),
                steps(workload, counts),
                f"{digits(result.first)} s",
            )
        console.print(table)
        for name, why in found.missing.items():
            console.print(f"  {name}: {why}", soft_wrap=True)
    console.print(
        "\nms: one gradient with respect to the initial state and all parameters, forward and backward "
        "sweep; median of samples that the systems took in turn.\n"
        "kept: held between the sweeps, beside initial state and parameters.\n"
        "steps: accepted, and + rejected where they are adaptive.\n"
        "first: the first gradient, which may compile."
    )
    if any(not result.exact for found in results for result in found.found.values()):
        console.print("* not the derivative of the computed numbers")


def print_listing(workloads: Iterable[Workload], systems: Iterable[str]) -> None:
    """Prints what can be chosen to standard output."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    for workload in workloads:
        console.print(f"{workload.name:<16}{workload.description}", soft_wrap=True)
    console.print(f"\nsystems: {', '.join(systems)}", soft_wrap=True)


def steps(workload: Workload, counts: Counts) -> str:
    """Accepted steps, and rejected ones where steps are adaptive."""
    accepted = f"{counts.accepted:.4g}"
    adaptive = isinstance(workload.stepsize, PID)
    return f"{accepted} + {counts.rejected:.2g}" if adaptive else accepted


def digits(value: float) -> str:
    """A number to three digits, or whole, without an exponent.

    Example:
        >>> digits(0.01234), digits(2907.4)
        ('0.0123', '2907')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
