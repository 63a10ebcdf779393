"""What an event function reads beside t and y, and the function reading other tensors in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from odegrad.capture import capture, version
from odegrad.errors import ChangedTensorError, RandomFieldError
from odegrad.state import Leaves, Structure
from odegrad.substitute import substituted

__all__ = ["Reads"]

T = TypeVar("T")


class Reads:
    """The tensors that g reads: those that it captures, then those in `args`.

    Arguments:
        name: What to call g.
        function: g(t, y, *args).
        args: What it gets beside t and y.
        call: Calls it once, with no other tensors than `known` and those in `args`.
        known: The tensors that are y there.
        autocast: What autocast was at the start of the solve.

    Attributes:
        tensors: As they are; those that require grad are differentiated.

    Raises:
        RandomFieldError: If g draws random numbers or changes buffers: it is evaluated many times.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        call: Callable[[], Any],
        known: Leaves,
        autocast: tuple[str, torch.dtype, bool],
    ) -> None:
        self._name, self._autocast = name, autocast
        self._args = Structure(args)
        self._leaves: list[Any] = self._args.flatten(args) or []
        leaves = self._leaves
        given = [x for x in leaves if isinstance(x, Tensor)]
        found = capture(
            [function, *filter(callable, leaves)], call, [*known, *given], known[0].device
        )
        if found.stochastic or found.changing:
            raise RandomFieldError(
                f"{name} draws random numbers or changes buffers (dropout or batch normalization in "
                "train mode), but it is evaluated many times and has to give the same; use eval mode, "
                "or noise drawn once, outside"
            )
        self._captures, self._n = found, len(found.items)
        self.tensors: Leaves = tuple(map(substituted, (*found.tensors(), *given)))
        self._versions = [version(c.tensor) for c in found.read]

    def own(self, p: Leaves, wanted: Sequence[bool]) -> Leaves:
        """The leaves to differentiate when p is given, see `Captures.own`."""
        return self._captures.own(p, wanted)

    def bound(self, p: Leaves, thunk: Callable[[tuple[Any, ...]], T]) -> T:
        """thunk(args), with g reading `p` instead of `tensors`, under the autocast of the start."""
        given = iter(p[self._n :])
        args = self._args.unflatten(
            [next(given) if isinstance(x, Tensor) else x for x in self._leaves]
        )
        with torch.autocast(*self._autocast):
            return self._captures.bind(p[: self._n], lambda: thunk(args))

    def check_unchanged(self) -> None:
        """Refuses to go on if a tensor without a gradient that g reads was changed in place.

        Raises:
            ChangedTensorError: Since evaluating g again would not give what it gave.
        """
        for c, v in zip(self._captures.read, self._versions, strict=True):
            if version(c.tensor) != v:
                raise ChangedTensorError(
                    f"{c.name}, of shape {list(c.tensor.shape)}, which {self._name} reads, was "
                    "changed in place between the solve and its backward pass, which has to evaluate it "
                    "again. Call backward first, or give it a copy"
                )
