"""How much memory a user allows: bytes, a text such as "256MiB", or a share of what is free."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = ["Share", "budget_bytes", "check_budget", "free_bytes", "size"]

_UNITS = (
    {"": 1}
    | {
        prefix + unit: base ** (i + 1)
        for unit, base in (("B", 1000), ("iB", 1024))
        for i, prefix in enumerate("KMGT")
    }
    | {"B": 1, "kB": 1000}
)


@dataclass(frozen=True)
class Share:
    """A share of the memory that is free, on the state's device, when the solve begins.

    Arguments:
        fraction: Between 0 and 1.

    Raises:
        InvalidTypeError: If it is not a number.
        InvalidValueError: If it is not above 0 and at most 1.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, (int, float)) or isinstance(self.fraction, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(f"Share needs a number, received {self.fraction!r}")
        if not 0.0 < self.fraction <= 1.0:
            raise InvalidValueError(f"Share needs a fraction in (0, 1], received {self.fraction!r}")


def check_budget(memory: object) -> None:
    """Whether `memory` is a budget.

    Raises:
        InvalidTypeError: If it has the wrong type.
        InvalidValueError: If it is not positive, or its unit is unknown.
    """
    if not isinstance(memory, Share):
        _fixed_bytes(memory)


def budget_bytes(memory: int | str | Share, device: torch.device) -> int:
    """The bytes of a budget on a device.

    Example:
        >>> import torch
        >>> budget_bytes("256MiB", torch.device("cpu"))
        268435456
    """
    if isinstance(memory, Share):
        return int(memory.fraction * free_bytes(device))
    return _fixed_bytes(memory)


def _fixed_bytes(memory: object) -> int:
    examples = 'bytes, a text such as "256MiB", or Share(0.5)'
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", memory)
        if match is None or match[2] not in _UNITS:
            raise InvalidValueError(
                f"memory={memory!r} is not a size; write a number and one of "
                f'{", ".join(x for x in _UNITS if x)}, such as "256MiB"'
            )
        value = float(match[1]) * _UNITS[match[2]]
    elif isinstance(memory, int) and not isinstance(memory, bool):
        value = memory
    else:
        raise InvalidTypeError(f"memory must be {examples}, received {memory!r}")
    if value < 1:
        raise InvalidValueError(f"memory must be positive, received {memory!r}")
    return int(value)


def free_bytes(device: torch.device) -> int:
    """The bytes that may still be allocated on a device.

    On the CPU: what the system says is available, or what is left under the limit of the control group
    that the process is in, whichever is less.

    Raises:
        InvalidValueError: If the system does not tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    found = [x for x in (_available(), _left_in_group()) if x is not None]
    if not found:
        raise InvalidValueError(
            "Share: this system does not tell how much memory is free; give memory= in bytes, "
            'such as "256MiB"'
        )
    return max(0, min(found))


def _available() -> int | None:
    """What the system says is available."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024 * int(text.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _left_in_group() -> int | None:
    """What is left under the limit of the control group, page cache that can be dropped included."""
    root = Path("/sys/fs/cgroup")
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").split("0::/")[1].split()
        folder = root / group[0] if group and (root / group[0]).is_dir() else root
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        now = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        dropped = int(dict(line.split() for line in lines).get("inactive_file", 0))
        return None if most == "max" else int(most) - now + dropped
    except (OSError, IndexError, ValueError):
        pass
    try:  # version 1
        folder = root / "memory"
        most = int((folder / "memory.limit_in_bytes").read_text(encoding="ascii"))
        return most - int((folder / "memory.usage_in_bytes").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def size(n: float) -> str:
    """A number of bytes for people.

    Example:
        >>> size(3 * 2**20)
        '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
