"""diffrax, jitted, with the default controller constants, which are odegrad's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.bench import Counts, Prepared, Workload
from odegrad.schemes.base import Scheme
from odegrad.stepsize import PID, Steps

__all__ = ["Diffrax"]


@dataclass(frozen=True)
class Diffrax:
    """``diffeqsolve`` under ``jax.jit(jax.grad(…))``.

    Arguments:
        name: Its name.
        backsolve: Whether to use ``BacksolveAdjoint``. Else it is ``RecursiveCheckpointAdjoint``
            with one checkpoint per step, which is its fastest setting.
    """

    name: str
    backsolve: bool

    @property
    def exact(self) -> bool:
        """Differentiating the loop is; the continuous adjoint is not."""
        return not self.backsolve

    @property
    def compiles(self) -> bool:
        """Whether a compiler works on the first call."""
        return True

    def scheme(self, workload: Workload) -> Scheme:
        """The one that is asked for."""
        return workload.scheme

    def obstacle(self, workload: Workload) -> str | None:
        """Whether it is installed."""
        del workload
        found = importlib.util.find_spec("diffrax")
        return None if found else "diffrax is not installed"

    def prepare(self, workload: Workload) -> Prepared:
        """Moves the problem to JAX, and counts its steps."""
        import jax
        import jax.numpy as jnp

        from benchmarks.jax_fields import cotangents, parameters

        problem = workload.build()
        with _precision(workload):
            y0 = jax.tree.map(lambda x: jnp.asarray(x.detach().numpy()), problem.y0)
            p = parameters(problem.field)
            stats = jax.jit(_solve(workload, problem.field, None))(y0, p).stats
            accepted, attempted = int(stats["num_accepted_steps"]), int(stats["num_steps"])
            solve = _solve(workload, problem.field, self._adjoint(attempted))

        def loss(y0: Any, p: Any) -> Any:
            return sum((y[-1] ** 2).sum() for y in jax.tree.leaves(solve(y0, p).ys))

        grad = jax.jit(jax.grad(loss, argnums=(0, 1)))

        def gradient() -> Any:
            with _precision(workload):
                return jax.block_until_ready(grad(y0, p))

        def as_tensors(found: Any) -> tuple[Tensor, ...]:
            states = [torch.tensor(y.__array__()) for y in jax.tree.leaves(found[0])]
            return (*states, *cotangents(problem.field, found[1]))

        return Prepared(gradient, lambda: Counts(accepted, attempted - accepted), as_tensors)

    def _adjoint(self, steps: int) -> Any:
        import diffrax

        if self.backsolve:
            return diffrax.BacksolveAdjoint()
        return diffrax.RecursiveCheckpointAdjoint(checkpoints=steps)


def _precision(workload: Workload) -> AbstractContextManager[Any]:
    import jax

    return jax.enable_x64(workload.dtype is torch.float64)


def _solve(workload: Workload, field: Any, adjoint: Any) -> Callable[[Any, Any], Any]:
    """(y0, parameters) ↦ the solution of a workload."""
    import diffrax

    from benchmarks.jax_fields import twin

    f = twin(field)
    term = diffrax.ODETerm(lambda t, y, p: f(p, y))
    options: dict[str, Any] = {} if adjoint is None else {"adjoint": adjoint}
    steps = workload.stepsize
    if isinstance(steps, Steps):
        solver, dt0 = _rk4(), workload.t1 / steps.n
        options["max_steps"] = steps.n
    else:
        solver, dt0 = getattr(diffrax, type(workload.scheme).__name__)(), None
        options["stepsize_controller"] = _controller(steps)

    def solve(y0: Any, p: Any) -> Any:
        return diffrax.diffeqsolve(term, solver, 0.0, workload.t1, dt0, y0, args=p, **options)

    return solve


def _controller(steps: PID) -> Any:
    import diffrax

    return diffrax.PIDController(
        rtol=steps.rtol,
        atol=steps.atol,
        pcoeff=steps.p,
        icoeff=steps.i,
        dcoeff=steps.d,
        safety=steps.safety,
        factormin=steps.factor_min,
        factormax=steps.factor_max,
    )


def _rk4() -> Any:
    """The classical scheme, which diffrax lacks, on its machinery for explicit schemes."""
    import diffrax
    import numpy as np

    from odegrad import RK4

    ours = RK4().tableau

    class ClassicalRK4(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(
            a_lower=tuple(np.array(row) for row in ours.a[1:]),
            b_sol=np.array(ours.b),
            b_error=np.zeros(len(ours.b)),
            c=np.array(ours.c[1:]),
        )
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms: Any) -> int:
            del terms
            return ours.order

    return ClassicalRK4()
