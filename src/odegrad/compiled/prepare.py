"""From a user's f to a pure vector field with its compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odegrad.compiled.capture import capture_function
from odegrad.compiled.loop import compiler_obstacle, current_backend
from odegrad.compiled.programs import Programs
from odegrad.compiled.tracing import NotCompilable
from odegrad.field import VectorField
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, Structure, widest_real_dtype
from odegrad.stepsize import PID, FixedStepSize, StepSize

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """A vector field whose captured tensors are arguments, p = `field.arguments`, and its programs."""

    field: VectorField
    programs: Programs


def prepare(
    f: Callable[..., Any],
    running: Callable[..., Any] | None,
    state: Structure,
    y: Leaves,
    args: tuple[Any, ...],
    t: float,
    scheme: Scheme,
    stepsize: StepSize,
) -> Prepared:
    """Captures f and the running cost at (t, y), and finds the programs made for them before.

    Arguments:
        f: The user's function of (t, y, *args).
        running: The running cost, or None.
        state: The structure of y.
        y: The initial state.
        args: Further arguments.
        t: The initial time.
        scheme: The scheme.
        stepsize: The step sizes.

    Raises:
        NotCompilable: If one of them cannot be captured, draws random numbers, or writes into what it
            reads; if the controller is not one that was written for compiled loops; or if there is no
            compiler.
    """
    _check_surroundings(stepsize, y)
    time = torch.full((), t, dtype=widest_real_dtype(y), device=y[0].device)
    p: list[Tensor] = []
    graph_f = capture_function(f, time, y, state, args, p, scalar=False)
    graph_cost = None
    if running is not None:
        graph_cost = capture_function(running, time, y, state, args, p, scalar=True)
    field = VectorField(graph_f, state, y, tuple(p), graph_cost)
    cost_key = None if graph_cost is None else (id(graph_cost.graph), graph_cost.roles)
    shapes = tuple((x.shape, x.dtype, x.device) for x in y)
    key = (graph_f.roles, cost_key, field.autocast, scheme, shapes, current_backend())
    programs = graph_f.graph.programs.get(key)
    if programs is None:
        programs = _new(f, running, state, y, args, t, field, scheme)
        graph_f.graph.programs[key] = programs
    return Prepared(field, programs)


def _check_surroundings(stepsize: StepSize, y: Leaves) -> None:
    obstacle = compiler_obstacle() if current_backend() != "interpreter" else None
    if obstacle is not None and y[0].device.type == "cpu":
        raise NotCompilable(obstacle)
    if not isinstance(stepsize, (PID, FixedStepSize)):
        raise NotCompilable(
            f"{type(stepsize).__name__} is not PID, whose decisions can be compiled"
        )
    if torch._C._functorch.get_interpreter_stack():  # pyright: ignore
        raise NotCompilable("it runs under a transform of torch.func")
    if torch.overrides._get_current_function_mode_stack():  # pyright: ignore
        raise NotCompilable("it runs inside another solve, or under a TorchFunctionMode")


def _new(
    f: Callable[..., Any],
    running: Callable[..., Any] | None,
    state: Structure,
    y: Leaves,
    args: tuple[Any, ...],
    t: float,
    pure: VectorField,
    scheme: Scheme,
) -> Programs:
    """Programs for a vector field that was not met before, after a plain call of it."""
    plain = VectorField(f, state, y, args, running)
    plain.discover(t, y)  # a wrong result of f raises here as it does without compile
    if plain.stochastic:
        raise NotCompilable("f draws random numbers (dropout in train mode, noise)")
    if plain.changes_buffers:
        raise NotCompilable("f changes buffers that it reads (batch normalization in train mode)")
    cost = plain.cost_leaves(t, y, plain.arguments)
    return Programs(pure, scheme, (*y, *cost), pure.arguments)
