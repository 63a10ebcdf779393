"""What a solve will keep, and what it will need, before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from odegrad.assemble import assemble
from odegrad.batch import Samples, assemble_batch
from odegrad.checkpoints.checks import check_count
from odegrad.errors import InvalidTypeError, InvalidValueError
from odegrad.gradients import Discrete, Gradient, Plan
from odegrad.gradients.samples import sample_plan
from odegrad.schemes import Tsit5
from odegrad.schemes.base import Scheme
from odegrad.stepsize import PID, StepSize
from odegrad.sweeps import Run

__all__ = ["plan"]


def plan(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float] | Sequence[Sequence[float]],
    args: tuple[Any, ...] = (),
    *,
    scheme: Scheme = Tsit5(),
    stepsize: StepSize = PID(),
    gradient: Gradient = Discrete(),
    compile: bool = False,
    running: Callable[..., Any] | None = None,
    loss_at: Callable[..., Any] | None = None,
    breakpoints: Sequence[float] | Tensor = (),
    land: bool | None = None,
    batch: int | Samples | None = None,
    n_steps: int | None = None,
    show: bool = True,
) -> Plan:
    """Says which schedule `odegrad.solve` would run with these arguments, and what it would need.

    A few steps are rehearsed to measure the memory that one takes; the solve itself is not run. With
    `batch` and adaptive steps these are searched for, unless `n_steps` says how many rounds there are.

    Arguments:
        f: As for `odegrad.solve`, like all that is not named here.
        y0: As for `odegrad.solve`.
        ts: As for `odegrad.solve`.
        args: As for `odegrad.solve`.
        scheme: As for `odegrad.solve`.
        stepsize: As for `odegrad.solve`.
        gradient: `Discrete`, with or without a budget.
        compile: As for `odegrad.solve`.
        running: As for `odegrad.solve`.
        loss_at: As for `odegrad.solve`.
        breakpoints: As for `odegrad.solve`.
        land: As for `odegrad.solve`.
        batch: As for `odegrad.solve`.
        n_steps: With adaptive steps: how many to expect, if there is an idea.
        show: Whether to print the plan, too.

    Returns:
        A `Plan`: the schedule, the predicted peak in bytes, the factor of recomputation.

    Raises:
        MemoryBudgetError: If the gradient does not fit into the memory that was allowed.
        NotCompilable: If `compile` is set and the solve cannot be compiled.
        InvalidTypeError: If `gradient` is not `Discrete`, or `n_steps` not an int.
        InvalidValueError: If `n_steps` < 1, or there is a single time.
        SolveError: If steps are searched for, and a sample fails.
        OdegradError: If something is wrong with another argument, as `odegrad.solve` says.

    Example:
        >>> import torch, odegrad
        >>> net = torch.nn.Linear(64, 64)
        >>> found = odegrad.plan(
        ...     lambda t, y: net(y).tanh(),
        ...     torch.zeros(32, 64),
        ...     [0.0, 1.0],
        ...     scheme=odegrad.RK4(),
        ...     stepsize=odegrad.Steps(1000),
        ...     gradient=odegrad.Discrete(memory="1MiB"),
        ...     show=False,
        ... )
        >>> found.peak_bytes <= 2**20, found.n_steps
        (True, 1000)
    """
    if not isinstance(gradient, Discrete):
        raise InvalidTypeError(f"plan goes with gradient=Discrete(…), received {gradient!r}")
    if n_steps is not None:
        check_count("plan: n_steps", n_steps)
    given: dict[str, Any] = {
        "scheme": scheme,
        "stepsize": stepsize,
        "gradient": gradient,
        "running": running,
        "loss_at": loss_at,
        "breakpoints": breakpoints,
        "land": land,
    }
    if batch is None:
        times: Any = ts
        problem = assemble(f, y0, times, args, compile=compile, **given)
        _check_steps(problem.run)
        found = gradient.plan(problem.run, problem.y, problem.p, problem.ts, n_steps)
    else:
        found = _of_samples(f, y0, ts, args, compile, batch, n_steps, gradient, given)
    if show:
        print(found)
    return found


def _of_samples(
    f: Callable[..., Any],
    y0: Any,
    ts: Any,
    args: tuple[Any, ...],
    compile: bool,
    batch: int | Samples,
    n_steps: int | None,
    gradient: Discrete,
    given: dict[str, Any],
) -> Plan:
    """`plan` with ``batch``; the arguments are those of `plan`."""
    if compile:
        from odegrad.compiled import NotCompilable  # what it imports takes its time

        raise NotCompilable("with batch, plan is about steps that are taken in Python")
    given = given | {"max_steps": None, "check_finite": True, "progress": False, "callback": None}
    problem, _ = assemble_batch(f, y0, ts, args, "raise", compile=False, batch=batch, **given)
    _check_steps(problem.run)
    run = problem.run
    return sample_plan(gradient, run, problem.y, problem.p, problem.ts, n_steps)


def _check_steps(run: Run) -> None:
    if len(run.times) < 2:
        raise InvalidValueError(
            "plan needs a solve with steps: ts has a single time, or y0 has no samples"
        )
