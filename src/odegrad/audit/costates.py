"""How the costate grows backwards, and whether the solve can be retraced.

Two numbers decide what the traditional adjoint is worth on a solve: the growth max ‖a(t)‖ / ‖a(T)‖ of the
costate, which amplifies its errors, and the error ‖ỹ0 − y0‖ / ‖y0‖ of the initial state that solving
backwards from y(T) by the same scheme and steps arrives at.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from odegrad.audit.check import Check, Status
from odegrad.audit.subject import Subject
from odegrad.audit.vectors import norm
from odegrad.checkpoints import StoreAll
from odegrad.errors import OdegradError
from odegrad.gradients import Discrete
from odegrad.gradients.continuous import mirrored
from odegrad.grid import Grid, Segment
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps import forward

__all__ = ["costates"]

_LOST = 1e-2
"""A relative error of the reconstructed initial state from which on it is flagged."""


class _Norms:
    """A witness that keeps norms."""

    def __init__(self, n_state: int) -> None:
        self._n = n_state
        self.costate: dict[int, float] = {}
        self.shares: dict[int, float] = {}

    def step(self, n: int, grad_y: Leaves, grad_p: OptionalLeaves) -> None:
        """Takes note of step n."""
        self.costate[n] = norm(grad_y[: self._n])
        self.shares[n] = norm(tuple(g for g in grad_p if g is not None))


def costates(subject: Subject) -> Check:
    """Follows the costate, and solves backwards."""
    norms = _Norms(subject.n_state)
    subject.pull(Discrete(StoreAll()), witness=norms)
    times = subject.grid.times(subject.times)
    end = norm(tuple(x[-1] for x in subject.first.cotangents[: subject.n_state]))
    size = [norms.costate[n] for n in range(subject.n_steps)] + [end]
    # Where the loss does not look at the end, the costate begins at the last time it looks at.
    begin = next((n for n in reversed(range(len(size))) if size[n] > 0), None)
    numbers = {
        "times": times,
        "costate": size,
        "shares": [norms.shares[n] for n in range(subject.n_steps)],
    }
    texts: list[str] = []
    if begin is not None:
        largest = max(range(len(size)), key=lambda n: size[n])
        growth, span = size[largest] / size[begin], abs(times[begin] - times[largest])
        numbers |= {"growth": growth}
        text = f"going back, the costate grows at most {growth:.3g} times"
        if growth > 1 and span > 0:
            rate = math.log(growth) / span
            numbers |= {"rate": rate}
            text += f", by e in a time of {1 / rate:.3g}"
        texts.append(text)
    status: Status = "information"
    error = _reconstruction(subject)
    if isinstance(error, str):
        status = "flagged"
        texts.append(f"Backsolve cannot reconstruct y0: {error}")
    else:
        numbers |= {"reconstruction": error}
        if not error <= _LOST:
            status = "flagged"
            texts.append(
                f"Backsolve cannot reconstruct y0: solving backwards from y(T) misses it by {error:.0e}"
            )
        else:
            texts.append(f"solving backwards from y(T) comes back to y0 up to {error:.0e}")
    return Check("costate", status, "; ".join(texts), numbers)


def _reconstruction(subject: Subject) -> float | str:
    """‖ỹ0 − y0‖ / ‖y0‖, or why there is none."""
    run = subject.run(subject.grid)
    segments: list[Segment] = []
    for j in reversed(range(1, len(subject.times))):
        back = mirrored(subject.grid, j)
        assert isinstance(back, Grid)
        segments += back.segments
    run = dataclasses.replace(run, stepsize=Grid(tuple(segments)), times=subject.times[::-1])
    end = tuple(x[-1] for x in subject.first.outputs)
    try:
        with torch.no_grad():
            found = run.field.bound(subject.p, lambda: forward(run, end, subject.p, run.times)[0])
    except OdegradError as error:
        return f"the solve backwards fails ({error})"
    n = subject.n_state
    miss = tuple(x[-1] - y for x, y in zip(found[:n], subject.y[:n], strict=True))
    error, size = norm(miss), norm(subject.y[:n])
    return error / size if size else error
