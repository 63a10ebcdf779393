"""Many labels: all in one sweep (multi-point backpropagation), or one sweep for each (single-point).

    L = Σ_k ½ |y(t_k) − z_k|².

The cotangent of each output joins the costate where the sweep passes its time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import odegrad
from benchmarks.memory.parts import Check, Record, Say
from benchmarks.paper.problems import mlp, worst
from odegrad.bench import time_in_turn

__all__ = ["measure"]

LABELS, QUICK_LABELS = (1, 4, 16, 64), (1, 8)
STEPS = 64
"""Of the whole solve, however many labels."""


def measure(quick: bool, say: Say) -> Record:
    """The gradients, what they evaluate, and what they take."""
    rows: list[Record] = []
    for k in QUICK_LABELS if quick else LABELS:
        say(f"labels: {k}")
        rows.append(_row(k, 1 if quick else 5))
    last = rows[-1]
    checks = [
        *(Check(f"{x['labels']} labels: {what}", x[what], 1e-12)
          for x in rows for what in ("single", "inside", "tape")),
        *(Check(f"{x['labels']} labels: sweeps, off {x['labels']}",
                abs(x["vjps_single"] / x["vjps"] - x["labels"]), 0.0) for x in rows),
    ]  # fmt: skip
    return {
        "problem": mlp().name,
        "steps": STEPS,
        "rows": rows,
        "last": last,
        "checks": [check.as_record() for check in checks],
    }


def _targets(k: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(k, 4, 2, dtype=torch.float64, generator=generator)


def _row(k: int, repeats: int) -> Record:
    """K labels on the same 64 steps."""
    base, targets = mlp(), _targets(k)
    T = base.ts[-1]
    problem = replace(base, ts=tuple(T * i / k for i in range(k + 1)))
    inputs = [problem.y0, *problem.parameters]
    scheme, steps = odegrad.RK4(), odegrad.Steps(STEPS // k)

    def label(j: int, y: Tensor) -> Tensor:
        return 0.5 * (y - targets[j]).square().sum()

    def losses(mode: odegrad.gradients.Gradient) -> tuple[list[Tensor], odegrad.Solution]:
        sol = problem.solve(scheme, steps, mode)
        return [label(j, sol.ys[j + 1]) for j in range(k)], sol

    def multi(found: list[Tensor]) -> list[Tensor]:
        total = torch.stack(found).sum()
        return list(torch.autograd.grad(total, inputs, retain_graph=True))

    def single(found: list[Tensor]) -> list[Tensor]:
        each = [torch.autograd.grad(x, inputs, retain_graph=True) for x in found]
        return [torch.stack(parts).sum(dim=0) for parts in zip(*each, strict=True)]

    first, sol = losses(odegrad.Discrete())
    together = multi(first)
    vjps = sol.stats.vjps
    second, sol = losses(odegrad.Discrete())
    apart = single(second)
    vjps_single = sol.stats.vjps
    tape = multi(losses(odegrad.Tape())[0])
    inside = problem.solve(
        scheme,
        steps,
        odegrad.Discrete(),
        loss_at=lambda j, y: label(j - 1, y) if j else 0.0 * y.sum(),
    )
    within = torch.autograd.grad(inside.loss, inputs)

    works: dict[str, Callable[[], object]] = {
        "multi": lambda: multi(first),
        "single": lambda: single(first),
    }
    timings = time_in_turn(works, repeats, 0.0)
    return {
        "labels": k,
        "single": worst(apart, together),
        "inside": worst(list(within), together),
        "tape": worst(together, tape),
        "vjps": vjps,
        "vjps_single": vjps_single,
        "seconds": timings["multi"].median,
        "seconds_single": timings["single"].median,
        "time_ratio": timings["single"].median / timings["multi"].median,
    }
