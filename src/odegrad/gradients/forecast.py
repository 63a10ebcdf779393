"""The memory that a solve and its gradient will take, from what a rehearsal has measured.

    peak = 2 T D_y + (states) D + (steps on the tape) R + W,

see `odegrad.gradients.rehearsal`. What a rehearsal of a few steps cannot show is added here: what comes
with many labels, with many stretches of graphs, and with someone who watches. These are upper bounds.
"""

from __future__ import annotations

from odegrad.checkpoints import Checkpoints, Keep
from odegrad.gradients.needs import kind_of
from odegrad.gradients.rehearsal import Rehearsal
from odegrad.gradients.samplerehearsal import SampleRehearsal
from odegrad.state import nbytes
from odegrad.storage import DEVICE_ROWS, IN_FLIGHT
from odegrad.sweeps.graphs import STRETCH

__all__ = ["predicted_peak", "working_set"]

_FINGERPRINT_BYTES = 72
"""For a leaf of the state: what the replay check remembers of two states, and compares one with."""

_TIME_BYTES = 24
"""For a landing time, its cotangent, and as much again when these are put together."""


def predicted_peak(rehearsal: Rehearsal, checkpoints: Checkpoints, n: int) -> int:
    """The peak, in bytes, of the solve that was rehearsed, in n steps with a schedule."""
    known = rehearsal.n_steps is not None
    bounds, kind = checkpoints.bounds(n, known), kind_of(checkpoints, n, known)
    states = bounds.device + bounds.held
    if kind.shape == "all" and checkpoints.holds is not None:
        states += 1  # a copy of the one that is stored
    if rehearsal.device.type == "cpu":
        states += bounds.ram + (IN_FLIGHT if bounds.disk else 0)
    elif bounds.ram:
        states += DEVICE_ROWS
    if rehearsal.retained and checkpoints.holds is not None:
        states += bounds.device  # what is stored again takes new room
    rows = -(-bounds.tape // rehearsal.chunk(bounds.keep))
    kept = rehearsal.outputs + states * rehearsal.state + rows * rehearsal.needs(kind).row
    return kept + working_set(rehearsal, checkpoints, n)


def working_set(rehearsal: Rehearsal, checkpoints: Checkpoints, n: int) -> int:
    """What is held besides."""
    run, known = rehearsal.run, rehearsal.n_steps is not None
    bounds, kind = checkpoints.bounds(n, known), kind_of(checkpoints, n, known)
    needs = rehearsal.needs(kind)
    work = needs.beside(-(-bounds.tape // rehearsal.chunk(bounds.keep)))
    if rehearsal.timed or run.programs is not None:
        work += _TIME_BYTES * max(0, len(run.times) - 2)  # two were rehearsed
    if run.programs is None:
        work += _FINGERPRINT_BYTES * run.field.n_state
    if isinstance(rehearsal, SampleRehearsal):
        return rehearsal.beside_steps(work, n)
    reads = run.stops is not None and run.programs is None
    if reads and (bounds.keep is Keep.GRAPH or not run.scheme.pulls_reads):
        # Times that are read: all of them in one step, at worst, and on its graph.
        work += max(0, len(run.times) - 2) * nbytes(rehearsal.y0)
    if bounds.keep is not Keep.GRAPH or run.programs is not None:
        return work
    y, labels = nbytes(rehearsal.y0), min(len(run.times) - 2, -(-bounds.tape // rehearsal.spacing))
    more = (bounds.tape - 1) // rehearsal.stretch * rehearsal.state  # the ends of stretches
    if run.monitor is not None:
        more += bounds.tape * y  # states to be shown
    if rehearsal.is_dense:  # with a label, and its cotangent, in each row: of one stretch at a time
        more -= max(0, bounds.tape - STRETCH) * rehearsal.label_cotangent(Keep.GRAPH)
    else:  # the label at the end was rehearsed
        pulled = min(labels, -(-STRETCH // rehearsal.spacing)) if run.loss is not None else 0
        more += (labels + pulled) * y  # with their cotangents
    if kind.shape == "all" and n > rehearsal.stretch:
        # The sums of the parameter gradient, once the first stretch is gone, if it goes.
        last = (n - 1) % STRETCH + 1 if rehearsal.stretch == STRETCH else 1
        more += max(0, rehearsal.sums - (0 if rehearsal.retained else last * needs.row))
    return work + more
