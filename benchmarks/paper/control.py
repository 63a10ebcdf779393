"""A linear-quadratic problem: the best control with n pieces, and that in continuous time.

    J = ½ ∫ (yᵀQy + uᵀRu) dt + ½ y(T)ᵀ S y(T),     y' = A y + B u(t).

The costate is linear in the state, so that both optima are those of linear systems.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

import odegrad
from benchmarks.memory.parts import Record
from benchmarks.paper.problems import tensor
from odegrad.controls import PiecewiseConstant

__all__ = ["optimal_picture", "optimum"]


class Regulator(nn.Module):
    """y' = A y + B u(t), J = ½ ∫ (yᵀQy + uᵀRu) dt + ½ y(T)ᵀ S y(T), u constant on n equal pieces."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.A = tensor([[0.0, 1.0], [-2.0, 0.3]])
        self.B = tensor([[0.0], [1.5]])
        self.Q = tensor([[1.0, 0.2], [0.2, 0.4]])
        self.R = tensor([[0.3]])
        self.S = tensor([[2.0, -0.5], [-0.5, 1.0]])
        self.y0, self.T = tensor([-1.0, 0.4]), 2.0
        knots = [self.T * k / n for k in range(n + 1)]
        self.u = PiecewiseConstant(knots, (1,), init=torch.zeros(n, 1, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        return self.A @ y + self.B @ self.u(t)

    def running(self, t: Tensor, y: Tensor) -> Tensor:
        """The running cost."""
        u = self.u(t)
        return 0.5 * (y @ self.Q @ y + u @ self.R @ u)

    def cost(self) -> Tensor:
        """J, with one step of RK4 per piece."""
        sol = odegrad.solve(
            self,
            self.y0,
            [0.0, self.T],
            scheme=odegrad.RK4(),
            stepsize=odegrad.Steps(1),
            running=self.running,
        )
        return sol.running[-1] + 0.5 * sol.ys[-1] @ self.S @ sol.ys[-1]

    def best(self, times: Sequence[float]) -> tuple[Tensor, float]:
        """The optimal control in continuous time, and its cost: (y, a)' = H (y, a), a(T) = S y(T)."""
        d, gain = len(self.A), torch.linalg.solve(self.R, self.B.T)
        H = torch.cat(
            [torch.cat([self.A, -self.B @ gain], dim=1), torch.cat([-self.Q, -self.A.T], dim=1)]
        )
        E = torch.linalg.matrix_exp(self.T * H)
        right = (self.S @ E[:d, :d] - E[d:, :d]) @ self.y0
        a0 = torch.linalg.solve(E[d:, d:] - self.S @ E[:d, d:], right)
        both = torch.cat([self.y0, a0])
        costates = [(torch.linalg.matrix_exp(t * H) @ both)[d:] for t in times]
        return -torch.stack(costates) @ gain.T, 0.5 * float(self.y0 @ a0)


@cache
def _minimised(n: int) -> tuple[Regulator, int]:
    """The best control with n pieces, by conjugate gradients: J is quadratic."""
    f = Regulator(n)

    def gradient(u: Tensor) -> Tensor:
        with torch.no_grad():
            f.u.values.copy_(u)
        return torch.autograd.grad(f.cost(), f.u.values)[0]

    u = torch.zeros_like(f.u.values)
    at_zero = gradient(u)
    residual = direction = -at_zero
    iterations = 0
    while residual.norm() > 1e-11 * at_zero.norm() and iterations < 50:
        product = gradient(direction) - at_zero
        size = residual.square().sum()
        step = size / (direction * product).sum()
        u, residual = u + step * direction, residual - step * product
        direction = residual + residual.square().sum() / size * direction
        iterations += 1
    with torch.no_grad():
        f.u.values.copy_(u)
    return f, iterations


def _middles(n: int, stop: float) -> list[float]:
    return [stop * (k + 0.5) / n for k in range(n)]


def optimum(n: int) -> Record:
    """How far the best control with n pieces is from the best one."""
    f, iterations = _minimised(n)
    control, cost = f.best(_middles(n, f.T))
    return {
        "pieces": n,
        "iterations": iterations,
        "control": float((f.u.values.detach() - control).abs().max() / control.abs().max()),
        "cost": abs(f.cost().item() - cost) / abs(cost),
    }


def optimal_picture() -> Record:
    """The optimum in continuous time, and that with ten pieces."""
    f, _ = _minimised(10)
    times = torch.linspace(0.0, f.T, 41, dtype=torch.float64).tolist()
    return {
        "times": times,
        "continuous": f.best(times)[0].flatten().tolist(),
        "knots": list(f.u.knots),
        "values": f.u.values.detach().flatten().tolist(),
    }
