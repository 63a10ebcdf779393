"""A Lagrange cost: J = ∫ ℓ(t, y, θ) dt + Φ(y(T)), its gradient, and the perturbation identity.

    J(θ + ε δ) − J(θ) = ε ∫ (aᵀ f_θ + ℓ_θ) δ dt + O(ε²).

On the linear system y' = A y, with ℓ = ½ (yᵀ Q y + |f|²) and Φ = ½ |y(T)|², all is a matrix exponential.
The identity is tried on the MLP, with ℓ = ½ (|y|² + |f|²): for the computed J it holds if and only if the
gradient is that of the computed J.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import odegrad
from benchmarks.memory.parts import Check, Record, Say
from benchmarks.paper.problems import distance, linear, mlp, order, tensor
from odegrad.gradients import Gradient
from odegrad.schemes import Scheme

__all__ = ["measure"]

SCHEMES = (odegrad.Euler(), odegrad.Midpoint(), odegrad.Kutta3(), odegrad.RK4(), odegrad.Dopri5())
STEPS, QUICK_STEPS = (8, 16, 32, 64, 128), (16, 32, 64)
EPSILONS = tuple(10.0**-k for k in range(8))
COARSE = 10
"""Steps for the perturbation identity."""


def measure(quick: bool, say: Say) -> Record:
    """Orders of convergence on the linear system; remainders on the MLP."""
    steps = QUICK_STEPS if quick else STEPS
    say("lagrange: orders")
    orders = [_orders(scheme, steps) for scheme in (SCHEMES[:4] if quick else SCHEMES)]
    say("lagrange: perturbations")
    remainders = [
        _remainders(name, mode)
        for name, mode in (("Discrete", odegrad.Discrete()), ("Backsolve", odegrad.Backsolve()))
    ]
    exact, inconsistent = remainders
    checks = [
        *(Check(f"{x['scheme']}: order of {what}, off {x['order']}",
                abs(x["orders"][what] - x["order"]), 0.35)
          for x in orders for what in ("cost", "gradient")),
        Check("Discrete: order of the remainder, off 2", abs(exact["order"] - 2.0), 0.05),
        Check("Backsolve: order of the remainder, off 1", abs(inconsistent["order"] - 1.0), 0.05),
    ]  # fmt: skip
    return {
        "steps": list(steps),
        "orders": orders,
        "coarse": COARSE,
        "scheme": "Heun",
        "problem": mlp().name,
        "remainders": remainders,
        "checks": [check.as_record() for check in checks],
    }


# The linear system.


def _closed_form(A: Tensor, Q: Tensor, y0: Tensor, T: float) -> Tensor:
    """J = ½ y0ᵀ (P + EᵀE) y0 with E = exp(AT), P = ∫ exp(Aᵀt) (Q + AᵀA) exp(At) dt (Van Loan 1978)."""
    d = len(y0)
    top = torch.cat([-A.T, Q + A.T @ A], dim=1)
    bottom = torch.cat([torch.zeros_like(A), A], dim=1)
    block = torch.linalg.matrix_exp(T * torch.cat([top, bottom]))
    E = block[d:, d:]
    return 0.5 * y0 @ (E.T @ block[:d, d:] + E.T @ E) @ y0


def _orders(scheme: Scheme, steps: Sequence[int]) -> Record:
    """The relative errors of J and of its gradient w.r.t. y0, A and Q, against the number of steps."""
    problem = replace(linear(), y0=tensor([-0.3, 1.0, 0.4], grad=True), ts=(0.0, 1.0))
    (A,) = problem.parameters
    Q = tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]], grad=True)
    inputs = [problem.y0, A, Q]
    cost = _closed_form(A, Q, problem.y0, problem.ts[-1])
    exact = torch.autograd.grad(cost, inputs)
    costs: list[float] = []
    gradients: list[float] = []
    for n in steps:
        sol = problem.solve(
            scheme,
            odegrad.Steps(n),
            odegrad.Discrete(),
            running=lambda t, y: 0.5 * (y @ Q @ y + (A @ y).square().sum()),
        )
        found = sol.running[-1] + 0.5 * sol.ys[-1].square().sum()
        costs.append(abs(found.item() - cost.item()) / abs(cost.item()))
        gradients.append(distance(torch.autograd.grad(found, inputs), exact))
    return {
        "scheme": type(scheme).__name__,
        "order": scheme.order,
        "cost": costs,
        "gradient": gradients,
        "orders": {"cost": order(costs), "gradient": order(gradients)},
    }


# The perturbation identity.


def _remainders(name: str, mode: Gradient) -> Record:
    """|J(θ + ε δ) − J(θ) − ε ⟨gradient, δ⟩| on ten steps of Heun's scheme."""
    problem = mlp()
    parameters = problem.parameters
    generator = torch.Generator().manual_seed(4)
    delta = [torch.randn(p.shape, dtype=p.dtype, generator=generator) / 4 for p in parameters]

    def cost(mode: Gradient) -> Tensor:
        sol = problem.solve(
            odegrad.Heun(),
            odegrad.Steps(COARSE),
            mode,
            running=lambda t, y: 0.5 * (y.square().sum() + problem.f(t, y).square().sum()),
        )
        return sol.running[-1] + 0.5 * sol.ys[-1].square().sum()

    start = cost(mode)
    gradient = torch.autograd.grad(start, parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, delta, strict=True))
    exact = torch.autograd.grad(cost(odegrad.Tape()), parameters)
    remainders: list[float] = []
    originals = [p.detach().clone() for p in parameters]
    for epsilon in EPSILONS:
        with torch.no_grad():
            for p, value, d in zip(parameters, originals, delta, strict=True):
                p.copy_(value + epsilon * d)
            moved = cost(odegrad.Discrete())
            for p, value in zip(parameters, originals, strict=True):
                p.copy_(value)
        remainders.append(abs(moved.item() - start.item() - epsilon * slope))
    return {
        "mode": name,
        "cost": start.item(),
        "slope": slope,
        "inconsistency": distance(gradient, exact),
        "epsilons": list(EPSILONS),
        "remainders": remainders,
        # between 1e-4 and 1e-6: beyond the higher orders, before rounding
        "order": 0.5 * math.log10(remainders[4] / remainders[6]),
    }
