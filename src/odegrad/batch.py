"""A solve in which every sample of a batch has steps of its own: assemble it, solve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odegrad.assemble import check_callable, read_by
from odegrad.batchinputs import (
    check_alone,
    check_fits,
    check_no_breakpoints,
    check_subset,
    checked_batch,
    checked_sample_times,
)
from odegrad.errors import InvalidValueError
from odegrad.field import VectorField
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.gradients.samples import sample_times, solve_samples, with_failed
from odegrad.inputs import check_choices, check_times_fit, checked_state, checked_stepsize, ordinary
from odegrad.samplegrid import SampleGrid
from odegrad.schemes.base import Scheme
from odegrad.solution import Solution, Status, status_of
from odegrad.state import Leaves, Structure
from odegrad.stepsize import StepSize
from odegrad.substitute import substituted
from odegrad.sweeps import StepInfo
from odegrad.sweeps.samples import SampleMonitor, SampleRun, SampleStats, ahead

__all__ = ["SampleSolution", "Samples", "solve_batch"]


@dataclass(frozen=True)
class Samples:
    """``batch=Samples(args=…)``: steps for each sample, and f takes any number of samples.

    As ``batch=0``; but samples that are at their end are left out of the evaluations of f as soon as they
    are few enough, and so are samples that failed: they cost nothing any more. For that f has to treat
    each sample by itself and has to get what belongs to single samples through `args`. On the initial
    state this is checked by one evaluation of f on every other sample.

    Arguments:
        args: Which of the tensors in ``solve(…, args)`` have a row for each sample, as in_dims of
            `torch.func.vmap`: 0 for those that have, None for those that all samples share; a pytree
            like args or the beginning of one. None: they share all.

    Example:
        >>> import torch, odegrad
        >>> mu = torch.tensor([[0.1], [5.0]], dtype=torch.float64)
        >>> def f(t, y, mu):
        ...     return torch.cat([y[:, 1:], mu * (1 - y[:, :1] ** 2) * y[:, 1:] - y[:, :1]], dim=1)
        >>> y0 = torch.tensor([[2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
        >>> sol = odegrad.solve(f, y0, [0.0, 9.0], (mu,), batch=odegrad.Samples(args=(0,)))
        >>> sol.stats.accepted_by_sample.tolist()
        [42, 118]
    """

    args: Any = None


class SampleSolution(Solution):
    """The result of `odegrad.solve` with ``batch``: a `Solution`, some of which is per sample.

    Attributes:
        status: How each sample ended, a tuple.
        reason: What went wrong with it, or "", a tuple.
        grid: The accepted steps of each sample; ``stepsize=sol.grid`` replays them, and ``sol.grid[b]``
            is the grid of sample b for a solve of it alone.
        landings: The times of each sample, a tuple of tuples.
        stats: With `accepted_by_sample` and `rejected_by_sample`.
        running: Of shape [T, B].
    """

    status: tuple[Status, ...]  # pyright: ignore
    reason: tuple[str, ...]  # pyright: ignore
    grid: SampleGrid  # pyright: ignore
    landings: tuple[tuple[float, ...], ...]  # pyright: ignore
    stats: SampleStats  # pyright: ignore

    @property
    def succeeded(self) -> Tensor:
        """Which samples succeeded, bool of shape [B]: ``ys[:, sol.succeeded]`` are their states."""
        return torch.tensor(
            [x is Status.SUCCESS for x in self.status], dtype=torch.bool, device="cpu"
        )

    def __call__(self, t: Tensor | float | Sequence[float]) -> Any:
        """Raises: samples have steps of their own.

        Raises:
            InvalidValueError: In any case.
        """
        raise InvalidValueError(
            "sol(t) does not go with batch: samples have steps of their own. Pass the times in ts, or "
            "solve sample b alone with stepsize=sol.grid[b] and read that"
        )


def solve_batch(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float] | Sequence[Sequence[float]],
    args: tuple[Any, ...],
    on_failure: str,
    compile: bool,
    batch: object,
    *,
    scheme: Scheme,
    stepsize: StepSize,
    gradient: Gradient,
    running: Callable[..., Any] | None,
    loss_at: object,
    breakpoints: Sequence[float] | Tensor,
    land: bool | None,
    max_steps: int | None,
    check_finite: bool,
    progress: bool,
    callback: Callable[[StepInfo], object] | None,
) -> SampleSolution:
    """`odegrad.solve` with ``batch``.

    Raises:
        OdegradError: If something is wrong with an argument, as `odegrad.solve` says.
    """
    marks = checked_batch(batch, Samples)
    check_choices(f, scheme, stepsize, gradient, max_steps)
    check_callable(running, "running", "t, y")
    check_callable(callback, "callback", "info")
    check_alone(args, scheme, stepsize, gradient, loss_at, land, compile)
    leaves, structure = checked_state(y0, check_finite)
    size = check_fits(leaves, structure.leaf_names())
    times = checked_sample_times(ts, size)
    landings = sample_times(times.detach(), size)
    ends = tuple(x for row in landings.tolist()[:1] for x in row) or (0.0,)
    check_times_fit(tuple(times.detach().flatten().tolist()), leaves)
    stepsize = checked_stepsize(stepsize, leaves, ends, True)
    marked = None if marks is None else _marked(marks.args, args, size)
    args = pytree.tree_map(ordinary, args)
    leaves, times = tuple(map(substituted, leaves)), substituted(times)
    check_no_breakpoints(f, running, args, breakpoints)
    field = VectorField(f, structure, leaves, args, running)
    start = landings[:, 0].contiguous()
    p = read_by(field, start, leaves, stepsize)
    y = (*leaves, *_quadratures(field, start, leaves, p, size))
    cut = None
    if marked is not None:
        cut = (*[False] * (len(p) - len(marked)), *marked)
        check_subset(field, start, y, p, cut)
    n = len(leaves)
    monitor = None
    if progress or callback is not None:
        monitor = SampleMonitor(ends, lambda x: structure.unflatten(x[:n]), callback, progress)
    run = SampleRun(
        field, scheme, stepsize, ends, torch.finfo(times.dtype).eps, max_steps, monitor,
        stats=SampleStats(), landings=landings, cut=cut, check_finite=check_finite,
        salvage=on_failure != "raise",
    )  # fmt: skip
    outputs = _outputs(run, gradient, y, p, times, on_failure == "nan")
    return _solution(run, outputs, structure, times)


def _outputs(
    run: SampleRun, gradient: Gradient, y: Leaves, p: Leaves, times: Tensor, nan: bool
) -> Leaves:
    """The states at all times, leaves of shape [T, B, …]; `nan`: NaN for samples that failed."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*y, *p, times)):
        assert isinstance(gradient, Discrete | Tape)
        outputs = solve_samples(gradient, run, y, p, times)
    else:
        with torch.no_grad():
            outputs, _ = run.field.bound(p, lambda: ahead(run, y, p, None))
    if run.failures:
        outputs = with_failed(run, outputs, (*y, *p, times), len(y), nan)
    return outputs


def _quadratures(field: VectorField, start: Tensor, leaves: Leaves, p: Leaves, size: int) -> Leaves:
    found = field.cost_leaves(start, leaves, p)
    for x in found:
        if x.ndim == 0 or len(x) != size:
            raise InvalidValueError(
                f"with batch, running must return one number per sample, shape [{size}]; it returned "
                f"shape {list(x.shape)}"
            )
    return found


def _marked(marks: Any, args: tuple[Any, ...], size: int) -> list[bool]:
    """For each of the tensors in args, whether it has a row for each sample."""
    leaves, spec = pytree.tree_flatten(args)
    dims = pytree._broadcast_to_and_flatten(marks, spec, is_leaf=lambda x: x is None)  # pyright: ignore
    if dims is None or any(d is not None and (type(d) is not int or d != 0) for d in dims):
        raise InvalidValueError(
            f"Samples: args must be 0 or None for each of args (or a pytree like it), received {marks!r} "
            f"for {len(args)} args"
        )
    pairs = [(x, d == 0) for x, d in zip(leaves, dims, strict=True) if isinstance(x, Tensor)]
    for i, (x, own) in enumerate(pairs):
        if own and (x.ndim == 0 or len(x) != size):
            raise InvalidValueError(
                f"Samples: tensor {i} of args is marked to have a row for each of the {size} samples, "
                f"its shape is {list(x.shape)}"
            )
    return [own for _, own in pairs]


def _rows(run: SampleRun, ts: Tensor) -> tuple[tuple[float, ...], ...]:
    """The times of each sample."""
    if ts.ndim == 1:
        return (tuple(ts.detach().to("cpu", torch.float64).tolist()),) * run.n_samples
    return tuple(map(tuple, run.landings.tolist()))


def _solution(run: SampleRun, outputs: Leaves, structure: Structure, ts: Tensor) -> SampleSolution:
    n = run.field.n_state
    samples = range(run.n_samples)
    return SampleSolution(
        ys=structure.unflatten(outputs[:n]),
        ts=ts,
        stats=run.stats,
        status=tuple(  # pyright: ignore
            status_of(run.failures[b]) if b in run.failures else Status.SUCCESS for b in samples
        ),
        grid=run.accepted_steps,  # pyright: ignore
        landings=_rows(run, ts),  # pyright: ignore
        running=outputs[n] if len(outputs) > n else None,
        reason=tuple(str(run.failures[b]) if b in run.failures else "" for b in samples),  # pyright: ignore
    )
