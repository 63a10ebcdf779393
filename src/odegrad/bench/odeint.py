"""torchdiffeq, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odegrad.bench.kept import kept_bytes
from odegrad.bench.systems import Counts, Prepared, differentiate, last
from odegrad.bench.workloads import Workload
from odegrad.schemes import RK38, Dopri5
from odegrad.schemes.base import Scheme
from odegrad.stepsize import Steps

__all__ = ["TORCHDIFFEQ", "TORCHDIFFEQ_ADJOINT", "Torchdiffeq"]


@dataclass(frozen=True)
class Torchdiffeq:
    """``odeint`` or ``odeint_adjoint``; its ``rk4`` is Kutta's 3/8 rule.

    Arguments:
        name: Its name.
        adjoint: Whether to use ``odeint_adjoint``.
    """

    name: str
    adjoint: bool

    @property
    def exact(self) -> bool:
        """Backpropagation is; the adjoint is not."""
        return not self.adjoint

    @property
    def compiles(self) -> bool:
        """It does not."""
        return False

    def scheme(self, workload: Workload) -> Scheme:
        """The 3/8 rule for ``rk4``."""
        return RK38() if isinstance(workload.stepsize, Steps) else workload.scheme

    def obstacle(self, workload: Workload) -> str | None:
        """Whether it is installed, and has the scheme."""
        if importlib.util.find_spec("torchdiffeq") is None:
            return "torchdiffeq is not installed"
        has = isinstance(workload.stepsize, Steps) or isinstance(workload.scheme, Dopri5)
        return None if has else f"not measured with {type(workload.scheme).__name__}"

    def prepare(self, workload: Workload) -> Prepared:
        """Builds the problem."""
        problem = workload.build()
        torchdiffeq: Any = importlib.import_module("torchdiffeq")
        odeint = torchdiffeq.odeint_adjoint if self.adjoint else torchdiffeq.odeint
        settings = _settings(workload, isinstance(problem.y0, tuple))
        ts = torch.tensor([0.0, workload.t1], dtype=workload.dtype)

        def gradient() -> tuple[Tensor, ...]:
            ys = odeint(problem.field, problem.y0, ts, **settings)
            return differentiate(last(ys), problem)

        def count() -> Counts:
            fixed = isinstance(workload.stepsize, Steps)
            counted = (_Counted if fixed else _Judged)(problem.field)
            ys = odeint(counted, problem.y0, ts, **settings)
            kept = kept_bytes(ys if isinstance(ys, tuple) else (ys,), problem.inputs)
            accepted = counted.attempted - counted.rejected
            return Counts(accepted, counted.rejected, counted.evaluations, kept)

        return Prepared(gradient, count)


def _settings(workload: Workload, many: bool) -> dict[str, Any]:
    """Keywords for the same steps, or for the same tolerances and controller constants."""
    steps = workload.stepsize
    if isinstance(steps, Steps):
        grid = torch.linspace(0.0, workload.t1, steps.n + 1, dtype=workload.dtype)

        def on_grid(f: object, y0: object, t: Tensor) -> Tensor:
            del f, y0
            return grid if t[0] < t[-1] else grid.flip(0)  # the adjoint goes back

        return {"method": "rk4", "options": {"grid_constructor": on_grid}}
    options: dict[str, Any] = {
        "safety": steps.safety,
        "dfactor": steps.factor_min,
        "ifactor": steps.factor_max,
    }
    if many:  # its default is the largest of the norms of the parts
        options["norm"] = _joint_rms
    return {"method": "dopri5", "rtol": steps.rtol, "atol": steps.atol, "options": options}


def _joint_rms(leaves: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in leaves]).square().mean().sqrt()


class _Counted(nn.Module):
    """Counts what torchdiffeq does, which finds its callbacks by name."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field
        self.evaluations = self.attempted = self.rejected = 0

    def forward(self, t: Tensor, y: Any) -> Any:
        """Counts an evaluation."""
        self.evaluations += 1
        return self.field(t, y)

    def callback_step(self, t: Tensor, y: Any, dt: Tensor) -> None:
        """Counts an attempted step."""
        del t, y, dt
        self.attempted += 1


class _Judged(_Counted):
    """Counts rejections, too, which only adaptive solvers know."""

    def callback_reject_step(self, t: Tensor, y: Any, dt: Tensor) -> None:
        """Counts a rejected step."""
        del t, y, dt
        self.rejected += 1


TORCHDIFFEQ = Torchdiffeq("torchdiffeq", adjoint=False)
TORCHDIFFEQ_ADJOINT = Torchdiffeq("torchdiffeq-adjoint", adjoint=True)
