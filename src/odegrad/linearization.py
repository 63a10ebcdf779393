"""f at one point with its graph, from which the transpose is read off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from odegrad.reach import check_reachable
from odegrad.state import Leaves, OptionalLeaves, Time

__all__ = ["Linearization"]


class Counter(Protocol):
    """Something that counts transposes: the vector field."""

    transposes: int


class Linearization:
    """f at one point, with the graph that its transpose needs. `vjp` may be called once.

    Arguments:
        counter: What counts the transposes.
        t: The time; a tensor is a leaf that gets a cotangent.
        y: The state, leaves.
        p: The tensors that f reads.
        outputs: f(t, y, p), on the graph.

    Attributes:
        value: f(t, y, p), detached.
    """

    __slots__ = ("_counter", "_outputs", "_p", "_t", "_y", "value")

    def __init__(self, counter: Counter, t: Time, y: Leaves, p: Leaves, outputs: Leaves) -> None:
        self._counter, self._t, self._y, self._p, self._outputs = counter, t, y, p, outputs
        self.value: Leaves = tuple(x.detach() for x in outputs)

    def vjp(
        self, grad: OptionalLeaves, with_p: bool = True
    ) -> tuple[Tensor | None, Leaves, OptionalLeaves]:
        """(f_tᵀu, f_yᵀu, f_pᵀu) for the cotangent u = `grad`; None for what p does not depend on.

        Arguments:
            grad: The cotangent of f's leaves; None is zero.
            with_p: Whether f_pᵀu is computed; else all of it is None.

        Raises:
            UnreachableTensorError: If f used a tensor that requires grad and is none of its inputs.
        """
        times = [self._t] if isinstance(self._t, Tensor) else []
        wanted = [i for i, x in enumerate(self._p) if x.requires_grad and with_p]
        grads = self._pull(grad, [*self._y, *times, *(self._p[i] for i in wanted)])
        n = len(self._y)
        grad_y = tuple(
            torch.zeros_like(x) if g is None else g for x, g in zip(self._y, grads[:n], strict=True)
        )
        grad_t = None
        if isinstance(self._t, Tensor):
            grad_t = torch.zeros_like(self._t) if grads[n] is None else grads[n]
            n += 1
        grad_p: list[Tensor | None] = [None] * len(self._p)
        for i, g in zip(wanted, grads[n:], strict=True):
            grad_p[i] = g
        return grad_t, grad_y, tuple(grad_p)

    def pull_p(self, grad: OptionalLeaves) -> OptionalLeaves:
        """f_pᵀu alone; None for what p does not depend on, or does not require grad.

        Raises:
            UnreachableTensorError: As for `vjp`.
        """
        wanted = [i for i, x in enumerate(self._p) if x.requires_grad]
        grad_p: list[Tensor | None] = [None] * len(self._p)
        for i, g in zip(wanted, self._pull(grad, [self._p[i] for i in wanted]), strict=True):
            grad_p[i] = g
        return tuple(grad_p)

    def _pull(self, grad: OptionalLeaves, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """One reverse pass to `inputs`, which are among y, t and p."""
        self._counter.transposes += 1
        pairs = [
            (k, g)
            for k, g in zip(self._outputs, grad, strict=True)
            if g is not None and k.requires_grad
        ]
        times = [self._t] if isinstance(self._t, Tensor) else []
        reached = [*self._y, *times, *(x for x in self._p if x.requires_grad)]
        check_reachable(self._outputs, reached)
        if not pairs or not inputs:
            return [None] * len(inputs)
        outputs, cotangents = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
