"""One gradient of many steps in a fresh process: ``python -m benchmarks.memory.process '{…}'``.

The process imports torch, makes the network, reads its resident memory, and only then imports odegrad:
what that brings, and all that torch itself loads later, counts. It warms up with a shorter solve, reads
its resident memory again, resets the kernel's mark of the peak, computes the gradient and reads the mark.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.resident import reset_peak, status, trim

__all__ = ["Grown", "Job", "in_fresh_process"]


@dataclass(frozen=True)
class Job:
    """What to solve.

    Arguments:
        scheme: The name of the scheme.
        steps: The number of steps.
        memory: The budget.
        compiled: Whether to compile the solve.
        warm_up: The steps of the solve to warm up with.
    """

    scheme: str
    steps: int
    memory: str
    compiled: bool
    warm_up: int


@dataclass(frozen=True)
class Grown:
    """What it took.

    Arguments:
        bare: Resident memory with torch and the network alone.
        imported: The same after odegrad was imported.
        warm: The same after the solve to warm up.
        warm_up_peak: The peak until then.
        peak: The peak while the gradient was computed.
        seconds: How long that took.
        recompute_factor: Steps taken over steps.
        kept: The bytes that the schedule kept at most.
        schedule: The schedule.
        finite: Whether the gradient is.
    """

    bare: int
    imported: int
    warm: int
    warm_up_peak: int
    peak: int
    seconds: float
    recompute_factor: float
    kept: int
    schedule: str
    finite: bool

    @property
    def over_bare(self) -> int:
        """Growth over the process that has only imported torch."""
        return max(self.warm_up_peak, self.peak) - self.bare

    @property
    def over_warm(self) -> int:
        """Growth over the process that has computed a short gradient."""
        return self.peak - self.warm


def in_fresh_process(job: Job) -> Grown | str:
    """Measures; returns the last line of its errors if it fails."""
    command = [sys.executable, "-m", "benchmarks.memory.process", json.dumps(asdict(job))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Grown(**json.loads(done.stdout.strip().splitlines()[-1]))


def _main(text: str) -> None:
    job = Job(**json.loads(text))
    from benchmarks.single import single_thread

    single_thread()
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2))
    y0 = torch.randn(20, 2, requires_grad=True)
    trim()
    reset_peak()
    bare = status("VmRSS")
    import odegrad

    imported = status("VmRSS")
    options: dict[str, Any] = {
        "scheme": getattr(odegrad, job.scheme)(),
        "gradient": odegrad.Discrete(memory=job.memory),
        "compile": job.compiled,
    }

    def f(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        del t
        return net(y)

    def gradient(n: int) -> odegrad.Solution:
        sol: Any = odegrad.solve(f, y0, [0.0, 10.0], stepsize=odegrad.Steps(n), **options)
        sol.ys[-1].square().sum().backward()
        return sol

    gradient(job.warm_up)
    warm_up_peak = status("VmHWM")
    trim()
    warm = status("VmRSS")
    reset_peak()
    start = time.perf_counter()
    sol = gradient(job.steps)
    seconds = time.perf_counter() - start
    peak = status("VmHWM")
    steps = odegrad.Steps(job.steps)
    plan = odegrad.plan(f, y0, [0.0, 10.0], stepsize=steps, show=False, **options)
    grown = Grown(
        bare,
        imported,
        warm,
        warm_up_peak,
        peak,
        seconds,
        1.0 + sol.stats.recomputed / job.steps,
        sol.stats.kept_bytes,
        f"{plan.checkpoints}",
        all(bool(x.grad.isfinite().all()) for x in (y0, *net.parameters()) if x.grad is not None),
    )
    print(json.dumps(asdict(grown)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
