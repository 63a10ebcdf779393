"""Reading a time series from a CSV file, and the checks that it passes before anything else runs.

The file has one header line and one row per time. A byte-order mark, blanks around cells, blank lines and
the separators comma, semicolon and tab are understood. Known limit: numbers need a decimal point.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odegrad.fit.errors import OptionError, at

__all__ = ["Series", "read_series"]

MIN_ROWS = 3


@dataclass(frozen=True, eq=False)
class Series:
    """A time series and where it came from.

    Arguments:
        path: The file.
        time: The name of the time column.
        states: The names of the state columns, D of them.
        times: Strictly increasing, shape [T], float64, in the units of the file.
        values: Shape [T, D], float64, in the units of the file.
        lines: The line of each row in the file, T of them.
    """

    path: Path
    time: str
    states: tuple[str, ...]
    times: Tensor
    values: Tensor
    lines: tuple[int, ...]

    @property
    def positive(self) -> bool:
        """Whether every value is positive, so that logarithms exist."""
        return bool((self.values > 0).all())

    def require_positive(self, why: str, fix: str) -> None:
        """Raises `DataError` at the first value that is not positive.

        Arguments:
            why: Who needs positive values.
            fix: What the user can do about it.
        """
        for row, line in zip(self.values.tolist(), self.lines, strict=True):
            for value, name in zip(row, self.states, strict=True):
                if value <= 0:
                    problem = f"{value:g} is not positive, and {why} takes logarithms"
                    raise at(self.path, problem, fix, line=line, column=name)


def read_series(path: Path, time: str | None = None, states: Sequence[str] | None = None) -> Series:
    """Reads and checks a CSV file.

    Arguments:
        path: The file.
        time: The name of the time column; None is the first column.
        states: The names of the state columns; None is all columns but the time.

    Raises:
        DataError: If the file, a column or a cell cannot be used.
        OptionError: If `states` names a column twice or names the time column.

    Example:
        >>> from odegrad.data import hare_lynx
        >>> series = read_series(hare_lynx())
        >>> series.time, series.states, list(series.values.shape)
        ('year', ('hare', 'lynx'), [21, 2])
    """
    header, header_line, rows = _read_rows(path)
    time, states = _choose_columns(path, header, header_line, time, states)
    names = (time, *states)
    index = [header.index(name) for name in names]
    table: list[list[float]] = []
    for line, row in rows:
        if len(row) != len(header):
            problem = f"{len(row)} cells where the header has {len(header)} columns"
            raise at(path, problem, "complete the row or quote cells with separators", line=line)
        table.append(
            [
                _number(path, line, name, row[i], name == time)
                for name, i in zip(names, index, strict=True)
            ]
        )
    lines = tuple(line for line, _ in rows)
    _check_times(path, time, [row[0] for row in table], lines)
    if len(table) < MIN_ROWS:
        problem = f"{len(table)} data rows, at least {MIN_ROWS} are needed"
        raise at(path, problem, "add rows below the header")
    data = torch.tensor(table, dtype=torch.float64, device="cpu")
    return Series(path, time, states, data[:, 0], data[:, 1:], lines)


def _read_rows(path: Path) -> tuple[list[str], int, list[tuple[int, list[str]]]]:
    """The header, its line number, and (line number, cells) of every row that is not blank."""
    if path.is_dir():
        raise at(path, "is a directory", "name the CSV file itself")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise at(path, "no such file", "check the path and the name") from error
    except UnicodeDecodeError as error:
        raise at(path, "is not UTF-8 text", "save the table as CSV in UTF-8") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise at(path, problem, "check its permissions") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=first.count)
    # strict: an unclosed quote raises instead of swallowing the rest of the file.
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        problem = f"is not CSV ({error})"
        raise at(path, problem, "repair the quotes", line=reader.line_num) from error
    if not rows:
        raise at(path, "is empty", "write a header line and one row per time")
    line, header = rows[0]
    return header, line, rows[1:]


def _choose_columns(
    path: Path, header: list[str], line: int, time: str | None, states: Sequence[str] | None
) -> tuple[str, tuple[str, ...]]:
    for name in header:
        if header.count(name) > 1:
            fix = "give every column its own name"
            raise at(path, "the name stands twice in the header", fix, line=line, column=name)
    if all(_is_number(name) for name in header):
        fix = "write the names of the columns on the first line"
        raise at(path, "the header holds numbers, not names", fix, line=line)
    time = header[0] if time is None else time
    chosen = tuple(name for name in header if name != time) if states is None else tuple(states)
    for option, name in (("--time", time), *(("--state", name) for name in chosen)):
        if name not in header:
            close = difflib.get_close_matches(name, header, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"choose {option} from the header"
            shown = (x if x.isprintable() else repr(x) for x in header)
            problem = f"no such column, the header has {', '.join(shown)}"
            raise at(path, problem, fix, line=line, column=name)
    if time in chosen:
        raise OptionError(f"--state names the time column {time!r}; leave it out")
    if len(set(chosen)) < len(chosen):
        raise OptionError("--state names a column twice; name each once")
    if not chosen:
        raise at(path, f"has no column beside {time!r}", "add the columns to fit", line=line)
    return time, chosen


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, column: str, cell: str, is_time: bool) -> float:
    if not cell:
        raise at(path, "empty cell", "fill it in or leave the row out", line=line, column=column)
    if not _is_number(cell):
        fix = "write a number such as 12.5"
        if is_time:
            fix = "write times as numbers such as 1905.5, or choose another column with --time"
        raise at(path, f"{cell!r} is not a number", fix, line=line, column=column)
    value = float(cell)
    if not math.isfinite(value):
        fix = "write a finite number or leave the row out"
        raise at(path, f"{cell!r} is not finite", fix, line=line, column=column)
    return value


def _check_times(path: Path, column: str, times: list[float], lines: tuple[int, ...]) -> None:
    for i in range(1, len(times)):
        if times[i] == times[i - 1]:
            problem = f"{times[i]:.15g} repeats line {lines[i - 1]}"
            raise at(path, problem, "keep one row per time", line=lines[i], column=column)
        if times[i] < times[i - 1]:
            problem = f"{times[i]:.15g} comes after {times[i - 1]:.15g}"
            raise at(path, problem, "sort the rows by time", line=lines[i], column=column)
