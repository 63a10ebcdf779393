"""What a sweep is given: one solve, and who watches it."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from torch import Tensor

from odegrad.errors import MissingDependencyError
from odegrad.field import VectorField
from odegrad.grid import Clock, Grid, Stops
from odegrad.labelloss import LabelLoss
from odegrad.replay import Snapshot
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, OptionalLeaves
from odegrad.stepsize import StepSize
from odegrad.sweeps.fingerprint import Fingerprint
from odegrad.sweeps.stats import Stats, StepInfo

if TYPE_CHECKING:
    from odegrad.compiled import Programs

__all__ = ["Landings", "Monitor", "Run", "Witness"]

T = TypeVar("T")

Landings: TypeAlias = tuple[float, ...] | Tensor | Leaves
"""Times of outputs: floats; or a float64 tensor or its entries, on whose graph the steps then are."""


class Monitor:
    """Tells a callback and a progress bar about each step.

    Arguments:
        times: The landing times.
        unflatten: Turns state leaves into the user's state.
        callback: Called with a `StepInfo`, or None.
        progress: Whether to show a bar for each sweep (needs tqdm).

    Raises:
        MissingDependencyError: If a bar is asked for and tqdm is not installed.
    """

    def __init__(
        self,
        times: tuple[float, ...],
        unflatten: Callable[[Leaves], Any],
        callback: Callable[[StepInfo], object] | None,
        progress: bool,
    ) -> None:
        self._times, self._unflatten = times, unflatten
        self._callback, self._progress = callback, progress
        self._bar: Any = None
        if progress and importlib.util.find_spec("tqdm") is None:
            raise MissingDependencyError(
                "progress=True needs the package tqdm; pip install 'odegrad[cli]' or pip install tqdm"
            )

    def start(self, phase: str) -> None:
        """Opens the bar of a sweep; its length is the time from the first landing to the last."""
        if self._progress:
            import tqdm

            total = abs(self._times[-1] - self._times[0])
            layout = "{l_bar}{bar}| t {n:.4g}/{total:.4g} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm.tqdm(desc=phase, total=total, bar_format=layout, mininterval=0.1)

    @contextmanager
    def compiling(self) -> Generator[None]:
        """Says so on the bar while something is being compiled."""
        if self._bar is None:
            yield
            return
        name = str(self._bar.desc).removesuffix(": ")
        self._bar.set_description(f"{name}, compiling")
        try:
            yield
        finally:
            self._bar.set_description(name)

    def step(
        self,
        phase: Literal["forward", "backward"],
        n: int,
        t: float,
        dt: float,
        y: Leaves,
        stats: Stats,
    ) -> None:
        """Reports one step."""
        if self._bar is not None:
            self._bar.update(abs(dt))
            self._bar.set_postfix(steps=n + 1, refresh=False)
        if self._callback is not None:
            state = self._unflatten(tuple(leaf.detach() for leaf in y))
            self._callback(StepInfo(phase, n, t, dt, state, stats))

    def stop(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Witness(Protocol):
    """Sees each transposed step; the eager engine tells it, for schedules that keep no graphs."""

    def step(self, n: int, grad_y: Leaves, grad_p: OptionalLeaves) -> None:
        """Takes note of step n; of step 0 twice, if what comes before it has a share, too.

        Arguments:
            n: Its number.
            grad_y: The cotangent of the state before it, without that of an output there.
            grad_p: Its share of the cotangents of the tensors that f reads.
        """
        ...


@dataclass
class Run:
    """One solve: what to do, and what became of it.

    Attributes:
        field: The vector field.
        scheme: The scheme.
        stepsize: The step sizes.
        times: The landing times.
        eps: The machine epsilon of the dtype in which the times were given.
        max_steps: The most attempted steps, or None for no limit.
        monitor: Who watches, or None.
        stats: Filled in by the sweeps.
        grid: The accepted grid, once the forward sweep is through.
        initial: Generators and buffers at the start, for functions that use them.
        programs: The compiled steps, or None to take steps one by one in Python.
        loss: The loss at each landing time, if it is evaluated in the sweeps; else states are put out.
        witness: Who sees the transposed steps, or None.
        salvage: Whether to keep what a solve that fails has computed.
        salvaged: That.
        replay_check: Whether to look if f gives again what it gave.
        fingerprints: If so, the last states that a backward sweep will arrive at again, by number.
        kinks: The landings across which the solution is not smooth.
        labels: Which of the user's times each landing is, or None for a breakpoint; if None, all are.
        stops: Which of `times` steps land on; the others are read inside steps. If None, on all.
    """

    field: VectorField
    scheme: Scheme
    stepsize: StepSize
    times: tuple[float, ...]
    eps: float
    max_steps: int | None = None
    monitor: Monitor | None = None
    stats: Stats = dataclasses.field(default_factory=Stats)
    grid: Grid | None = None
    initial: Snapshot | None = None
    programs: Programs | None = None
    loss: LabelLoss | None = None
    witness: Witness | None = None
    salvage: bool = False
    salvaged: Leaves | None = None
    replay_check: bool = False
    fingerprints: dict[int, Fingerprint] = dataclasses.field(default_factory=dict[int, Fingerprint])
    kinks: tuple[int, ...] = ()
    labels: tuple[int | None, ...] | None = None
    stops: Stops | None = None

    def label(self, j: int) -> int | None:
        """Which of the user's times landing j is, or None for a breakpoint."""
        return j if self.labels is None else self.labels[j]

    @property
    def landed(self) -> Sequence[int]:
        """The numbers of the times that steps land on."""
        return range(len(self.times)) if self.stops is None else self.stops.at

    @property
    def reads(self) -> bool:
        """Whether states are read inside of steps."""
        return self.stops is not None

    def clock(self, times: Landings | None = None, grid: Grid | None = None) -> Clock:
        """The steps of the accepted grid, or of another, at the times or what stands for them."""
        return Clock(grid or self.accepted_grid, self.times if times is None else times, self.stops)

    @property
    def accepted_grid(self) -> Grid:
        """The grid of a forward sweep that is through."""
        assert self.grid is not None
        return self.grid

    def observed(self, p: Leaves, thunk: Callable[[], T]) -> T:
        """thunk(), with p bound; whether it can be repeated exactly is noted by the field."""
        if self.monitor is not None:  # a callback may draw random numbers of its own
            return self.field.bound(p, thunk)
        return self.field.observed(lambda: self.field.bound(p, thunk))

    def repeatable(self, p: Leaves, thunk: Callable[[], T]) -> T:
        """thunk(), with p bound, for a sweep whose evaluations of f will be repeated.

        Raises:
            RandomFieldError: If they cannot be.
        """
        result = self.observed(p, thunk)
        self.field.check_draws()
        return result

    def mark(self) -> None:
        """Remembers the versions of what f and the loss read."""
        self.field.mark()
        if self.loss is not None:
            self.loss.mark()

    def check_unchanged(self) -> None:
        """Refuses to go on if something that f or the loss reads was changed since `mark`.

        Raises:
            ChangedTensorError: If it was.
        """
        self.field.check_unchanged()
        if self.loss is not None:
            self.loss.check_unchanged()

    def count(self) -> None:
        """Brings the counters of f up to date."""
        self.stats.f_evaluations = self.field.evaluations
        self.stats.vjps = self.field.transposes
