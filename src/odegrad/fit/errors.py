"""The errors that a user of `odegrad fit` can cause."""

from __future__ import annotations

from pathlib import Path

from odegrad.errors import InvalidValueError

__all__ = ["DataError", "OptionError", "at"]


class OptionError(InvalidValueError):
    """An option, or a combination of options, that cannot be used."""


class DataError(InvalidValueError):
    """A data file that cannot be used; the message names file, line, column and fix."""


def at(
    path: Path, problem: str, fix: str, *, line: int | None = None, column: str | None = None
) -> DataError:
    """The error ``FILE:LINE column 'NAME': problem; fix``.

    Example:
        >>> from pathlib import Path
        >>> print(at(Path("a.csv"), "'x' is not a number", "write 1.5", line=3, column="hare"))
        a.csv:3 column 'hare': 'x' is not a number; write 1.5
    """
    place = str(path)
    if line is not None:
        place += f":{line}"
    if column is not None:
        place += f" column {column!r}"
    return DataError(f"{place}: {problem}; {fix}")
