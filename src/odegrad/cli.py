"""The command line: `odegrad fit`, `odegrad bench` and `odegrad audit`. Needs the extra `cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

try:
    import click
except ImportError:  # pragma: no cover
    sys.exit("odegrad: error: the command line needs click; pip install 'odegrad[cli]'")

import odegrad
from odegrad.errors import OdegradError

if TYPE_CHECKING:
    from odegrad.fit import Job
    from odegrad.fit.training import Epoch

__all__ = ["main"]


class OneLineError(click.ClickException):
    """An error that is shown on one line, without usage text or traceback."""

    def __init__(self, command: str, message: str, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.command = command
        self.exit_code = exit_code  # pyright: ignore[reportAttributeAccessIssue]

    def show(self, file: Any = None) -> None:
        """Prints the line to standard error."""
        click.echo(f"{self.command}: error: {self.message}", file=file, err=file is None)


class OneLineGroup(click.Group):
    """A group whose subcommands report wrong options on one line, too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the subcommand."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = f"odegrad {error.ctx.info_name if error.ctx else ''}".strip()
            raise OneLineError(
                command, f"{error.format_message()} (see {command} --help)"
            ) from error


def _widths(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not like 32,32", ctx, param) from error


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    del ctx, param
    return None if value is None else tuple(name.strip() for name in value.split(","))


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(odegrad.__version__, prog_name="odegrad")
def main() -> None:
    """Exact gradients of neural-ODE solves."""


@main.command(context_settings={"show_default": True})
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--time", metavar="COLUMN", help="Time column.  [default: the first]")
@click.option(
    "--state", "states", metavar="A,B,...", callback=_names,
    help="State columns.  [default: all but the time]",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="[default: odegrad-fit-<DATA's stem>]")
@click.option("--overwrite", is_flag=True, help="Write into DIR though it exists.")
@click.option("--model", type=click.Choice(["mlp", "lotka-volterra"]), default="mlp")
@click.option(
    "--transform", type=click.Choice(["log", "standardise", "log-standardise", "none"]),
    help="Of the values.  [default: mlp: log-standardise, or standardise where values are not "
    "positive; lotka-volterra: log]",
)  # fmt: skip
@click.option("--holdout", metavar="FRACTION", type=float, default=0.2, help="Last rows kept out.")
@click.option("--scheme", metavar="NAME", default="Tsit5", help="Integration scheme.")
@click.option(
    "--rtol",
    type=float,
    help="Relative tolerance.  [default: mlp: 1e-5; lotka-volterra: 1e-7; float32: 1e-4]",
)
@click.option("--atol", type=float, help="Absolute tolerance.  [default: rtol / 100]")
@click.option("--steps", metavar="N", type=int, help="Equal steps per interval, not tolerances.")
@click.option("--dt", type=float, help="Largest step, not tolerances.")
@click.option(
    "--gradient", type=click.Choice(["discrete", "tape", "backsolve"]), default="discrete",
    help="How to differentiate: exact, exact with backpropagation's memory, traditional adjoint.",
)  # fmt: skip
@click.option(
    "--epochs", type=int, help="Optimiser steps.  [default: mlp: 400; lotka-volterra: 60]"
)
@click.option("--lr", type=float, help="First learning rate, mlp only.  [default: 0.01]")
@click.option(
    "--hidden", metavar="32,32", callback=_widths, help="Widths of the hidden layers, mlp only."
)
@click.option("--seed", type=int, default=0, help="Of the initial weights.")
@click.option("--device", default="cpu", help="Such as cpu or cuda.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float64")
@click.option("--progress/--no-progress", default=True, help="Show a bar with the loss.")
def fit(
    data: Path,
    time: str | None,
    states: tuple[str, ...] | None,
    out: Path | None,
    overwrite: bool,
    progress: bool,
    **choices: Any,
) -> None:
    """Fits an ODE to the time series in the CSV file DATA.

    Writes model.pt, metrics.json, fit.png and loss.png into the directory --out. Ctrl-C ends the
    training early and keeps the best model so far.

    The model is read back in Python with odegrad.fit.load("DIR/model.pt").predict(times).
    """
    from odegrad.fit import Config, prepare, read_series

    try:
        series = read_series(data, time, states)
        out = out or Path(f"odegrad-fit-{data.stem}")
        job = prepare(series, Config(**choices), out, overwrite)
    except OdegradError as error:
        _fail("fit", error, 2)
    _run(job, progress)


def _run(job: Job, progress: bool) -> None:
    """Trains with a live bar, then prints the report."""
    try:
        from tqdm import tqdm

        from odegrad.fit import run
        from odegrad.fit.metrics import quantities
        from odegrad.fit.report import print_report
    except ImportError as error:
        _fail("fit", f"a package is missing ({error}); pip install 'odegrad[cli]'", 1)

    try:
        job.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail("fit", f"{job.out}: cannot be made ({error.strerror}); choose another --out", 2)
    bar = tqdm(total=job.config.epochs, desc="fit", unit="epoch", disable=not progress)

    def report(epoch: Epoch) -> None:
        bar.set_postfix_str(f"loss {epoch.loss:.3e} over {epoch.rows} rows", refresh=False)
        bar.update()

    def say(line: str) -> None:
        bar.close()
        click.echo(line)

    try:
        result = run(job, report, say)
    except KeyboardInterrupt:
        bar.close()
        _fail("fit", f"interrupted; what was finished is in {job.out}", 130)
    except OdegradError as error:
        bar.close()
        _fail("fit", error, 1)
    except OSError as error:
        bar.close()
        _fail("fit", f"{error.filename or job.out}: cannot be written ({error.strerror})", 2)
    bar.close()
    print_report(result.rows, quantities(result.fitted), result.check, job.out)


@main.command(context_settings={"show_default": True})
@click.option(
    "--workload", "workloads", metavar="A,B,...", callback=_names,
    default="tiny-rk4-100,tiny-dopri5,medium-rk4", help="What is solved; tiny means all tiny-*.",
)  # fmt: skip
@click.option(
    "--system", "systems", metavar="A,B,...", callback=_names,
    help="Who solves; odegrad means all odegrad-*.  [default: all that can]",
)  # fmt: skip
@click.option("--repeat", type=click.IntRange(1), default=7, help="Samples of each system.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch.  [default: torch's]")
@click.option("--list", "listing", is_flag=True, help="Name workloads and systems, and stop.")
def bench(
    workloads: tuple[str, ...],
    systems: tuple[str, ...] | None,
    repeat: int,
    threads: int | None,
    listing: bool,
) -> None:
    """Times gradients of small neural ODEs on this machine.

    Compares odegrad's engines with each other, and with torchdiffeq if it is installed: milliseconds
    per gradient, the ratio to plain backpropagation (Tape), and the bytes held between the sweeps.
    The systems take turns, so that a disturbance hits all of them.
    """
    try:
        import torch

        from odegrad.bench import SYSTEMS, WORKLOADS, chosen, describe_machine, measure
        from odegrad.bench.report import print_listing, print_results
    except ImportError as error:
        _fail("bench", f"a package is missing ({error}); pip install 'odegrad[cli]'", 1)

    if listing:
        print_listing(WORKLOADS.values(), SYSTEMS)
        return
    try:
        solved = chosen("workload", WORKLOADS, workloads)
        solving = chosen("system", SYSTEMS, systems or tuple(SYSTEMS))
    except OdegradError as error:
        _fail("bench", error, 2)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        found = [measure(w, solving, repeat, say=lambda x: click.echo(x, err=True)) for w in solved]
    except KeyboardInterrupt:
        _fail("bench", "interrupted", 130)
    print_results(found, describe_machine(("torch", "odegrad", "torchdiffeq")))


@main.command(context_settings={"show_default": True})
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), help="Write an HTML report."
)
@click.option(
    "--json", "data", metavar="FILE", type=click.Path(path_type=Path), help="Write all numbers."
)
@click.option("--seed", type=int, default=0, help="Of the random directions.")
@click.option("--progress/--no-progress", default=True, help="Say what is being checked.")
def audit(factory: str, out: Path | None, data: Path | None, seed: int, progress: bool) -> None:
    """Checks whether the gradient of a solve is that of its computed loss.

    FACTORY is a function in the module MODULE, which may lie in the current directory. It returns a
    mapping of the arguments of odegrad.audit: f, y0, ts, loss, and others if need be.

    Exit status: 0 if the gradient is exact, 1 if it is not, or if that could not be checked, 2 if the
    command could not be carried out. An example: odegrad audit odegrad.fit:hare_lynx
    """
    import json

    from odegrad.audit.factory import arguments

    try:
        given: dict[str, Any] = {"seed": seed, "progress": progress, **arguments(factory)}
        report = odegrad.audit(**given)
    except KeyboardInterrupt:
        _fail("audit", "interrupted", 130)
    except (OdegradError, TypeError) as error:
        _fail("audit", error, 2)
    click.echo(report)
    try:
        if out is not None:
            report.html(out)
        if data is not None:
            text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            data.write_text(text + "\n", encoding="utf-8")
    except OdegradError as error:
        _fail("audit", error, 2)
    except OSError as error:
        _fail("audit", f"{error.filename}: cannot be written ({error.strerror})", 2)
    sys.exit(0 if report.passed else 1)


def _fail(command: str, error: object, exit_code: int) -> NoReturn:
    raise OneLineError(f"odegrad {command}", str(error), exit_code) from None
