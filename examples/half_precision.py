"""Gradients in half precision: transposed steps against backpropagation through the same steps.

A state in bfloat16 is rounded once per step, and f is evaluated at the rounded state. The true gradient
of that program carries the same states in double precision, its roundings being constants.
Backpropagation adds up its cotangents in bfloat16, where small terms vanish beside large ones; transposed
steps add them up in single precision. Prints the error of dL/dy0 and dL/dW for N steps of RK4.

Run: python examples/half_precision.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import odegrad

STEPS = (8, 32, 128, 512)
A, B = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class Stored(torch.autograd.Function):
    """x rounded to bfloat16, which counts as adding a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The value that is stored."""
        return x.bfloat16().double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient of a sum with a constant."""
        return grad


def field(weight: Tensor) -> Callable[[Any, Tensor], Tensor]:
    """tanh(y W), inside in the precision of W, in the end in that of y."""
    return lambda t, y: torch.tanh(y.to(weight.dtype) @ weight).to(y.dtype)


def oracle(weight: Tensor, y: Tensor, n: int) -> Tensor:
    """n steps of RK4 with stored stages, slopes and states, in plain double precision."""
    for _ in range(n):
        slopes: list[Tensor] = []
        for row in A:
            stage = y + sum(a / n * k for a, k in zip(row, slopes, strict=True))
            slopes.append(Stored.apply(torch.tanh(Stored.apply(stage) @ weight)))
        y = Stored.apply(y + sum(b / n * k for b, k in zip(B, slopes, strict=True)))
    return y


def main() -> None:
    torch.manual_seed(0)
    weight, y0 = 0.5 * torch.randn(6, 6), torch.randn(5, 6).bfloat16()
    print(f"{'steps':>6}  {'Discrete()':>22}  {'Tape()':>22}")
    for n in STEPS:
        wide = [y0.double().requires_grad_(), weight.double().requires_grad_()]
        true = torch.autograd.grad(oracle(wide[1], wide[0], n).square().sum(), wide)
        row = []
        for gradient in (odegrad.Discrete(), odegrad.Tape()):
            y, w = y0.clone().requires_grad_(), weight.clone().requires_grad_()
            ys = odegrad.solve(
                field(w),
                y,
                [0.0, 1.0],
                scheme=odegrad.RK4(),
                stepsize=odegrad.Steps(n),
                gradient=gradient,
            ).ys
            found = torch.autograd.grad(ys[-1].double().square().sum(), [y, w])
            errors = [
                float((a.double() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)
            ]
            row.append("  ".join(f"{e:9.2%}" for e in errors))
            if gradient == odegrad.Discrete():
                assert max(errors) < torch.finfo(torch.bfloat16).eps
        print(f"{n:>6}  {row[0]:>22}  {row[1]:>22}")
    print("(each: error of dL/dy0, of dL/dW)")


if __name__ == "__main__":
    main()
