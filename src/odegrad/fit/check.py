"""The gradient check: is the gradient that trained this model the derivative of what it computes?

For a fixed random weight w_i per output the functional J = Σ_i w_i y_i of the fitted trajectory is
differentiated with respect to all parameters and the initial state at once, three times: with
`Discrete` and with `Tape` (plain autograd, the oracle) on the recorded grid, and with `Backsolve` under
the step sizes of the fit. J stands in for the loss because the loss has no gradient left at its
minimum, where a relative difference would compare rounding errors.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.fit.fitted import Fitted
from odegrad.gradients import Backsolve, Discrete, Gradient, Tape
from odegrad.stepsize import StepSize

__all__ = ["GradientCheck", "GradientCost", "check_gradients"]

RUNS = 5


@dataclass(frozen=True)
class GradientCost:
    """One way to differentiate.

    Arguments:
        name: ``Discrete``, ``Tape`` or ``Backsolve``.
        difference: ‖g − g_Tape‖ / ‖g_Tape‖ over the whole gradient vector.
        seconds: Median time of a forward and a backward sweep.
        peak_bytes: Most bytes that they allocated at any moment, beyond those at the start.
    """

    name: str
    difference: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class GradientCheck:
    """The three gradients of one model, and the solve that they belong to.

    Arguments:
        costs: Discrete, Tape, Backsolve.
        size: The number of entries of the gradient vector.
        norm: ‖g_Tape‖.
        solve: The statistics of the solve that recorded the grid.
        stats: The statistics of `Discrete` on that grid, both sweeps together.
    """

    costs: tuple[GradientCost, ...]
    size: int
    norm: float
    solve: dict[str, int | float | None]
    stats: dict[str, int | float | None]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)


def check_gradients(fitted: Fitted, times: Tensor, runs: int = RUNS) -> GradientCheck:
    """Compares Discrete and Backsolve with Tape on the fitted model.

    Arguments:
        fitted: The model.
        times: The times of the solve, shape [T], in the units of the data.
        runs: How many runs the median time is taken over.
    """
    with torch.no_grad():
        recorded = fitted.solve(times)
    grid = recorded.grid
    seed = torch.Generator().manual_seed(0)
    weights = torch.randn(recorded.ys.shape, generator=seed, dtype=torch.float64, device="cpu")
    weights = weights.to(recorded.ys)
    parameters = list(fitted.model.parameters())

    def once(
        gradient: Gradient, stepsize: StepSize | None
    ) -> tuple[Tensor, dict[str, int | float | None]]:
        sol = fitted.solve(times, gradient=gradient, stepsize=stepsize)
        grads = torch.autograd.grad((sol.ys * weights).sum(), parameters)
        return torch.cat([g.reshape(-1) for g in grads]), sol.stats.as_dict()

    ways: list[tuple[str, Gradient, StepSize | None]] = [
        ("Discrete", Discrete(), grid),
        ("Tape", Tape(), grid),
        ("Backsolve", Backsolve(), None),
    ]
    found = {name: once(gradient, stepsize) for name, gradient, stepsize in ways}  # and warm up
    oracle = found["Tape"][0].to(torch.float64)
    norm = float(oracle.norm())
    costs: list[GradientCost] = []
    for name, gradient, stepsize in ways:
        difference = float((found[name][0].to(torch.float64) - oracle).norm())
        relative = difference / norm if norm > 0 else difference

        def work(gradient: Gradient = gradient, stepsize: StepSize | None = stepsize) -> object:
            return once(gradient, stepsize)

        seconds = statistics.median(_seconds(work, oracle.device) for _ in range(runs))
        costs.append(GradientCost(name, relative, seconds, peak_bytes(work, oracle.device)))
    return GradientCheck(
        tuple(costs), oracle.numel(), norm, recorded.stats.as_dict(), found["Discrete"][1]
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that `work` has allocated at any moment, beyond those allocated at its start.

    On the CPU, from the allocations and releases that the profiler records.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - start
    from torch.profiler import ProfilerActivity, profile

    # Read by the profiler at its first use: without it, torch 2.13 writes lines to standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    results: Any = record.profiler and record.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += int(event.nbytes())
        peak = max(peak, total)
    return peak
