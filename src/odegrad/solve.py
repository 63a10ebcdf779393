"""The one entry: check the input, assemble a run, solve."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odegrad.errors import (
    GradientUnavailableError,
    InvalidTypeError,
    InvalidValueError,
    NonFiniteInputError,
    NonFiniteStateError,
    OdegradWarning,
)
from odegrad.field import VectorField
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.gradients.base import forward_transform
from odegrad.schemes import SCHEMES, Tsit5
from odegrad.schemes.base import Scheme
from odegrad.solution import Solution, Status
from odegrad.state import Leaves, Structure
from odegrad.stepsize import PID, AdaptiveStepSize, FixedStepSize, StepSize
from odegrad.substitute import substituted
from odegrad.sweeps import Monitor, Run, StepInfo, forward

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
    running: Callable[..., Any] | None = None,
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
        running: ℓ(t, y, *args), one real tensor: a running cost, integrated by the scheme's own
            quadrature and returned as `Solution.running`. It does not influence the steps.
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
    _check_choices(f, scheme, stepsize, gradient, max_steps)
    # Under a transform numbers cannot be looked at, so their finiteness is not checked.
    transformed = forward_transform()
    if transformed and not isinstance(gradient, Tape):
        raise GradientUnavailableError(
            f"{transformed} does not go through gradient={gradient}; use gradient=odegrad.Tape(), "
            "whose steps are ordinary differentiable operations"
        )
    check_finite = check_finite and not transformed
    leaves, structure = _checked_state(y0, check_finite)
    times_tensor, times = _checked_times(ts)
    # Inside another solve's sweep, a captured tensor is what that sweep reads in its place.
    leaves, times_tensor = tuple(map(substituted, leaves)), substituted(times_tensor)
    if not isinstance(args, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidTypeError(
            f"args must be a tuple, received {type(args).__name__}; write args=(x,)"
        )
    field = VectorField(f, structure, leaves, args, running)
    p = field.arguments
    # Without gradients, adaptive steps still have to know whether f draws random numbers.
    if torch.is_grad_enabled() or isinstance(stepsize, AdaptiveStepSize):
        p = field.discover(times[0], leaves)
        if field.stochastic and isinstance(stepsize, AdaptiveStepSize):
            _warn_stochastic()
    p = tuple(map(substituted, p))
    y = (*leaves, *field.cost_leaves(times[0], leaves, p))
    eps = torch.finfo(times_tensor.dtype).eps
    monitor = None
    if progress or callback is not None:
        monitor = Monitor(
            times, lambda x: structure.unflatten(x[: len(leaves)]), callback, progress
        )
    run = Run(field, scheme, stepsize, times, eps, max_steps, monitor)
    needed = torch.is_grad_enabled() and any(x.requires_grad for x in (*y, *p, times_tensor))
    if needed or transformed:
        ys = gradient.solve(run, y, p, times_tensor)
    else:
        with torch.no_grad():
            ys = field.bound(p, lambda: forward(run, y, p, times)[0])
    if check_finite and not isinstance(stepsize, AdaptiveStepSize):
        _check_result(ys, times)
    n = len(leaves)
    return Solution(
        ys=structure.unflatten(ys[:n]),
        ts=times_tensor,
        stats=run.stats,
        status=Status.SUCCESS,
        grid=run.accepted_grid,
        running=ys[n] if running is not None else None,
    )


def _check_choices(
    f: object, scheme: object, stepsize: object, gradient: object, max_steps: object
) -> None:
    if not callable(f):
        raise InvalidTypeError(f"f must be callable as f(t, y), received {type(f).__name__}")
    names = [cls.__name__ for cls in SCHEMES]
    if isinstance(scheme, str):
        close = difflib.get_close_matches(scheme.lower(), [n.lower() for n in names])
        found = [n for n in names if n.lower() in close] or names
        raise InvalidTypeError(
            f"scheme must be an object, received the string {scheme!r}; "
            f"write scheme=odegrad.{found[0]}(), one of: {', '.join(found)}"
        )
    kinds: list[tuple[str, object, Any, str]] = [
        ("scheme", scheme, Scheme, "Tsit5()"),
        ("stepsize", stepsize, (FixedStepSize, AdaptiveStepSize), "PID(rtol=1e-6) or Fixed(0.1)"),
        ("gradient", gradient, Gradient, "Discrete()"),
    ]
    for name, value, kind, example in kinds:
        if isinstance(value, type):
            raise InvalidTypeError(
                f"{name} must be an object, received the class {value.__name__}; "
                f"write {name}={value.__name__}(…)"
            )
        if not isinstance(value, kind):
            raise InvalidTypeError(
                f"{name} must be an object such as {example}, received {value!r}"
            )
    if (
        isinstance(stepsize, AdaptiveStepSize)
        and isinstance(scheme, Scheme)
        and scheme.error_order is None
    ):
        raise InvalidValueError(
            f"{type(scheme).__name__} has no error estimate, so {type(stepsize).__name__} cannot "
            "choose its steps; pass stepsize=Fixed(dt) or Steps(n), or an adaptive scheme such as "
            "Tsit5()"
        )
    if max_steps is not None and not (isinstance(max_steps, int) and max_steps > 0):
        raise InvalidValueError(f"max_steps must be a positive int or None, received {max_steps!r}")


def _checked_state(y0: Any, check_finite: bool) -> tuple[Leaves, Structure]:
    structure = Structure(y0)
    leaves = structure.flatten(y0) or []
    names = structure.leaf_names()
    if not leaves:
        raise InvalidValueError(f"y0 holds no tensor: received {y0!r}")
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise InvalidTypeError(
                f"y0{name} must be a tensor, received {type(leaf).__name__}; "
                "wrap numbers in torch.tensor(…)"
            )
        if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
            raise InvalidTypeError(
                f"y0{name} is {leaf.dtype}; a state is floating-point or complex: pass y0.float()"
            )
        if leaf.device != leaves[0].device:
            raise InvalidValueError(
                f"y0{name} is on {leaf.device}, y0{names[0]} on {leaves[0].device}; "
                "put the whole state on one device"
            )
        if check_finite and not bool(torch.isfinite(leaf).all()):
            bad = torch.nonzero(~torch.isfinite(leaf.detach()))
            raise NonFiniteInputError(
                f"y0{name} has {len(bad)} values that are NaN or infinite, the first at index "
                f"{bad[0].tolist()}"
            )
    return tuple(leaves), structure


def _checked_times(ts: Any) -> tuple[Tensor, tuple[float, ...]]:
    if not isinstance(ts, Tensor):
        try:
            if any(isinstance(t, Tensor) for t in ts):
                ts = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in ts])
            ts = torch.as_tensor(ts, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidTypeError(
                f"ts must be a 1-D tensor or a sequence of floats, received {type(ts).__name__}"
            ) from error
    if ts.ndim != 1 or ts.numel() == 0:
        raise InvalidValueError(
            f"ts must have shape [T] with T ≥ 1, received shape {list(ts.shape)}"
        )
    if ts.dtype.is_complex or ts.dtype is torch.bool:
        raise InvalidTypeError(f"ts must be real, received {ts.dtype}")
    if not ts.dtype.is_floating_point:
        ts = ts.to(torch.float64)
    times = tuple(float(t) for t in ts.detach().to("cpu", torch.float64).tolist())
    for i, t in enumerate(times):
        if not abs(t) < float("inf"):
            raise NonFiniteInputError(f"ts[{i}] is {t}; times must be finite")
    sign = 1.0 if times[-1] >= times[0] else -1.0
    for i in range(len(times) - 1):
        if sign * (times[i + 1] - times[i]) < 0:
            raise InvalidValueError(
                f"ts must not change direction: ts[{i}] = {times[i]}, ts[{i + 1}] = {times[i + 1]}; "
                "sort the times"
            )
    return ts, times


def _check_result(ys: Leaves, times: tuple[float, ...]) -> None:
    for leaf in ys:
        if leaf.numel() == 0:
            continue
        finite = torch.isfinite(leaf.detach()).reshape(len(times), -1).all(dim=1)
        if not bool(finite.all()):
            j = int(torch.nonzero(~finite)[0])
            raise NonFiniteStateError(
                f"the solution is NaN or infinite at ts[{j}] = {times[j]:.6g}. The steps may be too "
                "large for stability, or the solution may blow up: take smaller steps, or adaptive "
                "ones, which find the place. (check_finite=False returns such numbers.)"
            )


def _warn_stochastic() -> None:
    import warnings

    warnings.warn(
        "f draws random numbers (dropout in train mode, noise), so the error estimate of adaptive "
        "steps is meaningless; use model.eval(), fixed steps, or noise drawn once outside f",
        OdegradWarning,
        stacklevel=3,
    )
