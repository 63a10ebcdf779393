"""What the rewrites of small operations gain: the same function compiled with and without each.

A function of the shape of a layer, tanh(x Wᵀ + b), is compiled as the steps of the compiled engine are
(`odegrad.compiled.rewrite`), for batches x of shape [m, k] and weights of shape [n, k].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.tables import aligned, number
from odegrad.bench import time_in_turn
from odegrad.compiled.inductor import compile_graph
from odegrad.compiled.rewrite import REWRITES
from odegrad.compiled.tracing import Fakes

__all__ = ["run"]

NAME = "products"
SHAPES = (
    *((20, 2, 50), (20, 50, 50), (20, 50, 2), (20, 8, 50), (20, 50, 8)),
    *((256, 2, 64), (256, 64, 2), (256, 64, 64), (4, 64, 64), (1, 128, 128)),
)
aten = torch.ops.aten
PLAIN: dict[Any, Any] = {}
VARIANTS: dict[str, dict[Any, Any]] = {
    "as written": PLAIN,
    "products": {op: REWRITES[op] for op in (aten.mm.default, aten.addmm.default)},
    "tanh": {aten.tanh.default: REWRITES[aten.tanh.default]},
    "all": REWRITES,
}


def run(repeats: int, shortest: float, out: Path, say: Callable[[str], object]) -> None:
    """Measures, prints a table, and writes ``products.json``.

    Arguments:
        repeats: Samples of each.
        shortest: The least duration of a sample, in seconds.
        out: The folder for the results.
        say: Is told what happens.
    """
    found: list[dict[str, Any]] = []
    for m, k, n in SHAPES:
        say(f"[{m}, {k}] times [{k}, {n}]")
        works = {name: _compiled(m, k, n, rewrites) for name, rewrites in VARIANTS.items()}
        timed = time_in_turn(works, repeats, shortest)
        found.append({"shape": [m, k, n], "us": {x: 1e6 * t.median for x, t in timed.items()}})
    path = results.write(
        out, NAME, {"repeats": repeats, "shortest_sample_s": shortest}, {"layers": found}
    )
    rows = [
        [" × ".join(map(str, x["shape"])), *(number(t) for t in x["us"].values())] for x in found
    ]
    print(f"\n{aligned(['m × k × n', *(f'{name}, µs' for name in VARIANTS)], rows)}\n")
    say(f"written: {path}")


def _compiled(m: int, k: int, n: int, rewrites: dict[Any, Any]) -> Callable[[], object]:
    def layers(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        # Eight in a row, so that the call itself weighs little.
        return [torch.tanh(torch.nn.functional.linear(x + i, weight, bias)) for i in range(8)]

    given = [torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(n)]
    fakes = Fakes()
    module = fakes.trace(layers, given, rewrites)
    program = compile_graph(module, fakes.like(given), _fail)

    def work() -> object:
        with torch.no_grad():
            return program(*given)

    return work


def _fail(reason: str) -> None:
    raise RuntimeError(reason)
