"""Kept graphs: a forward sweep on autograd graphs of its own, and how they are pulled back.

The steps are cut into *stretches*. A stretch runs on one graph, whose leaves are the state and carry at
its start, the tensors that f reads, and the landing times if these are to get cotangents. The backward
sweep pulls it back by one call of `torch.autograd.grad`, which costs much less than a call per step; the
cotangents of outputs inside the stretch join as those of further ends of the graph.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from odegrad.errors import SPENT, GradientUnavailableError
from odegrad.reach import MOST_NODES, check_reachable
from odegrad.state import Leaves, OptionalLeaves, is_half
from odegrad.sweeps.labels import Direct
from odegrad.sweeps.saved import Meter
from odegrad.sweeps.steps import Accepted, State, number

__all__ = ["STRETCH", "Graphs", "Pulled", "Stretch", "in_half", "pull", "stretch_length"]

STRETCH = 32
"""Steps per stretch: longer ones gain nothing more, and each is freed as a whole."""

Watched: TypeAlias = tuple[int, float, float, Leaves]


def stretch_length(nodes: int, half: bool) -> int:
    """Steps per stretch, if the graphs of two have so many nodes.

    A stretch is walked by `check_reachable`, which has to see the whole of it. Inside of it autograd adds
    up gradients in their own precision: only over the stages of a step if that is half precision.
    """
    return 1 if half else max(1, min(STRETCH, 2 * MOST_NODES // max(1, nodes)))


def in_half(tensors: Leaves, autocast: bool) -> bool:
    """Whether autograd adds up gradients of some in half precision; of their copies, under autocast."""
    return autocast or any(map(is_half, tensors))


@dataclass
class Stretch:
    """Consecutive steps on one graph.

    Attributes:
        inputs: The state and carry at its start: leaves. The first stretch begins without a carry.
        first: The last time before its first step, or at it, that steps landed on.
        last: The first time after its last step, or at it, that steps land on.
        outputs: The state and carry at its end.
        landings: The landings inside it or at its end, and the states there.
        evaluations: How many evaluations of f are on the graph.
        steps: How many steps it has.
        watched: n, t, dt and the state before each step, if someone watches.
    """

    inputs: Leaves
    first: int
    last: int = 0
    outputs: Leaves = ()
    landings: list[tuple[int, Leaves]] = field(default_factory=list[tuple[int, Leaves]])
    evaluations: int = 0
    steps: int = 0
    watched: list[Watched] = field(default_factory=list[Watched])


class Graphs:
    """The stretches of a forward sweep.

    Arguments:
        p: The tensors that f reads, as leaves; those that require grad get a cotangent.
        times: The landing times as leaves if they are to get cotangents, else None.
        landed: Which of the times steps land on.
        watched: Whether someone watches the backward sweep, and has to be shown the states.
        autocast: Whether f is evaluated under autocast.
        meter: Measures the graphs; None for one of its own.
    """

    def __init__(
        self,
        p: Leaves,
        times: Leaves | None,
        landed: Sequence[int],
        watched: bool,
        autocast: bool,
        meter: Meter | None = None,
    ) -> None:
        self.p, self.times, self._watched, self._autocast = p, times, watched, autocast
        self._stretches: list[Stretch] = []
        self._landed, self._stop = landed, 0  # where steps land; where they have landed last
        self._meter, self._n_steps = meter or Meter(p), 0
        self._whole = True

    @property
    def nbytes(self) -> int:
        """The bytes held for the backward sweep, as `odegrad.sweeps.saved.Meter` counts them."""
        return self._meter.nbytes(self._n_steps)

    def open(self, state: Leaves, first: int = 0) -> Leaves:
        """Begins a stretch at `state`, which it returns as leaves."""
        leaves = tuple(x.detach().requires_grad_() for x in state)
        self._stretches.append(Stretch(leaves, first))
        self._stop = first
        return leaves

    def count(self, evaluations: int) -> None:
        """Notes evaluations of f on the graph of the current stretch."""
        self._stretches[-1].evaluations += evaluations

    def put(self, accepted: Accepted, inside: Sequence[tuple[int, Leaves]]) -> State:
        """Takes in a step of the current stretch; returns the state and carry to go on from.

        Arguments:
            accepted: The step.
            inside: The states that were read inside it, with the numbers of their times.
        """
        stretch, step = self._stretches[-1], accepted.step
        if self._watched:
            t, dt, y = number(accepted.t), number(accepted.dt), accepted.y
            stretch.watched.append((accepted.n, t, dt, tuple(x.detach() for x in y)))
        stretch.steps += 1
        stretch.evaluations += accepted.evaluations
        stretch.outputs = (*step.y, *step.carry)
        stretch.landings += inside
        if accepted.landing is not None:
            stretch.landings.append((accepted.landing, step.y))
            self._stop = stretch.last = accepted.landing
        else:
            stretch.last = self._landed[bisect_right(self._landed, self._stop)]
        self._n_steps += 1
        self._meter.measure(stretch.outputs)
        half = in_half((*step.y, *self.p), self._autocast)
        if stretch.steps < stretch_length(self._meter.nodes, half):
            return step.y, step.carry
        leaves = self.open(stretch.outputs, self._stop)
        return leaves[: len(step.y)], leaves[len(step.y) :]

    def backwards(self, retain: bool) -> Iterator[Stretch]:
        """The stretches from the last to the first, let go one by one unless retained.

        Raises:
            GradientUnavailableError: If some are gone, since an earlier pass was interrupted.
        """
        if not self._whole:
            raise GradientUnavailableError(SPENT)
        if retain:
            yield from reversed(self._stretches)
            return
        self._whole = False
        while self._stretches:
            yield self._stretches.pop()


class Pulled(NamedTuple):
    """The cotangents of a stretch's inputs.

    Attributes:
        state: Of the state and carry at its start.
        times: Of the landing times, by number.
        p: Of the tensors that f reads.
    """

    state: OptionalLeaves
    times: dict[int, Tensor | None]
    p: OptionalLeaves


def pull(
    graphs: Graphs, stretch: Stretch, grad: OptionalLeaves, labels: Direct, retain: bool
) -> Pulled:
    """Transposes the steps of a stretch.

    Arguments:
        graphs: The graphs that it belongs to.
        stretch: The stretch.
        grad: The cotangents of its outputs, as many as there are; None is zero.
        labels: The cotangents that reach the states at landing times directly.
        retain: Whether the graph will be pulled back again.

    Raises:
        UnreachableTensorError: If f used a tensor that requires grad and is none of its inputs.
    """
    wanted = [i for i, x in enumerate(graphs.p) if x.requires_grad]
    touched = range(0)
    if graphs.times is not None:
        touched = range(stretch.first, stretch.last + 1)
    times = [] if graphs.times is None else [graphs.times[j] for j in touched]
    inputs = [*stretch.inputs, *times, *(graphs.p[i] for i in wanted)]
    found = _pull(stretch, inputs, grad, labels, retain)
    n, m = len(stretch.inputs), len(stretch.inputs) + len(times)
    grad_p: list[Tensor | None] = [None] * len(graphs.p)
    for i, g in zip(wanted, found[m:], strict=True):
        grad_p[i] = g
    return Pulled(found[:n], dict(zip(touched, found[n:m], strict=True)), tuple(grad_p))


def _pull(
    stretch: Stretch,
    inputs: list[Tensor],
    grad: OptionalLeaves,
    labels: Direct,
    retain: bool,
) -> OptionalLeaves:
    """The cotangents of `inputs` for those of the end of the stretch and of the outputs inside it."""
    pairs = list(zip(stretch.outputs, grad, strict=False))
    for j, y in reversed(stretch.landings):
        pairs += list(zip(y, labels.at(j, y), strict=True))
    pairs = [(x, g) for x, g in pairs if g is not None and x.requires_grad]
    check_reachable([*stretch.outputs, *(x for x, _ in pairs)], inputs)
    if not pairs:
        return (None,) * len(inputs)
    return torch.autograd.grad(
        [x for x, _ in pairs],
        inputs,
        [g for _, g in pairs],
        retain_graph=retain,
        allow_unused=True,
    )
