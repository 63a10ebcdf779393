"""odegrad's own ways to the gradient."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from odegrad.bench.kept import kept_bytes
from odegrad.bench.systems import Counts, Prepared, differentiate, last
from odegrad.bench.workloads import Problem, Workload
from odegrad.checkpoints import Keep, StoreAll
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.schemes.base import Scheme
from odegrad.solution import Solution
from odegrad.solve import solve
from odegrad.stepsize import Steps, StepSize

__all__ = [
    "COMPILED",
    "COMPILED_GRAPH",
    "EACH",
    "EACH_COMPILED",
    "ENGINES",
    "GRAPH",
    "STATES",
    "TAPE",
    "Engine",
]


_MOST_WALKED = 1000
"""Steps: torch overflows the stack when it frees a longer graph that Python has walked."""


@dataclass(frozen=True)
class Engine:
    """`odegrad.solve` with a gradient mode.

    Arguments:
        name: Its name.
        mode: The gradient mode.
        compiles: Whether to compile the solve.
        each: Whether every sample takes steps of its own.
    """

    name: str
    mode: Gradient
    compiles: bool = False
    each: bool = False

    @property
    def exact(self) -> bool:
        """All of odegrad's engines are."""
        return True

    def scheme(self, workload: Workload) -> Scheme:
        """The one that is asked for."""
        return workload.scheme

    def obstacle(self, workload: Workload) -> str | None:
        """Whether this version of odegrad has the engine, and whether it differs from the others."""
        if self.each and isinstance(workload.stepsize, Steps):
            return "equal steps are the same for all samples"
        found = not self.compiles or "compile" in inspect.signature(solve).parameters
        return None if found else "not in this version of odegrad"

    def solve(
        self, workload: Workload, problem: Problem, stepsize: StepSize | None = None
    ) -> Solution:
        """The solve of a workload, with other step sizes if they are given."""
        options: dict[str, Any] = {"compile": True} if self.compiles else {}
        if self.each:
            options["batch"] = 0
        return solve(
            problem.field,
            problem.y0,
            [0.0, workload.t1],
            scheme=workload.scheme,
            stepsize=stepsize or workload.stepsize,
            gradient=self.mode,
            **options,
        )

    def prepare(self, workload: Workload) -> Prepared:
        """Builds the problem."""
        problem = workload.build()

        def gradient() -> tuple[Tensor, ...]:
            return differentiate(last(self.solve(workload, problem).ys), problem)

        def count() -> Counts:
            sol = self.solve(workload, problem)
            leaves = sol.ys if isinstance(sol.ys, tuple) else (sol.ys,)
            s = sol.stats
            kept = s.kept_bytes or None
            if s.accepted <= _MOST_WALKED:
                # What a node of its own keeps is counted by the solve, graphs inside it included.
                kept = max(s.kept_bytes, kept_bytes(leaves, problem.inputs))
            size = len(leaves[0][0]) if self.each else 1
            return Counts(s.accepted / size, s.rejected / size, s.f_evaluations, kept)

        return Prepared(gradient, count)


TAPE = Engine("odegrad-tape", Tape())
STATES = Engine("odegrad-states", Discrete())
GRAPH = Engine("odegrad-graph", Discrete(StoreAll(keep=Keep.GRAPH)))
COMPILED = Engine("odegrad-compiled", Discrete(), compiles=True)
COMPILED_GRAPH = Engine("odegrad-compiled-graph", GRAPH.mode, compiles=True)
EACH = Engine("odegrad-each", Discrete(), each=True)
EACH_COMPILED = Engine("odegrad-each-compiled", Discrete(), compiles=True, each=True)

ENGINES = (TAPE, STATES, GRAPH, COMPILED, COMPILED_GRAPH)
"""Those in which all samples take the same steps."""
