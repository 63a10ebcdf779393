"""A loss at all times of a batch, L = Σ_j ℓ_j(y_j), of states y_j that are at hand.

Samples with steps of their own come by a time in different rounds, so that the states at all times,
leaves of shape [T, B, …], are put together first. No graph of ℓ is kept: the transpose evaluates ℓ_j
again, time after time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.gradients.node import Rule, apply
from odegrad.labelloss import LabelLoss
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.cotangents import Total

__all__ = ["summed"]


def summed(loss: LabelLoss, states: Leaves, p: Leaves, plainly: bool) -> Tensor:
    """Σ_j ℓ(j, y_j), a 0-dim tensor.

    Arguments:
        loss: ℓ.
        states: y, leaves of shape [T, …].
        p: The tensors that the loss reads, or stand-ins.
        plainly: Whether autograd is to record ℓ at all times at once.
    """
    n, count = len(states), len(states[0])

    def value(x: Leaves) -> Tensor:
        rows = list(zip(*(y.unbind() for y in x[:n]), strict=True))
        total = loss(0, rows[0], x[n:])
        for j in range(1, count):
            total = total + loss(j, rows[j], x[n:])
        return total

    inputs = (*states, *p)
    if plainly or not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        return value(inputs)

    def primal(x: Leaves) -> tuple[Leaves, Leaves]:
        found = value(x).clone()
        loss.mark()
        return (found,), ()

    def transpose(
        x: Leaves, kept: Leaves, grads: OptionalLeaves, needs: Sequence[bool], retain: bool
    ) -> OptionalLeaves:
        del kept, retain
        loss.check_unchanged()
        own = tuple(a.detach().requires_grad_(b) for a, b in zip(x[n:], needs[n:], strict=True))
        total, found = Total(len(p)), tuple(map(torch.zeros_like, x[:n]))
        assert grads[0] is not None
        for j in range(count):
            grad_y, grad_p = loss.vjp(j, tuple(y[j] for y in x[:n]), own, grads[0])
            total.add(grad_p)
            for row, g in zip(found, grad_y, strict=True):
                if g is not None:
                    row[j] = g
        sums = zip(total.result(), own, strict=True)
        filled = (torch.zeros_like(a) if g is None else g.to(a.dtype) for g, a in sums)
        return tuple(g if b else None for g, b in zip((*found, *filled), needs, strict=True))

    def replay(x: Leaves, highest: int) -> Leaves:
        del highest
        loss.check_unchanged()
        return (value(x),)

    return apply(Rule(primal, transpose, replay, "loss_at"), inputs)[0]
