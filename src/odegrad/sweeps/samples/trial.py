"""A look at what the search for the steps of a batch needs."""

from __future__ import annotations

import torch

from odegrad.state import Leaves
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.outputs import Buffers
from odegrad.sweeps.samples.search import March

__all__ = ["trial"]


def trial(run: SampleRun, y: Leaves, p: Leaves) -> None:
    """Makes the first two attempts of the search, which one of the samples sits out.

    Arguments:
        run: The solve, which is left as if the search had begun.
        y: The initial state.
        p: The tensors that f reads, bound.

    Raises:
        SolveError: If the solve fails at once.
    """
    with torch.no_grad():
        y = tuple(x.clone() for x in y)
        outputs, march = Buffers(y, run.outputs_at.shape[1]), March(run, y, p)
        march.sit_out(run.n_samples - 1)
        for _ in range(2):
            if march.goes_on:
                march.attempt(outputs, None)
