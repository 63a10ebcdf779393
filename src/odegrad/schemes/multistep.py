"""What Adams schemes share: slopes of earlier steps as the carry, and the start.

The carry is (t_{n−1}, …, t_{n−k}; f_{n−1}; …; f_{n−k}): the times in one tensor along its last axis, then
the leaves of each slope. While it holds fewer slopes than `start_steps`, steps are of the Runge–Kutta
scheme `start`; then the order rises with every step until the carry is full. A slot is empty if its time
is that of the slot before it, or of the step: `init` fills all with t_0. A step of no length leaves the
carry as it is. One that is more than 2.5 times as long as the one before begins anew, since the weights
grow like the power k − 1 of that ratio, and what they multiply has rounding errors.

Limits. A state that is stored has its carry beside it: k + 1 times the memory. Which formula a step takes
depends on numbers in the carry, so that compilers cannot trace it. With a time per sample all samples
take the same formula: that of the first. Memory plans rehearse the first steps: the kept bytes that
statistics tell are those of the start, and a start that saves less than a later step is planned for with
too little.
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
from odegrad.schemes.kutta3 import Kutta3
from odegrad.schemes.rk4 import RK4
from odegrad.schemes.tsit5 import Tsit5
from odegrad.state import Leaves, Time, align, real_dtype, rounded, wide

__all__ = ["Adams", "first_number", "plus"]

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
        if not times or first_number(h) == 0.0:
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


def _tensor(t: Time) -> Tensor:
    """A time as a tensor; floats in double precision."""
    if isinstance(t, Tensor):
        return t
    return torch.tensor(t, dtype=torch.float64, device="cpu")


def first_number(x: Tensor) -> float:
    """The number, or the one of the first sample."""
    return float(x.detach()[(0,) * x.ndim])


def _held(now: Tensor, h: Tensor, times: Tensor) -> int:
    """How many slots are filled, and may be used; per-sample times are alike in that."""
    t, past = first_number(now), times.detach()[(0,) * now.ndim].tolist()
    if abs(first_number(h)) > _GROWTH * abs(t - past[0]):
        return 0
    held = 0
    while held < len(past) and past[held] != (past[held - 1] if held else t):
        held += 1
    return held


def plus(y: Leaves, weights: Tensor, slopes: Sequence[Leaves]) -> Leaves:
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
