"""Peak memory of one gradient in a fresh process: ``python -m benchmarks.resident WORKLOAD SYSTEM``.

The process warms up on hardly any steps, or on the whole workload if the system compiles; gives back
what the allocator holds; reads its resident memory; resets the kernel's mark of the peak; computes one
gradient; and reads the mark. Where the mark cannot be reset, the growth of ``ru_maxrss`` takes its place,
which misses what the warm-up had used before.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Peak", "measure_peak", "reset_peak", "status", "trim"]

RESET_PEAK = "5"  # of /proc/self/clear_refs, see proc(5)


@dataclass(frozen=True)
class Peak:
    """What one gradient needed.

    Arguments:
        nbytes: Growth of the resident memory from before it to its peak.
        method: ``VmHWM`` or ``ru_maxrss``.
    """

    nbytes: int
    method: str


def measure_peak(workload: str, system: str, steps: int | None = None) -> Peak | str:
    """Measures in a fresh process; returns the last line of its errors if it fails.

    Arguments:
        workload: The name of the workload.
        system: The name of the system.
        steps: So many equal steps instead of the workload's own.
    """
    command = [sys.executable, "-m", "benchmarks.resident", workload, system]
    command += [] if steps is None else [str(steps)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Peak(**json.loads(done.stdout.strip().splitlines()[-1]))


def status(key: str) -> int:
    """A size from /proc/self/status, in bytes.

    Raises:
        OSError: If there is no such file or key.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {key}")


def reset_peak() -> None:
    """Makes the kernel's ``VmHWM`` begin anew.

    Raises:
        OSError: If that is not allowed.
    """
    Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")


def trim() -> None:
    """Collects garbage and gives free memory back to the system, where it can be."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _growth(work: Any) -> Peak:
    trim()
    try:
        before = status("VmRSS")
        reset_peak()
        work()
        return Peak(status("VmHWM") - before, "VmHWM")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return Peak(unit * grown, "ru_maxrss")


def _main(workload_name: str, system_name: str, steps: str | None = None) -> None:
    from benchmarks.single import single_thread

    single_thread()
    from benchmarks.scaling import SCALING
    from benchmarks.systems import SYSTEMS
    from odegrad.bench import WORKLOADS
    from odegrad.stepsize import Steps

    workload = WORKLOADS[workload_name]
    if steps is not None:
        workload = dataclasses.replace(workload, stepsize=Steps(int(steps)))
    system = (SYSTEMS | SCALING)[system_name]
    system.prepare(workload.short()).gradient()
    prepared = system.prepare(workload)
    if system.compiles:
        prepared.gradient()
    peak = _growth(prepared.gradient)
    print(json.dumps(dataclasses.asdict(peak)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
