"""What happens at the landing times: states are put out, or a loss is evaluated there and then.

With a streamed loss L = Σ_j ℓ_j(y(T_j)) no state is put out, and memory does not grow with the number of
labels. The backward sweep evaluates each ℓ_j again, at the state it has reached, for ∂ℓ_j/∂y, which joins
the costate, and ∂ℓ_j/∂p, which joins the parameter gradient.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from odegrad.errors import SolveError
from odegrad.labelloss import LabelLoss
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.cotangents import Total
from odegrad.sweeps.run import Run

__all__ = ["Direct", "Sink", "direct", "salvaging", "sink"]


class Sink(Protocol):
    """Takes in the state at each landing time, in order."""

    def put(self, j: int, y: Leaves) -> None:
        """Takes in the state at landing j."""
        ...

    def put_all(self, numbers: Sequence[int], ys: Leaves) -> None:
        """Takes in the states at several landings, one row each."""
        for r, j in enumerate(numbers):
            self.put(j, tuple(x[r] for x in ys))

    def result(self) -> Leaves:
        """The outputs of the solve."""
        ...

    def salvaged(self, like: Leaves) -> Leaves:
        """The outputs of a solve that failed, NaN from there on; `like` is its initial state."""
        ...


@contextmanager
def salvaging(run: Run, outputs: Sink, y: Leaves) -> Generator[None]:
    """Keeps what was put out if the solve fails meanwhile, and that is wanted; y is its initial state."""
    try:
        yield
    except SolveError:
        if run.salvage:
            run.salvaged = outputs.salvaged(y)
        raise


def sink(run: Run, y: Leaves, p: Leaves, on_graph: bool) -> Sink:
    """What takes in the states of a solve.

    Arguments:
        run: The solve.
        y: Its initial state.
        p: The tensors that f and the loss read.
        on_graph: Whether the outputs have to be on the autograd graph.
    """
    if run.loss is not None:
        return _Losses(run.loss, run, p, on_graph)
    return _Stacked(len(run.times)) if on_graph else _Buffers(y, len(run.times))


class _Buffers(Sink):
    """States, written into one buffer per leaf."""

    def __init__(self, y: Leaves, count: int) -> None:
        self._buffers = tuple(leaf.new_empty((count, *leaf.shape)) for leaf in y)
        self._filled = 0

    def put(self, j: int, y: Leaves) -> None:
        self._filled = j + 1
        for buffer, leaf in zip(self._buffers, y, strict=True):
            buffer[j].copy_(leaf.detach())

    def put_all(self, numbers: Sequence[int], ys: Leaves) -> None:
        self._filled = numbers[-1] + 1
        for buffer, rows in zip(self._buffers, ys, strict=True):
            index = torch.tensor(numbers, device=buffer.device)
            buffer.index_copy_(0, index, rows)

    def result(self) -> Leaves:
        return self._buffers

    def salvaged(self, like: Leaves) -> Leaves:
        del like
        for buffer in self._buffers:
            buffer[self._filled :] = float("nan")
        return self._buffers


class _Stacked(Sink):
    """States, stacked on the graph."""

    def __init__(self, count: int) -> None:
        self._list: list[Leaves] = []
        self._count = count

    def put(self, j: int, y: Leaves) -> None:
        assert j == len(self._list)
        self._list.append(y)

    def result(self) -> Leaves:
        return tuple(torch.stack(leaf) for leaf in zip(*self._list, strict=True))

    def salvaged(self, like: Leaves) -> Leaves:
        missing = tuple(torch.full_like(x, float("nan")) for x in like)
        self._list += [missing] * (self._count - len(self._list))
        return self.result()


class _Losses(Sink):
    """The sum of the losses at all landing times, then the quadratures at the last one."""

    def __init__(self, loss: LabelLoss, run: Run, p: Leaves, on_graph: bool) -> None:
        self._loss, self._run, self._p, self._on_graph = loss, run, p, on_graph
        self._total: Tensor | None = None
        self._quadratures: Leaves = ()

    def put(self, j: int, y: Leaves) -> None:
        if not self._on_graph:
            y = tuple(x.detach() for x in y)
        label = self._run.label(j)
        if label is not None:
            with torch.set_grad_enabled(self._on_graph):
                value = self._loss(label, y, self._p)
                self._total = value if self._total is None else self._total + value
        if j == len(self._run.times) - 1:
            self._quadratures = y[self._run.field.n_state :]

    def result(self) -> Leaves:
        assert self._total is not None
        # Copies: an output of a node is neither an input of it nor a view of one.
        return (self._total.clone(), *(x.clone() for x in self._quadratures))

    def salvaged(self, like: Leaves) -> Leaves:
        n, dtype = self._run.field.n_state, self._run.field.time_dtype
        nan = torch.full((), float("nan"), dtype=dtype, device=like[0].device)
        return (nan, *(torch.full_like(x, float("nan")) for x in like[n:]))


class Direct(Protocol):
    """The cotangents that reach the states at landing times directly, not through later steps."""

    needs_states: bool

    def at(self, j: int, y: Leaves) -> OptionalLeaves:
        """That of the state at landing j; y is this state (looked at if `needs_states`)."""
        ...


def direct(run: Run, p: Leaves, grads: OptionalLeaves, total: Total) -> Direct:
    """The direct cotangents, given those of the outputs.

    Arguments:
        run: The solve.
        p: The tensors that f and the loss read; those that require grad get a cotangent.
        grads: The cotangents of what `Sink.result` gave.
        total: Where the cotangents of p are gathered.
    """
    if run.loss is not None:
        return _OfLosses(run.loss, run, p, grads, total)
    return _OfStates(grads)


class _OfStates:
    needs_states = False

    def __init__(self, grads: OptionalLeaves) -> None:
        self._grads = grads

    def at(self, j: int, y: Leaves) -> OptionalLeaves:
        del y
        return tuple(None if g is None else g[j] for g in self._grads)


class _OfLosses:
    needs_states = True

    def __init__(
        self, loss: LabelLoss, run: Run, p: Leaves, grads: OptionalLeaves, total: Total
    ) -> None:
        self._loss, self._run, self._p, self._total = loss, run, p, total
        self._grad, self._quadratures = grads[0], grads[1:]

    def at(self, j: int, y: Leaves) -> OptionalLeaves:
        found: OptionalLeaves = (None,) * self._run.field.n_state
        label = self._run.label(j)
        if self._grad is not None and label is not None:
            found, grad_p = self._loss.vjp(label, y, self._p, self._grad)
            self._total.add(grad_p)
        last = j == len(self._run.times) - 1
        return (*found, *(g if last else None for g in self._quadratures))
