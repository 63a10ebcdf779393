"""How far one gradient is from the least that it can cost.

A gradient of N steps of s stages has to evaluate f and its transpose N·s times. Let

    F + V = the time of one evaluation of f with its graph, followed by its vector–Jacobian product
            for the state and all parameters,

in isolation, in the faster of two ways: eager, or through ``torch.compile``. The limit is N·s·(F + V).
Evaluations that a backward sweep repeats are no part of it, and count against the engine.

The overhead of the loop is the time per step with f = −y for one number, where evaluating costs least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.tables import aligned, number
from benchmarks.targets import LIMIT, TARGETS, targets_table
from odegrad.bench import TORCHDIFFEQ, WORKLOADS, System, Timing, Workload, measure, time_in_turn
from odegrad.bench.workloads import State
from odegrad.schemes import RK4
from odegrad.stepsize import Steps

__all__ = ["limit_ratio", "run"]

NAME = "limit"
NAMES = ("medium-rk4", "conv-rk4")
OVERHEAD_STEPS = 200


class _Decay(nn.Module):
    """f(t, y) = −y."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative at y."""
        del t
        return -y


def _one_number() -> tuple[nn.Module, State]:
    return _Decay(), torch.ones(1)


DECAY = Workload("decay", "f = −y, one number", _one_number, 1.0, RK4(), Steps(OVERHEAD_STEPS))


def limit_ratio(seconds: float, steps: int, stages: int, f_and_v: float) -> float:
    """seconds / (N s (F + V)).

    Example:
        >>> limit_ratio(1.2, steps=10, stages=4, f_and_v=0.025)
        1.2
    """
    return seconds / (steps * stages * f_and_v)


def run(
    engines: Sequence[System],
    repeats: int,
    shortest: float,
    out: Path,
    say: Callable[[str], object],
) -> None:
    """Measures, prints two tables, and writes ``limit.json``.

    Arguments:
        engines: Who is measured.
        repeats: Samples of each.
        shortest: The least duration of a sample, in seconds.
        out: The folder for the results.
        say: Is told what happens.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        found[name] = _against_limit(WORKLOADS[name], engines, repeats, shortest, say)
    timed = measure(DECAY, (*engines, TORCHDIFFEQ), repeats, shortest, say)
    overhead = {
        name: {"us_per_step": 1e6 * x.timing.median / OVERHEAD_STEPS}
        for name, x in timed.found.items()
    }
    targets = {f"{LIMIT}{name}": record["ratios"] for name, record in found.items()}
    content = {"workloads": found, "overhead": overhead, "targets": targets}
    path = results.write(out, NAME, {"repeats": repeats, "shortest_sample_s": shortest}, content)
    print(f"\n{_limits(found)}\n\n{_overheads(overhead)}\n")
    print(targets_table(targets, [x for x in TARGETS if x.quantity.startswith(LIMIT)]))
    say(f"written: {path}")


def _against_limit(
    workload: Workload,
    engines: Sequence[System],
    repeats: int,
    shortest: float,
    say: Callable[[str], object],
) -> dict[str, Any]:
    assert isinstance(workload.stepsize, Steps)
    # Before and after the engines, so that both see the same machine.
    say(f"{workload.name}: f and its transpose in isolation")
    units = _isolated(workload)
    before = time_in_turn(units, repeats, shortest)
    timed = measure(workload, engines, repeats, shortest, say)
    after = time_in_turn(units, repeats, shortest)
    medians = {name: _joined(before[name], after[name]).median for name in units}
    f_and_v = min(medians["F + V eager"], medians["F + V compiled"])
    n, stages = workload.stepsize.n, len(workload.scheme.tableau.b)  # pyright: ignore
    return {
        "isolated_s": medians,
        "f_and_v_s": f_and_v,
        "limit_s": n * stages * f_and_v,
        "median_s": {name: x.timing.median for name, x in timed.found.items()},
        "ratios": {
            name: limit_ratio(x.timing.median, n, stages, f_and_v)
            for name, x in timed.found.items()
        },
    }


def _joined(a: Timing, b: Timing) -> Timing:
    return Timing(a.calls, (*a.samples, *b.samples))


def _isolated(workload: Workload) -> dict[str, Callable[[], object]]:
    """F alone, and F + V, each eager and compiled."""
    problem = workload.build()
    t, y, inputs = torch.zeros(()), problem.y0, problem.inputs
    compiled = torch.compile(problem.field)

    def f(field: Any) -> Callable[[], object]:
        def work() -> object:
            with torch.no_grad():
                return field(t, y)

        return work

    def f_and_v(field: Any) -> Callable[[], object]:
        cotangent = torch.ones_like(field(t, y))

        def work() -> object:
            return torch.autograd.grad(field(t, y), inputs, cotangent)

        return work

    return {
        "F eager": f(problem.field),
        "F compiled": f(compiled),
        "F + V eager": f_and_v(problem.field),
        "F + V compiled": f_and_v(compiled),
    }


def _limits(found: dict[str, dict[str, Any]]) -> str:
    rows: list[list[str]] = []
    for name, record in found.items():
        for unit, seconds in record["isolated_s"].items():
            rows.append([name, unit, number(1e3 * seconds), ""])
        rows.append([name, "limit N·s·(F + V)", number(1e3 * record["limit_s"], ".4g"), "1.000"])
        for engine, seconds in record["median_s"].items():
            value = record["ratios"][engine]
            rows.append([name, engine, number(1e3 * seconds, ".4g"), number(value, ".3f")])
    return aligned(["workload", "", "ms", "÷ limit"], rows, left=2)


def _overheads(overhead: dict[str, dict[str, float]]) -> str:
    rows = [[name, number(x["us_per_step"])] for name, x in overhead.items()]
    return aligned([f"{DECAY.description}, RK4", "µs per step"], rows)
