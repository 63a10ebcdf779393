"""Adams–Bashforth schemes, and their correction by Adams–Moulton.

With k slopes f_i = f(t_i, y_i) and the polynomial P through those at t_n, t_{n−1}, …, t_{n−k+1},

    Adams–Bashforth:   y_{n+1} = y_n + ∫ P(τ) dτ = y_n + Σ_i w_i f_{n−i}     over [t_n, t_{n+1}],

of order k. An Adams–Bashforth–Moulton step of order k ≥ 2 predicts so from k − 1 slopes and corrects

    y ← y_n + w*_0 f(t_{n+1}, y) + Σ_i w*_{i+1} f_{n−i}

m times, with the weights w* of the polynomial through t_{n+1} as well: P(EC)^m E. The last E is f_{n+1},
of the next step. m is a fixed number, so that the step is a formula, which is differentiated as written.

The weights are those of the times of the slopes, whatever these are, and depend on them: at equal
steps they are the rational numbers of the tables. So the order is kept on every grid, and what is
computed depends smoothly on the times, hence is differentiated exactly with respect to them. (Weights
for equal steps alone would make every change of the step a new beginning, and so a jump.) The carry is
(t_{n−1}, …; f_{n−1}; f_{n−2}; …): nothing else is remembered.

The start. While the carry holds fewer slopes than `start_steps`, steps are of the Runge–Kutta scheme
`start`; then the order rises with every step until the carry is full. A slot of the carry is empty if its
time is that of the slot before it, or of the step: `init` fills all with t_0. A step of no length leaves
the carry as it is. One that is more than 2.5 times as long as the one before begins anew, since the
weights grow like the power k − 1 of that ratio, and what they multiply has rounding errors.

Limits. The region of stability shrinks as the order rises: on the negative real axis Adams–Bashforth
needs |h λ| < 2 / Σ |w_i / h|, which is 0.3 at order 4, 0.024 at order 8 and 0.0017 at order 12;
corrections help. A state that is stored has its carry beside it, k times the memory. Which formula a
step takes depends on numbers in the carry, so that compilers cannot trace it. Steps with a time per sample
are the same formula for all samples.

References:
    E. Hairer, S. P. Nørsett & G. Wanner, *Solving Ordinary Differential Equations I*, III.1
        (equal steps), III.5 (unequal ones).
    F. Bashforth & J. C. Adams, *An attempt to test the theories of capillary action* (1883).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.errors import InvalidTypeError
from odegrad.field import VectorField
from odegrad.schemes.base import Scheme, Step
from odegrad.schemes.checks import check_whole
from odegrad.schemes.dopri8 import Dopri8
from odegrad.schemes.euler import Euler
from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.extrapolated import ExtrapolatedMidpoint
from odegrad.schemes.heun import Heun
from odegrad.schemes.interpolatory import interpolatory_weights
from odegrad.schemes.kutta3 import Kutta3
from odegrad.schemes.rk4 import RK4
from odegrad.schemes.tsit5 import Tsit5
from odegrad.state import Leaves, Time, align, real_dtype, rounded, wide

__all__ = ["Adams", "AdamsBashforth", "AdamsBashforthMoulton"]

_HIGHEST = 12
_GROWTH = 2.5
"""A step so many times as long as the one before begins anew."""


@dataclass(frozen=True)
class Adams(Scheme):
    """What the two families share: the carry, the start, and when to begin anew.

    Arguments:
        order: The order, from 1 to 12.
        start: The Runge–Kutta scheme of the first steps; None is one of the same order at least.
        start_steps: How many steps it takes; None is as many as the carry holds slopes, so that every
            later step has the full order. With fewer the order rises from there on, step by step, and
            the first of these steps have the largest errors.

    Raises:
        InvalidTypeError: If the order or the number of steps is no int, or the start no such scheme.
        InvalidValueError: If the order or the number of steps is out of range.
    """

    order: int = 4
    start: ExplicitRungeKutta | None = None
    start_steps: int | None = None
    traceable = False

    def __post_init__(self) -> None:
        check_whole("order", self.order, 1, _HIGHEST, "the default is 4")
        if self.start is not None and not isinstance(self.start, ExplicitRungeKutta):  # pyright: ignore
            raise InvalidTypeError(
                "start must be an explicit Runge–Kutta scheme such as RK4(), or None, received "
                f"{self.start!r}"
            )
        if self.start_steps is not None:
            check_whole("start_steps", self.start_steps, 0, self._slots, "None is the most")

    @property
    @abstractmethod
    def _slots(self) -> int:
        """How many slopes of earlier steps a step reads."""

    @abstractmethod
    def _advance(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        nodes: Tensor,
        h: Tensor,
        slopes: Sequence[Leaves],
        p: Leaves,
    ) -> Leaves:
        """The state after a step, from the slopes at t + nodes; the first node is 0."""

    def init(self, field: VectorField, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """An empty carry: the times of all slots are t. Evaluates nothing."""
        del field, p
        if self._slots == 0:
            return ()
        times = torch.stack([_tensor(t)] * self._slots, dim=-1)
        return (times, *(torch.zeros_like(leaf) for _ in range(self._slots) for leaf in y))

    def step(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """One step; see the head of this module."""
        now, h, n = _tensor(t), _tensor(dt), len(y)
        # Floats have no derivative: neither do the times that were floats.
        times = carry[:1] if isinstance(t, Tensor) else tuple(x.detach() for x in carry[:1])
        held = _held(now, h, times[0]) if times else 0
        if held < self._starting:
            start = self._starter
            begun = start.step(field, t, dt, y, start.init(field, t, y, p), p)
            slope, new = begun.dense[0], begun.y
        else:
            slope = field(t, y, p)
            old = [carry[1 + i * n : 1 + (i + 1) * n] for i in range(held)]
            nodes = torch.zeros_like(now)[..., None]
            if held:
                nodes = torch.cat([nodes, times[0][..., :held] - now[..., None]], dim=-1)
            new = self._advance(field, t, dt, y, nodes, h, [slope, *old], p)
        if not times or _first(h) == 0.0:
            return Step(y=new, carry=carry)
        shifted = [now[..., None], times[0][..., :-1]]
        later = torch.cat(shifted, dim=-1) if held else torch.stack([now] * self._slots, dim=-1)
        return Step(y=new, carry=(later, *slope, *carry[1 : len(carry) - n]))

    @property
    def _starting(self) -> int:
        return self._slots if self.start_steps is None else self.start_steps

    @property
    def _starter(self) -> ExplicitRungeKutta:
        """The scheme of the first steps."""
        if self.start is not None:
            return self.start
        low = (Euler, Heun, Kutta3, RK4, Tsit5)
        if self.order <= len(low):
            return low[self.order - 1]()
        return Dopri8() if self.order <= Dopri8.order else ExtrapolatedMidpoint()


@dataclass(frozen=True)
class AdamsBashforth(Adams):
    """Adams–Bashforth: explicit, order 1 to 12, one evaluation per step.

    The arguments are those of `Adams`. ``AdamsBashforth(order - 1, RK38(), 2)`` on equal steps takes the
    steps of torchdiffeq's ``explicit_adams`` with ``max_order=order``, at least 4.

    Example:
        >>> import torch, odegrad
        >>> y0, ts = torch.ones(1, dtype=torch.float64), [0.0, 1.0]
        >>> scheme = odegrad.AdamsBashforth(order=4)
        >>> sol = odegrad.solve(lambda t, y: -y, y0, ts, scheme=scheme, stepsize=odegrad.Steps(50))
        >>> round(float(sol.ys[-1]), 6)
        0.367879
        >>> sol.stats.f_evaluations  # three steps of RK4
        59
        >>> odegrad.AdamsBashforth(order=13)
        Traceback (most recent call last):
        odegrad.errors.InvalidValueError: order must be from 1 to 12, received 13; ...
    """

    @property
    def _slots(self) -> int:
        return self.order - 1

    def _advance(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        nodes: Tensor,
        h: Tensor,
        slopes: Sequence[Leaves],
        p: Leaves,
    ) -> Leaves:
        """y + Σ_i w_i f_{n−i}."""
        del field, t, dt, p
        return _plus(y, interpolatory_weights(nodes, h), slopes)


@dataclass(frozen=True)
class AdamsBashforthMoulton(Adams):
    """Adams–Bashforth–Moulton, P(EC)^m E: order 1 to 12, m + 1 evaluations per step.

    Of order 1 it is Euler's step and m corrections by the implicit Euler step. The further arguments are
    those of `Adams`. ``AdamsBashforthMoulton(order, RK38(), 2, corrections=4)`` on equal steps takes the
    steps of torchdiffeq's ``implicit_adams`` with ``max_order=order``, at least 4, except that
    that one stops correcting a step once it finds that it has converged.

    Arguments:
        corrections: m, at least 1.

    Raises:
        InvalidTypeError: If an argument has another type.
        InvalidValueError: If a number is out of range.

    Example:
        >>> import torch, odegrad
        >>> y0, ts = torch.ones(1, dtype=torch.float64), [0.0, 1.0]
        >>> scheme = odegrad.AdamsBashforthMoulton(order=4)
        >>> sol = odegrad.solve(lambda t, y: -y, y0, ts, scheme=scheme, stepsize=odegrad.Steps(50))
        >>> round(float(sol.ys[-1]), 7)
        0.3678794
        >>> sol.stats.f_evaluations  # two steps of RK4
        104
    """

    corrections: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("corrections", self.corrections, 1, None, "AdamsBashforth has none")

    @property
    def _slots(self) -> int:
        return max(0, self.order - 2)

    def _advance(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        nodes: Tensor,
        h: Tensor,
        slopes: Sequence[Leaves],
        p: Leaves,
    ) -> Leaves:
        """The prediction, corrected m times; of no length, where both ends are one node, as it is."""
        new = _plus(y, interpolatory_weights(nodes, h), slopes)
        if _first(h) == 0.0:
            return new
        read = min(len(slopes), self.order - 1)
        both = torch.cat([h[..., None], nodes[..., :read]], dim=-1)
        weights = interpolatory_weights(both, h)
        for _ in range(self.corrections):
            new = _plus(y, weights, [field(t + dt, new, p), *slopes[:read]])
        return new


def _tensor(t: Time) -> Tensor:
    """A time as a tensor; floats in double precision."""
    if isinstance(t, Tensor):
        return t
    return torch.tensor(t, dtype=torch.float64, device="cpu")


def _first(x: Tensor) -> float:
    """The number, or the one of the first sample."""
    return float(x.detach()[(0,) * x.ndim])


def _held(now: Tensor, h: Tensor, times: Tensor) -> int:
    """How many slots are filled, and may be used; per-sample times are alike in that."""
    t, past = _first(now), times.detach()[(0,) * now.ndim].tolist()
    if abs(_first(h)) > _GROWTH * abs(t - past[0]):
        return 0
    held = 0
    while held < len(past) and past[held] != (past[held - 1] if held else t):
        held += 1
    return held


def _plus(y: Leaves, weights: Tensor, slopes: Sequence[Leaves]) -> Leaves:
    """y + Σ_i w_i k_i with weights along the last axis, summed from left to right, rounded once."""
    result: list[Tensor] = []
    for i, leaf in enumerate(y):
        total = wide(leaf)
        # All weights go to the state's device at once.
        parts = weights.to(device=total.device, dtype=real_dtype(total.dtype)).unbind(dim=-1)
        for weight, slope in zip(parts, slopes, strict=True):
            total = total + wide(slope[i]) * align(weight, total)
        result.append(total)
    return rounded(result, y)
