"""The one entry: assemble a run, solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from odegrad.assemble import Problem, assemble
from odegrad.batch import Samples, solve_batch
from odegrad.dense import Reader, read_again
from odegrad.errors import InvalidValueError, SolveError, warn
from odegrad.events import Event, assemble_with_events, checked_events, solve_events
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.gradients.failed import failed
from odegrad.grid import Grid
from odegrad.inputs import check_loss, check_result
from odegrad.schemes import Tsit5
from odegrad.schemes.base import Scheme
from odegrad.solution import Solution, Status, status_of
from odegrad.state import Leaves
from odegrad.stepsize import PID, AdaptiveStepSize, Steps, StepSize
from odegrad.sweeps import StepInfo, forward
from odegrad.sweeps.labels import sink
from odegrad.traced import has_breakpoints, solve_traced

__all__ = ["OnFailure", "solve", "solved"]

OnFailure: TypeAlias = Literal["raise", "nan", "return"]


def solve(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float] | Sequence[Sequence[float]],
    args: tuple[Any, ...] = (),
    *,
    scheme: Scheme = Tsit5(),
    stepsize: StepSize = PID(),
    gradient: Gradient = Discrete(),
    compile: bool = False,
    running: Callable[..., Any] | None = None,
    loss_at: Callable[..., Any] | None = None,
    events: Sequence[Event] = (),
    breakpoints: Sequence[float] | Tensor = (),
    land: bool | None = None,
    batch: int | Samples | None = None,
    max_steps: int | None = None,
    on_failure: OnFailure = "raise",
    check_finite: bool = True,
    progress: bool = False,
    callback: Callable[[StepInfo], object] | None = None,
) -> Solution:
    """Solves dy/dt = f(t, y, *args) from ts[0] through all times of `ts`, differentiably.

    The gradient is the exact derivative of the numbers returned: of the map (y0, parameters, args,
    times) ↦ ys computed by the accepted steps, each interior grid time held at its fixed fraction of
    its segment. The step-size controller and rejected attempts carry no derivative.

    Adaptive steps end at the last time; those between are read off the dense output of the steps that
    they lie in, so that asking for more outputs does not change the steps. Fixed steps end at every
    time; `land` says otherwise. Times may descend, and neighbours may be equal.

    Inside of torch.compile and torch.export a solve with `Steps(n)`, and without a memory budget,
    streamed losses, breakpoints or a multistep scheme, is traced as n steps per interval: no graph
    break, the same numbers and gradients, in the memory of `Tape`. Controls have to be in modules
    there, not captured. Any other solve is one graph break, and runs as ever.

    Arguments:
        f: Maps (t, y, *args) to a pytree like y. It may raise `RejectStep` to ask adaptive steps for a
            smaller one. t is a 0-dim tensor in the widest real dtype of the
            state, on the device of its first leaf. Parameters of modules that f calls, and tensors
            that it captures, are found and differentiated.
        y0: The state at ts[0]: a floating-point or complex tensor, or any pytree of such tensors.
        ts: The times, shape [T], T ≥ 1; a tensor (which may require grad) or a sequence of floats.
        args: Further arguments of f; tensors among them are differentiated.
        scheme: How to step.
        stepsize: `PID` (adaptive), `Fixed`, `Steps`, or the `grid` of an earlier solution.
        gradient: `Discrete` (exact, little memory), `Tape` (exact, the memory of
            backpropagation) or `Backsolve` (the traditional adjoint).
        compile: Whether to run both sweeps as compiled loops over chunks of steps: the same numbers up
            to rounding, with much less overhead per step (float32 error estimates differ in the last
            digits, so that adaptive steps may, too). The first solve and the first gradient with a
            given f, scheme, shape and dtype take the compiler (g++ or clang, and Python's headers)
            seconds to a minute, which `progress` shows; later ones find its result, also in another
            process, through torch's cache on disk. f has to be one graph for `torch.compile`, without
            branches on values, random numbers, or changes to tensors that it reads; else a warning
            says why and the solve runs as without `compile`. Of what f does besides, printing happens
            once per capture; a Python number that f changes makes every solve compile anew. With
            ``Discrete(StoreAll(keep=Keep.GRAPH))`` the forward sweep keeps what the transposes need:
            the fastest way, in about the memory of backpropagation.
        running: ℓ(t, y, *args), one real tensor: a running cost, integrated by the scheme's own
            quadrature and returned as `Solution.running`. It does not influence the steps.
        loss_at: ℓ(j, y, *args), one real number: the loss at ts[j], for the state y there. It is
            evaluated inside both sweeps, and `Solution.loss` is the sum over all j, so that memory does
            not grow with the number of times: `Solution.ys` is None. What ℓ reads (a decoder, targets)
            is differentiated like what f reads. Goes with `Discrete` and `Tape`.
        events: `Event`s, where g(t, y) = 0: they are noted in `Solution.events`, end the solve, or let
            the state jump. ts and ys then hold the times that were reached; a time of `ts` that is the
            time of a jump has the state before it. Events do not change the steps, but each jump begins
            them anew: a step's end is held at its fixed fraction of the segment from the jump to the next
            time. Derivatives of every order are exact. Not with `loss_at`, `batch`, gradient modes that
            start anew at every time, and transforms; `compile` has no effect.
        breakpoints: Times at which f jumps, or a derivative of it: steps end there, and f is evaluated
            strictly inside of each step (a stage at the end of a step sees the limit from within).
            Those outside the solve are passed over. Modules of `odegrad.controls` that f reads
            declare theirs by themselves.
        land: Whether steps end at every time (True), or only at the first, the last, and breakpoints, the
            others being read off the scheme's dense output (False). None is False for adaptive steps,
            and True for `Steps` and `Fixed`; a `grid` is replayed as it was recorded. Where False is
            not possible, None is True: with `loss_at`, with gradient modes that start anew at every
            time (`Backsolve`, `Quadrature`), and if reading evaluates f (with RKF45, CashKarp, Dopri8,
            Reversible and multistep schemes) and f draws random numbers or changes buffers.
            The derivative with respect to a time that is read is the slope of the dense output.
        batch: 0 gives each sample, an index along dimension 0 of every leaf of y0, steps of its own, as
            if it were solved alone: its own sizes, rejections, times (ts of shape [T], or [B, T]) and
            status. f is still called with all samples, once for all of them, and t has shape [B] then.
            A sample that is at its end (or was rejected, in the backward sweep) is evaluated at its
            initial state, and the result is not used. `Samples` leaves it out. The result is a
            `SampleSolution`: status, reason and grid are per sample. A sample that fails harms no other:
            with `on_failure` not "raise", its ys are NaN (or what was reached), its rows of the gradient
            are NaN, and so are those of what it shares with others, if the loss depends on its ys; if
            not, it has no share in the gradient. Where f raises `RejectStep`, halves of the samples are
            tried, to find those that are meant (on a fixed grid all fail). `loss_at` gets the states
            of all samples, each at its own time j; for it the states at all times are held. If f jumps
            at a breakpoint within the times of one sample, all begin anew at every step. Goes with
            `Discrete` and `Tape`; not with multistep schemes. `compile` has no effect with a memory
            budget. A `running` cost returns shape [B].
        max_steps: The most attempted steps; None is 100 000 with adaptive steps, no limit otherwise.
        on_failure: What to do if the solve fails (`SolveError`): "raise", or return with a `status` and a
            `reason`, ys being NaN throughout ("nan") or from where it failed ("return"). The gradient of
            such a solve is NaN, never finite. Wrong arguments raise in any case.
        check_finite: Whether to refuse NaN and infinity in y0, and in ys on fixed grids.
        progress: Whether to show a bar for each sweep (needs tqdm).
        callback: Called with a `StepInfo` after each step of both sweeps.

    Returns:
        A `Solution`.

    Raises:
        InvalidTypeError: If an argument has an unusable type or dtype.
        InvalidValueError: If an argument has an unusable value or shape.
        FieldOutputError: If f returns something that is not shaped like the state.
        SolveError: If the solve fails; its subclasses say why.

    Example:
        >>> import torch, odegrad
        >>> rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> y0 = torch.ones(1, dtype=torch.float64)
        >>> sol = odegrad.solve(lambda t, y: -rate * y, y0, [0.0, 1.0])
        >>> sol.ys[-1].sum().backward()
        >>> print(f"{sol.ys[-1].item():.6f} {rate.grad.item():.6f}")  # exp(-2), -exp(-2)
        0.135335 -0.135335
    """
    times: Any = ts
    if torch.compiler.is_compiling():
        ordinary = (
            loss_at is None
            and len(breakpoints) == 0
            and not has_breakpoints(f)
            and land is not False
            and batch is None
            and max_steps is None
            and on_failure == "raise"
            and not (progress or compile)
            and callback is None
            and len(events) == 0
            and getattr(scheme, "traceable", True)
        )
        unlimited = isinstance(gradient, Tape) or (
            isinstance(gradient, Discrete) and not gradient.limited
        )
        if isinstance(stepsize, Steps) and ordinary and unlimited:
            return solve_traced(f, y0, times, args, scheme, stepsize.n, running)
        run = _outside_of_graphs
    else:
        run = _solve
    return run(
        f,
        y0,
        times,
        args,
        on_failure,
        compile,
        scheme=scheme,
        stepsize=stepsize,
        gradient=gradient,
        running=running,
        loss_at=loss_at,
        events=events,
        breakpoints=breakpoints,
        land=land,
        batch=batch,
        max_steps=max_steps,
        check_finite=check_finite,
        progress=progress,
        callback=callback,
    )


def _outside_of_graphs(*args: Any, **options: Any) -> Solution:
    """`_solve`, without torch.compile looking on."""
    alone: Callable[..., Solution] = torch.compiler.disable(_solve)  # pyright: ignore
    return alone(*args, **options)


# The mark that torch.compiler.disable would leave, which takes seconds to import.
_outside_of_graphs._torchdynamo_disable = True  # pyright: ignore
_outside_of_graphs._torchdynamo_disable_msg = (  # pyright: ignore
    "this odegrad.solve is not traced; one with Steps(n), and without a memory budget, would be"
)


def _solve(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float],
    args: tuple[Any, ...],
    on_failure: OnFailure,
    compile: bool,
    **options: Any,
) -> Solution:
    """`solve`, where numbers can be looked at."""
    if on_failure not in ("raise", "nan", "return"):
        raise InvalidValueError(
            f'on_failure must be "raise", "nan" or "return", received {on_failure!r}'
        )
    batch, events = options.pop("batch"), checked_events(options.pop("events"))
    if events and batch is not None:
        raise InvalidValueError(
            "events do not go with batch, where each sample would have its own: solve the samples one by "
            "one, or leave events out"
        )
    if events:
        made = assemble_with_events(f, y0, ts, args, events, compile, **options)
        return solve_events(*made, _outputs, on_failure)
    if batch is not None:
        return solve_batch(f, y0, ts, args, on_failure, compile, batch, **options)
    assembled = partial(assemble, f, y0, ts, args, **options)
    if compile:
        from odegrad.compiled import NotCompilable  # what it imports takes its time

        try:
            return solved(assembled(compile=True), on_failure)
        except NotCompilable as reason:
            warn(f"compile=True has no effect on this solve: {reason}")
    return solved(assembled(compile=False), on_failure)


def solved(problem: Problem, on_failure: OnFailure = "raise") -> Solution:
    """Solves what was assembled."""
    run, places = problem.run, problem.places
    run.salvage = on_failure != "raise"
    status, reason = Status.SUCCESS, ""
    outputs: Leaves | None = None
    try:
        outputs = _at(problem, _outputs(problem))
        _check(problem, outputs)
    except SolveError as error:
        if on_failure == "raise":
            raise
        outputs = _after_failure(problem, outputs, on_failure)
        status, reason = status_of(error), str(error)
    ys, n = None, 1
    if run.loss is None:
        n = run.field.n_state
        ys = problem.structure.unflatten(outputs[:n])
    return Solution(
        ys=ys,
        ts=problem.ts if run.labels is None else problem.ts[list(places)],
        stats=run.stats,
        status=status,
        grid=run.grid or Grid(()),
        landings=tuple(run.times[j] for j in run.landed),
        running=outputs[n] if len(outputs) > n else None,
        loss=None if run.loss is None else outputs[0],
        reason=reason,
        _read=Reader([problem], partial(read_again, problem, solved))
        if status is Status.SUCCESS
        else None,
    )


def _outputs(problem: Problem) -> Leaves:
    """The outputs at all landing times."""
    run, y, p = problem.run, problem.y, problem.p
    if problem.differentiated:
        return problem.gradient.solve(run, y, p, problem.ts)
    if run.programs is not None:
        from odegrad.sweeps import compiled

        return compiled.forward(run, run.programs, y, p)[0]
    with torch.no_grad():
        return run.field.bound(p, lambda: forward(run, y, p, run.times)[0])


def _at(problem: Problem, outputs: Leaves) -> Leaves:
    """The outputs at the user's times."""
    if problem.run.labels is None or problem.run.loss is not None:
        return outputs
    return tuple(x[list(problem.places)] for x in outputs)


def _check(problem: Problem, outputs: Leaves) -> None:
    """Whether the outputs are finite, where steps did not see to it."""
    run = problem.run
    if not problem.check_finite:
        return
    if run.loss is not None:
        check_loss(outputs[0], run.times)
    elif not isinstance(run.stepsize, AdaptiveStepSize):
        times = tuple(run.times[i] for i in problem.places)
        check_result(outputs, times, problem.structure.leaf_names())


def _after_failure(problem: Problem, outputs: Leaves | None, on_failure: OnFailure) -> Leaves:
    """What is returned of a solve that failed, with a gradient of NaN.

    Arguments:
        problem: The solve.
        outputs: The outputs, if the solve went through and they are not finite.
        on_failure: Whether to return what was reached.
    """
    run, y = problem.run, problem.y
    if outputs is None:
        outputs = _at(problem, run.salvaged or sink(run, y, problem.p, on_graph=False).salvaged(y))
    run.salvaged = None
    if on_failure == "nan":
        outputs = tuple(torch.full_like(x, float("nan")) for x in outputs)
    return failed(outputs, (*y, *problem.p, problem.ts), problem.differentiated)
