"""The problems of the paper's page, with closed forms where there are some, and distances.

A gradient is a list of tensors here: that of the initial state, and those of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import odegrad
from odegrad.gradients import Gradient
from odegrad.schemes import Scheme
from odegrad.stepsize import StepSize

__all__ = [
    "EXACT",
    "Problem",
    "distance",
    "half_square",
    "linear",
    "linear_gradient",
    "mlp",
    "order",
    "spiral",
    "tensor",
    "van_der_pol",
    "worst",
]

EXACT = {"scheme": odegrad.Dopri8(), "stepsize": odegrad.PID(rtol=1e-13, atol=1e-13)}
"""How the exact solution is computed where it has no closed form."""


def tensor(values: Any, *, grad: bool = False) -> Tensor:
    """A float64 tensor, as a leaf."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def half_square(ys: Tensor) -> Tensor:
    """½ |y(T)|²."""
    return 0.5 * ys[-1].square().sum()


@dataclass(frozen=True)
class Problem:
    """A loss of a solution, and what it is differentiated for.

    Arguments:
        name: What a table says.
        f: The vector field.
        y0: The initial state, a leaf.
        parameters: What f reads.
        ts: The times.
        loss: Maps ys to the loss.
    """

    name: str
    f: Callable[..., Any]
    y0: Tensor
    parameters: tuple[Tensor, ...]
    ts: tuple[float, ...]
    loss: Callable[[Tensor], Tensor] = half_square

    def until(self, stop: float) -> Problem:
        """The same with another end."""
        return replace(self, ts=(*self.ts[:-1], stop))

    def solve(
        self, scheme: Scheme, stepsize: StepSize, gradient: Gradient, **options: Any
    ) -> odegrad.Solution:
        """The solution."""
        return odegrad.solve(
            self.f,
            self.y0,
            self.ts,
            scheme=scheme,
            stepsize=stepsize,
            gradient=gradient,
            **options,
        )

    def gradient(
        self,
        scheme: Scheme,
        stepsize: StepSize,
        gradient: Gradient,
    ) -> tuple[list[Tensor], odegrad.Solution]:
        """The gradient, and the solution that it is of."""
        sol = self.solve(scheme, stepsize, gradient)
        found = torch.autograd.grad(self.loss(sol.ys), [self.y0, *self.parameters])
        return list(found), sol

    def exact(self) -> list[Tensor]:
        """The gradient of the exact solution, to about 1e-12."""
        return self.gradient(**EXACT, gradient=odegrad.Discrete())[0]


def linear() -> Problem:
    """y' = A y, three states."""
    A = tensor([[-0.2, 1.5, 0.0], [-1.0, -0.1, 0.6], [0.3, 0.0, -0.5]], grad=True)
    y0 = tensor([1.0, -0.5, 0.7], grad=True)
    return Problem("linear system", lambda t, y: A @ y, y0, (A,), (0.0, 2.0))


def linear_gradient(problem: Problem) -> list[Tensor]:
    """The closed form, by an exponential of a block matrix (Van Loan 1978).

    With g = y(T), L = ½ |y(T)|²: ∂L/∂y0 = exp(AᵀT) g, and ∂L/∂A = ∫ a(t) y(t)ᵀ dt is the upper right
    block of exp(T [[Aᵀ, g y0ᵀ], [0, Aᵀ]]).
    """
    (A,), y0 = (p.detach() for p in problem.parameters), problem.y0.detach()
    T, d = problem.ts[-1] - problem.ts[0], len(y0)
    g = torch.linalg.matrix_exp(T * A) @ y0
    block = torch.zeros(2 * d, 2 * d, dtype=A.dtype)
    block[:d, :d] = block[d:, d:] = A.T
    block[:d, d:] = torch.outer(g, y0)
    E = torch.linalg.matrix_exp(T * block)
    return [E[:d, :d] @ g, E[:d, d:]]


def mlp(width: int = 16, dim: int = 2, batch: int = 4, seed: int = 0) -> Problem:
    """y' = W₂ tanh(W₁ y + b₁) + b₂."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, dim)).double()
        y0 = torch.randn(batch, dim, dtype=torch.float64, requires_grad=True)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(2.0)
    f = lambda t, y: net(y)  # noqa: E731
    return Problem(f"MLP {dim}-{width}-{dim}", f, y0, tuple(net.parameters()), (0.0, 2.0))


def spiral(stop: float = 16.0) -> Problem:
    """y' = y³ A: a spiral inwards, which is unstable when it is followed backwards."""
    A = tensor([[-0.1, 2.0], [-2.0, -0.1]], grad=True)
    y0 = tensor([2.0, 0.0], grad=True)
    return Problem("spiral", lambda t, y: (y**3) @ A, y0, (A,), (0.0, stop))


def van_der_pol(mu: float, stop: float = 10.0) -> Problem:
    """x' = v, v' = μ (1 − x²) v − x, stiff for large μ."""
    damping = tensor(mu, grad=True)
    y0 = tensor([2.0, 0.0], grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        x, v = y[0], y[1]
        return torch.stack([v, damping * (1.0 - x * x) * v - x])

    return Problem(f"Van der Pol, μ = {mu:g}", f, y0, (damping,), (0.0, stop))


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """‖found − expected‖ / ‖expected‖ over all numbers together."""
    difference = math.fsum(
        float((a - b).detach().square().sum()) for a, b in zip(found, expected, strict=True)
    )
    size = math.fsum(float(b.detach().square().sum()) for b in expected)
    return math.sqrt(difference / size)


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest ‖found − expected‖ / ‖expected‖ over pairs of tensors."""
    return max(
        float((a - b).norm() / b.norm().clamp_min(1e-300))
        for a, b in zip(found, expected, strict=True)
    )


def order(errors: Sequence[float]) -> float:
    """log₂ of the ratio of the last two errors, of steps h and h/2."""
    return math.log2(errors[-2] / errors[-1])
