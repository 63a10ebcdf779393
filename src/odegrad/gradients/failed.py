"""The gradient of a solve that failed: NaN, whatever was computed before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.gradients.base import forward_transform
from odegrad.gradients.node import Rule, apply
from odegrad.state import Leaves, OptionalLeaves

__all__ = ["failed"]


def failed(outputs: Leaves, inputs: Leaves, differentiated: bool) -> Leaves:
    """The outputs, with a gradient of NaN for all inputs; NaN themselves under vmap or forward mode.

    Arguments:
        outputs: What was computed.
        inputs: Initial state, tensors that f reads, landing times.
        differentiated: Whether the outputs are to depend on them.
    """
    outputs = tuple(x.detach() for x in outputs)
    if not differentiated:
        return outputs
    if forward_transform() is not None:
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        total = sum(((x.real if x.is_complex() else x).sum().to(zero) for x in inputs), zero)
        return tuple(x + (total * float("nan")).to(x) for x in outputs)

    plain = tuple(map(_plain, outputs))

    def primal(x: Leaves) -> tuple[Leaves, Leaves]:
        del x
        return tuple(y.clone() for y in plain), ()

    def transpose(
        x: Leaves, kept: Leaves, grads: OptionalLeaves, needs: Sequence[bool], retain: bool
    ) -> OptionalLeaves:
        del kept, grads, retain
        pairs = zip(x, needs, strict=True)
        return tuple(torch.full_like(a, float("nan")) if need else None for a, need in pairs)

    return apply(Rule(primal, transpose, None, "a failed solve"), inputs)


def _plain(x: Tensor) -> Tensor:
    """The numbers of x without the levels of torch.func, as a sweep sees them."""
    functorch = torch._C._functorch  # pyright: ignore
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x.detach()
