"""What a scheme is: a pure one-step map Φ and its exact transpose, in one place.

    (y_{n+1}, c_{n+1}) = Φ(t_n, h_n, y_n, c_n, p)

The *carry* c is what one step hands to the next beside the state: nothing for a plain Runge–Kutta
scheme, the last slope for one with the first-same-as-last property. It is part of a checkpoint and
it is differentiated like the state. The law that every scheme is tested against, for all directions
v and cotangents w, over state, carry, dense coefficients, t, h and p:

    ⟨w, DΦ·v⟩ = ⟨step_vjp(w), v⟩.

`step_vjp` and `init_vjp` are implemented here once for all schemes by differentiating `step` and
`init` on a local graph; so a scheme that only writes `step` is already exact. A scheme may override
them with a transpose of its own, which is then tested against these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from odegrad.errors import GradientUnavailableError
from odegrad.field import VectorField
from odegrad.reach import check_reachable
from odegrad.schemes.dense import Part, Read, part_of
from odegrad.schemes.interpolant import Ends, bootstrapped
from odegrad.state import Leaves, OptionalLeaves, Time, axpy

__all__ = ["Scheme", "Step", "StepGrad", "pulled_by_graph"]


class Step(NamedTuple):
    """The result of one step.

    Attributes:
        y: The state after the step.
        carry: What the next step needs beside y.
        error: An estimate of the local error, leaf by leaf; None if the scheme has none. It is not
            differentiated.
        dense: The coefficients of the scheme's dense output: for Runge–Kutta, the stage slopes.
        ok: None or True if the step succeeded; False rejects it whatever the error estimate.
    """

    y: Leaves
    carry: Leaves = ()
    error: Leaves | None = None
    dense: tuple[Leaves, ...] = ()
    ok: bool | None = None


class StepGrad(NamedTuple):
    """Cotangents of the inputs of a step; None is structurally zero.

    `t` and `dt` are None if the step was given floats, `carry` if no cotangent reaches it. `after` is the
    state after the step as it was computed again, if that was asked for. `reads` are those of the times
    at which the state was read inside the step.
    """

    t: Tensor | None
    dt: Tensor | None
    y: Leaves
    carry: Leaves | None
    p: OptionalLeaves
    after: Leaves | None = None
    reads: tuple[Tensor | None, ...] = ()


class Scheme(ABC):
    """A one-step integration scheme. Subclasses are frozen dataclasses without per-solve state.

    Attributes:
        order: The order p of the scheme: global error O(h^p).
        error_order: k with error estimate O(h^k); None if there is no error estimate.
        reversible: Whether the scheme has an `unstep`.
        traceable: Whether a step is one formula, whatever numbers it is given, so that a compiler can
            trace it.
    """

    order: int
    error_order: int | None = None
    reversible: ClassVar[bool] = False
    traceable: bool = True

    @property
    def reads_slopes(self) -> bool:
        """Whether `read` evaluates f nowhere."""
        return self.order <= 2

    @property
    def pulls_reads(self) -> bool:
        """Whether `step_vjp` needs no graph of the states that were read, however many they are."""
        return False

    @property
    def read_degree(self) -> int:
        """The degree of the polynomial that `read` evaluates."""
        return 1 if self.order <= 2 else max(3, self.order)

    def init(self, field: VectorField, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """The carry before the first step."""
        del field, t, y, p
        return ()

    @abstractmethod
    def step(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        carry: Leaves,
        p: Leaves,
    ) -> Step:
        """One step from (t, y) to t + dt; differentiable by autograd in every argument.

        Arguments:
            field: The vector field.
            t: The start of the step: a float, a 0-dim tensor, or shape [B], one per sample.
            dt: Its signed length, of the same kind as t.
            y: The state at t.
            carry: What the step before, or `init`, handed on.
            p: Parameters.
        """

    def advance(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """`step` where nobody asks for the error, which may be None."""
        return self.step(field, t, dt, y, carry, p)

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
        """The state at times inside a step, differentiable by autograd in every argument.

        Its error is of the order of the scheme: the chord up to order 2, else an interpolant that
        evaluates f at both ends, and inside of the step if the order is above 4.

        Arguments:
            field: The vector field.
            t: The start of the step.
            dt: Its length.
            y: The state at t.
            step: What `step` returned.
            p: Parameters.
            times: The times, or parts of the step.
        """  # fmt: skip
        if self.order <= 2:
            chord = tuple(b - a for a, b in zip(y, step.y, strict=True))
            return [axpy(y, 1.0, (part_of(time, t, dt),), (chord,)) for time in times]
        slopes = field(t, y, p), field(t + dt, step.y, p)
        curve = bootstrapped(field, p, Ends(t, dt, y, step.y, *slopes), self.order)
        return [curve(part_of(time, t, dt)) for time in times]

    def unstep(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> tuple[Leaves, Leaves]:
        """The inverse of `step`: the state and the carry before the step from t to t + dt.

        Equal to them up to rounding errors, which the inverse of an unstable step amplifies.

        Arguments:
            field: The vector field.
            t: The start of the step to undo, as it was given to `step`.
            dt: Its length, likewise.
            y: The state after it.
            carry: The carry after it.
            p: Parameters.

        Raises:
            GradientUnavailableError: If the scheme is not reversible.
        """
        del field, t, dt, y, carry, p
        raise GradientUnavailableError(
            f"{type(self).__name__} cannot be run backwards; a reversible scheme is needed: ALF(), "
            "ReversibleHeun(), or Reversible(base), which makes one of any Runge–Kutta scheme"
        )

    def init_vjp(
        self, field: VectorField, t: Time, y: Leaves, p: Leaves, grad_carry: Leaves
    ) -> StepGrad:
        """The transpose of `init`: cotangents of t, y and p for a cotangent of the carry."""
        with torch.enable_grad():
            t_, y_ = _leaf(t), _leaves(y)
            carry = self.init(field, t_, y_, p)
        grads = _pull(carry, grad_carry, [t_], y_, p)
        return StepGrad(grads.times[0], None, grads.y, None, grads.p)

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
        """The transpose of `step` and `read`, by a graph of the whole step.

        Arguments:
            field: The vector field.
            t: As for `step`; a tensor gets a cotangent, a float does not.
            dt: As for `step`; likewise.
            y: The state before the step.
            carry: The carry before the step.
            p: The tensors that f reads; those that require grad get a cotangent.
            grad_y: The cotangent of the state after the step.
            grad_carry: The cotangent of the carry after the step; None is zero.
            grad_dense: The cotangents of the dense coefficients; None is zero.
            kept: The dense coefficients of the step, if they are known: a scheme whose stages can be
                transposed one at a time needs less memory then. Here it changes nothing.
            after: Whether to return the state after the step, too.
            reads: Where the state was read inside the step, and the cotangents of these states.
        """
        del kept
        return pulled_by_graph(
            self, field, (t, dt), y, carry, p, grad_y, grad_carry, grad_dense, after, reads
        )


def pulled_by_graph(
    scheme: Scheme,
    field: VectorField,
    times: tuple[Time, Time],
    y: Leaves,
    carry: Leaves,
    p: Leaves,
    grad_y: Leaves,
    grad_carry: Leaves | None = None,
    grad_dense: Sequence[OptionalLeaves | None] | None = None,
    after: bool = False,
    reads: Sequence[Read] = (),
    timed: bool = True,
) -> StepGrad:
    """`Scheme.step_vjp` for the times (t, dt); unless `timed`, these get no cotangents."""
    before = field.evaluations
    with torch.enable_grad():
        t, dt = (_leaf(x) if timed or not isinstance(x, Tensor) else x.detach() for x in times)
        y_, carry_ = _leaves(y), _leaves(carry)
        step = scheme.advance(field, t, dt, y_, carry_, p)
        if step.dense:  # the slopes; the first one is the carry, if there is one
            field.note_graph(step.dense[bool(carry) :])
        at = [r.t if isinstance(r.t, Part) else _leaf(r.t) for r in reads]
        inside = scheme.read(field, t, dt, y_, step, p, at) if reads else []
    outputs, cotangents = list(step.y), list[Tensor | None](grad_y)
    for values, r in zip(inside, reads, strict=True):
        outputs += values
        cotangents += r.grad
    for values, grads in [
        (step.carry, grad_carry),
        *zip(step.dense, grad_dense or [None] * len(step.dense), strict=True),
    ]:
        if grads is not None:
            outputs += values
            cotangents += grads
    ends = [t, dt] if timed else []
    pulled = _pull(outputs, cotangents, [*ends, *at], (*y_, *carry_), p)
    field.transposes += field.evaluations - before
    n, m = len(y), len(ends)
    grad_t, grad_dt = pulled.times[:m] or (None, None)
    end = tuple(x.detach() for x in step.y) if after else None
    found, grad_reads = pulled.y, tuple(pulled.times[m:])
    return StepGrad(grad_t, grad_dt, found[:n], found[n:] or None, pulled.p, end, grad_reads)


class _Pulled(NamedTuple):
    times: list[Tensor | None]
    y: Leaves
    p: OptionalLeaves


def _leaf(t: Time) -> Time:
    return t.detach().requires_grad_() if isinstance(t, Tensor) else t


def _leaves(x: Leaves) -> Leaves:
    return tuple(leaf.detach().requires_grad_() for leaf in x)


def _pull(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    times: Sequence[Time | Part],
    y: Leaves,
    p: Leaves,
) -> _Pulled:
    """One reverse pass from `outputs` to times, y and those of p that require grad."""
    pairs = [
        (x, g)
        for x, g in zip(outputs, cotangents, strict=True)
        if g is not None and x.requires_grad
    ]
    tensors = [t for t in times if isinstance(t, Tensor)]
    wanted = [x for x in p if x.requires_grad]
    inputs = [*tensors, *y, *wanted]
    grads: Sequence[Tensor | None] = [None] * len(inputs)
    check_reachable(outputs, inputs)
    if pairs:
        grads = torch.autograd.grad(
            [x for x, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True
        )
    found = iter(grads)
    grad_times = [_or_zero(next(found), t) if isinstance(t, Tensor) else None for t in times]
    grad_y = tuple(_or_zero(next(found), leaf) for leaf in y)
    grad_p = tuple(next(found) if x.requires_grad else None for x in p)
    return _Pulled(grad_times, grad_y, grad_p)


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
