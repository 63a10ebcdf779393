"""The front: ``python -m benchmarks peers|limit|scaling|products|migrating|memory|paper``.

``--help`` says more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.single import single_thread

REPEATS, QUICK_REPEATS, QUICK_SAMPLE = 9, 3, 0.005


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    del ctx, param
    return tuple(name.strip() for name in value.split(",")) if value else ()


def _common(command: Any) -> Any:
    """The options that all commands have."""
    for option in (
        click.option("--quick", is_flag=True, help="Fewer and shorter samples."),
        click.option("--repeats", type=click.IntRange(1), help="Samples of each system."),
        click.option(
            "--systems", metavar="A,B,...", callback=_names, help="Who is measured: names, or their "
            "beginnings such as odegrad.  [default: all]",
        ),
        click.option(
            "--out", type=click.Path(path_type=Path), help="Folder.  [default: benchmarks/results]"
        ),
        click.option("--core", type=int, help="The core to run on.  [default: the last]"),
    ):  # fmt: skip
        command = option(command)
    return command


_memory = click.option("--memory/--no-memory", default=True, help="Measure peak memory, too.")


def _begin(core: int | None, out: Path | None) -> tuple[Path, Any]:
    """Confines the process, before torch and JAX are imported; returns what `run`s need."""
    single_thread(core)
    from benchmarks.results import PACKAGES, RESULTS
    from odegrad.bench import describe_machine

    print(describe_machine(PACKAGES), flush=True)
    return out or RESULTS, lambda line: click.echo(line, err=True)


def _chosen(kind: str, offered: Any, names: tuple[str, ...]) -> Any:
    from odegrad.bench import BenchError, chosen

    try:
        return chosen(kind, offered, names) if names else list(offered.values())
    except BenchError as error:
        raise click.UsageError(str(error)) from error


def _sampling(quick: bool, repeats: int | None) -> tuple[int, float]:
    """The number of samples and their least duration."""
    from odegrad.bench import SHORTEST_SAMPLE

    return (
        repeats or (QUICK_REPEATS if quick else REPEATS),
        QUICK_SAMPLE if quick else SHORTEST_SAMPLE,
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Benchmarks of odegrad, on one thread of one core."""


@main.command()
@_common
@_memory
@click.option(
    "--workloads", metavar="A,B,...", callback=_names, help="What is solved: names, or their "
    "beginnings such as tiny.  [default: all]",
)  # fmt: skip
def peers(
    quick: bool,
    repeats: int | None,
    memory: bool,
    systems: tuple[str, ...],
    out: Path | None,
    core: int | None,
    workloads: tuple[str, ...],
) -> None:
    """Compares with other libraries: time, error and peak memory of one gradient."""
    out, say = _begin(core, out)
    from benchmarks.peers import run
    from benchmarks.systems import SYSTEMS
    from odegrad.bench import WORKLOADS

    run(
        _chosen("workload", WORKLOADS, workloads),
        _chosen("system", SYSTEMS, systems),
        *_sampling(quick, repeats),
        memory,
        out,
        say,
    )


@main.command()
@_common
def limit(
    quick: bool,
    repeats: int | None,
    systems: tuple[str, ...],
    out: Path | None,
    core: int | None,
) -> None:
    """Compares with the least time that a gradient can take, and measures the loop alone."""
    out, say = _begin(core, out)
    from benchmarks.limit import run
    from odegrad.bench import ENGINES

    offered = {engine.name: engine for engine in ENGINES}
    run(_chosen("engine", offered, systems), *_sampling(quick, repeats), out, say)


@main.command()
@_common
@_memory
@click.option("--most", type=int, default=100_000, help="The most steps.")
@click.option("--everything", is_flag=True, help="Eager engines take more than 10 000 steps, too.")
def scaling(
    quick: bool,
    repeats: int | None,
    memory: bool,
    systems: tuple[str, ...],
    out: Path | None,
    core: int | None,
    most: int,
    everything: bool,
) -> None:
    """Measures time and peak memory against the number of steps."""
    out, say = _begin(core, out)
    from benchmarks.scaling import SCALING, run

    engines = _chosen("engine", SCALING, systems)
    repeats = repeats or (1 if quick else QUICK_REPEATS)
    run(engines, repeats, most, everything, memory, out, say)


@main.command()
@click.option("--quick", is_flag=True, help="Fewer and shorter samples.")
@click.option("--repeats", type=click.IntRange(1), help="Samples of each.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder.  [default: benchmarks/results]"
)
@click.option("--core", type=int, help="The core to run on.  [default: the last]")
def products(quick: bool, repeats: int | None, out: Path | None, core: int | None) -> None:
    """Measures what rewriting small products and tanh gains in compiled steps."""
    out, say = _begin(core, out)
    from benchmarks.products import run

    run(*_sampling(quick, repeats), out, say)


@main.command()
@click.option("--quick", is_flag=True, help="Short problems, fewer and shorter samples.")
@click.option("--repeats", type=click.IntRange(1), help="Samples of each.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder.  [default: benchmarks/results]"
)
@click.option("--core", type=int, help="The core to run on.  [default: the last]")
def migrating(quick: bool, repeats: int | None, out: Path | None, core: int | None) -> None:
    """Measures what the stand-in for torchdiffeq changes: gradient error, time and memory."""
    if quick and out is None:
        raise click.UsageError("--quick needs --out, so that it replaces no results")
    results, say = _begin(core, out)
    from benchmarks.migrating import run

    run(quick, *_sampling(quick, repeats), results, say)


@main.command("memory")
@click.option(
    "--only",
    metavar="A,B,...",
    callback=_names,
    help="Parts, or their beginnings: prediction, budget, "
    "million, labels, complexity, online; what was measured of the others stays.  [default: all]",
)
@click.option("--quick", is_flag=True, help="Small problems, to see that everything runs.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Rounds of timing.")
@click.option("--everything", is_flag=True, help="A million eager steps of RK4, too.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder.  [default: benchmarks/results]"
)
@click.option("--core", type=int, help="The core to run on.  [default: the last]")
def budgets(
    only: tuple[str, ...],
    quick: bool,
    repeats: int,
    everything: bool,
    out: Path | None,
    core: int | None,
) -> None:
    """Measures whether memory is predicted and kept to, and what saving it costs."""
    out, say = _begin(core, out)
    from benchmarks.memory.parts import Effort
    from benchmarks.memory.run import PARTS, run

    parts = _chosen("part", {name: name for name in PARTS}, only)
    run(parts, Effort(quick, repeats, everything), out, say)


@main.command()
@click.option(
    "--only",
    metavar="A,B,...",
    callback=_names,
    help="Parts: inconsistency, transpose, integral, labels, lagrange, density, tangent; "
    "what was measured of the others stays.  [default: all]",
)
@click.option("--quick", is_flag=True, help="Small problems, to see that everything runs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for all.  [default: benchmarks/results, and docs for the page]",
)
@click.option("--core", type=int, help="The core to run on.  [default: the last]")
def paper(only: tuple[str, ...], quick: bool, out: Path | None, core: int | None) -> None:
    """Checks the claims of Hu 2024 and writes docs/paper.md (a few minutes)."""
    if quick and out is None:
        raise click.UsageError("--quick needs --out, so that it replaces no results")
    results, say = _begin(core, out)
    from benchmarks.paper.run import DOCS, PARTS, run

    run(_chosen("part", {name: name for name in PARTS}, only), quick, results, out or DOCS, say)


if __name__ == "__main__":
    main()
