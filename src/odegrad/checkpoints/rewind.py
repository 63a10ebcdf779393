"""Reversible schemes: the steps are taken back, and nothing is stored.

A scheme whose step y_{i+1} = Φ(y_i) can be inverted gives every state again from the one after it,
y_i = Φ⁻¹(y_{i+1}), from state n down to 0. In floating point the inverse is inexact, and the error can
grow exponentially in the number of steps taken back, as that of Φ⁻¹ does; states stored every K steps
limit it to that of K steps, and show how large it was.

Zhuang et al., MALI: a memory efficient and reverse accurate integrator for neural ODEs, ICLR (2021);
Kidger et al., Efficient and accurate gradients for neural SDEs, NeurIPS (2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from odegrad.checkpoints.actions import Action, Advance, Drop, Restore, Store, Transpose, Unstep
from odegrad.checkpoints.base import Bounds, Hold
from odegrad.checkpoints.checks import check_count

__all__ = ["Rewind"]


@dataclass(frozen=True)
class Rewind:
    """Takes the steps back in the backward sweep; for reversible schemes only.

    The inverse of a step costs as many evaluations of f as the step itself. Memory does not depend on
    the number of steps, without anchors.

    Arguments:
        anchor_every: The distance in steps of states that are stored and replace the reconstructed ones
            when the backward sweep reaches them. None: only state 0 is stored.

    Raises:
        InvalidTypeError: If `anchor_every` is neither None nor an int.
        InvalidValueError: If `anchor_every` < 1.

    Example:
        >>> from odegrad.checkpoints import Rewind
        >>> for action in Rewind().backward(2, known=False):
        ...     print(action)
        Unstep(start=2, stop=1)
        Transpose(start=1, stop=2)
        Unstep(start=1, stop=0)
        Restore(i=0)
        Transpose(start=0, stop=1)
        Drop(i=0)
    """

    anchor_every: int | None = None

    def __post_init__(self) -> None:
        if self.anchor_every is not None:
            check_count("Rewind: anchor_every", self.anchor_every)

    @property
    def holds(self) -> Hold | None:
        """State n."""
        return Hold.END

    def bounds(self, n: int, known: bool) -> Bounds:
        """The anchors, and state n."""
        del known
        k = self.anchor_every
        return Bounds(device=1 if k is None else -(-n // k), held=1)

    def forward(self, n: int | None) -> Iterator[Action]:
        """Advances to the end, storing the anchors."""
        if self.anchor_every is None:
            yield Store(0)
        yield Advance(0, n, every=self.anchor_every)

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        """Takes step after step back, from the last, and transposes it."""
        del known
        for j in reversed(range(n)):
            yield Unstep(j + 1, j)
            anchor = j == 0 if self.anchor_every is None else j % self.anchor_every == 0
            if anchor:
                yield Restore(j)
            yield Transpose(j, j + 1)
            if anchor:
                yield Drop(j)
