"""What a gradient mode is: it receives the solve as a value and decides how to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from odegrad.state import Leaves
from odegrad.sweeps import Run

__all__ = ["Gradient", "forward_transform", "landing_times", "may_need_gradient", "transformed"]


class Gradient(ABC):
    """A way to the gradient of a solve."""

    @abstractmethod
    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves, such that autograd reaches y0, p and ts.

        Arguments:
            run: The solve.
            y0: The initial state.
            p: The tensors that f reads.
            ts: The landing times as given, shape [T].

        Returns:
            One tensor of shape [T, *leaf.shape] per leaf.
        """


def landing_times(ts: Tensor) -> Tensor:
    """Landing times as steps use them: float64 on the CPU, where a 0-dim tensor costs no transfer."""
    return ts.to(device="cpu", dtype=torch.float64)


def forward_transform() -> str | None:
    """The name of an active transform that a node with a transpose alone would not serve, or None."""
    if torch.autograd.forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        return "forward-mode differentiation"
    for interpreter in torch._C._functorch.get_interpreter_stack() or ():  # pyright: ignore
        if interpreter.key() == torch._C._functorch.TransformType.Vmap:  # pyright: ignore
            return "torch.func.vmap"
    return None


def transformed() -> bool:
    """Whether a transform of torch.func is active."""
    return bool(torch._C._functorch.get_interpreter_stack())  # pyright: ignore


def may_need_gradient(x: Tensor) -> bool:
    """Whether a cotangent of x may be asked for.

    Inside a transform, a tensor of its level that is constant there may need one further out.
    """
    if transformed():
        return x.is_floating_point() or x.is_complex()
    return x.requires_grad
