"""What events go with: a solve with events is assembled, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from odegrad.assemble import Problem, assemble
from odegrad.errors import GradientUnavailableError, InvalidValueError, warn
from odegrad.events.event import Event
from odegrad.events.functions import Functions
from odegrad.gradients import Discrete, Mismatched, Tangent, Tape
from odegrad.gradients.base import forward_transform, transformed
from odegrad.grid import Grid, Leading

__all__ = ["assemble_with_events"]


def assemble_with_events(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float],
    args: tuple[Any, ...],
    events: tuple[Event, ...],
    compile: bool,
    **options: Any,
) -> tuple[Problem, Functions, Grid | None]:
    """The solve as it would be without events, the events, and the grid that is to be replayed, if any.

    Arguments are those of `odegrad.solve`.

    Raises:
        GradientUnavailableError: If a transform is active, under which numbers cannot be looked at.
        InvalidValueError: If a choice does not go with events.
        OdegradError: If something else is wrong with an argument, as `odegrad.solve` says.
    """
    name = forward_transform() or ("a transform of torch.func" if transformed() else None)
    if name is not None:
        raise GradientUnavailableError(
            f"events do not go with {name}: when they occur depends on numbers. Use torch.autograd.grad "
            "or backward, and create_graph=True for second derivatives"
        )
    if options.get("loss_at") is not None:
        raise InvalidValueError(
            "events do not go with loss_at: compute the loss from ys and from the occurrences in "
            "Solution.events"
        )
    stepsize, recorded = options["stepsize"], None
    if isinstance(stepsize, Grid):
        recorded = stepsize
        segments = (s.whole if isinstance(s, Leading) else s for s in stepsize.segments)
        options["stepsize"] = Grid(tuple(segments))
        options["land"] = True if options["land"] is None else options["land"]
    if compile:
        warn("compile=True has no effect on this solve: it has events")
    problem = assemble(f, y0, ts, args, compile=False, **options)
    field, scheme, gradient = problem.run.field, problem.run.scheme, problem.gradient
    if not isinstance(gradient, Discrete | Mismatched | Tangent | Tape):
        raise InvalidValueError(
            f"gradient={gradient} starts anew at every time, and does not go with events; use "
            "gradient=Discrete()"
        )
    if not scheme.reads_slopes and (field.stochastic or field.changes_buffers):
        raise InvalidValueError(
            f"events are not possible here: {scheme} evaluates f to read a state inside of a step, and f "
            "draws random numbers or has buffers. Use Tsit5(), Dopri5(), or a scheme of order 2"
        )
    y = problem.y[: field.n_state]
    functions = Functions(events, field, problem.structure, args, problem.run.times[0], y)
    return problem, functions, recorded
