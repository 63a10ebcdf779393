"""The times of each sample of a solve with ``batch``: what is wrong with them, which steps end at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.assemble import is_read
from odegrad.breakpoints import Breakpoints, Landings, landings
from odegrad.errors import InvalidTypeError, InvalidValueError, NonFiniteInputError
from odegrad.field import VectorField
from odegrad.gradients import Gradient
from odegrad.gradients.samples import sample_times
from odegrad.inputs import ordinary
from odegrad.samplegrid import SampleGrid
from odegrad.samplestops import SampleStops
from odegrad.schemes.base import Scheme
from odegrad.stepsize import StepSize

__all__ = ["Placed", "SampleLandings", "checked_sample_times"]


def checked_sample_times(ts: Any, size: int) -> Tensor:
    """The times, a tensor of shape [T] or [B, T].

    Raises:
        InvalidTypeError: If they are no real numbers.
        InvalidValueError: If their shape is another, they are not finite, or change direction.
    """
    if not isinstance(ts, Tensor):
        try:
            if any(isinstance(t, Tensor) for t in ts):
                ts = torch.stack(
                    [torch.as_tensor(t, dtype=torch.float64, device="cpu") for t in ts]
                )
            ts = torch.as_tensor(ts, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidTypeError(
                "ts must be a tensor of shape [T] or [B, T] or a sequence of floats, received "
                f"{type(ts).__name__}"
            ) from error
    if ts.dtype.is_complex or ts.dtype is torch.bool:
        raise InvalidTypeError(f"ts must be real, received {ts.dtype}")
    if ts.ndim not in (1, 2) or ts.shape[-1] == 0:
        raise InvalidValueError(
            f"with batch, ts must have shape [T] or [B, T] with T ≥ 1, received shape {list(ts.shape)}"
        )
    if ts.ndim == 2 and len(ts) != size:
        raise InvalidValueError(
            f"ts has times for {len(ts)} samples (shape {list(ts.shape)}), y0 has {size} samples: pass "
            "one row for each, or shape [T] for times that all share"
        )
    if not ts.dtype.is_floating_point:
        ts = ts.to(torch.float64)
    ts = ordinary(ts)
    rows = ts.detach().to("cpu", torch.float64)
    rows = rows[None] if rows.ndim == 1 else rows
    for b, row in enumerate(rows.tolist()):
        _check_row(row, f"ts[{b}" if ts.ndim == 2 else "ts[")
    return ts


def _check_row(row: list[float], name: str) -> None:
    """Whether the times of a sample are finite and go in one direction."""
    sign = 1.0 if row[-1] >= row[0] else -1.0
    comma = ", " if name[-1] != "[" else ""
    for j, t in enumerate(row):
        if not abs(t) < float("inf"):
            raise NonFiniteInputError(f"{name}{comma}{j}] is {t}; times must be finite")
        if j and sign * (t - row[j - 1]) < 0:
            raise InvalidValueError(
                f"ts must not change direction: {name}{comma}{j - 1}] = {row[j - 1]}, "
                f"{name}{comma}{j}] = {t}; sort the times"
            )


@dataclass(frozen=True)
class Placed:
    """The times of each sample, as `odegrad.sweeps.samples.SampleRun` has them."""

    times: Tensor
    landings: Tensor
    stops: SampleStops | None


class SampleLandings:
    """All times that steps of each sample may end at: its own, and breakpoints between.

    Arguments:
        ts: The times, shape [T] or [B, T].
        size: B.
        breaks: The breakpoints.
    """

    def __init__(self, ts: Tensor, size: int, breaks: Breakpoints) -> None:
        ts = ts.detach()
        self.times = sample_times(ts, size)
        self._breaks = sorted(set(breaks.times))
        self._ends: list[Landings] = []  # of different rows of times
        self._which: list[int] = []
        numbers: dict[tuple[float, ...], int] = {}
        rows = self.times if ts.ndim == 2 else self.times[:1]
        for b, row in enumerate(map(tuple, rows.tolist())):
            if row not in numbers:
                numbers[row] = len(self._ends)
                self._ends.append(landings(ts[b] if ts.ndim == 2 else ts, row, breaks))
            self._which.append(numbers[row])
        if ts.ndim == 1:
            self._which *= size

    @property
    def kinks(self) -> bool:
        """Whether there are breakpoints within the times of a sample."""
        return any(ends.kinks for ends in self._ends)

    def placed(
        self,
        land: bool | None,
        scheme: Scheme,
        stepsize: StepSize,
        gradient: Gradient,
        field: VectorField,
        streamed: bool,
    ) -> Placed:
        """Which of them each sample steps onto: those that a solve of it alone does.

        Raises:
            InvalidTypeError: If `land` is neither a bool nor None.
            InvalidValueError: If it asks for what is not possible.
        """
        recorded = stepsize.own_segments.tolist() if isinstance(stepsize, SampleGrid) else []
        known: dict[tuple[int, int | None], list[int]] = {}
        sources: list[list[int]] = []
        for b, u in enumerate(self._which):
            ends = self._ends[u]
            # A sample that failed when the grid was recorded takes no steps.
            segments = (recorded[b] or len(ends.least) - 1) if b < len(recorded) else None
            if (u, segments) not in known:
                read = is_read(land, ends, scheme, stepsize, gradient, field, streamed, segments)
                known[u, segments] = self._sources(ends, read)
            sources.append(known[u, segments])
        count = self.times.shape[1]
        if all(source == list(range(count)) for source in known.values()):
            return Placed(self.times, self.times, None)
        breaks = torch.tensor(self._breaks, dtype=torch.float64, device="cpu")
        stops = SampleStops.of(self.times, breaks, sources)
        return Placed(self.times, stops.landings(self.times), stops)

    def _sources(self, ends: Landings, read: bool) -> list[int]:
        """Where the times come from that are stepped onto, as `SampleStops` has it."""
        labels, count, found = ends.labels, self.times.shape[1], list[int]()
        for place in ends.least if read else range(len(labels)):
            label = labels[place]
            found.append(count + self._breaks.index(ends.times[place]) if label is None else label)
        return found
