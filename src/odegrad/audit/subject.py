"""The audited solve: the loss as a function of initial state, parameters and times, on a frozen grid.

    L(y0, p, ts) = loss(ys),     ys = the outputs of the accepted steps,

to be evaluated, differentiated in any mode, and carried forward along a direction. Each of these begins
in the world as it was when the audit began (`World`). Parameters are changed by substitution only.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odegrad.assemble import assemble
from odegrad.audit.names import Names
from odegrad.audit.objective import Objective
from odegrad.audit.vectors import count, detached, direction, filled, own
from odegrad.audit.world import World
from odegrad.gradients import Discrete, Gradient
from odegrad.grid import Grid
from odegrad.schemes import Scheme
from odegrad.state import Leaves, real_dtype
from odegrad.stepsize import AdaptiveStepSize, StepSize
from odegrad.sweeps import Run, Stats, forward
from odegrad.sweeps.run import Witness

__all__ = ["Pulled", "Subject"]


@dataclass(frozen=True)
class Pulled:
    """One gradient.

    Attributes:
        outputs: The outputs, one tensor of shape [T, *leaf.shape] per leaf.
        cotangents: Those of the outputs.
        grads: The gradient, one tensor per group.
        run: The solve, with its grid and statistics.
    """

    outputs: Leaves
    cotangents: Leaves
    grads: Leaves
    run: Run


class Subject:
    """A solve under audit.

    Arguments:
        f: As for `odegrad.audit`; likewise the others.
        names: What f reaches, by name.
        world: The world at the start of the audit.

    Attributes:
        groups: The names of what is differentiated for: leaves of y0, parameters, times.
        active: Their places among the inputs (leaves of the state, p, times).
        timed: Whether the times are among them.
        objective: The loss as a function of the outputs.
        loss: Its value.
        first: The user's own solve and gradient.
        cost: Evaluations of f and transposes that it took.
        evaluations: Those of all solves so far.
        warned: What odegrad warned of.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        y0: Any,
        ts: Tensor | Sequence[float],
        loss: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        scheme: Scheme,
        stepsize: StepSize,
        gradient: Gradient,
        running: Callable[..., Any] | None,
        names: Names,
        world: World,
    ) -> None:
        self._world = world
        self.gradient, self.stepsize, self.names = gradient, stepsize, names
        start = pytree.tree_map(detached, y0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            problem = assemble(
                f, start, ts, args, scheme=scheme, stepsize=stepsize, gradient=gradient,
                compile=False, running=running, land=True,
            )  # fmt: skip
        self.warned = [str(w.message) for w in caught]
        self.base = problem.run
        self.y, self.p = problem.y, tuple(map(own, problem.p))
        self.n_y, self.n_state = len(self.y), self.base.field.n_state
        self.times = self.base.times
        self.evaluations = 0
        self.objective = Objective(loss, problem.structure, self.n_state)
        leaves = [f"y0{name}" for name in problem.structure.leaf_names()]
        parameters = [names.of(x) for x in problem.p]
        wanted = [i for i, x in enumerate(self.p) if x.requires_grad]
        begin = {id(x) for x in pytree.tree_leaves(y0)}
        pairs = zip(parameters, problem.p, strict=True)
        self._starting = {name for name, x in pairs if id(x) in begin}
        self.active = [*range(self.n_state), *(self.n_y + i for i in wanted)]
        self.groups = [*leaves, *(parameters[i] for i in wanted)]
        self.timed = False
        self.first = self._solved(isinstance(ts, Tensor) and ts.requires_grad)
        self.grid: Grid = self.first.run.accepted_grid
        self.loss = float(self.objective.value(self.first.outputs))
        stats = self.first.run.stats
        self.cost = stats.f_evaluations + stats.vjps

    def _solved(self, required: bool) -> Pulled:
        """The user's gradient; without that of the times if it cannot be had and nobody needs it."""
        self.timed = True
        try:
            found = self.pull(self.gradient, self.stepsize)
        except (RuntimeError, TypeError):
            if required:
                raise
            self.timed = False
            return self.pull(self.gradient, self.stepsize)
        self.active.append(self.n_y + len(self.p))
        self.groups.append("times")
        return found

    @property
    def eps(self) -> float:
        """The machine epsilon of the coarsest dtype among what is differentiated."""
        given = [*self.y, *(x for x in self.p if x.requires_grad)]
        return max(torch.finfo(real_dtype(x.dtype)).eps for x in given)

    @property
    def rounding(self) -> float:
        """100 ε √N: what the roundings of N steps add up to, relative to what is computed."""
        return 100 * self.eps * max(1, self.n_steps) ** 0.5

    @property
    def adaptive(self) -> bool:
        """Whether the step sizes depend on the solution."""
        return isinstance(self.stepsize, AdaptiveStepSize)

    @property
    def n_steps(self) -> int:
        """The number of accepted steps."""
        return self.grid.n_steps

    @property
    def inputs(self) -> Leaves:
        """Leaves of the state, p, times (float64)."""
        ts = torch.tensor(self.times, dtype=torch.float64, device="cpu")
        return (*self.y, *(x.detach() for x in self.p), ts)

    @property
    def numbers(self) -> int:
        """How many real numbers the initial state and all parameters hold."""
        return sum(count(self.inputs[i]) for i in self.active if i < self.n_y + len(self.p))

    def starts(self, name: str) -> bool:
        """Whether a parameter is also the initial state that the user passed."""
        return name in self._starting

    def directions(self, generator: torch.Generator) -> Leaves:
        """A random direction of each group, in proportion to its size; times move by parts of a gap."""
        return tuple(
            direction(self.inputs[i], generator, last=i == self.n_y + len(self.p))
            for i in self.active
        )

    def run(self, stepsize: StepSize, times: tuple[float, ...] | None = None) -> Run:
        """The solve anew, in the world of the start."""
        field = self.base.field
        self.evaluations += field.evaluations + field.transposes
        field.evaluations = field.transposes = 0
        field.forget()
        self._world.restore()
        return dataclasses.replace(
            self.base,
            stepsize=stepsize,
            times=self.times if times is None else times,
            stats=Stats(),
            grid=None,
            initial=None,
        )

    def pull(
        self,
        gradient: Gradient,
        stepsize: StepSize | None = None,
        *,
        scheme: Scheme | None = None,
        times: tuple[float, ...] | None = None,
        landed: Sequence[int] | None = None,
        witness: Witness | None = None,
    ) -> Pulled:
        """The gradient of the loss.

        Arguments:
            gradient: How to differentiate.
            stepsize: The step sizes; None is the accepted grid.
            scheme: Another scheme.
            times: Other landing times; they get a cotangent then.
            landed: At which of these the loss looks; None is all.
            witness: Who sees the transposed steps.
        """
        run = self.run(self.grid if stepsize is None else stepsize, times)
        run.witness, run.scheme = witness, scheme or run.scheme
        timed = self.timed or times is not None
        y0 = tuple(x.clone().requires_grad_(i < self.n_state) for i, x in enumerate(self.y))
        ts = torch.tensor(run.times, dtype=torch.float64, requires_grad=timed, device="cpu")
        with torch.enable_grad():
            outputs = unchecked(gradient).solve(run, y0, self.p, ts)
            seen = outputs if landed is None else tuple(x[list(landed)] for x in outputs)
            bars = self.objective.cotangents(seen)
            pairs = [(x, g) for x, g in zip(seen, bars, strict=True) if x.requires_grad]
            wanted = [x for x in (*y0[: self.n_state], *self.p, ts) if x.requires_grad]
            grads = torch.autograd.grad(
                [x for x, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True
            )
        return Pulled(tuple(x.detach() for x in outputs), bars, filled(grads, wanted), run)

    def evaluate(
        self, directions: Leaves, size: float, stepsize: StepSize | None = None
    ) -> tuple[float, Grid]:
        """The loss at x + size · v, along the accepted grid, and the grid."""
        moved = list(self.inputs)
        for i, v in zip(self.active, directions, strict=True):
            moved[i] = moved[i] + size * v
        times = tuple(moved[-1].tolist())
        run = self.run(self.grid if stepsize is None else stepsize, times)
        y, p = tuple(moved[: self.n_y]), tuple(moved[self.n_y : -1])
        with torch.no_grad():
            outputs = run.field.bound(p, lambda: forward(run, y, p, run.times)[0])
            return float(self.objective.value(outputs)), run.accepted_grid


def unchecked(gradient: Gradient) -> Gradient:
    """The gradient without its own look at whether f repeats itself: the audit's goes further."""
    if isinstance(gradient, Discrete):
        return dataclasses.replace(gradient, replay_check=False)
    return gradient
