"""Where the parameter of an oscillator learns: the density of a gradient over time."""

from __future__ import annotations

import torch
from torch import Tensor

import odegrad
from benchmarks.memory.parts import Record
from benchmarks.paper.problems import van_der_pol

__all__ = ["oscillator"]


def oscillator() -> Record:
    """Van der Pol with μ = 3: the density of the gradient for μ, with labels from μ = 4."""
    mu, true = 3.0, 4.0
    problem, teacher = van_der_pol(mu), van_der_pol(true)
    labels = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    bins = 160
    with torch.no_grad():
        targets = odegrad.solve(teacher.f, teacher.y0, labels, scheme=odegrad.Dopri5()).ys[1:, 0]

    def loss(ys: Tensor) -> Tensor:
        return 0.5 * (ys[1:, 0] - targets).square().sum()

    found = odegrad.gradient_density(
        problem.f,
        problem.y0,
        labels,
        loss,
        scheme=odegrad.Dopri5(),
        stepsize=odegrad.PID(rtol=1e-8, atol=1e-8),
        bins=bins,
    )
    (density,) = found.values.values()
    ts = found.edges.tolist()
    with torch.no_grad():
        ys = odegrad.solve(problem.f, problem.y0, ts, scheme=odegrad.Dopri5()).ys
    size = density.abs() * found.edges.diff()
    largest = int(density.abs().argmax())
    half = int((size.cumsum(0) < 0.5 * size.sum()).sum())
    return {
        "mu": mu,
        "true": true,
        "targets": targets.tolist(),
        "largest": density[largest].item(),
        "largest_at": 0.5 * (ts[largest] + ts[largest + 1]),
        "half_at": ts[half + 1],
        "late_share": (size[found.edges[1:] > labels[-2]].sum() / size.sum()).item(),
        "size": size.sum().item(),
        "labels": labels[1:],
        "edges": ts,
        "density": density.tolist(),
        "x": ys[:, 0].tolist(),
        "gradient": (found.edges.diff() * density).sum().item(),
    }
