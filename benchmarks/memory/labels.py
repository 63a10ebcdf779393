"""A hundred thousand labels in the memory of ten: ``loss_at`` with a target for each label.

One Euler step per label, and a target that is computed from the label's number, so that neither states
nor targets exist at all labels at once. Every row is a process of its own, which measures as
`benchmarks.memory.process` does: ``python -m benchmarks.memory.labels '{…}'``; then, with `FEW` labels at
most, the peak of what torch allocates, by its profiler, whose events of more labels take gigabytes.
Bounds:

    with a budget: growth over torch alone ≤ 64 MiB,    torch's peak ≤ the budget.

Without a budget a state is kept for each step, and what that takes is written beside it. In both cases
Python keeps the landing times and the grid.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory.parts import MIB, Check, Effort, Record, Say, mib
from benchmarks.resident import reset_peak, status, trim
from benchmarks.tables import aligned, number

__all__ = ["Found", "Job", "in_fresh_process", "measure", "table"]

MEMORY, MOST = "4MiB", 64 * MIB
LABELS, QUICK_LABELS = (10, 10**5), (10, 300)
BATCH, FEW = 250, 200


@dataclass(frozen=True)
class Job:
    """What to solve.

    Arguments:
        labels: The number of labels, and of steps.
        memory: The budget, or None to keep a state for each step.
    """

    labels: int
    memory: str | None


@dataclass(frozen=True)
class Found:
    """What it took.

    Arguments:
        bare: Resident memory with torch and the network alone.
        warm: The same after the gradient of a solve with ten labels.
        warm_up_peak: The peak until then.
        peak: The peak while the gradient was computed.
        torch_peak: The most that torch had allocated at once, with `FEW` labels at most.
        kept: The bytes that the schedule kept at most.
        state: The bytes of a state.
        seconds: How long the gradient took.
        finite: Whether it is.
    """

    bare: int
    warm: int
    warm_up_peak: int
    peak: int
    torch_peak: int
    kept: int
    state: int
    seconds: float
    finite: bool

    @property
    def over_bare(self) -> int:
        """Growth over the process that has only imported torch."""
        return max(self.warm_up_peak, self.peak) - self.bare

    @property
    def over_warm(self) -> int:
        """Growth over the process that has computed the gradient with ten labels."""
        return self.peak - self.warm


def in_fresh_process(job: Job) -> Found | str:
    """Measures; returns the last line of its errors if it fails."""
    command = [sys.executable, "-m", "benchmarks.memory.labels", json.dumps(asdict(job))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Found(**json.loads(done.stdout.strip().splitlines()[-1]))


def measure(effort: Effort, say: Say) -> Record:
    """Measures in a process each."""
    rows: list[Record] = []
    missing: dict[str, str] = {}
    checks: list[Check] = []
    counts = QUICK_LABELS if effort.quick else LABELS
    for job in [Job(n, memory) for memory in (MEMORY, None) for n in counts]:
        name = f"{job.labels} labels, {job.memory or 'a state per step'}"
        say(f"labels: {name}")
        found = in_fresh_process(job)
        if not isinstance(found, Found):
            missing[name] = found
            continue
        outputs = 2 * (job.labels + 1) * found.state
        grown = {"over_bare": found.over_bare, "over_warm": found.over_warm, "outputs": outputs}
        rows.append({"name": name, **asdict(job), **asdict(found), **grown})
        if job.memory is not None:
            over, budget = found.over_bare / MIB, float(MEMORY.removesuffix("MiB"))
            checks.append(Check(f"{name}: growth over torch alone, MiB", over, MOST / MIB))
            checks.append(Check(f"{name}: torch's peak, MiB", found.torch_peak / MIB, budget))
    return {
        "workload": f"MLP 2-50-50-2 tanh, batch {BATCH}, float32, an Euler step per label",
        "few": FEW,
        "rows": rows,
        "missing": missing,
        "checks": [check.as_record() for check in checks],
    }


def table(record: Record) -> str:
    """Resident memory, torch's peak, and what the outputs would take."""
    rows = [
        [
            x["name"],
            number(x["seconds"]),
            mib(x["outputs"]),
            mib(x["kept"]),
            mib(x["torch_peak"]),
            mib(x["over_warm"]),
            mib(x["over_bare"]),
        ]
        for x in record["rows"]
    ]
    header = ["MiB", "seconds", "ys and cotangents", "kept", "torch's peak"]
    header += ["peak − warm", "peak − torch"]
    notes = [f"  {name}: {why}" for name, why in record["missing"].items()]
    title = f"{record['workload']}; torch's peak with {record['few']} labels at most"
    return "\n".join([title, "", aligned(header, rows), *notes])


def _main(text: str) -> None:
    job = Job(**json.loads(text))
    from benchmarks.single import single_thread

    single_thread()
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2))
    y0 = torch.randn(BATCH, 2, requires_grad=True)
    trim()
    reset_peak()
    bare = status("VmRSS")
    import odegrad
    from benchmarks.memory.profiled import profiled_peak

    def loss_at(j: int, y: torch.Tensor) -> torch.Tensor:
        return (y - torch.full_like(y, (j % 100) / 100)).square().mean()

    def gradient(n: int) -> odegrad.Solution:
        times = torch.linspace(0.0, 10.0, n + 1, dtype=torch.float64)
        options: Any = {"scheme": odegrad.Euler(), "stepsize": odegrad.Steps(1)}
        mode = odegrad.Discrete(memory=job.memory)
        sol = odegrad.solve(
            lambda t, y: net(y), y0, times, loss_at=loss_at, gradient=mode, **options
        )
        assert sol.loss is not None
        sol.loss.backward()
        return sol

    gradient(10)
    warm_up_peak = status("VmHWM")
    trim()
    warm = status("VmRSS")
    reset_peak()
    start = time.perf_counter()
    kept = gradient(job.labels).stats.kept_bytes
    seconds, peak = time.perf_counter() - start, status("VmHWM")
    few = min(job.labels, FEW)
    gradient(few)  # rehearses, if it has to
    torch_peak = profiled_peak(lambda: gradient(few))
    found = [x.grad for x in (y0, *net.parameters())]
    finite = all(g is not None and bool(g.isfinite().all()) for g in found)
    sizes = (bare, warm, warm_up_peak, peak, torch_peak, kept, y0.nbytes)
    print(json.dumps(asdict(Found(*sizes, seconds, finite))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
