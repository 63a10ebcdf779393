"""A million steps in the memory of a thousand, measured from outside: resident memory of the process.

Bound: the process that computes the gradient grows by less than 64 MiB over one that has only imported
torch and made the network; the import of odegrad, and what torch loads when it differentiates, included.
A compiler alone is more than that: for compiled solves the growth over a process that has compiled is
bounded, and that from the start is written beside it.
"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.memory.parts import MIB, Check, Effort, Record, Say, mib
from benchmarks.memory.process import Grown, Job, in_fresh_process
from benchmarks.tables import aligned, number

__all__ = ["measure", "table"]

STEPS, QUICK_STEPS = 10**6, 2000
MEMORY = "4MiB"
MOST = 64 * MIB


def _jobs(effort: Effort) -> list[Job]:
    """What is solved; eager RK4, which takes longest, only with everything."""
    n = QUICK_STEPS if effort.quick else STEPS
    jobs = [Job("Euler", n, MEMORY, compiled=False, warm_up=10)]
    if effort.quick:
        return jobs
    if effort.everything:
        jobs.append(Job("RK4", n, MEMORY, compiled=False, warm_up=10))
    for scheme in ("Euler", "RK4"):
        jobs.append(Job(scheme, n, MEMORY, compiled=True, warm_up=n // 100))
    return jobs


def measure(effort: Effort, say: Say) -> Record:
    """Measures in a process each."""
    rows: list[Record] = []
    missing: dict[str, str] = {}
    checks: list[Check] = []
    for job in _jobs(effort):
        name = f"{job.scheme}, {'compiled' if job.compiled else 'eager'}"
        say(f"million: {name}, {job.steps} steps")
        found = in_fresh_process(job)
        if not isinstance(found, Grown):
            missing[name] = found
            continue
        grown = {"over_bare": found.over_bare, "over_warm": found.over_warm}
        rows.append({"name": name, **asdict(job), **asdict(found), **grown})
        over = "a process that has compiled" if job.compiled else "torch alone"
        value = found.over_warm if job.compiled else found.over_bare
        checks.append(Check(f"{name}: growth over {over}, MiB", value / MIB, MOST / MIB))
    return {
        "workload": "MLP 2-50-50-2 tanh, batch 20, float32",
        "memory": MEMORY,
        "rows": rows,
        "missing": missing,
        "checks": [check.as_record() for check in checks],
    }


def table(record: Record) -> str:
    """Resident memory and time."""
    rows = [
        [
            x["name"],
            str(x["steps"]),
            number(x["seconds"]),
            number(1e6 * x["seconds"] / x["steps"]),
            f"{x['recompute_factor']:.2f}",
            mib(x["kept"]),
            mib(x["imported"] - x["bare"]),
            mib(x["warm"] - x["bare"]),
            mib(x["over_warm"]),
            mib(x["over_bare"]),
        ]
        for x in record["rows"]
    ]
    header = ["MiB", "steps", "seconds", "µs per step", "taken ÷ N", "kept"]
    header += ["import", "warm", "peak − warm", "peak − torch"]
    notes = [f"  {name}: {why}" for name, why in record["missing"].items()]
    title = f"{record['workload']}, memory={record['memory']}; resident memory of the process"
    return "\n".join([title, "", aligned(header, rows), *notes])
