"""A solve in which every sample of a batch has steps of its own: assemble it, solve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odegrad.assemble import check_callable, read_by
from odegrad.batchdense import SampleProblem, SampleReader
from odegrad.batchinputs import (
    check_alone,
    check_fits,
    check_subset,
    checked_batch,
    checked_marks,
    checked_quadratures,
)
from odegrad.batchtimes import SampleLandings, checked_sample_times
from odegrad.breakpoints import Breakpoints
from odegrad.errors import warn
from odegrad.field import VectorField
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.gradients.losses import summed
from odegrad.inputs import (
    check_choices,
    check_loss,
    check_times_fit,
    checked_state,
    checked_stepsize,
    ordinary,
)
from odegrad.labelloss import LabelLoss
from odegrad.samplegrid import SampleGrid
from odegrad.schemes.base import Scheme
from odegrad.schemes.restarted import Restarted
from odegrad.solution import Solution, Status, status_of
from odegrad.state import Leaves, Structure, widest_real_dtype
from odegrad.stepsize import StepSize
from odegrad.substitute import substituted
from odegrad.sweeps import StepInfo
from odegrad.sweeps.samples import SampleMonitor, SampleRun, SampleStats

if TYPE_CHECKING:
    from odegrad.compiled import Prepared

__all__ = ["SampleSolution", "Samples", "assemble_batch", "solve_batch"]


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
        landings: The times that the steps of each sample had to end at, a tuple of tuples.
        stats: With `accepted_by_sample` and `rejected_by_sample`.
        running: Of shape [T, B]; with `loss_at` of shape [B].
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

    def __call__(self, t: Tensor | float | Sequence[float] | Sequence[Sequence[float]]) -> Any:
        """The states of all samples at any time between the first and the last.

        As `Solution.__call__`. The samples that failed are NaN, whatever was reached.

        Arguments:
            t: One time, or several, shape [K], for all samples; or several for each, shape [B, K].

        Returns:
            The states in the structure of y0: leaves of its shape, or of shape [K, *leaf.shape].

        Raises:
            InvalidTypeError: If t is neither a number, a tensor nor a sequence of numbers.
            InvalidValueError: If it has another shape, or lies outside of the solve of a sample.
            ChangedTensorError: If what f reads was changed since the solve.
        """
        return super().__call__(t)  # pyright: ignore[reportArgumentType]


def solve_batch(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float] | Sequence[Sequence[float]],
    args: tuple[Any, ...],
    on_failure: str,
    compile: bool,
    batch: object,
    **options: Any,
) -> SampleSolution:
    """`odegrad.solve` with ``batch``.

    Raises:
        OdegradError: If something is wrong with an argument, as `odegrad.solve` says.
    """
    given = partial(assemble_batch, f, y0, ts, args, on_failure, batch=batch, **options)
    if compile:
        from odegrad.compiled import NotCompilable  # what it imports takes its time

        try:
            return _solved(*given(compile=True))
        except NotCompilable as reason:
            warn(f"compile=True has no effect on this solve: {reason}")
    return _solved(*given(compile=False))


def assemble_batch(
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
    loss_at: Callable[..., Any] | None,
    breakpoints: Sequence[float] | Tensor,
    land: bool | None,
    max_steps: int | None,
    check_finite: bool,
    progress: bool,
    callback: Callable[[StepInfo], object] | None,
) -> tuple[SampleProblem, LabelLoss | None]:
    """`solve_batch` in one of the engines, ready to run, and the loss at each time, if there is one.

    Raises:
        NotCompilable: If `compile` is set and the solve cannot be compiled.
        OdegradError: If something is wrong with an argument.
    """
    marks = checked_batch(batch, Samples)
    check_choices(f, scheme, stepsize, gradient, max_steps)
    check_callable(running, "running", "t, y")
    check_callable(loss_at, "loss_at", "j, y")
    check_callable(callback, "callback", "info")
    check_alone(args, scheme, stepsize, gradient, compile)
    leaves, structure = checked_state(y0, check_finite)
    size = check_fits(leaves, structure.leaf_names())
    times = checked_sample_times(ts, size)
    check_times_fit(tuple(times.detach().flatten().tolist()), leaves)
    marked = None if marks is None else checked_marks(marks.args, args, size)
    args = pytree.tree_map(ordinary, args)
    leaves, times = tuple(map(substituted, leaves)), substituted(times)
    breaks = Breakpoints.found(
        breakpoints, [f, running, *filter(callable, pytree.tree_leaves(args))]
    )
    known = SampleLandings(times, size, breaks)
    ends = tuple(x for row in known.times.tolist()[:1] for x in row) or (0.0,)
    stepsize = checked_stepsize(stepsize, leaves, ends, True)
    if breaks.jumps and known.kinks:
        scheme = Restarted.at_jumps(scheme, times.dtype, widest_real_dtype(leaves))
    start, programs, cut = known.times[:, 0].contiguous(), None, None
    if compile:
        prepared = _prepared(f, running, structure, leaves, args, start, scheme, stepsize, gradient)
        field, p, programs = prepared.field, prepared.field.arguments, prepared.programs
        if marked is not None:
            own = [x for x, m in zip(_tensors(args), marked, strict=True) if m]
            cut = tuple(any(x is a for a in own) for x in p)
    else:
        field = VectorField(f, structure, leaves, args, running)
        p = read_by(field, start, leaves, stepsize)
    y = (*leaves, *checked_quadratures(field, start, leaves, p, size))
    if marked is not None and not compile:
        cut = (*[False] * (len(p) - len(marked)), *marked)
        check_subset(field, start, y, p, cut)
    loss = None if loss_at is None else LabelLoss(loss_at, structure, args, leaves, p)
    placed = known.placed(land, scheme, stepsize, gradient, field, loss is not None)
    n = len(leaves)
    monitor = None
    if progress or callback is not None:
        monitor = SampleMonitor(ends, lambda x: structure.unflatten(x[:n]), callback, progress)
    run = SampleRun(
        field, scheme, stepsize, ends, torch.finfo(times.dtype).eps, max_steps, monitor,
        stats=SampleStats(), landings=placed.landings, times_by_sample=placed.times,
        stops=placed.stops, cut=cut, check_finite=check_finite, salvage=on_failure != "raise",
        programs=programs,
    )  # fmt: skip
    return SampleProblem(run, y, p, times, structure, gradient, on_failure == "nan"), loss


def _prepared(
    f: Callable[..., Any],
    running: Callable[..., Any] | None,
    structure: Structure,
    leaves: Leaves,
    args: tuple[Any, ...],
    start: Tensor,
    scheme: Scheme,
    stepsize: StepSize,
    gradient: Gradient,
) -> Prepared:
    """The captured field and its programs.

    Raises:
        NotCompilable: If there are none.
    """
    from odegrad.compiled import NotCompilable, prepare

    assert isinstance(gradient, Discrete)
    if gradient.rewinds:
        raise NotCompilable("Rewind takes steps back one by one")
    if gradient.memory is not None:
        raise NotCompilable("with batch, a memory budget is one of steps that are taken in Python")
    return prepare(
        f, running, structure, leaves, args, start, scheme, stepsize, gradient.chunk_bytes()
    )


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]


def _solved(problem: SampleProblem, loss: LabelLoss | None) -> SampleSolution:
    """Solves what was assembled; `loss` is that at each time, or None."""
    run, outputs, n = problem.run, problem.outputs(), problem.run.field.n_state
    total, running = None, outputs[n] if len(outputs) > n else None
    if loss is not None:
        p = tuple(map(substituted, loss.p))
        total = summed(loss, outputs[:n], p, isinstance(problem.gradient, Tape))
        running = None if running is None else running[-1]
        if run.check_finite and not run.salvage:
            check_loss(total, run.times)
    failures = [run.failures.get(b) for b in range(run.n_samples)]
    counts = zip(run.landings.tolist(), run.segments.tolist(), strict=True)
    return SampleSolution(
        ys=problem.structure.unflatten(outputs[:n]) if loss is None else None,
        ts=problem.ts,
        stats=run.stats,
        status=tuple(Status.SUCCESS if x is None else status_of(x) for x in failures),  # pyright: ignore
        grid=run.accepted_steps,  # pyright: ignore
        landings=tuple(tuple(row[: count + 1]) for row, count in counts),  # pyright: ignore
        running=running,
        loss=total,
        reason=tuple("" if x is None else str(x) for x in failures),  # pyright: ignore
        _read=SampleReader(problem),
    )
