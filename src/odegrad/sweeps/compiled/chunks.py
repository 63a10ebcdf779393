"""What the two compiled sweeps share: tensors as programs expect them, and a chunk of known steps."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor

from odegrad.compiled import Programs, Pullback, device_of
from odegrad.state import Leaves
from odegrad.sweeps.run import Run

__all__ = ["number", "padded", "plain", "rows_like", "take_steps", "watched", "zeros"]


@contextmanager
def watched(run: Run, programs: Programs, phase: Literal["forward", "backward"]) -> Generator[None]:
    """Shows a sweep to the monitor, and what is compiled for it."""
    if run.monitor is not None:
        run.monitor.start(phase)
        programs.announce = run.monitor.compiling
    try:
        with torch.no_grad():
            yield
    finally:
        programs.announce = nullcontext
        run.count()
        if run.monitor is not None:
            run.monitor.stop()


def plain(leaves: Leaves) -> Leaves:
    """The same values contiguous and off any graph."""
    return tuple(x.detach().resolve_conj().resolve_neg().contiguous() for x in leaves)


def zeros(x: Tensor, *rows: int) -> Tensor:
    """Zeros shaped like x, or like rows of them."""
    return torch.zeros((*rows, *x.shape), dtype=x.dtype, device=x.device)


def number(x: float, device: torch.device) -> Tensor:
    """A number of the time stepping: float64, int64 or bool."""
    dtype = torch.float64 if isinstance(x, float) else None
    return torch.tensor(x, dtype=dtype, device=device)


def padded(x: Tensor, size: int, device: torch.device) -> Tensor:
    """x with zeros behind it."""
    if len(x) < size:
        x = torch.cat([x, x.new_zeros((size - len(x), *x.shape[1:]))])
    return x.to(device, non_blocking=True)


def rows_like(leaves: Sequence[Tensor], size: int) -> Leaves:
    """Buffers with a row for each of so many steps."""
    return tuple(torch.empty((size, *x.shape), dtype=x.dtype, device=device_of(x)) for x in leaves)


class Known(Protocol):
    """Known steps."""

    def step(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(t_n, h_n) for start ≤ n < stop."""
        ...


def take_steps(
    run: Run,
    programs: Programs,
    pull: Pullback | None,
    ticks: Known,
    start: int,
    n: int,
    state: Leaves,
    rows: Leaves,
    p: Leaves,
    inside: Leaves = (),
) -> Leaves:
    """Takes n steps of a known grid; their states (and what `pull` keeps) are in the rows.

    What states inside of the steps are read from is in the rows of `inside`, if it is given.

    Returns:
        State and carry after them.
    """
    size, device = len(rows[0]), programs.device
    t, dt = (padded(x, size, device) for x in ticks.step(start, start + n))
    zero, count = number(0, device), number(n, device)
    read = bool(inside)
    loop = programs.march(pull, read)
    found = loop(zero, *state, t, dt, *rows, *inside, count, *p, count=n)
    run.field.evaluations += n * programs.step_evaluations(read)
    return tuple(found[1:])
