"""Controls θ(t), and the density of a gradient over time.

    y' = A y + B u(t),     L = ½ |y(T)|²,     a(t) = exp(Aᵀ (T − t)) y(T),

with u constant on pieces: the density of the gradient for u is Bᵀ a(t), that for A is a(t) y(t)ᵀ. A
constant parameter is the control with one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

import odegrad
from benchmarks.memory.parts import Check, Record, Say
from benchmarks.paper.control import optimal_picture, optimum
from benchmarks.paper.oscillator import oscillator
from benchmarks.paper.problems import distance, order, tensor
from odegrad.controls import PiecewiseConstant
from odegrad.schemes import Scheme

__all__ = ["measure"]

SCHEMES = (odegrad.Euler(), odegrad.Midpoint(), odegrad.Kutta3(), odegrad.RK4())
KNOTS = (0.0, 0.5, 1.2, 1.6, 2.0)
A = [[-0.2, 1.5, 0.0], [-1.0, -0.1, 0.6], [0.3, 0.0, -0.5]]
B = [[1.0], [0.0], [0.5]]
VALUES = [[0.8], [-0.4], [1.0], [0.2]]
Y0 = [1.0, -0.5, 0.7]


def measure(quick: bool, say: Say) -> Record:
    """Orders of the step means; sums over pieces; the optimum of a linear-quadratic problem."""
    say("density: orders")
    steps = (8, 16) if quick else (2, 4, 8, 16, 32)
    orders = [_orders(scheme, steps) for scheme in SCHEMES]
    pieces = [_pieces(scheme) for scheme in (*SCHEMES, odegrad.Dopri5())]
    say("density: optimal control")
    optima = [optimum(n) for n in ((10, 20) if quick else (10, 20, 40, 80))]
    lqr_orders = {name: order([x[name] for x in optima]) for name in ("control", "cost")}
    say("density: pictures")
    checks = [
        *(Check(f"{x['scheme']}: order of the density of {name}, off {x['order']}",
                abs(x["orders"][name] - x["order"]), 0.35)
          for x in orders for name in ("u", "A")),
        *(Check(f"{x['scheme']}: {what}", x[what], 1e-12)
          for x in pieces for what in ("pieces", "whole")),
        *(Check(f"optimal control: order of {name}, off 2", abs(value - 2.0), 0.35)
          for name, value in lqr_orders.items()),
    ]  # fmt: skip
    return {
        "steps": list(steps),
        "orders": orders,
        "pieces": pieces,
        "optima": optima,
        "lqr_orders": lqr_orders,
        "picture": _picture(),
        "oscillator": oscillator(),
        "optimal": optimal_picture(),
        "checks": [check.as_record() for check in checks],
    }


# The linear system.


class Driven(nn.Module):
    """y' = A y + B u(t)."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(tensor(A)), tensor(B)
        self.u = PiecewiseConstant(KNOTS, (1,), init=tensor(VALUES))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        return self.A @ y + self.B @ self.u(t)


def _loss(ys: Tensor) -> Tensor:
    return 0.5 * ys[-1].square().sum()


def _found(model: Driven, scheme: Scheme, n: int) -> odegrad.GradientDensity:
    """The density with n steps per piece."""
    return odegrad.gradient_density(
        model, tensor(Y0), [KNOTS[0], KNOTS[-1]], _loss, scheme=scheme, stepsize=odegrad.Steps(n)
    )


def _named(found: odegrad.GradientDensity, end: str) -> Tensor:
    (name,) = (x for x in found.values if x.endswith(end))
    return found.values[name]


@cache
def _state(t: float) -> Tensor:
    """y(t), from piece to piece by exp of [[A, B u], [0, 0]]."""
    z = torch.cat([tensor(Y0), tensor([1.0])])
    for (start, stop), value in zip(pairwise(KNOTS), VALUES, strict=True):
        if t <= start:
            break
        block = torch.zeros(4, 4, dtype=torch.float64)
        block[:3, :3], block[:3, 3] = tensor(A), tensor(B) @ tensor(value)
        z = torch.linalg.matrix_exp((min(t, stop) - start) * block) @ z
    return z[:3]


@cache
def _costate(t: float) -> Tensor:
    end = KNOTS[-1]
    return torch.linalg.matrix_exp((end - t) * tensor(A).T) @ _state(end)


NODES = (
    (0.0694318442029737, 0.1739274225687269),
    (0.3300094782075719, 0.3260725774312731),
    (0.6699905217924281, 0.3260725774312731),
    (0.9305681557970263, 0.1739274225687269),
)
"""(node in (0, 1), weight) of the Gauss rule of order 8."""


def _means(edges: Sequence[float], density: Callable[[float], Tensor]) -> Tensor:
    """The mean of a function over each interval, by two Gauss rules of order 8."""
    rows: list[Tensor] = []
    for a, b in pairwise(edges):
        halves = ((a, (a + b) / 2), ((a + b) / 2, b))
        values = [w / 2 * density(l + x * (r - l)) for l, r in halves for x, w in NODES]  # noqa: E741
        rows.append(torch.stack(values).sum(dim=0))
    return torch.stack(rows)


def _density_u(t: float) -> Tensor:
    return tensor(B).T @ _costate(t)


def _density_a(t: float) -> Tensor:
    return torch.outer(_costate(t), _state(t))


def _orders(scheme: Scheme, steps: Sequence[int]) -> Record:
    """The relative error of the step means, for n steps per piece."""
    errors: dict[str, list[float]] = {"u": [], "A": []}
    for n in steps:
        found = _found(Driven(), scheme, n)
        edges = found.edges.tolist()
        in_pieces = _named(found, "u.values")  # zero but for the piece of the step
        errors["u"].append(distance([in_pieces.sum(dim=1)], [_means(edges, _density_u)]))
        errors["A"].append(distance([_named(found, "A")], [_means(edges, _density_a)]))
    return {
        "scheme": type(scheme).__name__,
        "order": scheme.order,
        **errors,
        "orders": {name: order(values) for name, values in errors.items()},
    }


def _pieces(scheme: Scheme) -> Record:
    """The gradient for each value of the control against the integral of the density over its piece."""
    model = Driven()
    ends = [KNOTS[0], KNOTS[-1]]
    sol = odegrad.solve(model, tensor(Y0), ends, scheme=scheme, stepsize=odegrad.Steps(5))
    by_value, by_a = torch.autograd.grad(_loss(sol.ys), [model.u.values, model.A])
    found = _found(model, scheme, 5)
    widths = found.edges.diff()
    density = _named(found, "u.values")
    middles = found.edges[:-1] + widths / 2
    sums = []
    for k, (a, b) in enumerate(pairwise(KNOTS)):
        inside = (middles > a) & (middles < b)
        sums.append((widths[inside, None] * density[inside, k]).sum(dim=0))
        assert not density[~inside, k].any()
    whole = torch.tensordot(widths, _named(found, "A"), dims=1)
    return {
        "scheme": type(scheme).__name__,
        "gradient": by_value.flatten().tolist(),
        "pieces": distance([torch.stack(sums)], [by_value]),
        "whole": distance([whole], [by_a]),
    }


def _picture() -> Record:
    """The densities in continuous time, and what four steps of RK4 per piece give."""
    found = _found(Driven(), odegrad.RK4(), 4)
    times = torch.linspace(KNOTS[0], KNOTS[-1], 41, dtype=torch.float64).tolist()
    return {
        "knots": list(KNOTS),
        "times": times,
        "u": [_density_u(t).item() for t in times],
        "A": [_density_a(t)[0, 1].item() for t in times],
        "edges": found.edges.tolist(),
        "found_u": _named(found, "u.values").sum(dim=1).flatten().tolist(),
        "found_A": _named(found, "A")[:, 0, 1].tolist(),
    }
