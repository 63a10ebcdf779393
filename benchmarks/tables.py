"""Tables as plain aligned text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "number"]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns aligned: the first `left` to the left, the others to the right.

    Example:
        >>> print(aligned(["name", "ms"], [["a", "1.5"], ["bcd", "10.25"]]))
        name     ms
        a       1.5
        bcd   10.25
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def cell(i: int, text: str) -> str:
        return text.ljust(widths[i]) if i < left else text.rjust(widths[i])

    return "\n".join("  ".join(cell(i, x) for i, x in enumerate(line)).rstrip() for line in lines)


def number(value: float | None, form: str = ".3g") -> str:
    """A number, or a dash for none."""
    return "–" if value is None else format(value, form)
