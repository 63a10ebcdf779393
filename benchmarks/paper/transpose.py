"""Claim 3: the adjoint equals backpropagation iff it is the transpose of the same discrete scheme.

If: `Discrete` against `Tape` for all schemes, and the symplectic partner of a tableau, whose steps for
the costate equation are solved as one linear system, against the transposed step. Only if: `Mismatched`,
the transposed steps of one scheme at the states of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import odegrad
from benchmarks.memory.parts import Check, Record, Say
from benchmarks.paper.problems import Problem, distance, mlp, order, worst
from odegrad.field import VectorField
from odegrad.schemes import SCHEMES, ExplicitRungeKutta, Scheme
from odegrad.state import Structure

__all__ = ["measure"]

TABLEAUS = tuple(x() for x in SCHEMES if issubclass(x, ExplicitRungeKutta))
EXACTNESS, PARTNERS = 1e-12, 1e-13
GRID = 10
"""Steps of the heat map."""

PAIRS: tuple[tuple[Scheme, Scheme], ...] = (
    (odegrad.RK4(), odegrad.Euler()),
    (odegrad.Euler(), odegrad.RK4()),
    (odegrad.RK4(), odegrad.Heun()),
    (odegrad.Midpoint(), odegrad.RK4()),
    (odegrad.Midpoint(), odegrad.Heun()),
    (odegrad.RK4(), odegrad.Kutta3()),
    (odegrad.RK4(), odegrad.RK38()),
)
"""(the scheme of the solve, the scheme that is transposed)."""


def measure(quick: bool, say: Say) -> Record:
    """All schemes on an MLP in float64, with a running cost and every time differentiated."""
    problem = mlp(8, 3, seed=3)
    say("transpose: all schemes")
    exact = [_exactness(problem, scheme()) for scheme in SCHEMES]
    say("transpose: partners")
    partners = [_partner(problem, x) for x in TABLEAUS if 0.0 not in x.tableau.b]
    say("transpose: pairs")
    shown = TABLEAUS[:9] if quick else TABLEAUS
    matrix = _pairs(problem, shown)
    orders = _orders(problem, PAIRS[:3] if quick else PAIRS, (16, 32) if quick else STEPS)
    same = [
        (a, b)
        for a in range(len(shown))
        for b in range(len(shown))
        if _advances_alike(shown[a], shown[b])
    ]
    others = [
        matrix[a][b] for a in range(len(shown)) for b in range(len(shown)) if (a, b) not in same
    ]
    checks = [
        *(Check(f"{x['scheme']}: Discrete − Tape, {kind} steps", x[kind], EXACTNESS)
          for x in exact for kind in ("fixed", "adaptive") if x[kind] is not None),
        *(Check(f"{x['scheme']}: partner, {what}", x[what], PARTNERS)
          for x in partners for what in ("costate", "parameters")),
        Check("same map: Mismatched − Tape", max(matrix[a][b] for a, b in same), EXACTNESS),
        Check("1e-10 ÷ the least of different maps", 1e-10 / min(others), 1.0),
        *(Check(f"{x['forward']} and {x['back']}: order, off {x['lower']}",
                abs(x["order"] - x["lower"]), 0.35) for x in orders),
    ]  # fmt: skip
    return {
        "problem": problem.name,
        "exact": exact,
        "partners": partners,
        "pairs": {
            "steps": GRID,
            "names": [type(x).__name__ for x in shown],
            "errors": matrix,
            "same": [[type(shown[a]).__name__, type(shown[b]).__name__] for a, b in same if a < b],
            "diagonal": max(matrix[a][a] for a in range(len(shown))),
            "least": min(others),
            "most": max(others),
        },
        "orders": orders,
        "checks": [check.as_record() for check in checks],
    }


STEPS = (8, 16, 32, 64, 128)


# If.


def _exactness(problem: Problem, scheme: Scheme) -> Record:
    """The largest relative difference over y0, every parameter and the times."""
    adaptive = scheme.error_order is not None
    steps = 0
    found: dict[str, float | None] = {"fixed": None, "adaptive": None}
    for kind in ("fixed", *(["adaptive"] if adaptive else [])):
        control = odegrad.Steps(10) if kind == "fixed" else odegrad.PID(rtol=1e-4, atol=1e-6)
        discrete, sol = _whole_gradient(problem, scheme, control, odegrad.Discrete())
        tape, _ = _whole_gradient(problem, scheme, sol.grid, odegrad.Tape())
        found[kind] = worst(discrete, tape)
        steps = sol.stats.accepted
    return {
        "scheme": type(scheme).__name__,
        "order": scheme.order,
        "accepted": steps if adaptive else None,
        **found,
    }


def _whole_gradient(
    problem: Problem, scheme: Scheme, stepsize: odegrad.stepsize.StepSize, mode: object
) -> tuple[list[Tensor], odegrad.Solution]:
    """Of a loss of three outputs and a running cost, w.r.t. y0, parameters and times."""
    ts = torch.tensor([0.0, 0.7, 1.1, 2.0], dtype=torch.float64, requires_grad=True)
    weight = next(iter(problem.parameters))
    sol = odegrad.solve(
        problem.f,
        problem.y0,
        ts,
        scheme=scheme,
        stepsize=stepsize,
        gradient=mode,  # type: ignore[arg-type]
        running=lambda t, y: (y @ weight.T).tanh().square().sum() * torch.exp(-t),
    )
    loss = sol.ys.square().sum() + sol.ys.sin().sum() + sol.running[-1]
    return list(torch.autograd.grad(loss, [problem.y0, *problem.parameters, ts])), sol


def _partner(problem: Problem, scheme: ExplicitRungeKutta) -> Record:
    """One step of the partner for the costate equation, solved as a linear system.

    Λ_i = λ_n − h Σ_j â_ij J_jᵀ Λ_j,     λ_{n+1} = λ_n − h Σ_j b_j J_jᵀ Λ_j,

    in the unknowns (Λ_1, …, Λ_s, λ_n), with J_j = f_y at the stages of the solution; and the quadrature
    p̄ = h Σ_i b_i f_p(Y_i)ᵀ Λ_i.
    """
    tab, h = scheme.tableau, 0.3
    b, s = tab.b, tab.stages
    a_hat = tab.partner
    y0 = problem.y0.detach()[0]
    d = len(y0)
    grad_y = torch.linspace(-1.0, 1.0, d, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)

    def f(y: Tensor) -> Tensor:
        return problem.f(zero, y)

    slopes: list[Tensor] = []
    stages: list[Tensor] = []
    with torch.no_grad():
        for row in tab.a:
            stages.append(y0 + h * sum((x * k for x, k in zip(row, slopes, strict=True)), 0.0 * y0))
            slopes.append(f(stages[-1]))
    J = [torch.autograd.functional.jacobian(f, y) for y in stages]
    one, size = torch.eye(d, dtype=torch.float64), (s + 1) * d
    system = torch.zeros(size, size, dtype=torch.float64)
    at = [slice(i * d, (i + 1) * d) for i in range(s + 1)]
    for i in range(s):
        system[at[i], at[s]] = -one
        system[at[i], at[i]] += one
        for j in range(s):
            system[at[i], at[j]] += h * a_hat[i][j] * J[j].T
        system[at[s], at[i]] = -h * b[i] * J[i].T
    system[at[s], at[s]] = one
    right = torch.zeros(size, dtype=torch.float64)
    right[at[s]] = grad_y
    solution = torch.linalg.solve(system, right)
    stage_costates = [solution[x] for x in at[:s]]
    pulled = [
        torch.autograd.grad(f(y), problem.parameters, costate)
        for y, costate in zip(stages, stage_costates, strict=True)
    ]
    quadrature = [
        h * sum((w * g for w, g in zip(b, grads, strict=True)), 0.0 * grads[0])
        for grads in zip(*pulled, strict=True)
    ]

    field = VectorField(problem.f, Structure(y0), (y0,))
    p = field.discover(zero, (y0,))
    step = scheme.step_vjp(field, 0.0, h, (y0,), (), p, (grad_y,))
    by_name = {id(x): g for x, g in zip(p, step.p, strict=True)}
    grad_p = [by_name[id(x)] for x in problem.parameters]
    return {
        "scheme": type(scheme).__name__,
        "stages": s,
        "costate": distance([solution[at[s]]], list(step.y)),
        "parameters": distance(quadrature, [g for g in grad_p if g is not None]),
    }


# Only if.


def _advances_alike(one: ExplicitRungeKutta, other: ExplicitRungeKutta) -> bool:
    """Whether two schemes are the same map: they may differ in their error estimates."""
    return (one.tableau.a, one.tableau.b) == (other.tableau.a, other.tableau.b)


def _pairs(problem: Problem, schemes: Sequence[ExplicitRungeKutta]) -> list[list[float]]:
    """Rows: the scheme of the solve. Columns: the scheme that is transposed."""
    rows: list[list[float]] = []
    for scheme in schemes:
        tape, _ = problem.gradient(scheme, odegrad.Steps(GRID), odegrad.Tape())
        rows.append([
            distance(
                problem.gradient(scheme, odegrad.Steps(GRID), odegrad.Mismatched(other))[0], tape
            )
            for other in schemes
        ])  # fmt: skip
    return rows


def _orders(
    problem: Problem, pairs: Sequence[tuple[Scheme, Scheme]], steps: Sequence[int]
) -> list[Record]:
    """The distance to the gradient of the exact solution, against the number of steps."""
    exact = problem.exact()
    rows: list[Record] = []
    for scheme, other in pairs:
        errors = [
            distance(
                problem.gradient(scheme, odegrad.Steps(n), odegrad.Mismatched(other))[0], exact
            )
            for n in steps
        ]
        rows.append(
            {
                "forward": type(scheme).__name__,
                "back": type(other).__name__,
                "lower": min(scheme.order, other.order),
                "steps": list(steps),
                "errors": errors,
                "order": order(errors),
            }
        )
    return rows
