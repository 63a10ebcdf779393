"""Before and after ``from odegrad.compat.torchdiffeq import …``: gradient error, time and memory.

The same call of torchdiffeq and of odegrad's stand-in. The error of a gradient, for the initial state and
all parameters, is relative to that of backpropagation through the same library's own solve, which is the
derivative of the numbers that it returned. Memory is the peak of what torch allocates during one
gradient.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.memory.profiled import profiled_peak
from benchmarks.tables import aligned, number
from odegrad.bench import time_in_turn
from odegrad.bench.workloads import Mlp

__all__ = ["run"]

NAME = "migrating"
LIBRARIES = {"torchdiffeq": "torchdiffeq", "odegrad": "odegrad.compat.torchdiffeq"}
INTERFACES = ("odeint", "odeint_adjoint")


@dataclass(frozen=True)
class Call:
    """A call that is measured.

    Arguments:
        title: What it is.
        sizes: The layers of the network.
        batch: The number of samples.
        settings: Keywords of `odeint`.
        quick: Those of a short measurement.
    """

    title: str
    sizes: tuple[int, ...]
    batch: int
    settings: dict[str, Any]
    quick: dict[str, Any]

    def gradient(
        self, library: str, interface: str, quick: bool
    ) -> Callable[[], tuple[Tensor, ...]]:
        """Computes the gradient of the sum of squares of the final state."""
        torch.manual_seed(0)
        net: nn.Module = Mlp(*self.sizes).double()
        y0 = torch.randn(self.batch, self.sizes[0], dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        solve = getattr(importlib.import_module(LIBRARIES[library]), interface)
        inputs = [y0, *net.parameters()]
        settings = self.quick if quick else self.settings

        def work() -> tuple[Tensor, ...]:
            ys = solve(net, y0, t, **settings)
            return torch.autograd.grad(ys[-1].square().sum(), inputs)

        return work


def _steps(n: int) -> dict[str, Any]:
    return {"method": "rk4", "options": {"step_size": 1.0 / n}}


CALLS = (
    Call("rk4, 1000 steps, 2-50-50-2", (2, 50, 50, 2), 20, _steps(1000), _steps(10)),
    Call("rk4, 20 steps, 64-256-64", (64, 256, 64), 256, _steps(20), _steps(2)),
    Call(
        "euler, 20 steps, 64-256-64",
        (64, 256, 64),
        256,
        {**_steps(20), "method": "euler"},
        _steps(2),
    ),
    Call(
        "dopri5, rtol 1e-5, 2-64-64-2",
        (2, 64, 64, 2),
        128,
        {"rtol": 1e-5, "atol": 1e-6},
        {"rtol": 1e-2, "atol": 1e-2},
    ),
)


def run(
    quick: bool, repeats: int, shortest: float, out: Path, say: Callable[[str], object]
) -> None:
    """Measures, prints a table, and writes ``migrating.json``.

    Arguments:
        quick: Whether to solve short problems.
        repeats: Samples of each.
        shortest: The least duration of a sample, in seconds.
        out: The folder for the results.
        say: Is told what happens.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for call in CALLS:
        say(call.title)
        works = {
            f"{library} {interface}": call.gradient(library, interface, quick)
            for library in LIBRARIES
            for interface in INTERFACES
        }
        timed = time_in_turn(works, repeats, shortest)
        found[call.title] = {
            name: {
                "error": _distance(work(), works[f"{name.split()[0]} odeint"]()),
                "ms": 1e3 * timed[name].median,
                "mib": profiled_peak(work) / 2**20,
            }
            for name, work in works.items()
        }
    settings = {"quick": quick, "repeats": repeats, "shortest_sample_s": shortest}
    path = results.write(out, NAME, settings, {"calls": found})
    for title, systems in found.items():
        rows = [
            [name, number(x["error"], ".1e"), number(x["ms"]), number(x["mib"])]
            for name, x in systems.items()
        ]
        print(f"\n{title}\n\n{aligned(['', 'gradient error', 'ms', 'MiB'], rows)}")
    say(f"written: {path}")


def _distance(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    gap = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True))
    return (gap / sum(float(y.square().sum()) for y in b)) ** 0.5
