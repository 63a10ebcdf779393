"""Duality: the costate of a scheme and its tangent are transposes of each other.

    ⟨λ_N, ẏ_N⟩ = ⟨λ_0, ẏ_0⟩ + ⟨p̄, ṗ⟩,     ẏ = the derivative of the computed states along (ẏ_0, ṗ).

With ṗ = 0, ⟨λ_n, ẏ_n⟩ is the same at every step, if and only if λ is the discrete costate. `Tangent`
computes the gradient by forward sensitivities, which share no code with a backward sweep; their cost
grows with the number of parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import odegrad
from benchmarks.memory.parts import Check, Record, Say
from benchmarks.paper.problems import Problem, mlp, tensor, worst
from odegrad.bench import time_in_turn
from odegrad.gradients import Gradient
from odegrad.schemes import SCHEMES, Scheme

__all__ = ["measure"]

WIDTHS, QUICK_WIDTHS = (1, 2, 4, 8, 16, 32, 64), (1, 4)
STEPS = 20
MODES: dict[str, Gradient] = {
    "Discrete": odegrad.Discrete(),
    "Mismatched(Heun())": odegrad.Mismatched(odegrad.Heun()),
    "Backsolve": odegrad.Backsolve(),
}


def measure(quick: bool, say: Say) -> Record:
    """The duality for all schemes, along the steps, and what tangents cost."""
    problem = mlp(8)
    say("tangent: duality")
    dual = [_duality(problem, scheme(), 5 if quick else STEPS) for scheme in SCHEMES]
    say("tangent: along the steps")
    along = [_along(problem, name, mode) for name, mode in MODES.items()]
    rows: list[Record] = []
    for width in QUICK_WIDTHS if quick else WIDTHS:
        say(f"tangent: width {width}")
        rows.append(_cost(width, 1 if quick else 5))
    checks = [
        *(Check(f"{x['scheme']}: {what}", x[what], 1e-12)
          for x in dual for what in ("duality", "tangent")),
        Check("Discrete: drift of ⟨λ, ẏ⟩", along[0]["drift"], 1e-12),
        *(Check(f"1e-6 ÷ drift of {x['mode']}", 1e-6 / x["drift"], 1.0) for x in along[1:]),
    ]  # fmt: skip
    return {
        "problem": problem.name,
        "dual": dual,
        "most": {what: max(x[what] for x in dual) for what in ("duality", "tangent")},
        "scheme": "Midpoint",
        "steps": STEPS,
        "along": along,
        "rows": rows,
        "checks": [check.as_record() for check in checks],
    }


def _directions(problem: Problem) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = (problem.y0, *problem.parameters)
    return [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in inputs]


def _rates(problem: Problem, scheme: Scheme, n: int, directions: list[Tensor]) -> Tensor:
    """The derivative of all states along directions, by torch's forward mode through the steps."""
    inputs = (problem.y0, *problem.parameters)
    dual_level = torch.autograd.forward_ad.dual_level
    dual, primal = torch.autograd.forward_ad.make_dual, [x.detach() for x in inputs]
    w1, b1, w2, b2 = range(1, 5)
    with dual_level():
        x = [dual(a, v) for a, v in zip(primal, directions, strict=True)]

        def f(t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(y @ x[w1].T + x[b1]) @ x[w2].T + x[b2]

        sol = odegrad.solve(
            f, x[0], problem.ts, scheme=scheme, stepsize=odegrad.Steps(n), gradient=odegrad.Tape()
        )
        rate = torch.autograd.forward_ad.unpack_dual(sol.ys).tangent
    assert rate is not None
    return rate


def _duality(problem: Problem, scheme: Scheme, n: int) -> Record:
    """⟨ȳ, ẏ⟩ by the forward mode, ⟨gradient, direction⟩ by `Discrete`; `Tangent` against `Tape`."""
    directions = _directions(problem)
    rate = _rates(problem, scheme, n, directions)[-1]
    inputs = [problem.y0, *problem.parameters]
    weights = torch.linspace(-1.0, 1.0, rate.numel(), dtype=rate.dtype).reshape(rate.shape)
    found: dict[str, list[Tensor]] = {}
    for name, mode in (
        ("Discrete", odegrad.Discrete()),
        ("Tape", odegrad.Tape()),
        ("Tangent", odegrad.Tangent()),
    ):
        sol = problem.solve(scheme, odegrad.Steps(n), mode)
        found[name] = list(torch.autograd.grad((weights * sol.ys[-1]).sum(), inputs))
    terms = [float((g * v).sum()) for g, v in zip(found["Discrete"], directions, strict=True)]
    forward, backward = float((weights * rate).sum()), sum(terms)
    return {
        "scheme": type(scheme).__name__,
        "forward": forward,
        "backward": backward,
        "duality": abs(forward - backward) / abs(forward),
        "tangent": worst(found["Tangent"], found["Tape"]),
    }


def _along(problem: Problem, name: str, mode: Gradient) -> Record:
    """⟨λ_n, ẏ_n⟩ / ⟨λ_N, ẏ_N⟩ − 1 for every step, with ṗ = 0."""
    scheme, T = odegrad.Midpoint(), problem.ts[-1]
    times = tuple(T * n / STEPS for n in range(STEPS + 1))
    directions = _directions(problem)
    still = [directions[0], *(torch.zeros_like(x) for x in directions[1:])]
    rates = _rates(replace(problem, ts=times), scheme, 1, still)
    states = odegrad.solve(
        problem.f, problem.y0.detach(), times, scheme=scheme, stepsize=odegrad.Steps(1)
    ).ys.detach()
    products: list[float] = []
    for n in range(STEPS):
        start = states[n].clone().requires_grad_()
        rest = replace(problem, y0=start, ts=(times[n], T))
        sol = rest.solve(scheme, odegrad.Steps(STEPS - n), mode)
        (costate,) = torch.autograd.grad(problem.loss(sol.ys), [start])
        products.append(float((costate * rates[n]).sum()))
    products.append(float((states[-1] * rates[-1]).sum()))  # λ_N = y_N for the loss ½ |y_N|²
    ratios = [x / products[-1] - 1.0 for x in products]
    return {"mode": name, "ratios": ratios, "drift": max(map(abs, ratios))}


def _cost(width: int, repeats: int) -> Record:
    """A gradient by tangents and by transposed steps: evaluations of the backward sweep, and time."""
    problem = replace(mlp(width), y0=tensor([[1.0, -0.5]], grad=True))
    scheme, steps = odegrad.RK4(), odegrad.Steps(STEPS)
    modes: dict[str, Gradient] = {"tangent": odegrad.Tangent(), "discrete": odegrad.Discrete()}
    record: Record = {"width": width, "numbers": 2 + sum(p.numel() for p in problem.parameters)}
    works: dict[str, Callable[[], object]] = {}
    for name, mode in modes.items():
        _, sol = problem.gradient(scheme, steps, mode)
        stats = sol.stats
        record[f"{name}_evaluations"] = stats.f_evaluations - stats.forward_evaluations
        works[name] = lambda mode=mode: problem.gradient(scheme, steps, mode)
    timings = time_in_turn(works, repeats, 0.0)
    seconds = {name: x.median for name, x in timings.items()}
    return record | {
        "tangent_seconds": seconds["tangent"],
        "discrete_seconds": seconds["discrete"],
        "time_ratio": seconds["tangent"] / seconds["discrete"],
    }
