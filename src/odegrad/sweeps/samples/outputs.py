"""The states at the times of the samples of a batch, which reach them in different rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.samplegrid import SampleGrid
from odegrad.samplestops import SampleStops
from odegrad.state import Leaves

__all__ = ["Buffers", "inject", "picked"]


class Buffers:
    """States at the times of samples, leaves of shape [T, B, …], NaN where none was put.

    Arguments:
        y: The initial state, which is that at the first time of all samples.
        count: T.
    """

    def __init__(self, y: Leaves, count: int) -> None:
        self._buffers = tuple(x.new_full((count, *x.shape), float("nan")) for x in y)
        for buffer, x in zip(self._buffers, y, strict=True):
            buffer[0] = x.detach()

    def put(self, j: Tensor, b: Tensor, y: Leaves) -> None:
        """Takes in the states of the samples b, which are at their times j; int64 on the CPU."""
        device = y[0].device
        j, b = j.to(device), b.to(device)
        for buffer, leaf in zip(self._buffers, y, strict=True):
            buffer[j, b] = leaf.detach()[b]

    def put_rows(self, r: Tensor, j: Tensor, b: Tensor, rows: Leaves, end: Leaves) -> None:
        """Takes in the states of the samples b at their landings j, after rows r of a chunk of steps.

        Arguments:
            r: The rows, int64 on the CPU, as j and b.
            j: The landings.
            b: The samples.
            rows: The states before the steps.
            end: That after the last.
        """
        last = r + 1 == len(rows[0])
        for at, following in ((~last, r + 1), (last, None)):
            if not bool(at.any()):
                continue
            device = end[0].device
            j_, b_ = j[at].to(device), b[at].to(device)
            for buffer, x, y in zip(self._buffers, rows, end, strict=False):
                buffer[j_, b_] = y[b_] if following is None else x[following[at].to(device), b_]

    def put_each(self, j: Tensor, b: Tensor, states: Leaves) -> None:
        """Takes in states of the samples b at their times j, leaves of shape [R, …]."""
        for buffer, x in zip(self._buffers, states, strict=True):
            buffer[j.to(x.device), b.to(x.device)] = x

    def result(self) -> Leaves:
        """The outputs."""
        return self._buffers


def picked(
    states: list[Leaves],
    inside: Sequence[tuple[tuple[Tensor, Tensor], Leaves]],
    grid: SampleGrid,
    stops: SampleStops | None,
) -> Leaves:
    """The outputs on the autograd graph.

    Arguments:
        states: Those after 0, 1, … rounds.
        inside: States of samples b at their times j inside of rounds, with (j, b).
        grid: The steps.
        stops: Which times the steps end at; None: all.
    """
    number = grid.ends
    if stops is not None:
        number = number.new_zeros((stops.count, grid.n_samples))
        s, b = grid.ends.nonzero(as_tuple=True)
        j, own = stops.source[b, s], stops.source[b, s] < stops.count
        number[j[own], b[own]] = grid.ends[s, b][own]
    for i, ((j, b), _) in enumerate(inside):
        number[j, b] = len(states) + i
    device = states[0][0].device
    place = (number.to(device), torch.arange(grid.n_samples, device=device))
    every = [*states, *(y for _, y in inside)]
    return tuple(torch.stack(leaf)[place] for leaf in zip(*every, strict=True))


def inject(
    grad_y: Leaves, grads: tuple[Tensor | None, ...], at: tuple[Tensor, Tensor] | None
) -> Leaves:
    """`grad_y` with the cotangents of the outputs of the samples b at their times j, if any."""
    if at is None:
        return grad_y
    device = grad_y[0].device
    j, b = (x.to(device) for x in at)
    return tuple(
        a if g is None else a.index_add(0, b, g[j, b].to(a.dtype))
        for a, g in zip(grad_y, grads, strict=True)
    )
