"""How the outputs of the audited solve change along a direction, by torch's forward mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from odegrad.audit.subject import Subject
from odegrad.grid import Clock
from odegrad.state import Leaves
from odegrad.sweeps import Run
from odegrad.sweeps.forward import replay
from odegrad.sweeps.tangent import tangent

__all__ = ["carried"]


def carried(subject: Subject, active: Sequence[int], directions: Leaves) -> Leaves:
    """The tangents of the outputs along the accepted grid.

    Arguments:
        subject: The solve.
        active: Which of its inputs change.
        directions: How they change, one tensor per active input.
    """
    try:
        return tangent(_begun(subject), subject.inputs, subject.n_y, active, directions)[1]
    except (RuntimeError, NotImplementedError):
        # The transform refuses modules that change buffers; dual numbers do not.
        return _dual(subject, active, directions)


def _begun(subject: Subject) -> Run:
    run = subject.run(subject.grid)
    run.grid, run.initial = subject.grid, subject.first.run.initial
    return run


def _dual(subject: Subject, active: Sequence[int], directions: Leaves) -> Leaves:
    """The same by dual numbers, without a transform."""
    run, n_y = _begun(subject), subject.n_y
    with torch.no_grad(), forward_ad.dual_level():
        given = list(subject.inputs)
        for i, v in zip(active, directions, strict=True):
            given[i] = forward_ad.make_dual(given[i], v)
        y0, p = tuple(given[:n_y]), tuple(given[n_y:-1])
        times = given[-1] if len(given) - 1 in active else run.times
        clock = Clock(subject.grid, times)
        found = run.field.bound(p, lambda: replay(run, clock, y0, p, times[0]))
        tangents = [forward_ad.unpack_dual(x).tangent for x in found]
        return tuple(
            torch.zeros_like(x) if v is None else v.clone()  # pyright: ignore[reportUnnecessaryComparison]
            for x, v in zip(found, tangents, strict=True)
        )
