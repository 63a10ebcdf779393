"""What a solve did, and what a callback is told of each step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from odegrad.sweeps.kept import Kept

__all__ = ["Stats", "StepInfo"]


@dataclass
class Stats:
    """What a solve did. The backward sweep adds its share when it runs.

    Attributes:
        accepted: Steps accepted by the forward sweep.
        rejected: Steps attempted and rejected.
        f_evaluations: Evaluations of the vector field, both sweeps together.
        forward_evaluations: Those of the forward sweep.
        vjps: Evaluations of the vector field that the backward sweep transposed.
        recomputed: Steps taken again by the backward sweep to get back states that were not kept.
        kept_bytes: The most bytes that were kept at any moment between the steps: of states, carries and
            slopes, of random generators, and, with ``Keep.GRAPH``, of all that the graphs save, each
            storage once and without the tensors that f reads (measured on the first two steps, times the
            number of steps).
        disk_bytes: The most bytes that were kept on disk.
        working_bytes: With a memory budget, what is held beside what is kept: the outputs with their
            cotangents, and the working set of a transposed step, as they were measured; else None.
        peak_bytes: With a memory budget, the most of both together at any moment; else None.
        rewind_error: The largest error ‖y − ỹ‖ / ‖y‖ of a state ỹ that was reconstructed by rewinding,
            measured at each stored state y; None if nothing was rewound.
    """

    accepted: int = 0
    rejected: int = 0
    f_evaluations: int = 0
    forward_evaluations: int = 0
    vjps: int = 0
    recomputed: int = 0
    kept_bytes: int = 0
    disk_bytes: int = 0
    rewind_error: float | None = None
    working_bytes: int | None = None
    peak_bytes: int | None = None

    def note(self, kept: Kept) -> None:
        """Takes note of what is kept now."""
        self.kept_bytes = max(self.kept_bytes, kept.nbytes)
        self.disk_bytes = max(self.disk_bytes, kept.store.disk_bytes)
        if self.working_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, kept.room + self.working_bytes)

    @property
    def recompute_factor(self) -> float:
        """Evaluations of f in both sweeps over those of the forward sweep: 1 if none is repeated."""
        return self.f_evaluations / max(1, self.forward_evaluations)

    def as_dict(self) -> dict[str, int | float | None]:
        """The numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class StepInfo:
    """What a callback is told after each step.

    Attributes:
        phase: ``"forward"`` or ``"backward"``.
        n: The number of the step, from 0.
        t: The time at its start.
        dt: Its signed length.
        y: The state after the step (forward) or before it (backward), shaped as the user's; it must
            not be changed.
        stats: The statistics so far.
    """

    phase: Literal["forward", "backward"]
    n: int
    t: float
    dt: float
    y: Any
    stats: Stats
