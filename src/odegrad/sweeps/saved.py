"""How much memory an autograd graph holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from odegrad.field import VectorField
from odegrad.reach import MOST_NODES
from odegrad.schemes.base import Scheme
from odegrad.state import Leaves, Time

__all__ = ["Meter", "step_graph"]


class Meter:
    """Measures what steps save for their transposes, from the graphs of the first two.

    A storage counts once, and not at all if `p` lives in it; single numbers do not count. What the
    second step saves beyond the first is what every further step saves, too: steps are taken to be
    alike, and constants count once. What solves inside f keep is in their own statistics.

    Arguments:
        p: The tensors that f reads.

    Attributes:
        nodes: How many nodes the graphs of the first two steps have, or the most that are walked.
    """

    def __init__(self, p: Sequence[Tensor]) -> None:
        self._seen: set[Any] = set()
        self._storages = {_storage(x)[0] for x in p}
        self._sizes: list[int] = []
        self.nodes = 0

    def measure(self, outputs: Sequence[Tensor]) -> None:
        """Walks the graph of a step's `outputs` back to what was walked before, for two steps."""
        if len(self._sizes) == 2:
            return
        size, nodes = 0, [x.grad_fn for x in outputs if x.grad_fn is not None]
        while nodes:
            node = nodes.pop()
            if node in self._seen:
                continue
            self._seen.add(node)
            self.nodes += 1
            if self.nodes > MOST_NODES:
                break
            nodes += [following for following, _ in node.next_functions if following is not None]
            for tensor in _saved(node):
                key, held = _storage(tensor)
                if tensor.ndim and key not in self._storages:
                    self._storages.add(key)
                    size += held
        self._sizes.append(size)
        if len(self._sizes) == 2:
            self._seen = set()  # they would keep the graphs alive

    def nbytes(self, steps: int) -> int:
        """The bytes that the graphs of that many steps hold; ends the measurement."""
        self._seen = set()
        if not self._sizes:
            return 0
        return self._sizes[0] + (steps - 1) * self._sizes[-1]


_SCHEME_NODES = 25
"""The most nodes by which a scheme joins one evaluation of f, for each leaf of the state."""


def step_graph(
    field: VectorField, scheme: Scheme, t: Time, dt: Time, y0: Leaves, p: Leaves
) -> tuple[int, int, int]:
    """About what the graphs of one step save, the most nodes that those of two steps have, and a count.

    Those of one evaluation of f, times the number of evaluations in a step, which is the count.

    It leaves no mark on the field, and holds no more than the graph of one evaluation.

    Arguments:
        field: f.
        scheme: The scheme.
        t: The time at which the step begins.
        dt: Its size.
        y0: The initial state.
        p: The tensors that f reads, as leaves (see `VectorField.own`).
    """
    before, snapshot = field.evaluations, field.snapshot()

    def step() -> None:
        scheme.step(field, t, dt, y0, scheme.init(field, t, y0, p), p)

    try:
        with torch.no_grad():
            field.bound(p, step)
        count = field.evaluations - before
        meter = Meter(p)
        with torch.enable_grad():
            y = tuple(x.detach().requires_grad_() for x in y0)
            meter.measure(field.bound(p, lambda: field(t, y, p)))
        nodes = 2 * count * (meter.nodes + _SCHEME_NODES * len(y0))
        return count * meter.nbytes(1), nodes, count
    finally:
        field.evaluations = before
        field.forget()
        if snapshot is not None:
            snapshot.restore()


_NAMES: dict[type, list[str]] = {}


def _saved(node: Any) -> list[Tensor]:
    """The tensors that a node of the graph saved."""
    names = _NAMES.get(type(node))
    if names is None:
        names = [x for x in dir(type(node)) if x.startswith("_saved_")]
        _NAMES[type(node)] = names = [*names, "saved_tensors"]
    found: list[Tensor] = []
    for name in names:
        value = getattr(node, name, None)
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += [x for x in value if isinstance(x, Tensor)]
    return found


def _storage(x: Tensor) -> tuple[int, int]:
    while is_traceable_wrapper_subclass(x):  # of a DTensor, what this rank holds
        x = getattr(x, x.__tensor_flatten__()[0][0])
    if x.layout is not torch.strided or x._is_zerotensor():
        return id(x), 0  # sparse and others: not counted; zeros of forward mode have no storage
    storage = x.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
