"""Whether a budget holds, and what it costs in time.

The gradient of 1000 steps in 32 MiB against the same with one state kept per step, which takes twice as
much memory. The engines take samples in turn; the ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import odegrad
from benchmarks.memory.parts import MIB, Check, Effort, Record, Say, in_turn, mib, seconds
from benchmarks.memory.prediction import DESCRIPTION
from benchmarks.memory.profiled import profiled_peak
from benchmarks.tables import aligned, number
from odegrad.bench import WORKLOADS
from odegrad.bench.systems import last

__all__ = ["measure", "table"]

WORKLOAD = WORKLOADS["medium-rk4"]  # its steps are replaced
STEPS, QUICK_STEPS = 1000, 30
MEMORY, QUICK_MEMORY = "32MiB", "12MiB"
SLOWER = 1.6
STATES = odegrad.Discrete(odegrad.StoreAll(odegrad.Keep.STATE))


def measure(effort: Effort, say: Say) -> Record:
    """Measures the eager and the compiled engine."""
    steps = QUICK_STEPS if effort.quick else STEPS
    memory = QUICK_MEMORY if effort.quick else MEMORY
    engines = {"eager": False} | ({} if effort.quick else {"compiled": True})
    rows = [_row(name, compiled, steps, memory, effort, say) for name, compiled in engines.items()]
    checks: list[Check] = []
    for x in rows:
        name, budget = x["engine"], x["budget"] / MIB
        checks.append(Check(f"{name}: peak in memory={memory}, MiB", x["peak"] / MIB, budget))
        checks.append(Check(f"{name}: its time ÷ that of StoreAll states", x["ratio"], SLOWER))
    return {
        "workload": DESCRIPTION,
        "steps": steps,
        "memory": memory,
        "rows": rows,
        "checks": [check.as_record() for check in checks],
    }


def _row(engine: str, compiled: bool, steps: int, memory: str, effort: Effort, say: Say) -> Record:
    problem = WORKLOAD.build()
    given = (problem.field, problem.y0, [0.0, WORKLOAD.t1])
    budget = odegrad.Discrete(memory=memory)
    options: dict[str, Any] = {
        "scheme": WORKLOAD.scheme,
        "stepsize": odegrad.Steps(steps),
        "compile": compiled,
    }

    def gradient(mode: odegrad.Discrete) -> Callable[[], object]:
        def work() -> None:
            y = last(odegrad.solve(*given, **options, gradient=mode).ys)
            y.square().sum().backward()  # pyright: ignore
            for x in problem.inputs:
                x.grad = None

        return work

    def plan() -> odegrad.Plan:
        return odegrad.plan(*given, **options, gradient=budget, show=False)

    say(f"budget: {engine}, the plan")
    # To compile takes more, and only once.
    rehearsal = None if compiled or effort.quick else profiled_peak(plan)
    found = plan()  # what is seen under a profiler is not remembered
    works = {"states": gradient(STATES), "budget": gradient(budget)}
    say(f"budget: {engine}, peaks")
    peaks: dict[str, int] = {}
    for name, work in works.items():
        if compiled:
            work()
        peaks[name] = profiled_peak(work)
    timed = {name: partial(seconds, work) for name, work in works.items()}
    times = in_turn(
        timed, list(timed), effort.repeats, lambda line: say(f"budget: {engine}, {line}")
    )
    ratios = [b / a for a, b in zip(times["states"], times["budget"], strict=True)]
    return {
        "engine": engine,
        "schedule": f"{found.checkpoints}",
        "recompute_factor": found.recompute_factor,
        "budget": found.budget,
        "predicted": found.peak_bytes,
        "peak": peaks["budget"],
        "rehearsal_peak": rehearsal,
        "states_peak": peaks["states"],
        "median_s": statistics.median(times["budget"]),
        "states_median_s": statistics.median(times["states"]),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }


def table(record: Record) -> str:
    """Peaks and times with and without the budget."""
    rows: list[list[str]] = []
    for x in record["rows"]:
        rows.append(
            [
                f"{x['engine']}, StoreAll states",
                mib(x["states_peak"]),
                number(x["states_median_s"]),
                "",
            ]
        )
        rows.append(
            [
                f'{x["engine"]}, memory="{record["memory"]}"',
                mib(x["peak"]),
                number(x["median_s"]),
                number(x["ratio"], ".3f"),
            ]
        )
        rows.append([f"  the rehearsal, for {x['schedule']}", mib(x["rehearsal_peak"]), "", ""])
    title = f"{record['workload']}, RK4, {record['steps']} steps"
    return f"{title}\n\n{aligned(['one gradient', 'peak, MiB', 'seconds', 'ratio'], rows)}"
