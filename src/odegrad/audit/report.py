"""The report of an audit: for a terminal, for programs, for a browser."""

from __future__ import annotations

import math
import os
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odegrad.audit.check import Check, ModeRow, plain
from odegrad.budget import size

__all__ = ["Audit"]

EXACTNESS = ("duality", "taylor", "replay", "coverage")
"""The checks that decide whether the gradient is exact; the others inform."""

_WIDTH = 110


@dataclass(frozen=True)
class Audit:
    """What an audit found; ``print(report)`` shows it.

    Attributes:
        subject: What was audited: scheme, step sizes, gradient mode, steps, loss, numbers.
        checks: The answers, one per question.
        modes: The gradient modes side by side.
        notes: What odegrad warned of on the way.
    """

    subject: dict[str, Any]
    checks: tuple[Check, ...]
    modes: tuple[ModeRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against exactness, and duality or Taylor remainders for it."""
        return not self._against and any(
            self.check(name).status == "passed" for name in ("duality", "taylor")
        )

    @property
    def verdict(self) -> str:
        """One line."""
        against = self._against
        if against:
            return f"NOT exact: {'; '.join(against)}"
        exact = self.check("duality")
        if exact.status == "passed":
            line = f"exact: the gradient of the computed loss, to {exact.numbers['relative']:.0e}"
        elif self.passed:
            line = "exact as far as Taylor remainders show: the gradient of the computed loss"
        else:
            return "unknown: neither duality nor Taylor remainders could be checked"
        off = next((m.difference for m in self.modes if m.name == "Backsolve()"), None)
        if off is None:
            return line
        if off <= self.subject["rounding"]:
            return f"{line}; Backsolve agrees with it up to rounding ({off:.0e}) on these steps"
        amount = f"by {off:.0e}" if math.isfinite(off) else "(not even finite)"
        return f"{line}; Backsolve is inconsistent with the computed loss {amount}"

    @property
    def _against(self) -> list[str]:
        """What speaks against exactness, a culprit with a name first."""
        checks = [self.check(name) for name in ("replay", "coverage", "duality", "taylor")]
        return [check.headline for check in checks if check.status == "flagged"]

    def check(self, name: str) -> Check:
        """The check of a name."""
        return next(c for c in self.checks if c.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; what is not finite is null."""
        return plain(
            {
                "passed": self.passed,
                "verdict": self.verdict,
                "subject": self.subject,
                "checks": [asdict(check) for check in self.checks],
                "modes": [asdict(row) for row in self.modes],
                "notes": list(self.notes),
            }
        )

    def html(self, path: str | os.PathLike[str]) -> None:
        """Writes one file with tables and pictures that needs no network.

        Arguments:
            path: Where; the file appears whole or not at all.

        Raises:
            MissingDependencyError: If matplotlib or jinja2 is not installed.
        """
        from odegrad.audit.page import page

        target = Path(path)
        part = target.with_name(target.name + ".part")
        part.write_text(page(self), encoding="utf-8")
        os.replace(part, target)

    def __str__(self) -> str:
        lines = [*_wrapped(f"odegrad audit: {self.verdict}", "  "), ""]
        lines += [*_wrapped(f"  {described(self.subject)}", "  "), ""]
        for check in self.checks:
            head = f"  {check.status:<12}{check.name:<13}"
            lines += _wrapped(head + check.summary, " " * len(head))
        rows = table(self.modes) if self.modes else []
        lines += [""] if rows else []
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row, mode in zip(rows, [None, *self.modes], strict=False):
            cells = [row[0].ljust(widths[0])]
            if mode is not None and mode.failure is not None:
                lines += _wrapped(f"  {cells[0]}  {mode.failure}", " " * (widths[0] + 4))
                continue
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  " + "  ".join(cells))
        for note in self.notes:
            lines += ["", *_wrapped(f"  note: {note}", "  ")]
        return "\n".join(lines)


def described(subject: dict[str, Any]) -> str:
    """The solve in a sentence."""
    return (
        f"{subject['scheme']}, {subject['stepsize']}, {subject['gradient']}: {subject['steps']} steps "
        f"({subject['rejected']} rejected) through {subject['times']} times, loss {subject['loss']:.6g}, "
        f"{subject['numbers']} numbers to differentiate for, {subject['evaluations']} evaluations in all"
    )


def table(rows: tuple[ModeRow, ...]) -> list[list[str]]:
    """The modes as text, with a head."""
    head = ["gradient", "off Tape", "angle", "time", "peak memory", "f", "vjps"]
    return [head, *(_cells(row) for row in rows)]


def _cells(row: ModeRow) -> list[str]:
    if row.failure is not None:
        return [row.name, *([""] * 6)]
    oracle = row.name == "Tape()"
    off = "–" if row.difference is None else f"{row.difference:.1e}"
    angle = "–" if row.angle is None or oracle else f"{row.angle:.1e}°"
    off = "oracle" if oracle else off
    seconds = "–" if row.seconds is None else _duration(row.seconds)
    peak = "–" if row.peak_bytes is None else size(row.peak_bytes)
    return [row.name, off, angle, seconds, peak, str(row.evaluations), str(row.transposes)]


def _duration(seconds: float) -> str:
    """A time for people.

    Example:
        >>> _duration(0.0123), _duration(1.5)
        ('12.3 ms', '1.5 s')
    """
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False, drop_whitespace=True, initial_indent="",
    )  # fmt: skip
