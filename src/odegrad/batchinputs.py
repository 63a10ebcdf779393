"""Checks of what a user passes to `odegrad.solve` with ``batch``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odegrad.errors import (
    GradientUnavailableError,
    InvalidTypeError,
    InvalidValueError,
)
from odegrad.field import VectorField
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.gradients.base import forward_transform
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves
from odegrad.stepsize import PID, FixedStepSize, StepSize

__all__ = [
    "check_alone",
    "check_fits",
    "check_subset",
    "checked_batch",
    "checked_marks",
    "checked_quadratures",
]

T = TypeVar("T")

_WHAT_TO_DO = (
    "What belongs to single samples has to be in args and marked: Samples(args=(0,)). Else use "
    "batch=0"
)


def checked_batch(batch: object, samples: type[T]) -> T | None:
    """None for 0, or the object that says which args have a row for each sample.

    Raises:
        InvalidValueError: If it is neither.
    """
    if isinstance(batch, samples):
        return batch
    if batch is samples:
        raise InvalidTypeError("batch must be an object, received the class; write batch=Samples()")
    if type(batch) is int and batch == 0:
        return None
    raise InvalidValueError(
        f"batch must be None, 0 (the samples are along dimension 0) or Samples(…), received {batch!r}; "
        "move the dimension of the samples to the front"
    )


def check_alone(
    args: object,
    scheme: Scheme,
    stepsize: StepSize,
    gradient: Gradient,
    compile: bool,
) -> None:
    """Whether the choices go with steps for each sample.

    Raises:
        InvalidTypeError: If args is no tuple.
        InvalidValueError: If one does not.
        GradientUnavailableError: If a transform is active that does not.
    """
    if not isinstance(args, tuple):
        raise InvalidTypeError(f"args must be a tuple, received {type(args).__name__}; write (x,)")
    if not isinstance(gradient, Discrete | Tape):
        raise InvalidValueError(
            f"batch goes with gradient=Discrete() or Tape(), received {gradient}: leave batch out"
        )
    if not scheme.traceable:
        raise InvalidValueError(
            f"{scheme} begins with other steps than it goes on with, for all samples at once, which "
            "does not go with batch: use a one-step scheme such as Tsit5()"
        )
    if not isinstance(stepsize, FixedStepSize) and not (
        isinstance(stepsize, PID)
        and type(stepsize).decide is PID.decide
        and type(stepsize).scaled_norm is PID.scaled_norm
    ):
        raise InvalidValueError(
            f"batch goes with PID, which decides for all samples at once, received {stepsize}: use "
            "PID(…), or leave batch out"
        )
    transform = forward_transform()
    if transform is not None:
        raise GradientUnavailableError(
            f"batch does not go under {transform}: samples differ in their steps. Leave batch out, or "
            "take torch.func.grad, vjp or jacrev"
        )
    if compile and not isinstance(gradient, Discrete):
        raise InvalidValueError(
            f"compile=True goes with gradient=Discrete(), received {gradient}, which needs the "
            "autograd graph of every operation; leave compile out"
        )


def check_fits(leaves: Leaves, names: Sequence[str]) -> int:
    """B, the extent of dimension 0 of every leaf.

    Raises:
        InvalidValueError: If there is no such number.
    """
    for leaf, name in zip(leaves, names, strict=True):
        if leaf.ndim == 0:
            raise InvalidValueError(
                f"with batch, dimension 0 of every leaf of y0 is that of the samples; y0{name} has no "
                "dimension"
            )
        if len(leaf) != len(leaves[0]):
            raise InvalidValueError(
                f"with batch, every leaf of y0 has one row per sample; y0{names[0]} has "
                f"{len(leaves[0])}, y0{name} has {len(leaf)}"
            )
    return len(leaves[0])


def check_subset(
    field: VectorField, start: Tensor, y: Leaves, p: Leaves, cut: tuple[bool, ...]
) -> None:
    """Whether f gives the same for some of the samples, alone, as for these among all.

    Raises:
        InvalidValueError: If it does not.
    """
    size = len(start)
    if size < 2:
        return
    index = torch.arange(size - 1, -1, -2, device="cpu")  # every other one, in another order
    snapshot = field.snapshot()
    try:
        with torch.no_grad():
            whole = field.bound(p, lambda: field(start, y, p))
            place = index.to(y[0].device)
            rows = tuple(x[place] for x in y)
            own = tuple(x[index.to(x.device)] if c else x for x, c in zip(p, cut, strict=True))
            part = field.bound(own, lambda: field(start[index], rows, own))
    except Exception as error:
        raise InvalidValueError(
            f"batch=Samples(…) says that f takes any number of samples, but on {len(index)} of {size} "
            f"it raised {type(error).__name__}: {error}. {_WHAT_TO_DO}"
        ) from error
    finally:
        if snapshot is not None:
            snapshot.restore()
        field.forget()
    for i, (a, b) in enumerate(zip(whole, part, strict=True)):
        a = a[place]
        bound = torch.finfo(a.dtype).eps ** 0.5 * (1.0 + a.abs())
        if bool(((a - b).abs() > bound).any()):
            raise InvalidValueError(
                f"batch=Samples(…) says that f treats each sample by itself, but on {len(index)} of "
                f"{size} samples it gave something else than on all (leaf {i}). {_WHAT_TO_DO}"
            )


def checked_marks(marks: Any, args: tuple[Any, ...], size: int) -> list[bool]:
    """For each of the tensors in args, whether it has a row for each sample.

    Raises:
        InvalidValueError: If `marks` do not say so.
    """
    leaves, spec = pytree.tree_flatten(args)
    dims = pytree._broadcast_to_and_flatten(marks, spec, is_leaf=lambda x: x is None)  # pyright: ignore
    if dims is None or any(d is not None and (type(d) is not int or d != 0) for d in dims):
        raise InvalidValueError(
            f"Samples: args must be 0 or None for each of args (or a pytree like it), received {marks!r} "
            f"for {len(args)} args"
        )
    pairs = [(x, d == 0) for x, d in zip(leaves, dims, strict=True) if isinstance(x, Tensor)]
    for i, (x, own) in enumerate(pairs):
        if own and (x.ndim == 0 or len(x) != size):
            raise InvalidValueError(
                f"Samples: tensor {i} of args is marked to have a row for each of the {size} samples, "
                f"its shape is {list(x.shape)}"
            )
    return [own for _, own in pairs]


def checked_quadratures(
    field: VectorField, start: Tensor, leaves: Leaves, p: Leaves, size: int
) -> Leaves:
    """The leaves of a running cost at the start.

    Raises:
        InvalidValueError: If it is not one number per sample.
    """
    found = field.cost_leaves(start, leaves, p)
    for x in found:
        if x.ndim == 0 or len(x) != size:
            raise InvalidValueError(
                f"with batch, running must return one number per sample, shape [{size}]; it returned "
                f"shape {list(x.shape)}"
            )
    return found
