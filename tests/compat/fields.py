"""Vector fields of the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("dopri5", "dopri8", "tsit5", "bosh3", "fehlberg2", "adaptive_heun")
METHODS = (*FIXED, *ADAPTIVE)
DOUBLE = torch.float64


class Net(nn.Module):
    """A small network, which counts its evaluations."""

    def __init__(self, width: int = 8, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)
        self.unused = nn.Linear(2, 3).to(dtype)
        self.evaluations = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        return self.inner(y) * torch.cos(t)


def times(*values: float, grad: bool = False, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=grad)


def start(grad: bool = True, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.tensor([[2.0, 0.0], [1.0, -1.0]], dtype=dtype, requires_grad=grad)


def distance(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    """The distance of two gradients, relative to the norm of the second."""
    gap = sum(float((x - y).detach().square().sum()) for x, y in zip(a, b, strict=True))
    return (gap / sum(float(y.detach().square().sum()) for y in b)) ** 0.5
