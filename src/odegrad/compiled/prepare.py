"""From a user's f to a pure vector field with its compiled programs."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from odegrad.capture import unread
from odegrad.compiled.capture import CapturedFunction, capture_function
from odegrad.compiled.inductor import compiler_obstacle, current_backend
from odegrad.compiled.programs import Programs
from odegrad.compiled.samples import SamplePrograms
from odegrad.compiled.shapes import CHUNK_BYTES
from odegrad.compiled.tracing import LOCK, Fakes, NotCompilable
from odegrad.field import VectorField
from odegrad.scan import global_names
from odegrad.schemes.base import Scheme
from odegrad.schemes.masked import Masked
from odegrad.state import Leaves, Structure, Time, is_half, widest_real_dtype
from odegrad.stepsize import PID, FixedStepSize, StepSize

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """A vector field whose captured tensors are arguments, and its programs.

    Of p = `field.arguments` f reads the first `programs.n_read`; the others get gradients of zero.
    """

    field: VectorField
    programs: Programs


def prepare(
    f: Callable[..., Any],
    running: Callable[..., Any] | None,
    state: Structure,
    y: Leaves,
    args: tuple[Any, ...],
    t: Time,
    scheme: Scheme,
    stepsize: StepSize,
    chunk_bytes: int = CHUNK_BYTES,
) -> Prepared:
    """Captures f and the running cost at (t, y), and finds the programs made for them before.

    Arguments:
        f: The user's function of (t, y, *args).
        running: The running cost, or None.
        state: The structure of y.
        y: The initial state.
        args: Further arguments.
        t: The initial time; of shape [B] for programs in which each sample has times of its own.
        scheme: The scheme.
        stepsize: The step sizes.
        chunk_bytes: The most bytes that a chunk of steps fills in the forward sweep.

    Raises:
        NotCompilable: If one of them cannot be captured, draws random numbers, or writes into what it
            reads; if the scheme is not traceable, or the controller none that was written for compiled
            loops; or if there is no compiler.
    """
    if isinstance(t, Tensor) and not len(t):
        raise NotCompilable("the batch has no samples")
    _check_surroundings(stepsize, y)
    if not scheme.traceable:
        raise NotCompilable(f"a step of {scheme} depends on numbers in its carry")
    with LOCK:
        return _prepare(f, running, state, y, args, t, scheme, chunk_bytes)


def _prepare(
    f: Callable[..., Any],
    running: Callable[..., Any] | None,
    state: Structure,
    y: Leaves,
    args: tuple[Any, ...],
    t: Time,
    scheme: Scheme,
    chunk_bytes: int,
) -> Prepared:
    time = torch.as_tensor(t, dtype=widest_real_dtype(y), device=y[0].device)
    p: list[Tensor] = []
    graph_f = capture_function(f, time, y, state, args, p, scalar=False)
    graph_cost = None
    if running is not None:
        graph_cost = capture_function(running, time, y, state, args, p, scalar=True)
    read = len(p)
    if torch.is_grad_enabled():
        p += unread([f, running, *torch.utils._pytree.tree_leaves(args)], p)  # pyright: ignore

    def pure(y: Leaves, p: Leaves) -> VectorField:
        return VectorField(graph_f, state, y, p, graph_cost)

    field = pure(y, tuple(p))
    cost_key = None if graph_cost is None else (id(graph_cost.graph), graph_cost.roles)
    shapes = tuple((x.shape, x.dtype, x.device) for x in y)
    size = len(time) if time.ndim else None
    key = (
        *(graph_f.roles, cost_key, field.autocast, scheme, shapes),
        *(current_backend(), chunk_bytes, size),
    )
    programs = graph_f.graph.programs.get(key)
    if programs is None:
        _trace_once(graph_f, time, y, p)
        cost = _check(VectorField(f, state, y, args, running), pure(y, tuple(p[:read])), t, y)
        every, own = (*y, *cost), tuple(p[:read])
        if size is not None:
            scheme = Masked(scheme, len(every))
        kind = Programs if size is None else SamplePrograms
        programs = kind(pure, scheme, every, len(y), own, chunk_bytes, size)
        graph_f.graph.programs[key] = programs
    return Prepared(field, programs)


def _check_surroundings(stepsize: StepSize, y: Leaves) -> None:
    if y[0].device.type not in ("cpu", "cuda"):
        raise NotCompilable(f"{y[0].device.type} devices have no float64 to keep the time in")
    if torch.is_grad_enabled() and any(map(is_half, y)):
        raise NotCompilable(
            "its state is in half precision, in which compiled transposes would add up"
        )
    obstacle = compiler_obstacle() if current_backend() in ("inductor", "steps") else None
    if obstacle is not None and y[0].device.type == "cpu":
        raise NotCompilable(obstacle)
    if not isinstance(stepsize, FixedStepSize) and type(stepsize) is not PID:
        name = type(stepsize).__name__
        raise NotCompilable(f"{name} is not PID itself, whose decisions can be compiled")
    if isinstance(stepsize, PID) and not _is_closed(stepsize.norm):
        raise NotCompilable(
            "the norm of PID reads values from outside; write it as a function of its argument alone"
        )
    if torch._C._functorch.get_interpreter_stack():  # pyright: ignore
        raise NotCompilable("it runs under a transform of torch.func")
    modes = torch.overrides._get_current_function_mode_stack()  # pyright: ignore
    if any(isinstance(mode, DeviceContext) for mode in modes):
        raise NotCompilable("torch.set_default_device, or a device used as a context, is on")
    if modes:
        raise NotCompilable("it runs inside another solve, or under a TorchFunctionMode")


def _is_closed(norm: Callable[..., Any] | None) -> bool:
    """Whether a norm depends on nothing but its argument: then its code tells it from others."""
    if norm is None:
        return True
    if not isinstance(norm, types.FunctionType):
        return False
    if norm.__closure__ or norm.__defaults__ or norm.__kwdefaults__:
        return False
    read = (norm.__globals__.get(name) for name in global_names(norm.__code__))
    return all(x is None or _is_library(x) for x in read)  # None: a builtin, or an attribute's name


def _is_library(x: object) -> bool:
    name = x.__name__ if isinstance(x, types.ModuleType) else ""
    return name.partition(".")[0] in ("torch", "math")


def _trace_once(f: CapturedFunction, t: Tensor, y: Leaves, p: list[Tensor]) -> None:
    """Refuses a graph that is not pure, before any call of f could change something."""
    given = [t, *y, *p]
    Fakes().trace(f.graph.module, [given[role] for role in f.roles])


def _check(plain: VectorField, pure: VectorField, t: Time, y: Leaves) -> Leaves:
    """Whether the captured functions can stand for those of the user; returns the quadrature leaves.

    Raises:
        NotCompilable: If they cannot.
    """
    p = plain.discover(t, y)  # a wrong result of f raises here as it does without compile
    if plain.stochastic:
        raise NotCompilable("f draws random numbers (dropout in train mode, noise)")
    if plain.changes_buffers:
        raise NotCompilable("f changes buffers that it reads (batch normalization in train mode)")
    cost = plain.cost_leaves(t, y, p)
    _compare({plain: p, pure: pure.arguments}, t, (*y, *cost))
    return cost


def _compare(fields: dict[VectorField, Leaves], t: Time, y: Leaves) -> None:
    """Refuses a graph that does not give what f gives, and what its transpose gives.

    Only a gross difference counts: there is none unless the capture is wrong.
    """
    y = tuple(x.detach().clone() for x in y)
    found: list[Leaves] = []
    for field, p in fields.items():
        p = field.own(p, [x.requires_grad for x in p])
        point = field.bound(p, partial(field.linearize, t, y, p))
        ones = tuple(torch.ones_like(x) for x in point.value)
        found.append((*point.value, *point.vjp(ones)[1]))
    for a, b in zip(*found, strict=True):
        if not a.numel():
            continue
        largest = a.abs().max()
        close = (a - b).abs().max() <= torch.finfo(a.dtype).eps ** 0.5 * largest
        if bool(torch.isfinite(largest)) and not bool(close):
            raise NotCompilable("what torch.compile captured of f does not give what f gives")
