"""What the parts of the memory benchmark share: their effort, and the bounds they check."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import aligned, number

__all__ = ["MIB", "Check", "Effort", "Record", "Say", "check_table", "in_turn", "mib", "seconds"]

MIB = 2**20
Record = dict[str, Any]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Arguments:
        quick: Whether small problems will do, to see that everything runs.
        repeats: Rounds of timing.
        everything: Whether to measure what takes longest, too.
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


def seconds(work: Callable[[], object]) -> float:
    """How long work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(
    works: Mapping[str, Callable[[], float]],
    turn: Sequence[str],
    repeats: int,
    say: Say = lambda _: None,
) -> dict[str, list[float]]:
    """Samples of works that are warm and tell their seconds themselves.

    Unlike `odegrad.bench.time_in_turn` this calls nothing that it does not count: a call may take long.

    Arguments:
        works: What to time, by name.
        turn: The order of one round, in which a name may occur several times.
        repeats: The number of rounds.
        say: Is told what happens.

    Example:
        >>> in_turn({"a": lambda: 1.0, "b": lambda: 2.0}, ["a", "b", "a"], 2)
        {'a': [1.0, 1.0, 1.0, 1.0], 'b': [2.0, 2.0]}
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    for k in range(repeats):
        say(f"round {k + 1} of {repeats}")
        for name in turn:
            gc.collect()  # so that nobody pays for the garbage of another
            samples[name].append(works[name]())
    return samples
