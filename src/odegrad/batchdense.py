"""A solve with steps for each sample that is ready to run, and reading it at any time once it is through.

As in `odegrad.dense`, the accepted steps are taken once more along the recorded grid, and the samples are
read off the steps that the times lie in.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.capture import version
from odegrad.errors import ChangedTensorError, InvalidTypeError, InvalidValueError
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.gradients.samples import sample_times, solve_samples, with_failed
from odegrad.samplestops import SampleStops
from odegrad.state import Leaves, Structure
from odegrad.sweeps.samples import SampleRun, SampleStats, ahead

__all__ = ["SampleProblem", "SampleReader"]


@dataclass(frozen=True)
class SampleProblem:
    """A solve that is ready to run.

    Attributes:
        run: The solve.
        y: The initial state, with quadratures.
        p: The tensors that f reads.
        ts: The times, shape [T] or [B, T].
        structure: The structure of the state.
        gradient: How to differentiate it.
        nan: Whether the states of samples that failed are NaN throughout.
    """

    run: SampleRun
    y: Leaves
    p: Leaves
    ts: Tensor
    structure: Structure
    gradient: Gradient
    nan: bool

    def outputs(self) -> Leaves:
        """The states at all times, leaves of shape [T, B, …]."""
        run, y, p, ts = self.run, self.y, self.p, self.ts
        if torch.is_grad_enabled() and any(x.requires_grad for x in (*y, *p, ts)):
            assert isinstance(self.gradient, Discrete | Tape)
            outputs = solve_samples(self.gradient, run, y, p, ts)
        elif run.programs is not None:
            from odegrad.compiled import SamplePrograms  # what it imports takes its time
            from odegrad.sweeps.samples import compiled

            assert isinstance(run.programs, SamplePrograms)
            outputs, _ = compiled.ahead(run, run.programs, y, p)
        else:
            with torch.no_grad():
                outputs, _ = run.field.bound(p, lambda: ahead(run, y, p, None))
        if run.failures:
            if run.reached is None:  # they failed in an earlier solve
                run.reached = tuple(torch.full_like(x, float("nan")) for x in outputs)
            outputs = with_failed(run, outputs, (*y, *p, ts), len(y), self.nan)
        return outputs


class SampleReader:
    """Reads a solution, t ↦ the states of all samples at t.

    Arguments:
        problem: A solve that is through.
    """

    def __init__(self, problem: SampleProblem) -> None:
        self._problem = problem
        self._versions = [version(x) for x in (*problem.y, *problem.p)]

    def __call__(self, t: object) -> Any:
        """The states at t, in the user's structure; NaN for samples that failed.

        Arguments:
            t: One time, or several, shape [K], for all samples; or shape [B, K].

        Returns:
            Leaves of shape [B, …], or [K, B, …].

        Raises:
            InvalidTypeError: If t is neither a number, a tensor nor a sequence of numbers.
            InvalidValueError: If it has another shape, or a time lies outside of the solve of a sample.
            ChangedTensorError: If what f reads was changed since.
        """
        problem, run = self._problem, self._problem.run
        if [version(x) for x in (*problem.y, *problem.p)] != self._versions:
            raise ChangedTensorError(
                "sol(t) takes the accepted steps once more, but the initial state or a tensor that f "
                "reads was changed in place since the solve (by an optimizer, say): read the solution "
                "before, or pass the times in ts"
            )
        t, size = _checked(t, run.outputs_at), run.n_samples
        run.check_unchanged()
        asked = sample_times(t.reshape(1) if t.ndim == 0 else t, size)
        n, before = run.field.n_state, run.field.snapshot()
        if not size:
            found = tuple(x.new_zeros((asked.shape[1], *x.shape)) for x in problem.y[:n])
        else:
            again = self._again(asked)
            try:
                if before is not None and run.initial is not None:
                    run.initial.restore()
                found = tuple(x[-asked.shape[1] :] for x in again.outputs()[:n])
            finally:
                if before is not None:
                    before.restore()
        return problem.structure.unflatten(found if t.ndim else tuple(x[0] for x in found))

    def _again(self, asked: Tensor) -> SampleProblem:
        """The same solve along its accepted steps, with outputs at times that are asked for, [B, K]."""
        problem, run = self._problem, self._problem.run
        count, more = run.outputs_at.shape[1], asked.shape[1]
        every = torch.cat([sample_times(problem.ts, run.n_samples), asked], 1)
        times, stops = every.detach(), run.stops
        sources: list[list[int]] = [list(range(count))] * run.n_samples
        breaks = times.new_zeros(0)
        if stops is not None:
            breaks, rows = stops.breaks, stops.source
            rows = torch.where(rows < count, rows, rows + more)
            ends = stops.segments.tolist()
            sources = [row[: n + 1] for row, n in zip(rows.tolist(), ends, strict=True)]
        read = torch.zeros_like(times, dtype=torch.bool)
        read[:, count:] = True
        stops = SampleStops.of(times, breaks, sources, read)
        again = dataclasses.replace(
            run, stepsize=run.accepted_steps, landings=stops.landings(times), times_by_sample=times,
            stops=stops, stats=SampleStats(), steps=None, monitor=None, max_steps=None,
            check_finite=False, excluded=run.failures, failures={}, reached=None, salvage=True,
            # A captured f takes as many samples as it was captured with.
            programs=None, cut=run.cut if run.programs is None else None,
            replay_check=False, fingerprints={},
        )  # fmt: skip
        return dataclasses.replace(problem, run=again, ts=every, nan=True)


def _checked(t: object, times: Tensor) -> Tensor:
    """The times that are asked for as a tensor; those of the solve are of shape [B, T]."""
    if not isinstance(t, Tensor):
        try:
            t = torch.tensor(t, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidTypeError(
                f"sol(t): t must be a number, a tensor or a sequence of numbers, received {t!r}"
            ) from error
    size = len(times)
    wrong = t.ndim > 2 or (t.ndim == 2 and len(t) != size)
    if wrong or t.is_complex() or (t.numel() == 0 and t.shape[-1:] == (0,)):
        raise InvalidValueError(
            f"sol(t) with batch: t must be one time or several for all of the {size} samples, shape [] "
            f"or [K], or several for each, [{size}, K]; received shape {list(t.shape)}"
        )
    if times.shape[1] < 2:
        raise InvalidValueError("sol(t) needs a solve with steps: ts has a single time")
    ends = torch.stack([times[:, 0], times[:, -1]], 1)
    low, high = ends.amin(1), ends.amax(1)
    near = 4.0 * torch.finfo(torch.float64).eps * torch.maximum(low.abs(), high.abs())
    asked = sample_times(t.detach().reshape(1) if t.ndim == 0 else t.detach(), size)
    inside = (asked >= (low - near)[:, None]) & (asked <= (high + near)[:, None])
    for b, k in (~inside).nonzero().tolist()[:1]:
        raise InvalidValueError(
            f"sol(t): t = {float(asked[b, k]):g} is outside of the solve of sample {b}, which goes from "
            f"{float(times[b, 0]):g} to {float(times[b, -1]):g}"
        )
    return t
