"""What the parts of the memory benchmark share: their effort, and the bounds they check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import aligned, number

__all__ = ["MIB", "Check", "Effort", "Record", "Say", "check_table", "mib"]

MIB = 2**20
Record = dict[str, Any]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Arguments:
        quick: Whether small problems will do, to see that everything runs.
        repeats: Rounds of timing.
        everything: Whether to measure what takes an hour, too.
    """

    quick: bool = False
    repeats: int = 5
    everything: bool = False


@dataclass(frozen=True)
class Check:
    """An upper bound, inclusive, of something measured.

    Arguments:
        what: What is bounded.
        value: What was measured.
        at_most: The bound.
    """

    what: str
    value: float
    at_most: float

    @property
    def met(self) -> bool:
        """Whether the bound holds."""
        return self.value <= self.at_most

    @property
    def verdict(self) -> str:
        """In a word."""
        return "met" if self.met else "missed"

    def as_record(self) -> Record:
        """Plain values for JSON."""
        return {"what": self.what, "value": self.value, "at_most": self.at_most, "met": self.met}


def check_table(checks: Iterable[Mapping[str, Any]]) -> str:
    """A table of bounds, as their records say.

    Example:
        >>> print(check_table([Check("ratio", 1.5, 2.0).as_record()]))
        bound  at most  value
        ratio        2    1.5  met
    """
    rows = [
        [x["what"], number(x["at_most"]), number(x["value"]), "met" if x["met"] else "missed"]
        for x in checks
    ]
    return aligned(["bound", "at most", "value", ""], rows)


def mib(nbytes: float | None) -> str:
    """Bytes in MiB.

    Example:
        >>> mib(3 * 2**19), mib(None)
        ('1.50', '–')
    """
    return "–" if nbytes is None else f"{nbytes / MIB:.2f}"
