"""The time of an event as a function of what it depends on, by the implicit function theorem.

With U the states at the points of a step, and p what g reads, τ(U, p) is the root of
G(s; U, p) = g(s, u(s; U); p), and

    dτ = −(1 / c) dG,     c = ∂G/∂s at τ.

Its derivatives up to order k are those of k steps of the chord iteration

    s ← s − (G(s) − [G(s)]) / c,     from s = τ,

where [·] is a number without a derivative: each step adds an order. The numbers are those of τ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.errors import GrazingEventError
from odegrad.events.curve import Curve, rate
from odegrad.events.functions import Functions
from odegrad.events.watch import Root
from odegrad.gradients.node import Rule, apply
from odegrad.reach import check_reachable
from odegrad.state import Leaves, OptionalLeaves, axpy

__all__ = ["located"]


def located(root: Root, curve: Curve, functions: Functions) -> tuple[Tensor, Leaves]:
    """The time of an occurrence, 0-dim, float64, and the state there.

    Arguments:
        root: The occurrence.
        curve: The dense output of its step, on the graph.
        functions: The event functions.

    Raises:
        GrazingEventError: If its derivative is wanted and does not exist.
    """
    found = _Implicit(root, curve, functions)
    time = found.number
    state = found.state(time, curve.values)
    depends = functions.value(root.event, time, state).requires_grad
    # A g that jumps between constants is on no graph, but the time depends on the state all the same.
    jumps = root.slope == 0.0 and any(x.requires_grad for x in state)
    if root.grazing and (depends or jumps):
        raise GrazingEventError(
            f"events[{root.event}] has no derivative at t = {root.time:.9g}, where its g touches zero, "
            f"or jumps over it: its slope is {root.slope:.3g} along the solution, zero up to rounding. "
            "Solve under torch.no_grad() for the numbers alone, or choose an event that is crossed"
        )
    if depends:
        (time,) = apply(found.rule(), (*curve.values, *found.reads.tensors))
    return time, found.state(time, curve.values)


class _Implicit:
    """τ(U, p); the inputs are the leaves of U, then p."""

    def __init__(self, root: Root, curve: Curve, functions: Functions) -> None:
        self._root, self._span, self._functions = root, curve.span, functions
        self._n, self._name = len(curve.values), f"events[{root.event}].fn"
        self.reads = functions.reads[root.event]
        self.number = torch.tensor(root.time, dtype=torch.float64, device="cpu")
        values = tuple(x.detach() for x in curve.values)
        slopes = rate(Curve(curve.span, values), root.time) if root.rate else ()
        self._lacking = tuple(a - b for a, b in zip(root.rate, slopes, strict=True))

    def state(self, s: Tensor, values: Leaves) -> Leaves:
        """u(s; U), with the slope of the scheme's own formula at τ."""
        y = Curve(self._span, values)(s)
        return axpy(y, 1.0, (s - self.number,), (self._lacking,)) if self._lacking else y

    def value(self, s: Tensor, inputs: Leaves) -> Tensor:
        """G(s; U, p)."""
        y = self.state(s, inputs[: self._n])
        value = self._functions.value(self._root.event, s, y, inputs[self._n :])
        check_reachable([value], (*inputs, s), self._name)
        return value

    def rule(self) -> Rule:
        """τ with its transpose."""

        def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
            del inputs
            return (self.number.clone(),), ()

        return Rule(primal, self._transpose, self._replay, self._name)

    def _transpose(
        self,
        inputs: Leaves,
        kept: Leaves,
        grads: OptionalLeaves,
        needs: Sequence[bool],
        retain: bool,
    ) -> OptionalLeaves:
        del kept, retain
        self.reads.check_unchanged()
        n, found = self._n, [None] * len(inputs)
        values = (x.detach().requires_grad_(w) for x, w in zip(inputs, needs[:n], strict=False))
        leaves = (*values, *self.reads.own(inputs[n:], needs[n:]))
        with torch.enable_grad():
            value = self.value(self.number, leaves)
        wanted = [x for x, need in zip(leaves, needs, strict=True) if need]
        if grads[0] is None or not value.requires_grad:
            return tuple(found)
        pulled = iter(
            torch.autograd.grad(value, wanted, -grads[0] / self._root.slope, allow_unused=True)
        )
        return tuple(next(pulled) if need else None for need in needs)

    def _replay(self, inputs: Leaves, highest: int) -> Leaves:
        self.reads.check_unchanged()
        time = self.number
        for _ in range(highest):
            value = self.value(time, inputs)
            time = time - (value - value.detach()) / self._root.slope
        return (time,)
