"""The memory that a solve and its gradient will take, from what a rehearsal has measured.

    peak = 2 T D_y + (states) D + (steps on the tape) R + W,

see `odegrad.gradients.rehearsal`. What a rehearsal of a few steps cannot show is added here: what comes
with many labels, with many stretches of graphs, and with someone who watches. These are upper bounds.
"""

from __future__ import annotations

from odegrad.checkpoints import Checkpoints, Keep, StoreAll
from odegrad.gradients.needs import kind_of
from odegrad.gradients.rehearsal import Rehearsal
from odegrad.state import nbytes
from odegrad.storage import DEVICE_ROWS, IN_FLIGHT
from odegrad.sweeps.graphs import STRETCH

__all__ = ["predicted_peak", "working_set"]


def predicted_peak(rehearsal: Rehearsal, checkpoints: Checkpoints, n: int) -> int:
    """The peak, in bytes, of the solve that was rehearsed, in n steps with a schedule."""
    known, needs = rehearsal.n_steps is not None, rehearsal.needs(kind_of(checkpoints))
    bounds = checkpoints.bounds(n, known)
    states = bounds.device + bounds.held
    if rehearsal.device.type == "cpu":
        states += bounds.ram + (IN_FLIGHT if bounds.disk else 0)
    elif bounds.ram:
        states += DEVICE_ROWS
    if rehearsal.retained and checkpoints.holds is not None:
        states += bounds.device  # what is stored again takes new room
    rows = -(-bounds.tape // rehearsal.chunk(bounds.keep))
    kept = rehearsal.outputs + states * rehearsal.state + rows * needs.row
    return kept + working_set(rehearsal, checkpoints, n)


def working_set(rehearsal: Rehearsal, checkpoints: Checkpoints, n: int) -> int:
    """What is held besides."""
    run, needs = rehearsal.run, rehearsal.needs(kind_of(checkpoints))
    bounds = checkpoints.bounds(n, rehearsal.n_steps is not None)
    if bounds.keep is not Keep.GRAPH or run.programs is not None:
        return needs.work
    y = nbytes(rehearsal.y0)
    more = bounds.tape // STRETCH * y  # the ends of stretches
    if run.monitor is not None:
        more += bounds.tape * y  # states to be shown
    if not rehearsal.is_dense(Keep.GRAPH):
        more += min(len(run.times), bounds.tape) * y  # states at labels
    if run.loss is not None:
        more += min(len(run.times), bounds.tape, STRETCH) * y  # and their cotangents
    if isinstance(checkpoints, StoreAll) and n > STRETCH:
        # The sums of the parameter gradient, once the first stretch is gone.
        last = (n - 1) % STRETCH + 1
        more += max(0, rehearsal.sums - last * needs.row)
    return needs.work + more
