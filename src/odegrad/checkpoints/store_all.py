"""Everything is kept: no step is taken twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from odegrad.checkpoints.actions import Action, Advance, Keep, Transpose
from odegrad.checkpoints.base import Bounds, Hold
from odegrad.checkpoints.checks import check_keep

__all__ = ["StoreAll"]


@dataclass(frozen=True)
class StoreAll:
    """Keeps the state before every step, or its stages, or its autograd graph: no step is taken twice.

    From its state, a transposed step evaluates its own stages again; what is saved against
    backpropagation through the solver is the graph of every evaluation of f. With the slopes of the
    stages, too, only the graph of one evaluation of f exists at any moment. From its graph it evaluates
    nothing: that is backpropagation, freed graph by graph in the backward sweep.

    Arguments:
        keep: `Keep.STATE` (default), `Keep.STAGES` or `Keep.GRAPH`.

    Raises:
        InvalidTypeError: If `keep` is none of them.

    Example:
        >>> import odegrad
        >>> fast = odegrad.Discrete(odegrad.StoreAll(keep=odegrad.Keep.GRAPH))
    """

    keep: Keep = Keep.STATE

    def __post_init__(self) -> None:
        check_keep("StoreAll", self.keep)

    @property
    def holds(self) -> Hold | None:
        """Nothing."""
        return None

    def bounds(self, n: int, known: bool) -> Bounds:
        """All steps on the tape."""
        del known
        return Bounds(device=0, tape=n, keep=self.keep)

    def forward(self, n: int | None) -> Iterator[Action]:
        """Advances to the end, keeping every step."""
        yield Advance(0, n, keep=self.keep)

    def backward(self, n: int, known: bool) -> Iterator[Action]:
        """Transposes all steps."""
        del known
        yield Transpose(0, n)
