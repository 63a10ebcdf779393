"""Hessian–vector products, in the memory of first derivatives.

With g = ∇L, the product H v = ∇⟨g, v⟩ takes a second differentiation. `Discrete` does it by both sweeps
once more over tangent-lifted steps (`odegrad.sweeps.lifted`), so that it keeps what its schedule says,
twice as much: not the graph of every evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odegrad.errors import GradientUnavailableError, InvalidTypeError, InvalidValueError

__all__ = ["HessianProduct", "hvp"]


class HessianProduct(NamedTuple):
    """A loss with its first derivatives and a product of its second ones.

    Attributes:
        loss: L, detached.
        gradient: ∇L, one tensor per input.
        product: H v, one tensor per input.
    """

    loss: Tensor
    gradient: tuple[Tensor, ...]
    product: tuple[Tensor, ...]


def hvp(
    loss: Callable[[], Tensor], inputs: Sequence[Tensor], v: Sequence[Tensor]
) -> HessianProduct:
    """The product of the Hessian of a loss with a vector: exact for the computed loss.

    The loss may contain any number of solves and whatever else is differentiable twice. A solve with
    `Discrete` stays within its schedule, unless it is differentiated for its times or streams a loss:
    then it takes the memory of `Tape`. Nothing is added to ``.grad``.

    Arguments:
        loss: Gives the loss, a 0-dim tensor.
        inputs: The tensors to differentiate for, which require grad.
        v: The vector, one tensor per input with its shape.

    Returns:
        The loss, its gradient and the product.

    Raises:
        InvalidTypeError: If `loss` is not callable.
        InvalidValueError: If inputs and v do not fit, or the loss is not one number.
        GradientUnavailableError: If the loss does not depend on the inputs.

    Example:
        >>> import torch, odegrad
        >>> y0 = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        >>> def loss():
        ...     return odegrad.solve(lambda t, y: -y, y0, [0.0, 1.0]).ys[-1].square().sum()
        >>> odegrad.hvp(loss, [y0], [torch.ones_like(y0)]).product[0]  # 2 exp(−2)
        tensor([0.2707], dtype=torch.float64)
    """
    if not callable(loss):
        raise InvalidTypeError(
            f"hvp: loss must be callable without arguments, received {type(loss).__name__}"
        )
    inputs, v = _checked(inputs, v)
    with torch.enable_grad():
        value: Any = loss()
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = (
                f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise InvalidValueError(
                f"hvp: loss must return one number as a tensor, it returned {got}"
            )
        if not value.requires_grad:
            raise GradientUnavailableError(
                "hvp: the loss does not depend on anything that requires grad"
            )
        gradient = torch.autograd.grad(
            value.reshape(()), inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        curved = [(g, d) for g, d in zip(gradient, v, strict=True) if g.requires_grad]
        product = tuple(torch.zeros_like(x) for x in inputs)
        if curved:  # else the loss is linear
            product = torch.autograd.grad(
                [g for g, _ in curved], inputs, [d for _, d in curved],
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
    return HessianProduct(value.detach(), tuple(g.detach() for g in gradient), tuple(product))


def _checked(inputs: Any, v: Any) -> tuple[list[Tensor], list[Tensor]]:
    if isinstance(inputs, Tensor) or isinstance(v, Tensor):
        raise InvalidTypeError("hvp: inputs and v must be sequences of tensors; write [x], [v]")
    inputs, v = list(inputs), list(v)
    if len(inputs) != len(v):
        raise InvalidValueError(f"hvp: {len(inputs)} inputs but {len(v)} tensors in v")
    for i, (x, d) in enumerate(zip(inputs, v, strict=True)):
        if not isinstance(x, Tensor) or not isinstance(d, Tensor):
            raise InvalidTypeError(
                f"hvp: inputs[{i}] and v[{i}] must be tensors, received {type(x).__name__} and "
                f"{type(d).__name__}"
            )
        if not x.requires_grad:
            raise InvalidValueError(
                f"hvp: inputs[{i}] does not require grad; call requires_grad_()"
            )
        if x.shape != d.shape:
            raise InvalidValueError(
                f"hvp: v[{i}] has shape {list(d.shape)}, inputs[{i}] has {list(x.shape)}"
            )
    return inputs, v
