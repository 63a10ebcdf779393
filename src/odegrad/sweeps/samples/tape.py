"""What is kept of the rounds of a batch for their transposes, beside stored states.

`SampleTape` takes in states in the order in which a search finds them, each sample being at a step of
its own, and gives them back round by round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.checkpoints import Keep
from odegrad.errors import SPENT, GradientUnavailableError
from odegrad.state import Leaves, nbytes
from odegrad.sweeps.saved import Meter

__all__ = ["KeptStep", "SampleGraphs", "SampleTape"]

_FIRST_ROWS, _FIRST_BYTES = 32, 1 << 22
"""How many rounds to make room for at first: fewer if they are large."""


class SampleTape:
    """The states before the steps of each sample, and with `Keep.STAGES` the slopes of their stages.

    Arguments:
        keep: `Keep.STATE` or `Keep.STAGES`.
    """

    def __init__(self, keep: Keep) -> None:
        self._stages, self._columns, self._width = keep is Keep.STAGES, Leaves(()), 0
        self._size, self._puts, self._all = 0, 0, torch.arange(0, device="cpu")

    def put(self, counts: Tensor, state: Leaves) -> None:
        """Takes in the states before step `counts` of each sample, int64 of shape [B] on the CPU."""
        self._width = len(state)
        self._write(counts, None, state, 0)

    def put_slopes(self, counts: Tensor, slopes: Sequence[Leaves], dt: Tensor) -> None:
        """Takes in the slopes of an attempt of the samples whose dt is a number; the last one counts."""
        if self._stages:
            flat = tuple(x for slope in slopes for x in slope)
            self._write(counts, (~torch.isnan(dt)).nonzero().squeeze(1), flat, self._width)

    def _write(self, counts: Tensor, samples: Tensor | None, leaves: Leaves, first: int) -> None:
        """Writes the rows of some samples, or of all, from column `first` on."""
        if not leaves or not len(counts):
            return
        self._puts += not first  # as many rows as that at most
        rows = self._puts
        if rows > self._size:
            rows = int(counts.max()) + 1
        last = first + len(leaves)
        if len(self._columns) < last:
            few = max(1, min(_FIRST_ROWS, _FIRST_BYTES // max(1, nbytes(leaves))))
            size = max(rows, self._size or few)
            self._columns += tuple(x.new_zeros((size, *x.shape)) for x in leaves)
            self._size = size
        if rows > self._size:
            more = max(rows - self._size, self._size // 2)
            self._columns = tuple(
                torch.cat([x, x.new_zeros((more, *x.shape[1:]))]) for x in self._columns
            )
            self._size += more
        device, size = leaves[0].device, len(counts)
        if len(self._all) != size:
            self._all = torch.arange(size, device=counts.device)
        place = (counts * size + self._all).to(device)
        if samples is not None:
            samples = samples.to(device)
            place = place[samples]
        for column, leaf in zip(self._columns[first:last], leaves, strict=True):
            rows = leaf if samples is None else leaf[samples]
            column.flatten(0, 1).index_copy_(0, place, rows)

    def get(self, n: int, n_leaves: int) -> tuple[Leaves, None, list[Leaves] | None]:
        """The states before round n, what was kept beside them (nothing), and the slopes.

        Those of samples that sit the round out mean nothing.
        """
        values = tuple(column[n].clone() for column in self._columns)
        state, rest = values[: self._width], values[self._width :]
        if not self._stages:
            return state, None, None
        return state, None, [rest[k : k + n_leaves] for k in range(0, len(rest), n_leaves)]

    def clear(self) -> None:
        """Lets go of everything."""
        self._columns = ()

    def tensors(self) -> Leaves:
        """The tensors that hold the data."""
        return self._columns

    def forget_data(self) -> None:
        """Lets go of these tensors (someone else holds them)."""
        self._columns = ()

    def with_tensors(self, tensors: Sequence[Tensor], retain: bool) -> SampleTape:
        """The same, with `tensors` for what `tensors` gave."""
        del retain  # they are read only
        other = SampleTape(Keep.STAGES if self._stages else Keep.STATE)
        other._columns, other._width, other._size = tuple(tensors), self._width, self._size
        return other

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return nbytes(self._columns)

    @property
    def room(self) -> int:
        """The same."""
        return self.nbytes


@dataclass
class KeptStep:
    """A round on a graph of its own.

    Attributes:
        n: Its number.
        times: (t, h), leaves if they are to get cotangents.
        inputs: State and carry before it, leaves.
        outputs: State and carry after it.
        evaluations: How many evaluations of f are on the graph.
        times_inside: The times at which samples were read inside, leaves like `times`.
        inside: The states there, with their places.
    """

    n: int
    times: tuple[Tensor, Tensor]
    inputs: Leaves
    outputs: Leaves
    evaluations: int
    times_inside: Leaves = ()
    inside: Sequence[tuple[tuple[Tensor, Tensor], Leaves]] = ()


class SampleGraphs:
    """The graphs of consecutive rounds.

    Arguments:
        p: The tensors that f reads, as leaves; those that require grad get a cotangent.
        timed: Whether times are to get cotangents.
    """

    def __init__(self, p: Leaves, timed: bool) -> None:
        self.p, self.timed = p, timed
        self._steps: list[KeptStep] = []
        self._meter, self._whole = Meter(p), True

    def leaves(self, state: Leaves) -> Leaves:
        """The state to begin a round with."""
        return tuple(x.detach().requires_grad_() for x in state)

    def put(self, step: KeptStep) -> None:
        """Takes in a round."""
        self._steps.append(step)
        self._meter.measure((*step.outputs, *(x for _, y in step.inside for x in y)))

    def backwards(self, retain: bool) -> Iterator[KeptStep]:
        """The rounds from the last to the first, let go one by one unless retained.

        Raises:
            GradientUnavailableError: If some are gone, since an earlier pass was interrupted.
        """
        if not self._whole:
            raise GradientUnavailableError(SPENT)
        if retain:
            yield from reversed(self._steps)
            return
        self._whole = False
        while self._steps:
            yield self._steps.pop()

    def tensors(self) -> Leaves:
        """Nothing: graphs hold their own data."""
        return ()

    def forget_data(self) -> None:
        """Does nothing."""

    def with_tensors(self, tensors: Sequence[Tensor], retain: bool) -> SampleGraphs:
        """The same."""
        del tensors, retain
        return self

    @property
    def nbytes(self) -> int:
        """The bytes held, as `odegrad.sweeps.saved.Meter` counts them."""
        return self._meter.nbytes(len(self._steps))

    @property
    def room(self) -> int:
        """The same."""
        return self.nbytes
