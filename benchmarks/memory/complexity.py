"""Whether a binomial schedule costs what its recomputed steps cost, and nothing else.

The problem is that of McCallum & Foster, *Efficient, accurate and stable gradients for neural ODEs*
(arXiv 2410.11648), on which they time checkpointing with c states: y' = MLP 1-10-1 tanh, one number in
float64, the midpoint rule with N steps. With the t(N, c) of `odegrad.checkpoints.advances`,

    time(c) ≤ 1.25 (t(N, c) F + N (F + V)).

F is the time of a step of a solve without a gradient, and F + V that of a step of the backward sweep when
all states were kept, which evaluates f once more and transposes it. All take samples in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import odegrad
from benchmarks.memory.parts import Check, Effort, Record, Say, in_turn, seconds
from benchmarks.tables import aligned, number
from odegrad.bench.workloads import Mlp
from odegrad.checkpoints import Checkpoints, advances

__all__ = ["SLACK", "measure", "model", "table"]

SLOTS = (2, 4, 8, 16, 32, 44)
STEPS, QUICK_STEPS = 1000, 60
SLACK = 1.25
PUBLISHED = {
    "spread": 51.0,
    "what": "diffrax RecursiveCheckpointAdjoint, c = 2 against c ≈ √N, N = 1000; on another machine",
    "source": "github.com/sammccallum/reversible-solvers, experiments/*/data",
}
"""Published data, not measured here."""


def model(n: int, slots: int, f: float, f_and_v: float) -> float:
    """t(N, c) F + N (F + V).

    Example:
        >>> model(1000, 8, 1.0, 3.0)
        7285.0
    """
    return advances(n, slots) * f + n * f_and_v


def measure(effort: Effort, say: Say) -> Record:
    """Measures the eager engine."""
    steps = QUICK_STEPS if effort.quick else STEPS
    works = _works(steps)
    for work in works.values():
        work()  # warms up
    # The units again beside each of the others.
    turn = [x for c in SLOTS for x in ("forward", "backward", f"c = {c}")]
    samples = in_turn(works, turn, effort.repeats, lambda line: say(f"complexity: {line}"))
    f, f_and_v = (statistics.median(samples[name]) / steps for name in ("forward", "backward"))
    rows: list[Record] = []
    for c in SLOTS:
        median, limit = statistics.median(samples[f"c = {c}"]), model(steps, c, f, f_and_v)
        work = {"slots": c, "advances": advances(steps, c), "median_s": median}
        rows.append(work | {"model_s": limit, "ratio": median / limit})
    checks = [Check(f"c = {x['slots']}: time ÷ model", x["ratio"], SLACK) for x in rows]
    first, last = rows[0], rows[-1]
    return {
        "workload": "MLP 1-10-1 tanh, one number, float64, midpoint",
        "steps": steps,
        "f_s": f,
        "f_and_v_s": f_and_v,
        "rows": rows,
        "samples_s": samples,
        "spread": {
            "time": first["median_s"] / last["median_s"],
            "work": first["model_s"] / last["model_s"],
            "advances": first["advances"] / last["advances"],
        },
        "published": PUBLISHED,
        "checks": [check.as_record() for check in checks],
    }


def _works(steps: int) -> dict[str, Callable[[], float]]:
    """What is timed; each returns its seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Mlp(1, 10, 1).double()
    y0 = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    inputs = (y0, *net.parameters())

    def solved(checkpoints: Checkpoints | None) -> Tensor:
        sol: Any = odegrad.solve(
            net,
            y0,
            [0.0, 0.01 * steps],
            scheme=odegrad.Midpoint(),
            stepsize=odegrad.Steps(steps),
            gradient=odegrad.Discrete(checkpoints),
        )
        return sol.ys[-1].square().sum()

    def gradient(checkpoints: Checkpoints) -> object:
        return torch.autograd.grad(solved(checkpoints), inputs)

    def forward() -> float:
        with torch.no_grad():
            return seconds(lambda: solved(None))

    def backward() -> float:
        loss = solved(odegrad.StoreAll(odegrad.Keep.STATE))
        return seconds(lambda: torch.autograd.grad(loss, inputs))

    def binomial(slots: int) -> Callable[[], float]:
        return lambda: seconds(lambda: gradient(odegrad.Binomial(slots)))

    return {"forward": forward, "backward": backward} | {f"c = {c}": binomial(c) for c in SLOTS}


def table(record: Record) -> str:
    """Times against the model."""
    rows = [
        [
            f"{x['slots']}",
            f"{x['advances']}",
            number(x["median_s"], ".4g"),
            number(x["model_s"], ".4g"),
            number(x["ratio"], ".3f"),
        ]
        for x in record["rows"]
    ]
    spread, published = record["spread"], record["published"]
    header = ["c states", "t(N, c)", "seconds", "model", "ratio"]
    lines = [
        f"{record['workload']}, N = {record['steps']}: "
        f"F = {1e6 * record['f_s']:.0f} µs, F + V = {1e6 * record['f_and_v_s']:.0f} µs per step",
        "",
        aligned(header, rows),
        "",
        f"c = 2 ÷ c = 44: time {spread['time']:.2f}, model {spread['work']:.2f}, "
        f"t(N, c) {spread['advances']:.1f}.",
        f"Published, not measured here: {published['spread']:.0f} for {published['what']} "
        f"({published['source']}).",
    ]
    return "\n".join(lines)
