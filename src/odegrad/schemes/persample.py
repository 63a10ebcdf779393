"""Any scheme with a step of its own for each sample of a batch, some of which take none.

A step is given t and h of shape [B]. A sample whose h is NaN takes no step:

    (y⁺, c⁺)_b = Φ(t_b, h_b, y_b, c_b)  if h_b is a number,  else  (y, c)_b,

and its cotangents pass through the transpose as they are. f is evaluated on the whole batch, and what it
gives for samples that take no step is not used. It still has to be harmless: 0 · NaN is NaN, which in a
transpose would reach the gradient of what all samples share. So for them f gets a state at which it is
evaluated anyhow: that at the start of the solve.

Where the state is read inside of a step, the times are of shape [B], too, and NaN for samples that are
not read: u(NaN) = y; or they are parts of the step, at which all samples are read that take it. If that
takes evaluations of f, samples that are not read are not evaluated for it.

If f is known to take any number of samples, it is evaluated on those that take the step alone, as soon
as they are few enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.schemes.base import Scheme, Step, StepGrad, pulled_by_graph
from odegrad.schemes.dense import Part as Inside
from odegrad.schemes.dense import Read
from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.part import Part
from odegrad.state import Leaves, OptionalLeaves, Time

__all__ = ["PerSample"]

_StepOf: TypeAlias = Callable[[VectorField, Time, Time, Leaves, Leaves, Leaves], Step]


@dataclass(frozen=True, eq=False)
class PerSample(Scheme):
    """A scheme for a batch whose samples are at different times.

    Arguments:
        base: The scheme.
        start: The times at the start, float64 of shape [B], on the CPU.
        y0: The state at the start.
        cut: For each of the tensors that f reads, whether its dimension 0 is that of the samples; None if
            f has to be evaluated on all samples.
        failed: The samples that failed, bool of shape [B], or None. f gets the start of another one.
        timed: Whether times and steps are to get cotangents.
    """

    base: Scheme
    start: Tensor
    y0: Leaves
    cut: tuple[bool, ...] | None = None
    failed: Tensor | None = None
    timed: bool = True
    order: int = dataclasses.field(init=False, repr=False)
    error_order: int | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", self.base.order)
        object.__setattr__(self, "error_order", self.base.error_order)

    def without(self, failed: Tensor) -> PerSample:
        """The same for a batch of which these samples failed, bool of shape [B]."""
        if bool(failed.all()):
            return dataclasses.replace(self, failed=failed)
        healthy = int((~failed).nonzero()[0])
        source = torch.arange(len(failed), device="cpu").masked_fill(failed, healthy)
        y0 = tuple(x[source.to(x.device)] for x in self.y0)
        return dataclasses.replace(self, start=self.start[source], y0=y0, failed=failed)

    def part(self, active: Tensor | None, p: Leaves) -> Part:
        """How the active samples, bool of shape [B] or None for all, are evaluated."""
        if active is None or bool(active.all()):
            return Part(self.start, self.y0, p)
        n, size = int(active.sum()), len(active)
        if self.cut is not None and n and (4 * n <= 3 * size or self.failed is not None):
            cut = [i for i, x in enumerate(self.cut) if x]
            index = active.nonzero().squeeze(1)
            return Part(self.start, self.y0, p, cut, size, index=index)
        return Part(self.start, self.y0, p, size=size, mask=active)

    def init(self, field: VectorField, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """The carry before the first step; 0 for samples that failed."""
        part = self.part(self._healthy, p)
        carry = self.base.init(field, part.time(t), part.state(y), part.read(p))
        return part.put(carry, None)

    def init_vjp(
        self, field: VectorField, t: Time, y: Leaves, p: Leaves, grad_carry: Leaves
    ) -> StepGrad:
        """The transpose of `init`."""
        part = self.part(self._healthy, p)
        grad = part.take(grad_carry)
        grads = self.base.init_vjp(field, part.time(t), part.state(y), part.read(p), grad)
        grad_y, grad_p = part.put(grads.y, None), part.gathered(grads.p)
        return StepGrad(part.put_time(grads.t), None, grad_y, None, grad_p)

    def attempt(
        self,
        field: VectorField,
        t: Tensor,
        dt: Tensor,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
        part: Part | None = None,
    ) -> Step:
        """A step, in which the entries of samples that take none mean nothing.

        `part` is that of the samples whose dt is a number, if it is known.
        """
        part = part or self.part(~torch.isnan(dt), p)
        step = self._taken(self.base.step, part, field, t, dt, y, carry, p)
        return part.put_step(step, y, carry) if part.is_compact else step

    def step(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """One step of the samples that take one."""
        return self._among(self.base.step, field, t, dt, y, carry, p)

    def advance(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """The same without an estimate of the error."""
        return self._among(self.base.advance, field, t, dt, y, carry, p)

    @property
    def reads_slopes(self) -> bool:
        """As the base."""
        return self.base.reads_slopes

    @property
    def read_degree(self) -> int:
        """As the base."""
        return self.base.read_degree

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
        """The states at times inside of a step of samples that are read, those before it of others."""
        active = ~torch.isnan(_tensor(dt).detach())
        asked = [~torch.isnan(x.detach()) for x in times if isinstance(x, Tensor)]
        if len(asked) == len(times):  # parts of steps are read of all samples that take one
            active = active & torch.stack(asked).any(0)
        part = self.part(active, p)
        dense = tuple(map(part.take, step.dense))
        own = Step(part.state(step.y), part.take(step.carry), dense=dense)
        found = self.base.read(
            field, part.time(t), part.length(dt), part.state(y), own, part.read(p),
            [_at(part, time, t) for time in times],
        )  # fmt: skip
        return found if part.is_whole else [part.put(x, y) for x in found]

    def unstep(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> tuple[Leaves, Leaves]:
        """The inverse of `step`."""
        assert isinstance(dt, Tensor)
        part = self.part(~torch.isnan(dt), p)
        state, own = part.state(y), part.take(carry)
        before = self.base.unstep(field, part.time(t), part.length(dt), state, own, part.read(p))
        return part.put(before[0], y), part.put(before[1], carry)

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
        """The transpose of `step` and `read`; `after` is 0 for samples that take no step."""
        assert isinstance(dt, Tensor)
        assert grad_dense is None, "nothing reads the slopes of single samples"
        if reads and not self.base.reads_slopes:  # f is evaluated for those that are read alone
            return self._by_graph(field, t, dt, y, carry, p, grad_y, grad_carry, after, reads)
        part = self.part(~torch.isnan(dt), p)
        base = self.base
        pull = base.step_vjp
        if not self.timed and isinstance(base, ExplicitRungeKutta):
            pull = partial(base.step_vjp, timed=False)
        grads = pull(
            field,
            part.time(t),
            part.length(dt),
            part.state(y),
            part.take(carry),
            part.read(p),
            part.take(grad_y),
            None if grad_carry is None else part.take(grad_carry),
            kept=None if kept is None else [part.take(x) for x in kept],
            after=after,
            reads=[Read(_at(part, r.t, t), _taken(part, r.grad)) for r in reads],
        )
        passed = grad_carry  # by samples that take no step
        if grads.carry is not None:
            passed = part.put(grads.carry, passed)
        elif passed is not None and not part.is_whole:
            zeros = tuple(torch.zeros_like(x) for x in part.take(passed))
            passed = part.put(zeros, passed)
        else:
            passed = None
        return StepGrad(
            part.put_time(grads.t),
            part.put_time(grads.dt),
            part.put(grads.y, grad_y),
            passed,
            part.gathered(grads.p),
            None if grads.after is None else part.put(grads.after, None),
            tuple(map(part.put_time, grads.reads)),
        )

    def _by_graph(
        self, field: VectorField, t: Time, dt: Tensor, y: Leaves, carry: Leaves, p: Leaves,
        grad_y: Leaves, grad_carry: Leaves | None, after: bool, reads: Sequence[Read],
    ) -> StepGrad:  # fmt: skip
        """`step_vjp` by one graph of the round."""
        grads = pulled_by_graph(
            self, field, (t, dt), y, carry, p, grad_y, grad_carry, None, after, reads, self.timed
        )
        if grads.after is None:
            return grads
        sits = torch.isnan(dt)
        end = tuple(
            x.masked_fill(sits.to(x.device).reshape(-1, *[1] * (x.ndim - 1)), 0.0)
            for x in grads.after
        )
        return grads._replace(after=end)

    @property
    def _healthy(self) -> Tensor | None:
        return None if self.failed is None else ~self.failed

    def _among(
        self,
        step: _StepOf,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
    ) -> Step:
        """A step of the samples that take one, put among the others."""
        assert isinstance(dt, Tensor)
        part = self.part(~torch.isnan(dt.detach()), p)
        taken = self._taken(step, part, field, t, dt, y, carry, p)
        return taken if part.is_whole else part.put_step(taken, y, carry)

    def _taken(
        self,
        step: _StepOf,
        part: Part,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
    ) -> Step:
        """The step of the base, of the samples that are evaluated."""
        state, own = part.state(y), part.take(carry)
        return step(field, part.time(t), part.length(dt), state, own, part.read(p))


def _tensor(t: Time | Inside) -> Tensor:
    assert isinstance(t, Tensor), "samples have times of their own"
    return t


def _at(part: Part, time: Time | Inside, t: Time) -> Tensor | Inside:
    """A time that is read, that at which the step begins for samples that are not read."""
    if isinstance(time, Inside):
        return time
    time, t = _tensor(time), _tensor(t)
    return part.time(torch.where(torch.isnan(time), t, time))


def _taken(part: Part, grad: OptionalLeaves) -> OptionalLeaves:
    return tuple(None if g is None else part.take((g,))[0] for g in grad)
