"""What numbers were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["Machine", "describe_machine"]


@dataclass(frozen=True)
class Machine:
    """A machine and its software, as far as they matter to a measurement.

    Arguments:
        processor: The model of the processor.
        cores: How many cores the machine has.
        usable_cores: On how many of them this process may run.
        threads: How many threads torch uses.
        system: The operating system.
        versions: Of Python and of packages, by name.
    """

    processor: str
    cores: int
    usable_cores: int
    threads: int
    system: str
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        names = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.processor}, {self.cores} cores, {threads} on {self.usable_cores}; "
            f"{self.system}; {names}"
        )


def describe_machine(packages: Sequence[str] = ("torch", "odegrad")) -> Machine:
    """Describes this machine; `packages` that are not installed are left out."""
    cores = os.cpu_count() or 1
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not everywhere
        usable = cores
    return Machine(
        _processor(),
        cores,
        usable,
        torch.get_num_threads(),
        f"{platform.system()} {platform.machine()}",
        {"Python": platform.python_version(), **_versions(packages)},
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
