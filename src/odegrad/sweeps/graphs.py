"""Kept graphs: a forward sweep on autograd graphs of its own, and how they are pulled back.

The steps are cut into *stretches*. A stretch runs on one graph, whose leaves are the state and carry at
its start, the tensors that f reads, and the landing times if these are to get cotangents. The backward
sweep pulls it back by one call of `torch.autograd.grad`, which costs much less than a call per step; the
cotangents of outputs inside the stretch join as those of further ends of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from odegrad.errors import GradientUnavailableError
from odegrad.reach import MOST_NODES, check_reachable
from odegrad.state import Leaves, OptionalLeaves
from odegrad.sweeps.cotangents import Cotangents, Total
from odegrad.sweeps.run import Run
from odegrad.sweeps.saved import Meter
from odegrad.sweeps.steps import Accepted, State, number

__all__ = ["Graphs", "pull"]

_LENGTH = 32
"""Steps per stretch: longer ones gain nothing more, and each is freed as a whole."""

Watched: TypeAlias = tuple[int, float, float, Leaves]


@dataclass
class Stretch:
    """Consecutive steps on one graph.

    Attributes:
        inputs: The state and carry at its start: leaves. The first stretch begins without a carry.
        first: The last landing before its first step, or at it.
        outputs: The state and carry at its end.
        landings: The landings inside it or at its end, and the states there.
        evaluations: How many evaluations of f are on the graph.
        steps: How many steps it has.
        watched: n, t, dt and the state before each step, if someone watches.
    """

    inputs: Leaves
    first: int
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
        watched: Whether someone watches the backward sweep, and has to be shown the states.
    """

    def __init__(self, p: Leaves, times: Leaves | None, watched: bool) -> None:
        self.p, self.times, self._watched = p, times, watched
        self._stretches: list[Stretch] = []
        self._meter, self._n_steps = Meter(p), 0
        self._whole = True

    @property
    def nbytes(self) -> int:
        """The bytes held for the backward sweep, as `odegrad.sweeps.saved.Meter` counts them."""
        return self._meter.nbytes(self._n_steps)

    def open(self, state: Leaves, first: int = 0) -> Leaves:
        """Begins a stretch at `state`, which it returns as leaves."""
        leaves = tuple(x.detach().requires_grad_() for x in state)
        self._stretches.append(Stretch(leaves, first))
        return leaves

    def count(self, evaluations: int) -> None:
        """Notes evaluations of f on the graph of the current stretch."""
        self._stretches[-1].evaluations += evaluations

    def put(self, accepted: Accepted) -> State:
        """Takes in a step of the current stretch; returns the state and carry to go on from."""
        stretch, step = self._stretches[-1], accepted.step
        if self._watched:
            t, dt, y = number(accepted.t), number(accepted.dt), accepted.y
            stretch.watched.append((accepted.n, t, dt, tuple(x.detach() for x in y)))
        stretch.steps += 1
        stretch.evaluations += accepted.evaluations
        stretch.outputs = (*step.y, *step.carry)
        if accepted.landing is not None:
            stretch.landings.append((accepted.landing, step.y))
        self._n_steps += 1
        self._meter.measure(stretch.outputs)
        # A stretch is walked by `check_reachable`, which has to see the whole of it.
        if stretch.steps < min(_LENGTH, 2 * MOST_NODES // max(1, self._meter.nodes)):
            return step.y, step.carry
        last = stretch.landings[-1][0] if stretch.landings else stretch.first
        leaves = self.open(stretch.outputs, last)
        return leaves[: len(step.y)], leaves[len(step.y) :]

    def backwards(self, retain: bool) -> Iterator[Stretch]:
        """The stretches from the last to the first, let go one by one unless retained.

        Raises:
            GradientUnavailableError: If some are gone, since an earlier pass was interrupted.
        """
        if not self._whole:
            raise GradientUnavailableError(
                "an earlier backward pass through this solve was interrupted after it had freed some "
                "of the kept graphs; solve again, or call backward with retain_graph=True"
            )
        if retain:
            yield from reversed(self._stretches)
            return
        self._whole = False
        while self._stretches:
            yield self._stretches.pop()


def pull(run: Run, graphs: Graphs, y0: Leaves, grad_ys: OptionalLeaves, retain: bool) -> Cotangents:
    """Transposes a solve whose forward sweep kept its graphs.

    Arguments:
        run: The solve.
        graphs: What its forward sweep kept.
        y0: The initial state.
        grad_ys: The cotangents of the outputs, shape [len(landings), *leaf.shape]; None is zero.
        retain: Whether the graphs will be pulled back again.

    Raises:
        UnreachableTensorError: If f used a tensor that requires grad and is none of its inputs.
        GradientUnavailableError: If an earlier pass was interrupted.
    """
    wanted = [i for i, x in enumerate(graphs.p) if x.requires_grad]
    p, total = [graphs.p[i] for i in wanted], Total(len(wanted))
    grad_times: list[Tensor | None] = [None] * len(run.times)
    grad: OptionalLeaves = (None,) * len(y0)
    if run.monitor is not None:
        run.monitor.start("backward")
    try:
        for stretch in graphs.backwards(retain):
            if not stretch.steps:  # the last one may have been opened at the very end
                continue
            last = min(stretch.first + len(stretch.landings) + 1, len(run.times) - 1)
            touched = range(stretch.first, last + 1) if graphs.times is not None else range(0)
            times = [graphs.times[j] for j in touched] if graphs.times is not None else []
            inputs = [*stretch.inputs, *times, *p]
            found = _pull(stretch, inputs, grad, grad_ys, retain)
            run.field.transposes += stretch.evaluations
            n, m = len(stretch.inputs), len(stretch.inputs) + len(times)
            grad = found[:n]
            for j, g in zip(touched, found[n:m], strict=True):
                old = grad_times[j]
                grad_times[j] = old if g is None else g if old is None else old + g
            total.add(found[m:])
            _report(run, stretch)
    finally:
        run.count()
        if run.monitor is not None:
            run.monitor.stop()
    grad_y0 = tuple(
        _sum(a, None if g is None else g[0], y)
        for y, a, g in zip(y0, grad[: len(y0)], grad_ys, strict=True)
    )
    grad_p: list[Tensor | None] = [None] * len(graphs.p)
    for i, g in zip(wanted, total.result(), strict=True):
        grad_p[i] = g
    return Cotangents(grad_y0, tuple(grad_p), grad_times)


def _pull(
    stretch: Stretch,
    inputs: list[Tensor],
    grad: OptionalLeaves,
    grad_ys: OptionalLeaves,
    retain: bool,
) -> OptionalLeaves:
    """The cotangents of `inputs` for those of the end of the stretch and of the outputs inside it."""
    pairs = list(zip(stretch.outputs, grad, strict=False))
    for j, y in stretch.landings:
        pairs += [(x, None if g is None else g[j]) for x, g in zip(y, grad_ys, strict=True)]
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


def _report(run: Run, stretch: Stretch) -> None:
    if run.monitor is not None:
        run.count()
        for n, t, dt, y in reversed(stretch.watched):
            run.monitor.step("backward", n, t, dt, y, run.stats)


def _sum(a: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor:
    if a is None:
        return torch.zeros_like(like) if b is None else b
    return a if b is None else a + b
