"""Any scheme, begun anew at every step: one step is then a map of the state alone.

    Ψ(t, h, y) = Φ(t, h, y, init(t, y)).

Two uses. The transposed steps of one scheme can be taken at the states of another (`Mismatched`), which
has no carry for them. And where f jumps, the slope at the end of one step is not that at the start of
the next: with `inside`, f is evaluated strictly inside of each step, so that it sees the branch that
holds there; a stage with c = 1 gets the limit from within. For that the times at the ends of a step
move inwards by a few units in the last place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.linearization import Linearization
from odegrad.schemes.base import Scheme, Step, StepGrad
from odegrad.schemes.dense import Part, Read
from odegrad.state import Leaves, OptionalLeaves, Time

__all__ = ["Restarted", "seen_by"]


@dataclass(frozen=True)
class Restarted(Scheme):
    """A scheme whose carry is made anew at every step.

    One with the first-same-as-last property takes one evaluation more per step.

    Arguments:
        base: The scheme.
        inside: How far f's times keep from the ends of each step, relative to the time there: some units
            in the last place of what f receives. 0 is no matter.
    """

    base: Scheme
    inside: float = 0.0
    order: int = dataclasses.field(init=False, repr=False, compare=False)
    error_order: int | None = dataclasses.field(init=False, repr=False, compare=False)
    traceable: bool = dataclasses.field(init=False, repr=False, compare=False)

    @staticmethod
    def at_jumps(base: Scheme, *dtypes: torch.dtype) -> Restarted:
        """For f that jumps where steps end; `dtypes` are those of times, and of what f receives."""
        return Restarted(base, 4.0 * max(torch.finfo(x).eps for x in dtypes))

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", self.base.order)
        object.__setattr__(self, "error_order", self.base.error_order)
        object.__setattr__(self, "traceable", self.base.traceable)

    @property
    def reads_slopes(self) -> bool:
        """As the base."""
        return self.base.reads_slopes

    @property
    def pulls_reads(self) -> bool:
        """As the base."""
        return self.base.pulls_reads

    @property
    def read_degree(self) -> int:
        """As the base."""
        return self.base.read_degree

    def step(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """One step of the base, from a carry of its own."""
        del carry
        seen = seen_by(self, field, t, dt)
        first = self.base.init(seen, t, y, p)
        return self.base.step(seen, t, dt, y, first, p)._replace(carry=())

    def read(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        step: Step,
        p: Leaves,
        times: Sequence[Time | Part],
    ) -> list[Leaves]:
        """The state inside a step, as the base reads it."""
        return self.base.read(seen_by(self, field, t, dt), t, dt, y, step, p, times)  # fmt: skip

    def step_vjp(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
        grad_y: Leaves,
        grad_carry: Leaves | None = None,
        grad_dense: Sequence[OptionalLeaves | None] | None = None,
        kept: Sequence[Leaves] | None = None,
        after: bool = False,
        reads: Sequence[Read] = (),
    ) -> StepGrad:
        """The transpose of the base's step, then that of its `init`."""
        del carry, grad_carry
        seen = seen_by(self, field, t, dt)
        with torch.no_grad():
            first = self.base.init(seen, t, y, p)
        grads = self.base.step_vjp(
            seen, t, dt, y, first, p, grad_y, None, grad_dense, kept, after, reads
        )
        if grads.carry is None:
            return grads
        begun = self.base.init_vjp(seen, t, y, p, grads.carry)
        return StepGrad(
            _sum(grads.t, begun.t),
            grads.dt,
            tuple(a + b for a, b in zip(grads.y, begun.y, strict=True)),
            None,
            tuple(_sum(a, b) for a, b in zip(grads.p, begun.p, strict=True)),
            grads.after,
            grads.reads,
        )


def seen_by(scheme: Scheme, field: VectorField, t: Time, dt: Time) -> VectorField:
    """The vector field as a step of the scheme from t to t + dt sees it."""
    inside = scheme.inside if isinstance(scheme, Restarted) else 0.0
    return cast("VectorField", _Inside(field, t, dt, inside)) if inside else field


class _Inside:
    """A vector field whose times are kept strictly between t and t + dt."""

    def __init__(self, field: VectorField, t: Time, dt: Time, units: float) -> None:
        self._field = field
        start, stop = _number(t), _number(t + dt)
        if isinstance(start, Tensor) or isinstance(stop, Tensor):
            start, stop = torch.as_tensor(start), torch.as_tensor(stop)
            size = torch.maximum(start.abs(), stop.abs())
            margin = torch.minimum(units * size, (stop - start).abs() / 4)
            low, high = torch.minimum(start, stop) + margin, torch.maximum(start, stop) - margin
        else:
            margin = min(units * max(abs(start), abs(stop)), abs(stop - start) / 4)
            low, high = min(start, stop) + margin, max(start, stop) - margin
        self._low, self._high = low, high

    @property
    def evaluations(self) -> int:
        return self._field.evaluations

    @property
    def transposes(self) -> int:
        return self._field.transposes

    @transposes.setter
    def transposes(self, count: int) -> None:
        self._field.transposes = count

    @property
    def time_dtype(self) -> torch.dtype:
        return self._field.time_dtype

    @property
    def device(self) -> torch.device:
        return self._field.device

    def note_graph(self, slopes: Sequence[Leaves]) -> None:
        self._field.note_graph(slopes)

    def __call__(self, t: Time, y: Leaves, p: Leaves) -> Leaves:
        return self._field(self._kept_inside(t), y, p)

    def linearize(self, t: Time, y: Leaves, p: Leaves) -> Linearization:
        return self._field.linearize(self._kept_inside(t), y, p)

    def vjp(self, t: Time, y: Leaves, p: Leaves, grad: OptionalLeaves) -> Any:
        return self.linearize(t, y, p).vjp(grad)

    def _kept_inside(self, t: Time) -> Time:
        """t, moved; its derivative with respect to t and dt stays what it was."""
        if not isinstance(t, Tensor):
            return min(max(t, cast("float", self._low)), cast("float", self._high))
        now = t.detach()
        moved = torch.minimum(
            torch.maximum(now, torch.as_tensor(self._low)), torch.as_tensor(self._high)
        )
        return t + (moved - now)


def _number(t: Time) -> Time:
    return t.detach() if isinstance(t, Tensor) else t


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
