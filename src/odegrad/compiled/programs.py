"""The compiled programs of one solve: the march, and the transposed march.

Each is made when it is first needed and kept with the graph of f (`FieldGraph.programs`), so that every
later solve with the same shapes, scheme and kind of steps finds it. A program handles a *chunk* of at
most `Programs.rows` steps; Python hands it buffers with one row per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from odegrad.compiled.controller import March, attempt
from odegrad.compiled.loop import Loop, Sizes, build
from odegrad.compiled.pullback import Pullback, trace_pullback
from odegrad.compiled.shapes import Shapes
from odegrad.schemes.base import Step
from odegrad.state import Leaves
from odegrad.stepsize.pid import CONSTANTS

__all__ = ["Programs", "Transposed"]


Norm: TypeAlias = Callable[[Leaves], Tensor]


@dataclass(frozen=True)
class Transposed:
    """The transposed march and what its buffers are."""

    loop: Loop
    pullback: Pullback
    rows: int


def _kept(pull: Pullback | None) -> int | None:
    """What decides over the forward sweep: nothing unless it keeps something."""
    return id(pull) if pull is not None and pull.kept else None


class Programs(Shapes):
    """Programs for one vector field, scheme, and shape of state; see `Shapes`."""

    def step_evaluations(self, read: bool) -> int:
        """Evaluations of f per step, once a march was made."""
        return self._evaluations[read]

    def march(self, pull: Pullback | None, read: bool = False) -> Loop:
        """A loop over given steps.

        (i, *y, *carry | t, dt rows | *y, *carry, *kept, *inside if read, rows | n, *p) ↦ the same at
        i = n.

        Arguments:
            pull: Says what to keep for the transposes; None keeps states only.
            read: Whether states inside of the steps are to be read.
        """
        return self._make(("march", _kept(pull), read), lambda: self._march(pull, read))

    def _read(
        self, t: Tensor, dt: Tensor, y: Leaves, step: Step, p: Leaves, read: bool
    ) -> list[Tensor]:
        if not read:
            return []
        return self.reading.values(self.scheme, self._field, t, dt, y, step, p)

    def _march(self, pull: Pullback | None, read: bool) -> Loop:
        n_y, n_s = len(self._y), len(self._y) + len(self._carry)

        def body(i: Tensor, *given: Tensor) -> list[Tensor]:
            state, (t, dt, _, *p) = given[:n_s], given[n_s:]
            step = self.scheme.step(self._field, t, dt, state[:n_y], state[n_y:], tuple(p))
            kept = () if pull is None else pull.forward(t, dt, *state, *p)
            inside = self._read(t, dt, state[:n_y], step, tuple(p), read)
            return [i + 1, *step.y, *step.carry, *state, *kept, *inside]

        def more(i: Tensor, *given: Tensor) -> Tensor:
            return i < given[n_s]

        state, rows = [*self._y, *self._carry], self.rows(pull)
        inside = self._inside if read else []
        written = self._rows([*state, *(pull.kept if pull else ()), *inside], rows)
        examples = [self._count(), *state, *self._times(rows), *written, self._count(), *self._p]
        sizes = Sizes(carried=1 + n_s, reads=2, writes=len(written))
        return self._counted(body, more, sizes, examples, read)

    def adaptive_march(
        self, norm: Norm | None, n_times: int, pull: Pullback | None, read: bool = False
    ) -> Loop:
        """A loop over attempted steps.

        (*march, *y, *carry | | *y, *carry, *kept, *inside if read, fraction, segment rows | times,
        constants, limit, segments, *p) ↦ the march, state and carry when the chunk is full, the walk
        through, or stuck.
        """
        # A norm depends on nothing but its argument, and is known by its code.
        key = ("adaptive", getattr(norm, "__code__", None), n_times, _kept(pull), read)
        return self._make(key, lambda: self._adaptive(norm, n_times, pull, read))

    def _adaptive(self, norm: Norm | None, n_times: int, pull: Pullback | None, read: bool) -> Loop:
        n_m, n_y, n_s = len(March._fields), len(self._y), len(self._y) + len(self._carry)
        n_state, order, rows = self._field.n_state, self.scheme.error_order, self.rows(pull)
        assert order is not None

        def body(*given: Tensor) -> list[Tensor]:
            march, state = March(*given[:n_m]), given[n_m : n_m + n_s]
            times, vector, limit, segments, *p = given[n_m + n_s :]
            y, carry = state[:n_y], state[n_y:]

            kept: list[Tensor] = []

            def take(t: Tensor, dt: Tensor) -> Step:
                kept[:] = () if pull is None else pull.forward(t, dt, *state, *p)
                step = self.scheme.step(self._field, t, dt, y, carry, tuple(p))
                kept.extend(self._read(t, dt, y, step, tuple(p), read))
                return step

            found = attempt(
                take, march, y, carry, times, segments, vector, limit, order, n_state, norm
            )
            written = [*state, *kept, found.following, march.segment]
            return [*found.march, *found.y, *found.carry, *written]

        def more(*given: Tensor) -> Tensor:
            march, segments = March(*given[:n_m]), given[n_m + n_s + 3]
            return (march.row < rows) & (march.segment < segments) & ~march.stuck

        state, fakes = [*self._y, *self._carry], self._fakes
        march = fakes.like(March.start(torch.ones((), dtype=torch.float64, device=self.device)))
        times = fakes.empty((n_times,), torch.float64, self.device)
        vector = fakes.empty((len(CONSTANTS),), torch.float64, self.device)
        kept = [*(pull.kept if pull else ()), *(self._inside if read else ())]
        written = self._rows([*state, *kept, self._time, self._count()], rows)
        stable = [times, vector, self._count(), self._count(), *self._p]
        sizes = Sizes(carried=n_m + n_s, reads=0, writes=len(written))
        return self._counted(body, more, sizes, [*march, *state, *written, *stable], read)

    def pullback(
        self, wanted: tuple[bool, ...], timed: bool, keeps: bool, read: bool = False
    ) -> Pullback:
        """The transpose of a step as a graph.

        Arguments:
            wanted: Which of p need a cotangent.
            timed: Whether t and dt do.
            keeps: Whether the forward sweep keeps what it needs.
            read: Whether states inside of the step were read.

        Raises:
            NotCompilable: If the step cannot be differentiated as a graph.
        """

        def make() -> Pullback:
            args = (self._fakes, self._field, self.scheme, self._y, self._carry, self._p)
            every = (*wanted, *[False] * (len(self._p) - len(wanted)))
            reading = self.reading if read else None
            return trace_pullback(*args, every, timed, keeps, reading, self.time_shape)

        return self._make(("pullback", wanted, timed, keeps, read), make)

    def transposed(self, pull: Pullback, labelled: bool) -> Transposed:
        """The loop over transposed steps, from the last to the first.

        (i, *grad_y, *grad_carry, *sums | t, dt, *y, *carry, *kept, *grad_inside if read, *labels if
        labelled, rows | grad_t, grad_dt, *inside if read, rows if timed, *deferred rows | *p) ↦ the
        same at i = −1.
        """
        key = ("transposed", id(pull), labelled)
        return self._make(key, lambda: self._transposed(pull, labelled))

    def _transposed(self, pull: Pullback, labelled: bool) -> Transposed:
        state, n_y = [*self._y, *self._carry], len(self._y)
        sums, n_p, n_k = self._sums(pull), len(self._p), len(pull.kept)
        n_s, n_g, n_t, n_i = len(state), len(sums), pull.n_timed, len(pull.inside)

        def body(i: Tensor, *given: Tensor) -> list[Tensor]:
            grads, totals, rest = given[:n_s], given[n_s : n_s + n_g], given[n_s + n_g :]
            t, dt, *more = rest
            at, kept, more = more[:n_s], more[n_s : n_s + n_k], more[n_s + n_k :]
            inside, more = more[:n_i], more[n_i:]
            labels, p = more[: len(more) - n_p], more[len(more) - n_p :]
            if labelled:
                grads = (*(a + b for a, b in zip(grads, labels, strict=False)), *grads[n_y:])
            found = pull.graph(t, dt, *at, *p, *kept, *grads, *inside)
            times, found = found[:n_t], found[n_t:]
            pulled, terms, rows = found[:n_s], found[n_s : n_s + n_g], found[n_s + n_g :]
            totals = [a + b for a, b in zip(totals, terms, strict=True)]
            return [i - 1, *pulled, *totals, *times, *rows]

        def goes_on(i: Tensor, *given: Tensor) -> Tensor:
            del given
            return i >= 0

        rows = self.pulled_rows(pull)
        labels = self._y if labelled else []
        read = [*state, *pull.kept, *pull.inside, *labels]
        reads = [*self._times(rows), *self._rows(read, rows)]
        times = [self._time, self._time, *(self._inside if pull.inside else ())]
        writes = self._rows([*times[:n_t], *pull.rows], rows)
        examples = [self._count(), *state, *sums, *reads, *writes, *self._p]
        sizes = Sizes(carried=1 + n_s + n_g, reads=len(reads), writes=len(writes))
        loop = build(self._fakes, body, goes_on, sizes, examples, self._tell)
        return Transposed(loop, pull, rows)

    def _counted(
        self,
        body: Callable[..., Sequence[Tensor]],
        more: Callable[..., Tensor],
        sizes: Sizes,
        examples: list[Tensor],
        read: bool,
    ) -> Loop:
        """A march; how often it evaluates f is noted."""
        before = self._field.evaluations
        loop = build(self._fakes, body, more, sizes, examples, self._tell)
        found = self._field.evaluations - before
        self._evaluations[read] = max(self._evaluations.get(read, 0), found)
        return loop
