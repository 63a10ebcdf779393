"""From what a user passes to a run: check everything, find what f reads, put it together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odegrad.breakpoints import Breakpoints, Landings, landings
from odegrad.errors import (
    GradientUnavailableError,
    InvalidTypeError,
    InvalidValueError,
    warn,
)
from odegrad.field import VectorField
from odegrad.gradients import Discrete, Gradient, Mismatched, Tangent, Tape
from odegrad.gradients.base import forward_transform
from odegrad.grid import Grid, Stops
from odegrad.inputs import (
    check_choices,
    check_times_fit,
    checked_state,
    checked_stepsize,
    checked_times,
    ordinary,
)
from odegrad.labelloss import LabelLoss
from odegrad.samplegrid import SampleGrid
from odegrad.schemes.base import Scheme
from odegrad.schemes.restarted import Restarted
from odegrad.state import Leaves, Structure, Time, widest_real_dtype
from odegrad.stepsize import AdaptiveStepSize, StepSize
from odegrad.substitute import substituted
from odegrad.sweeps import Monitor, Run, StepInfo

__all__ = ["Problem", "assemble", "check_callable", "is_read", "read_by"]


@dataclass(frozen=True)
class Problem:
    """A solve that is ready to run.

    Attributes:
        run: The solve.
        y: The initial state, with quadratures.
        p: The tensors that f and the loss read.
        ts: The times to land on, breakpoints among them.
        structure: The structure of the state.
        gradient: How to differentiate it.
        differentiated: Whether it is to be differentiated.
        places: The places of the user's times among those landed on.
        check_finite: Whether NaN and infinity are refused.
    """

    run: Run
    y: Leaves
    p: Leaves
    ts: Tensor
    structure: Structure
    gradient: Gradient
    differentiated: bool
    check_finite: bool
    places: tuple[int, ...]


def assemble(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float],
    args: tuple[Any, ...],
    *,
    scheme: Scheme,
    stepsize: StepSize,
    gradient: Gradient,
    compile: bool,
    running: Callable[..., Any] | None = None,
    loss_at: Callable[..., Any] | None = None,
    breakpoints: Sequence[float] | Tensor = (),
    land: bool | None = None,
    max_steps: int | None = None,
    check_finite: bool = True,
    progress: bool = False,
    callback: Callable[[StepInfo], object] | None = None,
) -> Problem:
    """Checks the arguments of `odegrad.solve` and makes a run of them.

    Raises:
        NotCompilable: If `compile` is set and the solve cannot be compiled.
        OdegradError: If something is wrong with an argument, as `odegrad.solve` says.
    """
    check_choices(f, scheme, stepsize, gradient, max_steps)
    if isinstance(stepsize, SampleGrid):
        stepsize.check(0)
    # Under a transform numbers cannot be looked at, so their finiteness is not checked.
    transformed = forward_transform()
    if transformed:
        gradient, compile = _under(transformed, gradient, compile), False
    check_finite = check_finite and not transformed
    check_callable(running, "running", "t, y")
    check_callable(loss_at, "loss_at", "j, y")
    check_callable(callback, "callback", "info")
    _check_together(args, loss_at, compile, gradient)
    leaves, structure = checked_state(y0, check_finite)
    times_tensor, times = checked_times(ts)
    check_times_fit(times, leaves)
    stepsize = checked_stepsize(stepsize, leaves, times, not transformed)
    args = pytree.tree_map(ordinary, args)
    # Inside another solve's sweep, a captured tensor is what that sweep reads in its place.
    leaves, times_tensor = tuple(map(substituted, leaves)), substituted(times_tensor)
    readers = [f, running, *filter(callable, pytree.tree_leaves(args))]
    breaks = Breakpoints.found(breakpoints, readers)
    ends = landings(times_tensor, times, breaks)
    if breaks.jumps and ends.kinks:
        scheme = Restarted.at_jumps(scheme, times_tensor.dtype, widest_real_dtype(leaves))

    programs = None
    if compile:
        from odegrad.compiled import NotCompilable, prepare  # what they import takes its time

        assert isinstance(gradient, Discrete)
        if gradient.rewinds:
            raise NotCompilable("Rewind takes steps back one by one")
        prepared = prepare(
            f, running, structure, leaves, args, times[0], scheme, stepsize, gradient.chunk_bytes()
        )
        field, p, programs = prepared.field, prepared.field.arguments, prepared.programs
    else:
        field = VectorField(f, structure, leaves, args, running)
        p = read_by(field, times[0], leaves, stepsize)
    y = (*leaves, *field.cost_leaves(times[0], leaves, p))
    loss = None
    if loss_at is not None:
        loss = LabelLoss(loss_at, structure, args, leaves, p)
        p = tuple(map(substituted, loss.p))
    monitor = None
    if progress or callback is not None:
        n = len(leaves)
        monitor = Monitor(ends.times, lambda x: structure.unflatten(x[:n]), callback, progress)
    eps = torch.finfo(times_tensor.dtype).eps
    read = is_read(land, ends, scheme, stepsize, gradient, field, loss_at is not None)
    run = Run(
        field,
        scheme,
        stepsize,
        ends.times,
        eps,
        max_steps,
        monitor,
        programs=programs,
        loss=loss,
        kinks=ends.kinks,
        labels=None if len(ends.times) == len(times) else ends.labels,
        stops=Stops(ends.times, ends.least) if read else None,
    )
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (*y, *p, ends.ts))
    differentiated = wanted or transformed is not None
    return Problem(
        run, y, p, ends.ts, structure, gradient, differentiated, check_finite, ends.places
    )


def is_read(
    land: object,
    ends: Landings,
    scheme: Scheme,
    stepsize: StepSize,
    gradient: Gradient,
    field: VectorField,
    streamed: bool,
    segments: int | None = None,
) -> bool:
    """Whether the times inside are read off dense output, rather than stepped onto.

    `segments` is how many a recorded grid has, unless the step size is one for all.

    Raises:
        InvalidTypeError: If `land` is neither a bool nor None.
        InvalidValueError: If it asks for what is not possible.
    """
    if land is not None and not isinstance(land, bool):
        raise InvalidTypeError(f"land must be True, False or None, received {land!r}")
    if land or len(ends.least) == len(ends.times) or ends.times[0] == ends.times[-1]:
        return False
    if isinstance(stepsize, Grid):
        segments = len(stepsize.segments)
    replayed = segments == len(ends.least) - 1
    if land is None and not (replayed or isinstance(stepsize, AdaptiveStepSize)):
        return False
    reason = None
    if not isinstance(gradient, Discrete | Mismatched | Tangent | Tape):
        reason = f"gradient={gradient} starts anew at every time"
    elif streamed:
        reason = "loss_at needs a state at every time"
    elif not scheme.reads_slopes and (field.stochastic or field.changes_buffers):
        reason = f"{scheme} evaluates f to read a state, and f draws random numbers or has buffers"
    if reason is not None and land is False:
        raise InvalidValueError(f"land=False is not possible here: {reason}. Leave land out")
    return reason is None


def _under(transform: str, gradient: Gradient, compile: bool) -> Gradient:
    """How to differentiate under a transform that takes the steps as ordinary operations.

    Raises:
        GradientUnavailableError: If the gradient mode is not that of the computed numbers.
    """
    if not isinstance(gradient, Discrete | Tangent | Tape):
        raise GradientUnavailableError(
            f"{transform} does not go through gradient={gradient}, which is not the derivative of the "
            "computed numbers; use gradient=odegrad.Discrete() or Tape()"
        )
    if compile:
        warn(f"compile=True has no effect on this solve: it runs under {transform}")
    if isinstance(gradient, Discrete) and gradient.limited:
        warn(
            f"under {transform} the steps are ordinary operations, so {gradient} takes the memory of "
            "Tape; torch.func.grad, vjp and jacrev keep to it"
        )
    return Tape()


def check_callable(function: object, name: str, arguments: str) -> None:
    """Whether something is a function, or None."""
    if function is not None and not callable(function):
        raise InvalidTypeError(
            f"{name} must be callable as {name}({arguments}), received {type(function).__name__}"
        )


def _check_together(args: object, loss_at: object, compile: bool, gradient: Gradient) -> None:
    """Whether the arguments go with each other."""
    if not isinstance(args, tuple):
        raise InvalidTypeError(
            f"args must be a tuple, received {type(args).__name__}; write args=(x,)"
        )
    if loss_at is not None and not isinstance(gradient, Discrete | Tape | Mismatched):
        raise InvalidValueError(
            f"loss_at goes with gradient=Discrete() or Tape(), received {gradient}; "
            "compute the loss from the ys that are returned without it"
        )
    if compile and not isinstance(gradient, Discrete):
        raise InvalidValueError(
            f"compile=True goes with gradient=Discrete(), received {gradient}, which needs the "
            "autograd graph of every operation; leave compile out"
        )


def read_by(field: VectorField, t: Time, y: Leaves, stepsize: StepSize) -> Leaves:
    """The tensors that f reads."""
    p = field.arguments
    # Without gradients, adaptive steps still have to know whether f draws random numbers.
    if torch.is_grad_enabled() or isinstance(stepsize, AdaptiveStepSize):
        p = field.discover(t, y)
        if field.stochastic and isinstance(stepsize, AdaptiveStepSize):
            warn(
                "f draws random numbers (dropout in train mode, noise), so the error estimate of "
                "adaptive steps is meaningless; use model.eval(), fixed steps, or noise drawn once "
                "outside f"
            )
    return tuple(map(substituted, p))
