"""What the two discretisations of the continuous adjoint share: the walk back over the landing times.

    da/dt = −f_yᵀ a,     p̄ = ∫ f_pᵀ a dt,

with the cotangent of each output joining a at its landing time. The times get T̄_j = ⟨ȳ_j, f(T_j, y_j)⟩
and T̄_0 = −⟨a(T_0), f(T_0, y_0)⟩ (before ȳ_0 joins).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odegrad.errors import InvalidTypeError, InvalidValueError
from odegrad.grid import Grid, Nodes, Segment
from odegrad.schemes import Scheme
from odegrad.schemes.restarted import Restarted
from odegrad.state import Leaves, OptionalLeaves, inner
from odegrad.stepsize import AdaptiveStepSize, FixedStepSize, StepSize
from odegrad.sweeps import Run

__all__ = ["back_through", "check_back", "check_error_estimate", "mirrored", "scheme_back"]


def back_through(
    run: Run,
    p: Leaves,
    ys: Leaves,
    grad_ys: OptionalLeaves,
    back: Callable[[int, Leaves, Leaves], Leaves],
) -> tuple[Leaves, list[Tensor | None]]:
    """The costate at the start, and the cotangents of the landing times.

    Arguments:
        run: The solve.
        p: The tensors that f reads.
        ys: The states at the landing times.
        grad_ys: The cotangents of these.
        back: (j, state at landing j, costate there) ↦ the costate at landing j − 1.
    """
    field = run.field
    a = tuple(torch.zeros_like(y[0]) for y in ys)
    times: list[Tensor | None] = [None] * len(run.times)
    zero = torch.zeros((), dtype=field.time_dtype, device=field.device)
    for j in reversed(range(len(run.times))):
        y = tuple(leaf[j] for leaf in ys)
        slope = field(run.times[j], y, p)
        if j == 0 and len(run.times) > 1:
            times[0] = -inner(a, slope, zero)
        direct = tuple(None if g is None else g[j] for g in grad_ys)
        if j > 0:
            times[j] = inner(slope, direct, zero)
        a = tuple(x if g is None else x + g for x, g in zip(a, direct, strict=True))
        if j > 0:
            a = back(j, y, a)
    return a, times


def scheme_back(run: Run, scheme: Scheme | None) -> Scheme:
    """The scheme for the way back: by default that of the solve."""
    if scheme is None:
        return run.scheme
    inside = run.scheme.inside if isinstance(run.scheme, Restarted) else 0.0
    return Restarted(scheme, inside) if inside else scheme


def mirrored(stepsize: StepSize, j: int) -> StepSize:
    """The step sizes for the segment from landing j back to landing j − 1."""
    if not isinstance(stepsize, Grid):
        return stepsize
    segment: Segment = stepsize.segments[j - 1]
    if isinstance(segment, Nodes):
        inside = tuple(1.0 - s for s in reversed(segment.fractions[1:-1]))
        segment = Nodes((0.0, *inside, 1.0))
    return Grid((segment,))


def check_back(name: str, scheme: object, stepsize: object) -> None:
    """Whether a scheme and step sizes for the way back are such, and go with each other."""
    if scheme is not None and not isinstance(scheme, Scheme):
        raise InvalidTypeError(
            f"{name}: scheme must be an object such as RK4(), received {scheme!r}"
        )
    if stepsize is not None and not isinstance(stepsize, FixedStepSize | AdaptiveStepSize):
        raise InvalidTypeError(
            f"{name}: stepsize must be an object such as Steps(10) or PID(), received {stepsize!r}"
        )
    if isinstance(stepsize, Grid):
        raise InvalidValueError(
            f"{name}: a recorded grid is for the whole solve: pass it to solve(stepsize=…), and leave "
            "out that of the way back, which mirrors it then"
        )


def check_error_estimate(name: str, scheme: Scheme, stepsize: StepSize) -> None:
    """Whether the way back can take steps of its choice."""
    if isinstance(stepsize, AdaptiveStepSize) and scheme.error_order is None:
        raise InvalidValueError(
            f"{name}: {scheme} has no error estimate, so {type(stepsize).__name__} cannot choose the "
            f"steps of the way back; pass {name}(stepsize=Steps(n)), or an adaptive scheme"
        )
