"""Data sets that ship with odegrad; see `README.md` beside this file for their sources."""

from __future__ import annotations

from pathlib import Path

__all__ = ["hare_lynx"]


def hare_lynx() -> Path:
    """The path of a CSV file with hare and lynx pelts, in thousands, for the years 1900–1920.

    Returns:
        A file with the header ``year,hare,lynx`` and 21 rows.

    Reference: J. Howard, *Modeling basics*, lecture notes (2009), after C. G. Hewitt, *The
    Conservation of the Wild Life of Canada* (1921).

    Example:
        >>> from odegrad.data import hare_lynx
        >>> hare_lynx().read_text(encoding="utf-8").splitlines()[:2]
        ['year,hare,lynx', '1900,30.0,4.0']
    """
    return Path(__file__).with_name("hudson_bay_hare_lynx.csv")
