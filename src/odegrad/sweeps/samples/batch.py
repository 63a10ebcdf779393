"""What the sweeps of a batch are given, beside what those of any solve are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from odegrad.errors import SolveError
from odegrad.samplegrid import SampleClock, SampleGrid
from odegrad.samplestops import SampleStops
from odegrad.schemes.persample import PerSample
from odegrad.state import Leaves
from odegrad.sweeps.run import Monitor, Run
from odegrad.sweeps.stats import Stats, StepInfo

__all__ = ["SampleMonitor", "SampleRun", "SampleStats"]


def _no_steps() -> Tensor:
    return torch.zeros(0, dtype=torch.int64, device="cpu")


@dataclass
class SampleStats(Stats):
    """What a solve with steps for each sample did; `accepted` and `rejected` are sums over the samples.

    Attributes:
        rounds: Steps of the batch that the forward sweep attempted.
        accepted_by_sample: Steps accepted of each sample, int64 of shape [B].
        rejected_by_sample: Steps rejected, likewise.
    """

    rounds: int = 0
    accepted_by_sample: Tensor = dataclasses.field(default_factory=_no_steps)
    rejected_by_sample: Tensor = dataclasses.field(default_factory=_no_steps)

    def tell(self, accepted: Tensor, rejected: Tensor) -> None:
        """Takes note of the steps of each sample."""
        self.accepted_by_sample, self.rejected_by_sample = accepted, rejected
        self.accepted, self.rejected = int(accepted.sum()), int(rejected.sum())

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name; those of each sample as lists."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: x.tolist() if isinstance(x, Tensor) else x for k, x in found.items()}


@dataclass
class SampleRun(Run):
    """One solve with steps for each sample.

    Attributes:
        stats: Filled in by the sweeps.
        landings: The times that steps end at, float64 of shape [B, S + 1], on the CPU.
        times_by_sample: The times at which there are outputs, likewise, [B, T]; those of `landings` if
            `stops` is None.
        stops: Which of these times steps end at, breakpoints besides, and which are read; None: all.
        cut: See `PerSample`.
        check_finite: Whether a sample fails on a fixed grid if its states are not finite.
        steps: The accepted steps, once a forward sweep is through; none of samples that failed.
        excluded: Samples that take no part, since they failed in an earlier solve.
        failures: What became of the samples that failed, by number.
        most_rounds: The most rounds whose steps there is memory for, or None for no limit.
        prepared: The steps, if they were found in advance; the next forward sweep takes them.
        reached: The outputs as far as they are known of samples that failed, NaN behind: leaves of shape
            [T, B, …]; None as long as none did.
    """

    stats: SampleStats = dataclasses.field(default_factory=SampleStats)  # pyright: ignore[reportIncompatibleVariableOverride]
    landings: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, 1, device="cpu"))
    times_by_sample: Tensor | None = None
    stops: SampleStops | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    cut: tuple[bool, ...] | None = None
    check_finite: bool = True
    steps: SampleGrid | None = None
    excluded: dict[int, SolveError] = dataclasses.field(default_factory=dict[int, SolveError])
    failures: dict[int, SolveError] = dataclasses.field(default_factory=dict[int, SolveError])
    most_rounds: int | None = None
    prepared: SampleGrid | None = None
    reached: Leaves | None = None

    @property
    def n_samples(self) -> int:
        """B."""
        return len(self.landings)

    @property
    def outputs_at(self) -> Tensor:
        """The times at which there are outputs, [B, T]."""
        return self.landings if self.times_by_sample is None else self.times_by_sample

    @property
    def segments(self) -> Tensor:
        """How many segments each sample has, int64 of shape [B]."""
        if self.stops is not None:
            return self.stops.segments
        size, n = self.landings.shape
        return torch.full((size,), n - 1, dtype=torch.int64, device="cpu")

    @property
    def reads(self) -> bool:
        """Whether samples are read inside of rounds."""
        return self.stops is not None and self.stops.reads

    def rounds_of(self, grid: SampleGrid, times: Tensor | None = None) -> SampleClock:
        """The rounds of a grid; `times` stand for those at which there are outputs, [B, T]."""
        times = self.outputs_at if times is None else times
        if self.stops is None:
            return SampleClock(grid, times)
        return SampleClock(grid, self.stops.landings(times), self.stops, times)

    @property
    def accepted_steps(self) -> SampleGrid:
        """The steps of a forward sweep that is through."""
        assert self.steps is not None
        return self.steps

    @property
    def failed(self) -> Tensor:
        """Which samples failed, bool of shape [B]."""
        failed = torch.zeros(self.n_samples, dtype=torch.bool, device="cpu")
        failed[list(self.failures)] = True
        return failed

    def persample(self, y0: Leaves, timed: bool = True) -> PerSample:
        """The scheme for the samples that did not fail.

        Arguments:
            y0: The initial state.
            timed: Whether times and steps are to get cotangents.
        """
        start = self.landings[:, 0].contiguous()
        cut = (
            self.cut if self.programs is None else None
        )  # a captured f takes as many as it was given
        scheme = PerSample(self.scheme, start, tuple(x.detach() for x in y0), cut, timed=timed)
        return scheme.without(self.failed) if self.failures else scheme

    @contextlib.contextmanager
    def quiet(self) -> Generator[None]:
        """Within, callback and progress bar are told nothing."""
        monitor, self.monitor = self.monitor, None
        try:
            yield
        finally:
            self.monitor = monitor

    def fail(self, b: int, error: SolveError) -> None:
        """Takes note that a sample failed.

        Raises:
            SolveError: That, if no one wants to know what becomes of the others.
        """
        if not self.salvage:
            raise error
        self.failures[b] = error.with_traceback(None)  # whose frames hold what was kept


class SampleMonitor(Monitor):
    """Tells a callback and a progress bar about each round; times and steps are of shape [B]."""

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        phase: Literal["forward", "backward"],
        n: int,
        t: Any,
        dt: Any,
        y: Leaves,
        stats: Stats,
    ) -> None:
        """Reports one round."""
        t, dt = t.detach(), dt.detach()
        if self._bar is not None:
            self._bar.update(float(torch.nan_to_num(dt).abs().mean()))
            self._bar.set_postfix(steps=n + 1, refresh=False)
        if self._callback is not None:
            state = self._unflatten(tuple(leaf.detach() for leaf in y))
            self._callback(StepInfo(phase, n, t, dt, state, stats))
