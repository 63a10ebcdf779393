"""How near `Online` comes to the optimum for a number of steps that it does not know: pure integers.

The steps taken for N steps with c states: N by the forward sweep, then, between two stored states, the
optimum t of `odegrad.checkpoints.advances` with the states that are free when their turn comes. Against
t(N, c) + 1, the fewest that both sweeps take when N is known. For N ≤ (c + 1)(c + 2)/2 the optimum takes
no step more than twice.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import lru_cache

from benchmarks.memory.parts import Check, Effort, Record, Say
from benchmarks.tables import aligned
from odegrad.checkpoints import Advance, Drop, Online, Store, advances

__all__ = ["measure", "ratios", "table"]

SLOTS = (2, 4, 8, 16, 32, 40)
QUICK_SLOTS = (2, 4)
BEYOND = 10
NEAR = 1.2
"""What `odegrad.checkpoints.online` promises for N ≤ (c + 1)(c + 2)/2."""

_optimum = lru_cache(maxsize=None)(advances)


def ratios(slots: int, most: int) -> Iterator[float]:
    """Steps that `Online` takes over the fewest possible, for N = 2, 3, …, `most`.

    Example:
        >>> [round(x, 3) for x in ratios(2, 6)]
        [1.0, 1.0, 1.2, 1.0, 1.0]
    """
    stored: dict[int, None] = {}
    for action in Online(slots).forward(None):
        match action:
            case Store(i):
                stored[i] = None
            case Drop(i):
                del stored[i]
            case Advance(_, n) if n is not None:  # the solve may end here
                if n > 1:
                    yield _taken(list(stored), n, slots) / (1 + _optimum(n, slots))
                if n == most:
                    return
            case _:
                raise AssertionError(f"{action} has no place here")


def _taken(stored: list[int], n: int, slots: int) -> int:
    """The steps that both sweeps take, if the first leaves these stored states and state n − 1."""
    taken = n
    for k, (start, stop) in enumerate(zip(stored, [*stored[1:], n - 1], strict=True)):
        if stop > start:
            taken += _optimum(stop - start, slots - k)
    return taken


def measure(effort: Effort, say: Say) -> Record:
    """The ratios for all numbers of steps."""
    rows: list[Record] = []
    for c in QUICK_SLOTS if effort.quick else SLOTS:
        say(f"online: {c} states")
        near = (c + 1) * (c + 2) // 2
        found = list(ratios(c, BEYOND * near))
        within, beyond = found[: near - 1], found[near - 1 :]
        rows.append(
            {
                "slots": c,
                "near": near,
                "within_max": max(within),
                "within_mean": statistics.mean(within),
                "beyond_max": max(beyond),
                "beyond_mean": statistics.mean(beyond),
                "worst_n": 2 + found.index(max(found)),
            }
        )
    checks = [
        Check(f"Online({x['slots']}), N ≤ {x['near']}: steps ÷ optimum", x["within_max"], NEAR)
        for x in rows
    ]
    return {"rows": rows, "checks": [check.as_record() for check in checks]}


def table(record: Record) -> str:
    """Largest and mean ratios."""
    rows = [
        [
            str(x["slots"]),
            f"≤ {x['near']}",
            f"{x['within_max']:.3f}",
            f"{x['within_mean']:.3f}",
            f"≤ {BEYOND * x['near']}",
            f"{x['beyond_max']:.3f}",
            f"{x['beyond_mean']:.3f}",
            str(x["worst_n"]),
        ]
        for x in record["rows"]
    ]
    header = ["states", "steps", "most", "mean", "beyond", "most", "mean", "worst at"]
    return f"Online: steps taken ÷ the fewest possible\n\n{aligned(header, rows)}"
