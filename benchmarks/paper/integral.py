"""Claim 1: the gradient for the parameters is an integral, not a differential equation.

Along the costate it is a quadrature: its numbers do not feed back, need no error control, and how many
evaluations it takes does not depend on how many there are. In the augmented state of the traditional
adjoint they take part in the choice of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import odegrad
from benchmarks.memory.parts import Check, Record, Say
from benchmarks.paper.problems import Problem, distance, linear, linear_gradient, mlp, order
from odegrad.gradients import Gradient
from odegrad.schemes import Scheme

__all__ = ["measure", "widened"]

COPIES, QUICK_COPIES = (1, 4, 16, 64, 256), (1, 16)
TOLERANCE = 1e-6
SCHEMES = (odegrad.Euler(), odegrad.Midpoint(), odegrad.Kutta3(), odegrad.RK4())
MODES: Mapping[str, Gradient] = {
    "Backsolve": odegrad.Backsolve(),
    "Backsolve, seminorm": odegrad.Backsolve(seminorm=True),
    "Quadrature": odegrad.Quadrature(),
    "Quadrature, Gauss–Kronrod": odegrad.Quadrature(
        odegrad.GaussKronrod(rtol=TOLERANCE, atol=TOLERANCE)
    ),
    "Discrete": odegrad.Discrete(),
}
"""By the name that tables have."""

RULES = {"own nodes": None, "Gauss–Kronrod": odegrad.GaussKronrod(rtol=1e-9, atol=1e-11)}
"""How the integral is taken where orders are measured."""


def widened(problem: Problem, copies: int) -> Problem:
    """An MLP with every hidden unit `copies` times: the same function with more parameters.

    The outgoing weights are divided by the number of copies.
    """
    w1, b1, w2, b2 = (x.detach() for x in problem.parameters)
    hidden, dim = w1.shape
    net = nn.Sequential(nn.Linear(dim, copies * hidden), nn.Tanh(), nn.Linear(copies * hidden, dim))
    net.double()
    wide = (w1.repeat(copies, 1), b1.repeat(copies), w2.repeat(1, copies) / copies, b2)
    with torch.no_grad():
        for p, value in zip(net.parameters(), wide, strict=True):
            p.copy_(value)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return net(y)

    name = f"MLP {dim}-{copies * hidden}-{dim}"
    return Problem(name, f, problem.y0, tuple(net.parameters()), problem.ts, problem.loss)


def measure(quick: bool, say: Say) -> Record:
    """Evaluations against the number of parameters; orders of convergence on fixed steps."""
    base = mlp(4)
    rows: list[Record] = []
    for copies in QUICK_COPIES if quick else COPIES:
        problem = widened(base, copies)
        say(f"integral: {problem.name}")
        rows.append(_evaluations(problem))
    say("integral: orders")
    steps = (16, 32) if quick else (8, 16, 32, 64, 128)
    orders = [
        _order(problem, scheme, steps, exact)
        for problem, exact in ((linear(), linear_gradient(linear())), (mlp(), mlp().exact()))
        for scheme in SCHEMES
    ]
    checks = [
        *(Check(f"{mode}: most − least vjps, all widths", _spread(rows, mode), 0.0)
          for mode in MODES if mode != "Backsolve"),
        *(Check(f"{x['problem']}, {x['scheme']}: order, {rule}, off {x['order']}",
                abs(x["measured"][rule] - x["order"]), 0.35)
          for x in orders for rule in RULES),
    ]  # fmt: skip
    return {
        "tolerance": TOLERANCE,
        "copies": (QUICK_COPIES if quick else COPIES)[-1],
        "modes": list(MODES),
        "rows": rows,
        "spread": {mode: _spread(rows, mode) for mode in MODES},
        "orders": orders,
        "checks": [check.as_record() for check in checks],
    }


def _spread(rows: list[Record], mode: str) -> int:
    vjps = [x["modes"][mode]["vjps"] for x in rows]
    return max(vjps) - min(vjps)


def _evaluations(problem: Problem) -> Record:
    """What the backward sweep evaluates, with adaptive steps of Dopri5, and how good it is."""
    control = odegrad.PID(rtol=TOLERANCE, atol=TOLERANCE)
    exact = problem.exact()
    modes: dict[str, Record] = {}
    for name, mode in MODES.items():
        found, sol = problem.gradient(odegrad.Dopri5(), control, mode)
        stats = sol.stats
        modes[name] = {
            "evaluations": stats.f_evaluations - stats.forward_evaluations,
            "vjps": stats.vjps,
            "error": distance(found, exact),
        }
    return {
        "problem": problem.name,
        "parameters": sum(p.numel() for p in problem.parameters),
        "modes": modes,
    }


def _order(problem: Problem, scheme: Scheme, steps: tuple[int, ...], exact: list[Tensor]) -> Record:
    """The distance of `Quadrature` to the gradient of the exact solution."""
    errors = {
        name: [
            distance(problem.gradient(scheme, odegrad.Steps(n), odegrad.Quadrature(rule))[0], exact)
            for n in steps
        ]
        for name, rule in RULES.items()
    }
    return {
        "problem": problem.name,
        "scheme": type(scheme).__name__,
        "order": scheme.order,
        "steps": list(steps),
        "errors": errors,
        "measured": {name: order(values) for name, values in errors.items()},
    }
