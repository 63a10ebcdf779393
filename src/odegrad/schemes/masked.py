"""`PerSample` as one formula, whatever samples take the step, so that a compiler can trace it.

Which of them do is a mask in every operation. The times and the state at which f is evaluated for those
that take no step come last in p, behind what f reads: a program serves batches with other starts, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from odegrad.field import VectorField
from odegrad.schemes.base import Scheme, Step, StepGrad
from odegrad.schemes.dense import Part as Inside
from odegrad.schemes.dense import Read
from odegrad.schemes.part import Part
from odegrad.schemes.persample import PerSample
from odegrad.state import Leaves, OptionalLeaves, Time

__all__ = ["Masked"]


class _Traced(PerSample):
    """With a mask always, without a look at it."""

    def part(self, active: Tensor | None, p: Leaves) -> Part:
        assert active is not None
        return Part(self.start, self.y0, p, size=len(active), mask=active)


@dataclass(frozen=True)
class Masked(Scheme):
    """A scheme for a batch, given p = (what f reads, the times at the start, the state at the start).

    Arguments:
        base: The scheme.
        n: How many leaves the state has.
    """

    base: Scheme
    n: int
    order: int = dataclasses.field(init=False, repr=False)
    error_order: int | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", self.base.order)
        object.__setattr__(self, "error_order", self.base.error_order)

    @property
    def read_degree(self) -> int:
        """That of the base."""
        return self.base.read_degree

    def init(self, field: VectorField, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """The carry before the first step."""
        return self.base.init(field, t, y, self._split(p)[1])

    def attempt(
        self, field: VectorField, t: Tensor, dt: Tensor, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """A step, in which the entries of samples that take none mean nothing."""
        scheme, own = self._split(p)
        return scheme.attempt(field, t, dt, y, carry, own)

    def step(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """One step of the samples whose dt is a number."""
        scheme, own = self._split(p)
        return scheme.step(field, t, dt, y, carry, own)

    def read(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        step: Step,
        p: Leaves,
        times: Sequence[Time | Inside],
    ) -> list[Leaves]:
        """The states inside of a step of the samples whose dt is a number, those before it of others."""
        scheme, own = self._split(p)
        return scheme.read(field, t, dt, y, step, own, times)

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
        """The transpose of `step` and `read`; starts get no cotangent."""
        scheme, own = self._split(p)
        found = scheme.step_vjp(
            field, t, dt, y, carry, own, grad_y, grad_carry, grad_dense, kept, after, reads
        )
        return found._replace(p=(*found.p, *[None] * (self.n + 1)))

    def _split(self, p: Leaves) -> tuple[_Traced, Leaves]:
        """The scheme with its starts, and what f reads."""
        m = len(p) - self.n - 1
        return _Traced(self.base, p[m], p[m + 1 :]), p[:m]
