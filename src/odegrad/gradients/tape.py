"""Plain autograd through the accepted steps: the oracle of all other modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.gradients.base import Gradient, forward_transform, landing_times
from odegrad.state import Leaves
from odegrad.sweeps import Run, forward

__all__ = ["Tape"]


@dataclass(frozen=True)
class Tape(Gradient):
    """Backpropagation through the solver: exact, with memory for the graph of every evaluation.

    The step-size controller and rejected attempts carry no derivative, as everywhere in odegrad.
    """

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves on the autograd graph."""
        timed = ts.requires_grad or forward_transform() is not None
        landings = landing_times(ts) if timed else run.times
        with torch.enable_grad():
            return run.field.bound(p, lambda: forward(run, y0, p, landings)[0])
