"""The loss as a function of the outputs of a solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odegrad.audit.vectors import filled
from odegrad.errors import InvalidTypeError, InvalidValueError
from odegrad.state import Leaves, Structure

__all__ = ["Objective"]


class Objective:
    """The user's loss on flat outputs.

    Arguments:
        loss: Maps ys, and the running cost if there is one, to a 0-dim tensor.
        structure: The structure of the state.
        n_state: The number of its leaves; what follows is the running cost.
    """

    def __init__(self, loss: Callable[..., Any], structure: Structure, n_state: int) -> None:
        self._loss, self._structure, self._n = loss, structure, n_state

    def value(self, outputs: Leaves) -> Tensor:
        """The loss of the outputs of a solve.

        Raises:
            InvalidTypeError: If it is not a real number as a 0-dim tensor.
        """
        ys = self._structure.unflatten(outputs[: self._n])
        found = self._loss(ys, *outputs[self._n :])
        if not isinstance(found, Tensor) or found.ndim or not found.is_floating_point():
            shape = list(found.shape) if isinstance(found, Tensor) else ""
            raise InvalidTypeError(
                "loss must map ys to one real number, a 0-dim tensor, received "
                f"{type(found).__name__} {shape}; end it with .sum() or .mean()"
            )
        return found

    def cotangents(self, outputs: Leaves) -> Leaves:
        """Those of the outputs.

        Raises:
            InvalidValueError: If the loss does not depend on them.
        """
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in outputs]
            value = self.value(tuple(leaves))
            if not value.requires_grad:
                raise InvalidValueError(
                    "the loss does not depend on ys differentiably, so there is no gradient to audit; "
                    "compute it from ys by differentiable operations"
                )
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
        return filled(grads, leaves)
