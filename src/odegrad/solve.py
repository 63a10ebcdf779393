"""The one entry: check the input, assemble a run, solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odegrad.errors import (
    GradientUnavailableError,
    InvalidTypeError,
    InvalidValueError,
    OdegradWarning,
)
from odegrad.field import VectorField
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.gradients.base import forward_transform
from odegrad.inputs import (
    check_choices,
    check_loss,
    check_result,
    checked_state,
    checked_times,
)
from odegrad.labelloss import LabelLoss
from odegrad.schemes import Tsit5
from odegrad.schemes.base import Scheme
from odegrad.solution import Solution, Status
from odegrad.state import Leaves
from odegrad.stepsize import PID, AdaptiveStepSize, StepSize
from odegrad.substitute import substituted
from odegrad.sweeps import Monitor, Run, StepInfo, forward

if TYPE_CHECKING:
    from odegrad.compiled import Programs

__all__ = ["solve"]


def solve(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float],
    args: tuple[Any, ...] = (),
    *,
    scheme: Scheme = Tsit5(),
    stepsize: StepSize = PID(),
    gradient: Gradient = Discrete(),
    compile: bool = False,
    running: Callable[..., Any] | None = None,
    loss_at: Callable[..., Any] | None = None,
    max_steps: int | None = None,
    check_finite: bool = True,
    progress: bool = False,
    callback: Callable[[StepInfo], object] | None = None,
) -> Solution:
    """Solves dy/dt = f(t, y, *args) from ts[0] through all times of `ts`, differentiably.

    The gradient is the exact derivative of the numbers returned: of the map (y0, parameters, args,
    times) ↦ ys computed by the accepted steps, each interior grid time held at its fixed fraction of
    its segment. The step-size controller and rejected attempts carry no derivative.

    Every time in `ts` is stepped onto. Times may descend, and neighbours may be equal.

    Arguments:
        f: Maps (t, y, *args) to a pytree like y. t is a 0-dim tensor in the widest real dtype of the
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
        max_steps: The most attempted steps; None is 100 000 with adaptive steps, no limit otherwise.
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
    check_choices(f, scheme, stepsize, gradient, max_steps)
    # Under a transform numbers cannot be looked at, so their finiteness is not checked.
    transformed = forward_transform()
    if transformed and not isinstance(gradient, Tape):
        raise GradientUnavailableError(
            f"{transformed} does not go through gradient={gradient}; use gradient=odegrad.Tape(), "
            "whose steps are ordinary differentiable operations"
        )
    check_finite = check_finite and not transformed
    leaves, structure = checked_state(y0, check_finite)
    times_tensor, times = checked_times(ts)
    # Inside another solve's sweep, a captured tensor is what that sweep reads in its place.
    leaves, times_tensor = tuple(map(substituted, leaves)), substituted(times_tensor)
    if not isinstance(args, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidTypeError(
            f"args must be a tuple, received {type(args).__name__}; write args=(x,)"
        )
    if loss_at is not None and not isinstance(gradient, Discrete | Tape):
        raise InvalidValueError(
            f"loss_at goes with gradient=Discrete() or Tape(), received {gradient}; "
            "compute the loss from the ys that are returned without it"
        )
    if compile and not isinstance(gradient, Discrete):
        raise InvalidValueError(
            f"compile=True goes with gradient=Discrete(), received {gradient}, which needs the "
            "autograd graph of every operation; leave compile out"
        )

    def finish(field: VectorField, p: Leaves, programs: Programs | None) -> Solution:
        y = (*leaves, *field.cost_leaves(times[0], leaves, p))
        monitor = None
        if progress or callback is not None:
            monitor = Monitor(
                times, lambda x: structure.unflatten(x[: len(leaves)]), callback, progress
            )
        loss = None
        if loss_at is not None:
            loss = LabelLoss(loss_at, structure, args, leaves, p)
            p = tuple(map(substituted, loss.p))
        eps = torch.finfo(times_tensor.dtype).eps
        run = Run(
            field, scheme, stepsize, times, eps, max_steps, monitor, programs=programs, loss=loss
        )
        needed = torch.is_grad_enabled() and any(x.requires_grad for x in (*y, *p, times_tensor))
        if needed or transformed:
            ys = gradient.solve(run, y, p, times_tensor)
        elif programs is not None:
            from odegrad.sweeps import compiled

            ys = compiled.forward(run, programs, y, p)[0]
        else:
            with torch.no_grad():
                ys = field.bound(p, lambda: forward(run, y, p, times)[0])
        n = len(leaves)
        if loss is not None:
            if check_finite:
                check_loss(ys[0], times)
            return Solution(
                ys=None,
                ts=times_tensor,
                stats=run.stats,
                status=Status.SUCCESS,
                grid=run.accepted_grid,
                running=ys[1] if running is not None else None,
                loss=ys[0],
            )
        if check_finite and not isinstance(stepsize, AdaptiveStepSize):
            check_result(ys, times)
        return Solution(
            ys=structure.unflatten(ys[:n]),
            ts=times_tensor,
            stats=run.stats,
            status=Status.SUCCESS,
            grid=run.accepted_grid,
            running=ys[n] if running is not None else None,
        )

    if compile:
        from odegrad.compiled import NotCompilable, prepare  # what they import takes its time

        try:
            prepared = prepare(f, running, structure, leaves, args, times[0], scheme, stepsize)
            return finish(prepared.field, prepared.field.arguments, prepared.programs)
        except NotCompilable as reason:
            _warn(f"compile=True has no effect on this solve: {reason}")
    field = VectorField(f, structure, leaves, args, running)
    p = field.arguments
    # Without gradients, adaptive steps still have to know whether f draws random numbers.
    if torch.is_grad_enabled() or isinstance(stepsize, AdaptiveStepSize):
        p = field.discover(times[0], leaves)
        if field.stochastic and isinstance(stepsize, AdaptiveStepSize):
            _warn(
                "f draws random numbers (dropout in train mode, noise), so the error estimate of "
                "adaptive steps is meaningless; use model.eval(), fixed steps, or noise drawn once "
                "outside f"
            )
    return finish(field, tuple(map(substituted, p)), None)


def _warn(message: str) -> None:
    import warnings

    warnings.warn(message, OdegradWarning, stacklevel=3)
