"""Reading a state inside a step, and the transpose of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.schemes.interpolant import Interpolant
from odegrad.state import Leaves, OptionalLeaves, Time, add, align, axpy, inner, number

__all__ = ["DenseTranspose", "Part", "Read", "part_of"]


@dataclass(frozen=True)
class Part:
    """A time inside a step that is given as a part of it, t + x h, and moves with its ends.

    Arguments:
        x: The part, from 0 to 1.
    """

    x: float


def part_of(time: Time | Part, t: Time, dt: Time) -> Time:
    """x = (time − t) / h; in a step without length, time − t."""
    if isinstance(time, Part):
        return time.x
    if isinstance(dt, Tensor):
        dt = torch.where(dt == 0.0, number(1.0).to(dt.dtype), dt)
    return (time - t) / (dt if isinstance(dt, Tensor) or dt else 1.0)


class Read:
    """A time inside a step at which the state is wanted, and the cotangent of that state.

    Attributes:
        t: The time, or the part of the step.
        grad: The cotangent, leaf by leaf; None is zero.
    """

    __slots__ = ("grad", "t")

    def __init__(self, t: Time | Part, grad: tuple[Tensor | None, ...]) -> None:
        self.t, self.grad = t, grad


class DenseTranspose:
    """The transpose of dense output, u(t_j) = y + h Σ_i β_i(x_j) k_i with x_j = (t_j − t) / h.

    For a cotangent ū of u(t_j),

        κ_i += h β_i(x) ū,     ȳ += ū,     x̄ = h ⟨ū, Σ_i β_i′(x) k_i⟩,
        t̄_j = x̄ / h,     t̄ −= x̄ / h,     h̄ += ⟨ū, Σ_i β_i(x) k_i⟩ − x x̄ / h.
    """

    def __init__(
        self, interpolant: Interpolant | None, t: Time, dt: Time, reads: Sequence[Read]
    ) -> None:
        self._dt, self._reads = dt, reads
        self._at: list[Time] = [part_of(r.t, t, dt) for r in reads]
        self._interpolant = interpolant

    def slopes(self, stages: int) -> list[OptionalLeaves | None]:
        """The cotangents of the slopes."""
        found: list[OptionalLeaves | None] = [None] * stages
        for x, r in zip(self._at, self._reads, strict=True):
            assert self._interpolant is not None
            for i, weight in enumerate(self._interpolant.weights(x)):
                if isinstance(weight, Tensor) or weight != 0.0:
                    found[i] = add(found[i], _scaled(self._dt * weight, r.grad))
        return found

    def state(self, total: Leaves) -> Leaves:
        """`total` with the cotangents of the state before the step."""
        for r in self._reads:
            pairs = zip(total, r.grad, strict=True)
            total = tuple(a if g is None else a + g for a, g in pairs)
        return total

    def times(
        self, grad_t: Tensor | None, grad_dt: Tensor | None, slopes: Sequence[Leaves]
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor | None, ...]]:
        """The cotangents of t and h with what is added to them, and those of the times t_j."""
        found: list[Tensor | None] = []
        for x, r in zip(self._at, self._reads, strict=True):
            assert self._interpolant is not None
            found.append(None)
            if grad_t is None or grad_dt is None or not isinstance(r.t, Tensor | Part):
                continue
            weights, rates = self._interpolant.weights(x), self._interpolant.slopes(x)
            zero = tuple(torch.zeros_like(k) for k in slopes[0])
            mean = axpy(zero, 1.0, weights, slopes)
            grad_dt = grad_dt + inner(mean, r.grad, grad_dt)
            if isinstance(r.t, Tensor):
                found[-1] = rate = inner(axpy(zero, 1.0, rates, slopes), r.grad, grad_dt)
                grad_t, grad_dt = grad_t - rate, grad_dt - x * rate
        return grad_t, grad_dt, tuple(found)


def _scaled(c: Time, x: OptionalLeaves) -> OptionalLeaves:
    return tuple(None if leaf is None else leaf * align(c, leaf) for leaf in x)
