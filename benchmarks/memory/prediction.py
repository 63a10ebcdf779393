"""Whether `odegrad.plan` predicts the peak of a solve and its gradient, for every schedule.

Predicted: what the plan says before anything runs. Measured: `benchmarks.memory.profiled` on one
gradient, the loss and its ``.backward()`` included, of which the plan does not know. Bound:

    |predicted − measured| ≤ max(5 % of measured, 1 MiB).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import odegrad
from benchmarks.memory.parts import MIB, Check, Effort, Record, Say, mib
from benchmarks.memory.profiled import profiled_peak
from benchmarks.tables import aligned
from odegrad.bench import WORKLOADS
from odegrad.bench.systems import last
from odegrad.checkpoints import Tiered
from odegrad.schemes.base import Scheme

__all__ = ["CASES", "DESCRIPTION", "Case", "allowed", "measure", "table"]

WORKLOAD = WORKLOADS["medium-rk4"]  # its steps are replaced
DESCRIPTION = "MLP 64-256-256-64 tanh, batch 256, float32"
STEPS, COMPILED_STEPS, QUICK_STEPS = 100, 200, 20
RELATIVE, ABSOLUTE = 0.05, MIB


@dataclass(frozen=True)
class Case:
    """A way to the gradient.

    Arguments:
        name: Its name.
        mode: The gradient mode.
        compiled: Whether to compile the solve.
        scheme: The scheme.
    """

    name: str
    mode: odegrad.Discrete
    compiled: bool = False
    scheme: Scheme = WORKLOAD.scheme

    @property
    def steps(self) -> int:
        """The number of steps."""
        return COMPILED_STEPS if self.compiled else STEPS


def _cases() -> tuple[Case, ...]:
    keeps = tuple(odegrad.Keep)
    graph = odegrad.Keep.GRAPH
    schedules: dict[str, odegrad.Discrete] = {}
    for keep in keeps:
        schedules[f"StoreAll {keep.value}"] = odegrad.Discrete(odegrad.StoreAll(keep))
    for keep in keeps:
        schedules[f"Every(10) {keep.value}"] = odegrad.Discrete(odegrad.Every(10, keep))
    schedules["Binomial(8)"] = odegrad.Discrete(odegrad.Binomial(8))
    schedules["Online(8)"] = odegrad.Discrete(odegrad.Online(8))
    blocks = odegrad.Blockwise(odegrad.Binomial(4), 8, graph)
    schedules["Blockwise(Binomial(4), 8)"] = odegrad.Discrete(blocks)
    schedules["Tiered(4, 8)"] = odegrad.Discrete(Tiered(ram=4, disk=8))
    for budget in ("16MiB", "32MiB", "64MiB"):
        schedules[f'memory="{budget}"'] = odegrad.Discrete(memory=budget)
    eager = [Case(name, mode) for name, mode in schedules.items()]
    rewinding = odegrad.Discrete(odegrad.Rewind(anchor_every=25))
    eager.append(Case("Rewind(25), ALF", rewinding, scheme=odegrad.ALF()))
    left_out = ("stages", "Online", "Tiered")
    compiled = [
        Case(f"{name}, compiled", mode, True)
        for name, mode in schedules.items()
        if not any(part in name for part in left_out)
    ]
    return (*eager, *compiled)


CASES = _cases()


def measure(effort: Effort, say: Say, cases: tuple[Case, ...] = CASES) -> Record:
    """Measures all cases; one that fails is left out, with its message."""
    rows: list[Record] = []
    missing: dict[str, str] = {}
    for case in cases:
        say(f"prediction: {case.name}")
        try:
            rows.append(_row(case, QUICK_STEPS if effort.quick else case.steps))
        except Exception as error:
            missing[case.name] = " ".join(f"{type(error).__name__}: {error}".split())
    checks = [
        Check(f"{x['name']}: |predicted − measured|, MiB", x["error"] / MIB, x["allowed"] / MIB)
        for x in rows
    ]
    return {
        "workload": f"{DESCRIPTION}, RK4",
        "rows": rows,
        "missing": missing,
        "checks": [check.as_record() for check in checks],
    }


def allowed(measured: int) -> float:
    """How far the prediction may be off.

    Example:
        >>> allowed(2**20) / 2**20, allowed(100 * 2**20) / 2**20
        (1.0, 5.0)
    """
    return max(RELATIVE * measured, ABSOLUTE)


def _row(case: Case, steps: int) -> Record:
    plan, gradient = _prepared(case, steps)
    predicted = plan()
    gradient()  # compiles, and allocates what is allocated once
    measured = profiled_peak(gradient)
    assert predicted.peak_bytes is not None
    return {
        "name": case.name,
        "schedule": f"{predicted.checkpoints}",
        "steps": steps,
        "predicted": predicted.peak_bytes,
        "measured": measured,
        "error": abs(predicted.peak_bytes - measured),
        "allowed": allowed(measured),
    }


def _prepared(case: Case, steps: int) -> tuple[Callable[[], odegrad.Plan], Callable[[], object]]:
    problem = WORKLOAD.build()
    given = (problem.field, problem.y0, [0.0, WORKLOAD.t1])
    options: dict[str, Any] = {
        "scheme": case.scheme,
        "stepsize": odegrad.Steps(steps),
        "gradient": case.mode,
        "compile": case.compiled,
    }

    def gradient() -> None:
        y = last(odegrad.solve(*given, **options).ys)
        y.square().sum().backward()  # pyright: ignore
        for x in problem.inputs:
            x.grad = None

    return lambda: odegrad.plan(*given, **options, show=False), gradient


def table(record: Record) -> str:
    """Predicted and measured peaks."""
    rows = [
        [
            x["name"],
            str(x["steps"]),
            mib(x["predicted"]),
            mib(x["measured"]),
            f"{100 * (x['predicted'] / x['measured'] - 1):+.1f} %",
            mib(x["allowed"]),
            "met" if x["error"] <= x["allowed"] else "missed",
        ]
        for x in record["rows"]
    ]
    header = [
        "peak of one gradient, MiB",
        "steps",
        "predicted",
        "measured",
        "off by",
        "allowed",
        "",
    ]
    notes = [f"  {name}: {why}" for name, why in record["missing"].items()]
    return "\n".join([record["workload"], "", aligned(header, rows), *notes])
