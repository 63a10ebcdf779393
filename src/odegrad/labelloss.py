"""A loss that is evaluated where the labels are, inside the sweeps: L = Σ_j ℓ_j(y(T_j))."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from odegrad.capture import capture, version
from odegrad.errors import (
    ChangedTensorError,
    FieldOutputError,
    InvalidTypeError,
    RandomFieldError,
)
from odegrad.reach import check_reachable
from odegrad.state import Leaves, OptionalLeaves, Structure

__all__ = ["LabelLoss"]


class LabelLoss:
    """ℓ(j, y, *args): the loss at landing j.

    Arguments:
        loss: The user's function; j is an int, y a state, and the result one real number.
        state: The structure of y.
        args: Further arguments, a tuple of pytrees.
        y0: The initial state.
        p: The tensors that the vector field reads.

    Attributes:
        function: As given.
        p: Those tensors, and behind them what the loss reads besides: all that the solve is
            differentiated for.

    Raises:
        InvalidTypeError: If the result is not one real number.
        RandomFieldError: If the loss draws random numbers or changes buffers: it is evaluated twice.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        state: Structure,
        args: tuple[Any, ...],
        y0: Leaves,
        p: Leaves,
    ) -> None:
        self.function, self._state, self._n_state = loss, state, len(y0)
        self._args = Structure(args)
        self._arg_leaves: list[Any] = self._args.flatten(args) or []
        tensors = [x for x in self._arg_leaves if isinstance(x, Tensor)]
        y = tuple(x.detach().clone() for x in y0)
        given = tuple(x.detach() for x in tensors)
        functions = [loss, *(x for x in self._arg_leaves if callable(x))]
        device = y0[0].device
        self._captures = capture(functions, lambda: self._value(0, y, given), [*y, *given], device)
        if self._captures.stochastic or self._captures.changing:
            raise RandomFieldError(
                "loss_at draws random numbers or changes buffers (dropout or batch normalization in "
                "train mode), but it is evaluated once in each sweep and has to give the same; use "
                "eval mode, or noise drawn once, outside"
            )
        self._n_captured = len(self._captures.items)
        places = {id(x): i for i, x in enumerate(p)}
        all_p, self._places = list(p), list[int]()
        for x in (*self._captures.tensors(), *tensors):
            if id(x) not in places:
                places[id(x)] = len(all_p)
                all_p.append(x)
            self._places.append(places[id(x)])
        self.p: Leaves = tuple(all_p)
        kind = device.type
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self._versions: list[int] = []
        self.mark()

    def __call__(self, j: int, y: Leaves, p: Leaves) -> Tensor:
        """The loss at landing j, a 0-dim tensor.

        Arguments:
            j: The number of the landing.
            y: State leaves, then quadrature leaves (not read).
            p: As `p`, or stand-ins.

        Raises:
            FieldOutputError: If y was changed in place.
        """
        leaves = y[: self._n_state]
        read = [p[i] for i in self._places]
        captured, args = tuple(read[: self._n_captured]), tuple(read[self._n_captured :])
        versions = [version(leaf) for leaf in leaves]
        with torch.autocast(*self._autocast):
            value = self._captures.bind(captured, lambda: self._value(j, leaves, args))
        if [version(leaf) for leaf in leaves] != versions:
            raise FieldOutputError(
                "loss_at changed its argument y in place, which would make the solve wrong; "
                "write y = y * 2 instead of y.mul_(2), or begin loss_at with y = y.clone()"
            )
        return value

    def vjp(
        self, j: int, y: Leaves, p: Leaves, grad: Tensor
    ) -> tuple[OptionalLeaves, OptionalLeaves]:
        """The cotangents of the state leaves and of p for one of the loss at landing j.

        Raises:
            UnreachableTensorError: If the loss used a tensor that requires grad and is none of these.
        """
        with torch.enable_grad():
            leaves = tuple(x.detach().requires_grad_() for x in y[: self._n_state])
            value = self(j, leaves, p)
        wanted = [i for i in sorted(set(self._places)) if p[i].requires_grad]
        inputs = [*leaves, *(p[i] for i in wanted)]
        check_reachable([value], inputs)
        grad_p: list[Tensor | None] = [None] * len(p)
        if not value.requires_grad:
            return (None,) * len(leaves), tuple(grad_p)
        grads = torch.autograd.grad(value, inputs, grad.to(value), allow_unused=True)
        for i, g in zip(wanted, grads[len(leaves) :], strict=True):
            grad_p[i] = g
        return grads[: len(leaves)], tuple(grad_p)

    @property
    def key(self) -> Hashable:
        """What the memory that it takes depends on."""
        shapes = tuple((x.shape, x.dtype) for x in self._captures.tensors())
        return (self._captures.extent, shapes, self._autocast)

    def mark(self) -> None:
        """Remembers the versions of the tensors that the loss reads and that have no gradient."""
        self._versions = [version(c.tensor) for c in self._captures.read]

    def check_unchanged(self) -> None:
        """Refuses to go on if such a tensor was changed in place since `mark`.

        Raises:
            ChangedTensorError: Since evaluating the loss again would not give what it gave.
        """
        for c, v in zip(self._captures.read, self._versions, strict=True):
            if version(c.tensor) != v:
                raise ChangedTensorError(
                    f"{c.name}, of shape {list(c.tensor.shape)}, which loss_at reads, was changed in "
                    "place between the solve and its backward pass, which has to evaluate the loss "
                    "again. Call backward first, or give loss_at a copy"
                )

    def _value(self, j: int, y: Leaves, args: Leaves) -> Tensor:
        tensors = iter(args)
        leaves = [next(tensors) if isinstance(x, Tensor) else x for x in self._arg_leaves]
        value = self.function(j, self._state.unflatten(y), *self._args.unflatten(leaves))
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() != 1:
            got = type(value).__name__
            if isinstance(value, Tensor):
                got = f"{value.dtype} of shape {list(value.shape)}"
            raise InvalidTypeError(
                f"loss_at must return one real number as a tensor, it returned {got}; "
                "reduce it with .sum() or .mean()"
            )
        return value.reshape(())
