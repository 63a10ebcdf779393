"""Reading a solution at any time after the solve.

The accepted steps are taken once more along the recorded grid, and the state is read off the dense output
of the steps that the times lie in: nothing is kept for it, and the result is differentiable like the
outputs of the solve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odegrad.assemble import Problem
from odegrad.capture import version
from odegrad.errors import ChangedTensorError, InvalidTypeError, InvalidValueError
from odegrad.gradients import Discrete, Mismatched, Tangent, Tape
from odegrad.grid import Grid, Stops
from odegrad.sweeps import Stats
from odegrad.sweeps.run import Run

__all__ = ["Reader", "along", "asked_times", "once_more", "read_again"]

T = TypeVar("T")


class Reader:
    """Reads a solution, t ↦ the state at t.

    Arguments:
        problems: The solves that it consists of.
        read: Reads them, as `read_again` does.
    """

    def __init__(self, problems: Sequence[Problem], read: Callable[[object], Any]) -> None:
        self._tensors = [x for problem in problems for x in (*problem.y, *problem.p)]
        self._read, self._versions = read, list(map(version, self._tensors))

    def __call__(self, t: object) -> Any:
        """The state at t, as `read_again` says."""
        if list(map(version, self._tensors)) != self._versions:
            raise ChangedTensorError(
                "sol(t) takes the accepted steps once more, but the initial state or a tensor that f "
                "reads was changed in place since the solve (by an optimizer, say): read the solution "
                "before, or pass the times in ts"
            )
        return self._read(t)


def read_again(problem: Problem, solved: Callable[[Problem], Any], t: object) -> Any:
    """The state at t, in the user's structure; t of shape [T] gives leaves of shape [T, *leaf.shape].

    Arguments:
        problem: A solve that is through.
        solved: Runs another one.
        t: A time or several, between the first and the last.

    Raises:
        InvalidTypeError: If t is neither a number, a tensor nor a sequence of numbers.
        InvalidValueError: If t lies outside, or the gradient mode starts anew at every time.
        ChangedTensorError: If what f reads was changed since.
    """
    run, gradient = problem.run, problem.gradient
    if not isinstance(gradient, Discrete | Mismatched | Tangent | Tape):
        raise InvalidValueError(
            f"gradient={gradient} starts anew at every time, and does not go with sol(t); "
            "pass the times in ts, or use gradient=Discrete()"
        )
    if len(run.times) < 2:
        raise InvalidValueError("sol(t) needs a solve with steps: ts has a single time")
    asked, shape = asked_times(t, run.times)
    run.check_unchanged()
    again, places = along(problem, list(run.landed), asked.reshape(-1), run.accepted_grid)
    places = places[len(run.landed) :]
    ys = once_more(run, lambda: solved(again).ys)

    def chosen(x: Tensor) -> Tensor:
        return x[places].reshape((*shape, *x.shape[1:]))

    return pytree.tree_map(chosen, ys)


def along(
    problem: Problem, landed: Sequence[int], asked: Tensor, grid: Grid
) -> tuple[Problem, list[int]]:
    """The solve that takes the steps of a grid and reads other times off them.

    Arguments:
        problem: A solve that is through.
        landed: The numbers of its times that the segments of the grid lie between.
        asked: The times to read, shape [N], between the first of these and the last.
        grid: The grid.

    Returns:
        The solve, and where among its times those of `landed` are, followed by those of `asked`.
    """
    run = problem.run
    every = torch.cat([problem.ts[list(landed)], asked.to(problem.ts)])
    sign = -1.0 if run.times[-1] < run.times[0] else 1.0
    numbers = [*(run.times[j] for j in landed), *asked.detach().tolist()]
    last = len(landed) - 1  # the ends stay at the ends, whatever is equal to them
    # A time at the end belongs to the last step that has a length.
    between = [
        (sign * numbers[i], i < len(landed) and numbers[i] == numbers[last], i)
        for i in range(1, len(numbers))
        if i != last
    ]
    order = [0, *(i for _, _, i in sorted(between)), last]
    places = [0] * len(order)
    for k, i in enumerate(order):
        places[i] = k
    times = tuple(numbers[i] for i in order)
    stops = Stops(times, sorted(places[: len(landed)]))
    again = dataclasses.replace(
        run, times=times, stops=stops, stepsize=grid, stats=Stats(), grid=None, kinks=(),
        labels=None, loss=None, monitor=None, programs=None, witness=None, max_steps=None,
    )  # fmt: skip
    ts = every[order]
    wanted = problem.differentiated or any(x.requires_grad for x in (*problem.y, *problem.p, ts))
    differentiated = torch.is_grad_enabled() and wanted
    return dataclasses.replace(
        problem, run=again, ts=ts, places=tuple(range(len(order))), differentiated=differentiated
    ), places


def once_more(run: Run, thunk: Callable[[], T]) -> T:
    """thunk(), with generators and buffers as they were at the start of a solve, and then left alone."""
    before = run.field.snapshot()
    try:
        if before is not None and run.initial is not None:
            run.initial.restore()
        return thunk()
    finally:
        if before is not None:
            before.restore()


def asked_times(t: object, times: Sequence[float]) -> tuple[Tensor, torch.Size]:
    """The times as a tensor, and their shape."""
    if not isinstance(t, Tensor):
        try:
            t = torch.tensor(t, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidTypeError(
                f"sol(t): t must be a number, a tensor or a sequence of numbers, received {t!r}"
            ) from error
    low, high = min(times[0], times[-1]), max(times[0], times[-1])
    if t.ndim > 1 or t.is_complex() or t.numel() == 0:
        raise InvalidValueError(
            f"sol(t): t must be one time or several, shape [] or [T], received {list(t.shape)}"
        )
    near = 4.0 * torch.finfo(torch.float64).eps * max(abs(low), abs(high))
    outside = [x for x in t.detach().reshape(-1).tolist() if not low - near <= x <= high + near]
    if outside:
        raise InvalidValueError(
            f"sol(t): t = {outside[0]:g} is outside of the solve, which goes from {times[0]:g} to "
            f"{times[-1]:g}"
        )
    return t, t.shape
