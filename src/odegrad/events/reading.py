"""Reading a solution with events at any time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odegrad.dense import asked_times
from odegrad.events.march import Marched
from odegrad.events.placed import Solver, steps_again

__all__ = ["read_stretches"]


def read_stretches(stretches: Sequence[Marched], solver: Solver, t: object) -> Any:
    """The state at t, in the user's structure; at the time of a jump, that before it.

    Arguments:
        stretches: The solve.
        solver: Runs a stretch.
        t: A time or several, between the first and where the solve ended, shape [] or [T].

    Raises:
        InvalidTypeError: If t is neither a number, a tensor nor a sequence of numbers.
        InvalidValueError: If t lies outside.
        ChangedTensorError: If what f reads was changed since.
    """
    problem = stretches[0].problem
    run, last = problem.run, stretches[-1].stop
    asked, shape = asked_times(t, (run.times[0], last))
    run.check_unchanged()
    sign = -1.0 if run.times[-1] < run.times[0] else 1.0
    asked = asked.reshape(-1)
    left = [(sign * x, i) for i, x in enumerate(asked.detach().tolist())]
    found: list[tuple[list[int], tuple[Tensor, ...]]] = []
    for k, marched in enumerate(stretches):
        stop = sign * marched.stop
        mine = [i for x, i in left if x <= stop or k == len(stretches) - 1]
        left = [(x, i) for x, i in left if x > stop]
        if not mine:
            continue
        landed = marched.problem.run.landed[: len(marched.segments) + 1]
        outputs, places = steps_again(marched, landed, asked[mine], solver, None)
        at = places[len(landed) :]
        found.append((mine, tuple(x[at] for x in outputs)))
    order = [i for mine, _ in found for i in mine]
    back = [order.index(i) for i in range(len(order))]
    leaves = [torch.cat(x)[back] for x in zip(*(y for _, y in found), strict=True)]
    n = run.field.n_state
    return problem.structure.unflatten([x.reshape((*shape, *x.shape[1:])) for x in leaves[:n]])
