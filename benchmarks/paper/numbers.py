"""How the page writes numbers and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["digits", "factor", "fixed", "markdown", "power"]


def power(x: float | None) -> str:
    """With one decimal and a power of ten.

    Example:
        >>> power(1.234e-15), power(0.0), power(None)
        ('1.2e-15', '0', '–')
    """
    return "–" if x is None else "0" if x == 0 else f"{x:.1e}"


def fixed(x: float | None, decimals: int = 2) -> str:
    """With so many decimals."""
    return "–" if x is None else f"{x:.{decimals}f}"


def digits(x: float | None, n: int = 3) -> str:
    """With so many digits.

    Example:
        >>> digits(0.00123456), digits(123456.0), digits(1.0)
        ('0.00123', '1.23e+05', '1')
    """
    return "–" if x is None else f"{x:.{n}g}"


def factor(x: float) -> str:
    """A ratio, with no more digits than repeat.

    Example:
        >>> factor(3.816), factor(57.28)
        ('3.8', '57')
    """
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table with aligned columns, the first `left` to the left, the others to the right.

    Example:
        >>> print(markdown(["a", "b"], [["long", "1"]]))
        | a    |   b |
        |:-----|----:|
        | long |   1 |
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]

    def shown(line: Sequence[str]) -> str:
        cells = [
            x.ljust(w) if i < left else x.rjust(w)
            for i, (x, w) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|".join(
        ":" + "-" * (w + 1) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)
    )
    return "\n".join([shown(lines[0]), f"|{rule}|", *map(shown, lines[1:])])
