"""One fit from a checked series to the four files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from odegrad.fit.check import GradientCheck, check_gradients
from odegrad.fit.config import Config
from odegrad.fit.data import MIN_ROWS, Series
from odegrad.fit.errors import OptionError
from odegrad.fit.fitted import Fitted
from odegrad.fit.metrics import ErrorRow, error_rows, metrics
from odegrad.fit.models import check_states
from odegrad.fit.plots import draw_fit, draw_loss
from odegrad.fit.training import Epoch, Outcome, train

__all__ = ["Job", "Result", "prepare", "run"]


@dataclass(frozen=True, eq=False)
class Job:
    """A fit whose input has been checked.

    Arguments:
        series: The data.
        n_train: How many rows from the start are trained on.
        config: Completed.
        out: The directory to write.
    """

    series: Series
    n_train: int
    config: Config
    out: Path


@dataclass(frozen=True, eq=False)
class Result:
    """What a fit left, beside the files."""

    fitted: Fitted
    outcome: Outcome
    rows: list[ErrorRow]
    check: GradientCheck


def prepare(series: Series, config: Config, out: Path, overwrite: bool = False) -> Job:
    """Checks everything that can be checked before training; writes nothing.

    Raises:
        DataError: If the values do not suit the model or the transform.
        OptionError: If options do not suit each other, the data or the place to write.
    """
    check_states(config.model, series.states)
    config = config.completed(series.positive)
    config.check_device()
    if config.model == "lotka-volterra":
        fix = "correct it, leave the row out, or use --model mlp"
        series.require_positive("--model lotka-volterra", fix)
    elif (config.transform or "").startswith("log"):
        fix = "use --transform standardise, or leave the row out"
        series.require_positive(f"--transform {config.transform}", fix)
    total = len(series.times)
    n_train = total - int(config.holdout * total)
    if n_train < MIN_ROWS:
        raise OptionError(
            f"--holdout {config.holdout:g} leaves {n_train} of {total} rows to train on, at least "
            f"{MIN_ROWS} are needed; hold out less"
        )
    if out.is_dir() and not overwrite:
        raise OptionError(f"{out}: the directory exists; choose another --out or add --overwrite")
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out}: is a file, not a directory; choose another --out")
    return Job(series, n_train, config, out)


def run(job: Job, report: Callable[[Epoch], None], say: Callable[[str], None]) -> Result:
    """Trains, then writes ``model.pt`` first, and ``metrics.json``, ``fit.png`` and ``loss.png``.

    Arguments:
        job: What to do.
        report: Called after each epoch.
        say: Called with a line of text once training is over.

    Raises:
        SolveError: If the first trajectory cannot be computed.
        OSError: If the directory cannot be written.
    """
    series, n_train = job.series, job.n_train
    job.out.mkdir(parents=True, exist_ok=True)
    fitted = Fitted.start(series, n_train, job.config)
    start = time.perf_counter()
    outcome = train(fitted, series.times[:n_train], series.values[:n_train], report)
    seconds = time.perf_counter() - start
    fitted.save(job.out / "model.pt")
    say(_summary(outcome, seconds))
    rows = error_rows(fitted, series, n_train)
    check = check_gradients(fitted, series.times[:n_train])
    numbers = metrics(fitted, series, n_train, outcome, rows, check, seconds)
    _write(job.out / "metrics.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    draw_fit(fitted, series, n_train, job.out / "fit.png")
    draw_loss(outcome, job.out / "loss.png")
    return Result(fitted, outcome, rows, check)


def _summary(outcome: Outcome, seconds: float) -> str:
    """One line on how training went."""
    text = f"{len(outcome.epochs)} epochs in {seconds:.1f} s"
    if outcome.interrupted:
        text = f"Interrupted after {text}; saved the best model so far"
    elif outcome.note is not None:
        text = f"Stopped after {text}: {outcome.note}; saved the best model so far"
    else:
        text = f"{'Converged' if outcome.converged else 'Trained'} after {text}"
    if outcome.best is not None:
        best = outcome.best
        text += f"; loss {best.loss:.4g} over {best.rows} rows at epoch {best.n}"
    return text + "."


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
