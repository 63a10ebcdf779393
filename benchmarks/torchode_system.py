"""torchode, adaptive steps only, with the default controller constants, which are odegrad's."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.bench import Counts, Prepared, Workload, differentiate
from odegrad.bench.kept import kept_bytes
from odegrad.schemes.base import Scheme
from odegrad.stepsize import Steps

__all__ = ["Torchode"]


@dataclass(frozen=True)
class Torchode:
    """``AutoDiffAdjoint`` with ``IntegralController``; no gradient through the step sizes.

    torchode solves a batch of vectors, each with steps of its own. No field of the workloads reads the
    time, so that samples at different times can share an evaluation.

    Arguments:
        name: Its name.
        joint: Whether the whole state is one vector, with joint steps as in the other systems; else
            every sample is a vector with its own steps.
        compiled: Whether its solve goes through ``torch.compile``.
    """

    name: str
    joint: bool
    compiled: bool = False

    @property
    def exact(self) -> bool:
        """Backpropagation is."""
        return True

    @property
    def compiles(self) -> bool:
        """Whether `compiled`."""
        return self.compiled

    def scheme(self, workload: Workload) -> Scheme:
        """The one that is asked for."""
        return workload.scheme

    def obstacle(self, workload: Workload) -> str | None:
        """Whether it is installed and has the scheme."""
        if importlib.util.find_spec("torchode") is None:
            return "torchode is not installed"
        return "torchode has no RK4" if isinstance(workload.stepsize, Steps) else None

    def prepare(self, workload: Workload) -> Prepared:
        """Builds the problem."""
        import torchode

        problem, steps = workload.build(), workload.stepsize
        assert not isinstance(steps, Steps)
        pack, unpack = _packing(problem.y0, self.joint)
        field = problem.field
        term = torchode.ODETerm(lambda t, y: pack(field(t, unpack(y))), with_stats=False)
        controller = torchode.IntegralController(
            atol=steps.atol,
            rtol=steps.rtol,
            term=term,
            safety=steps.safety,
            factor_min=steps.factor_min,
            factor_max=steps.factor_max,
        )
        solver = torchode.AutoDiffAdjoint(
            getattr(torchode, type(workload.scheme).__name__)(term),
            controller,
            backprop_through_step_size_control=False,
        ).to(workload.dtype)
        run = torch.compile(solver.solve) if self.compiled else solver.solve

        def solve() -> Any:
            y0 = pack(problem.y0)
            start = torch.zeros(len(y0), dtype=workload.dtype)
            return run(torchode.InitialValueProblem(y0, start, start + workload.t1))

        def gradient() -> tuple[Tensor, ...]:
            return differentiate(unpack(solve().ys[:, -1]), problem)

        def count() -> Counts:
            sol = solve()
            accepted, attempted = (
                sol.stats[name].double().mean().item() for name in ("n_accepted", "n_steps")
            )
            kept = kept_bytes([sol.ys], problem.inputs)
            return Counts(accepted, attempted - accepted, kept_bytes=kept)

        return Prepared(gradient, count)


def _packing(y0: Any, joint: bool) -> tuple[Any, Any]:
    """A state as vectors [batch, features] and back."""
    many = isinstance(y0, tuple)
    shapes = [x.shape for x in y0] if many else [y0.shape]
    rows = 1 if joint else shapes[0][0]
    sizes = [shape.numel() // rows for shape in shapes]

    def pack(y: Any) -> Tensor:
        return torch.cat([x.reshape(rows, -1) for x in y], 1) if many else y.reshape(rows, -1)

    def unpack(y: Tensor) -> Any:
        if not many:
            return y.reshape(shapes[0])
        parts = zip(y.split(sizes, dim=1), shapes, strict=True)
        return tuple(part.reshape(shape) for part, shape in parts)

    return pack, unpack
