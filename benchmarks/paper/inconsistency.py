"""Claim 2: the traditional adjoint does not equal backpropagation.

Three distances, relative to the norm of the whole gradient: that of `Backsolve` to the gradient of the
computed loss (`Tape` on the same grid), and those of both to the gradient of the exact solution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import odegrad
from benchmarks.memory.parts import Check, Record, Say
from benchmarks.paper.problems import (
    Problem,
    distance,
    linear,
    linear_gradient,
    mlp,
    order,
    spiral,
    van_der_pol,
    worst,
)
from odegrad.schemes import Scheme

__all__ = ["measure"]

SCHEMES = (odegrad.Euler(), odegrad.Midpoint(), odegrad.Kutta3(), odegrad.RK4())
STEPS, QUICK_STEPS = (8, 16, 32, 64, 128, 256), (16, 32)
ROUNDING = 1e-12


def measure(quick: bool, say: Say) -> Record:
    """Fixed steps on two problems, then two problems that cannot be followed backwards."""
    steps = QUICK_STEPS if quick else STEPS
    smooth: list[Record] = []
    for problem in (linear(), mlp()):
        say(f"inconsistency: {problem.name}")
        exact = linear_gradient(problem) if problem.name == "linear system" else problem.exact()
        smooth += [_convergence(problem, scheme, steps, exact) for scheme in SCHEMES]
    say("inconsistency: spiral")
    spirals = [_adaptive(spiral(T), tol) for T, tol in _spirals(quick)]
    say("inconsistency: Van der Pol")
    stiff = [_adaptive(van_der_pol(mu), 1e-6) | {"mu": mu} for mu in ((1.0, 5.0) if quick else MUS)]
    checks = [
        check
        for x in smooth
        for check in (
            Check(f"{x['problem']}, {x['scheme']}: Discrete − Tape", x["exactness"], ROUNDING),
            Check(
                f"{x['problem']}, {x['scheme']}: order of Backsolve − Tape, off {x['order']}",
                abs(x["orders"]["inconsistency"] - x["order"]),
                0.35,
            ),
            Check(
                f"{x['problem']}, {x['scheme']}: order of Discrete − exact, off {x['order']}",
                abs(x["orders"]["discrete"] - x["order"]),
                0.35,
            ),
        )
    ] + [
        Check(f"{_title(x)}: Discrete − Tape", x["exactness"], ROUNDING) for x in (*spirals, *stiff)
    ]
    return {
        "steps": list(steps),
        "smooth": smooth,
        "spiral": spirals,
        "van_der_pol": stiff,
        "paths": [_backwards(spiral(PATH_STOP), 1e-3), _backwards(van_der_pol(PATH_MU), 1e-6)],
        "checks": [check.as_record() for check in checks],
    }


def _title(x: Record) -> str:
    return f"{x['problem']}, T = {x['stop']:g}, rtol {x['rtol']:g}"


PATH_STOP, PATH_MU = 16.0, 5.0
"""Of the pictures."""

MUS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)


def _spirals(quick: bool) -> list[tuple[float, float]]:
    if quick:
        return [(16.0, 1e-3)]
    return [(T, tol) for tol in (1e-3, 1e-6) for T in (1.0, 4.0, 16.0, 32.0, 64.0)]


def _convergence(
    problem: Problem, scheme: Scheme, steps: Sequence[int], exact: Sequence[Tensor]
) -> Record:
    """The three distances against the number of steps."""
    errors: dict[str, list[float]] = {"inconsistency": [], "discrete": [], "backsolve": []}
    exactness = 0.0
    for n in steps:
        tape, discrete, backsolve = (
            problem.gradient(scheme, odegrad.Steps(n), mode)[0]
            for mode in (odegrad.Tape(), odegrad.Discrete(), odegrad.Backsolve())
        )
        exactness = max(exactness, worst(discrete, tape))
        errors["inconsistency"].append(distance(backsolve, tape))
        errors["discrete"].append(distance(discrete, exact))
        errors["backsolve"].append(distance(backsolve, exact))
    return {
        "problem": problem.name,
        "scheme": type(scheme).__name__,
        "order": scheme.order,
        "exactness": exactness,
        **errors,
        "orders": {name: order(values) for name, values in errors.items()},
    }


def _adaptive(problem: Problem, tolerance: float) -> Record:
    """The same for Dopri5 with adaptive steps, and how far the state that it reconstructs is off."""
    scheme = odegrad.Dopri5()
    control = odegrad.PID(rtol=tolerance, atol=tolerance)
    discrete, sol = problem.gradient(scheme, control, odegrad.Discrete())
    tape, _ = problem.gradient(scheme, sol.grid, odegrad.Tape())
    exact = problem.exact()
    record: Record = {
        "problem": problem.name,
        "stop": problem.ts[-1],
        "rtol": tolerance,
        "accepted": sol.stats.accepted,
        "exactness": worst(discrete, tape),
        "discrete": distance(discrete, exact),
        "inconsistency": None,
        "backsolve": None,
        "reconstruction": None,
        "failure": None,
    }
    watched, seen = _watched(problem)
    try:
        backsolve, _ = watched.gradient(scheme, control, odegrad.Backsolve())
    except odegrad.errors.SolveError as error:
        t, y = seen[-1]
        size = float(y.norm())
        return record | {"failure": type(error).__name__, "stopped": t, "size": size}
    t, y = seen[-2]  # the last stage of Dopri5 is the state after the step; then f(t₀, y₀) itself
    assert abs(t - problem.ts[0]) < 1e-9, t
    start = problem.y0.detach()
    return record | {
        "inconsistency": distance(backsolve, tape),
        "backsolve": distance(backsolve, exact),
        "reconstruction": float((y - start).norm() / start.norm()),
    }


def _backwards(problem: Problem, tolerance: float) -> Record:
    """The steps of a solve, and those of the solve back from its end, as far as it comes."""
    control = odegrad.PID(rtol=tolerance, atol=tolerance)

    def steps(y: Tensor, ts: Sequence[float]) -> tuple[Record, Tensor]:
        times, states, end = [ts[0]], [y.tolist()], y
        failure = None

        def note(info: odegrad.StepInfo) -> None:
            times.append(info.t + info.dt)
            states.append(info.y.tolist())

        try:
            with torch.no_grad():
                end = odegrad.solve(
                    problem.f, y, ts, scheme=odegrad.Dopri5(), stepsize=control, callback=note
                ).ys[-1]
        except odegrad.errors.SolveError as error:
            failure = type(error).__name__
        near = [i for i, x in enumerate(states) if max(map(abs, x)) < 1e3]
        return {
            "times": [times[i] for i in near],
            "states": [states[i] for i in near],
            "failure": failure,
        }, end

    start = problem.y0.detach()
    forward, end = steps(start, problem.ts)
    back, _ = steps(end, problem.ts[::-1])
    return {"problem": problem.name, "rtol": tolerance, "forward": forward, "back": back}


def _watched(problem: Problem) -> tuple[Problem, list[tuple[float, Tensor]]]:
    """The problem with a note of where f is evaluated."""
    seen: list[tuple[float, Tensor]] = []
    inner: Callable[..., Tensor] = problem.f

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append((float(t.detach()), y.detach().clone()))
        return inner(t, y)

    return Problem(problem.name, f, problem.y0, problem.parameters, problem.ts, problem.loss), seen
