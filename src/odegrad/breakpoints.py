"""Where a vector field, or a derivative of it, jumps: times that steps have to end at.

They are given, or declared by modules that f reads: a module declares them by an attribute
`breakpoints`, times, and an attribute `continuous`, whether f itself stays continuous there (see
`odegrad.controls`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.errors import InvalidTypeError, InvalidValueError
from odegrad.scan import Scan

__all__ = ["Breakpoints", "Landings", "landings"]


@dataclass(frozen=True)
class Breakpoints:
    """Times at which f is not smooth.

    Arguments:
        times: These times, in any order.
        jumps: Whether f itself may jump there.
    """

    times: tuple[float, ...] = ()
    jumps: bool = False

    @staticmethod
    def found(given: object, functions: Iterable[object]) -> Breakpoints:
        """Those that are given, at which f may jump, and those that modules declare.

        Raises:
            InvalidTypeError: If they are no numbers.
            InvalidValueError: If they are not finite.
        """
        times = list(_checked("breakpoints", given))
        jumps = bool(times)
        scan = Scan()
        for function in functions:
            scan.visit(function, "f", depth=0)
        for module in (m for root in scan.modules for m in root.modules()):
            declared = getattr(module, "breakpoints", None)
            continuous = getattr(module, "continuous", None)
            if isinstance(continuous, bool) and declared is not None:
                more = _checked(f"breakpoints of {type(module).__name__}", declared)
                times += more
                jumps = jumps or (bool(more) and not continuous)
        return Breakpoints(tuple(times), jumps)


@dataclass(frozen=True)
class Landings:
    """All times that steps end at.

    Attributes:
        ts: As a tensor, on the graph of the user's.
        times: As floats.
        places: For each of the user's times, its place among them.
        kinks: The places of those at which f is not smooth.
    """

    ts: Tensor
    times: tuple[float, ...]
    places: tuple[int, ...]
    kinks: tuple[int, ...] = ()

    @property
    def least(self) -> tuple[int, ...]:
        """The places of those that steps have to end at: the first, the last, and those in `kinks`."""
        return tuple(sorted({0, len(self.times) - 1, *self.kinks}))

    @property
    def labels(self) -> tuple[int | None, ...]:
        """For each of them, which of the user's times it is."""
        labels: list[int | None] = [None] * len(self.times)
        for j, place in enumerate(self.places):
            labels[place] = j
        return tuple(labels)


def landings(ts: Tensor, times: tuple[float, ...], breakpoints: Breakpoints) -> Landings:
    """The user's times and the breakpoints between them, in order.

    A breakpoint that is one of the user's times up to rounding is not added.
    """
    low, high = min(times[0], times[-1]), max(times[0], times[-1])
    near = 4.0 * torch.finfo(ts.dtype).eps * max(abs(low), abs(high))
    within = sorted({b for b in breakpoints.times if low - near <= b <= high + near})
    kinks_of_user = {j for j, t in enumerate(times) for b in within if abs(t - b) <= near}
    added = [b for b in within if all(abs(t - b) > near for t in times)]
    if not added:
        return Landings(ts, times, tuple(range(len(times))), tuple(sorted(kinks_of_user)))
    sign = -1.0 if times[-1] < times[0] else 1.0
    order = sorted(
        [(sign * t, 0, j) for j, t in enumerate(times)]
        + [(sign * b, 1, k) for k, b in enumerate(added)]
    )
    every = torch.cat([ts, ts.new_tensor(added)])
    index = [i if kind == 0 else len(times) + i for _, kind, i in order]
    merged = every[torch.tensor(index, device=ts.device)]
    places = [0] * len(times)
    kinks: list[int] = []
    for place, (_, kind, i) in enumerate(order):
        if kind == 0:
            places[i] = place
        if kind == 1 or i in kinks_of_user:
            kinks.append(place)
    values = tuple(sign * t for t, _, _ in order)
    return Landings(merged, values, tuple(places), tuple(kinks))


def _checked(name: str, given: Any) -> list[float]:
    if isinstance(given, Tensor):
        given = given.detach().reshape(-1).tolist()
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise InvalidTypeError(
            f"{name} must be a sequence of times, received {type(given).__name__}; "
            "write breakpoints=(0.5, 1.0)"
        )
    times: list[float] = []
    for t in given:
        try:
            times.append(float(t))
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(f"{name} must be times, received {t!r} among them") from error
        if not math.isfinite(times[-1]):
            raise InvalidValueError(f"{name} must be finite, received {t!r} among them")
    return times
