"""A part of the samples of a batch, and how f is evaluated for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.schemes.base import Step
from odegrad.state import Leaves, OptionalLeaves, Time

__all__ = ["Part"]


class Part:
    """The samples that take a step, and how they are evaluated: all, some of all, or these alone.

    Arguments:
        start: The times at the start, shape [B].
        y0: The state at the start.
        p: The tensors that f reads.
        cut: Which of them have a row for each sample, by number.
        size: B, if not all take it.
        mask: Which samples take it, or None.
        index: The numbers of those that are evaluated, or None for all.
    """

    def __init__(
        self,
        start: Tensor,
        y0: Leaves,
        p: Leaves,
        cut: Sequence[int] = (),
        size: int = 0,
        mask: Tensor | None = None,
        index: Tensor | None = None,
    ) -> None:
        self._start, self._y0, self._p, self._size = start, y0, p, size
        self._device = y0[0].device
        self._mask = None if mask is None else mask.to(self._device)
        self._index = None if index is None else index.to(self._device)
        self.is_whole, self.is_compact = mask is None and index is None, index is not None
        self._cut = cut if self.is_compact else ()

    def time(self, t: Time) -> Tensor:
        """Times on the device of the state; those at the start for samples that take no step."""
        return self._time(t, self._start)

    def length(self, dt: Time) -> Tensor:
        """Steps on the device of the state; 0 for samples that take none."""
        return self._time(dt, None)

    def _time(self, t: Time, safe: Tensor | None) -> Tensor:
        assert isinstance(t, Tensor)
        t = t.to(self._device)
        if self._index is not None:
            return t[self._index]
        if self._mask is not None:
            return torch.where(self._mask, t, 0.0 if safe is None else safe.to(self._device))
        return t

    def put_time(self, grad: Tensor | None) -> Tensor | None:
        """The cotangent of times or steps, where those are; 0 for samples that take none."""
        return None if grad is None else self.put((grad,), None)[0].to(self._start.device)

    def state(self, y: Leaves) -> Leaves:
        """A state as it is evaluated; that at the start for samples that take no step."""
        if self._mask is None:
            return self.take(y)
        return self.put(y, self._y0)

    def take(self, x: Leaves) -> Leaves:
        """Leaves as they are evaluated; 0 for samples that take no step."""
        if self._index is not None:
            index = self._index
            return tuple(a[index] for a in x)
        if self._mask is None:
            return x
        return tuple(torch.where(self._of(a), a, 0.0) for a in x)

    def put(self, new: Leaves, old: Leaves | None) -> Leaves:
        """Leaves of all samples; those of `old`, or 0, for samples that take no step."""
        if self._index is not None:
            index, n = self._index, self._size
            if old is None:
                old = tuple(a.new_zeros((n, *a.shape[1:])) for a in new)
            pairs = zip(new, old, strict=True)
            return tuple(b.to(a.dtype).index_copy(0, index, a) for a, b in pairs)
        if old is None:
            return self.take(new)
        if self._mask is None:
            return new
        return tuple(torch.where(self._of(a), a, b) for a, b in zip(new, old, strict=True))

    def put_step(self, step: Step, y: Leaves, carry: Leaves) -> Step:
        """A step of all samples."""
        error = None if step.error is None else self.put(step.error, None)
        dense = tuple(self.put(x, None) for x in step.dense)
        return Step(self.put(step.y, y), self.put(step.carry, carry), error, dense, step.ok)

    def read(self, p: Leaves) -> Leaves:
        """The tensors that f reads, for the samples that are evaluated."""
        if not self._cut:
            return p
        own = list(p)
        for i in self._cut:
            if torch.is_grad_enabled():
                own[i] = p[i][self._index]
            else:
                own[i] = p[i].detach()[self._index].requires_grad_(p[i].requires_grad)
        return tuple(own)

    def gathered(self, grads: OptionalLeaves) -> OptionalLeaves:
        """The cotangents of all that f reads."""
        if not self._cut:
            return grads
        found = list(grads)
        for i in self._cut:
            g = grads[i]
            if g is not None:
                assert self._index is not None
                found[i] = g.new_zeros(self._p[i].shape).index_copy(0, self._index, g)
        return tuple(found)

    def _of(self, x: Tensor) -> Tensor:
        assert self._mask is not None
        return self._mask.reshape(-1, *[1] * (x.ndim - 1))
