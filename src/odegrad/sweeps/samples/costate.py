"""The costate of a batch: the cotangents that go back through its rounds.

With λ the cotangent of the state, before the transpose of each round the cotangents of the outputs of
those samples join λ that are at a landing time after it; those of samples that were read inside of it
go through its transpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odegrad.reach import check_reachable
from odegrad.replay import Snapshot
from odegrad.samplegrid import SampleClock
from odegrad.schemes.persample import PerSample
from odegrad.state import Leaves, OptionalLeaves, wide
from odegrad.sweeps.cotangents import Cotangents, Total
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.outputs import inject
from odegrad.sweeps.samples.reads import Place, cotangents, scattered_rows
from odegrad.sweeps.samples.tape import KeptStep, SampleGraphs

__all__ = ["SampleCostate"]


class SampleCostate:
    """The cotangents of state and carry, of the tensors that f reads, and of times and steps.

    Arguments:
        run: The solve.
        y0: The initial state.
        p: The tensors that f reads; those that require grad get a cotangent.
        clock: The rounds.
        timed: Whether times get cotangents.
        grads: The cotangents of the outputs, leaves of shape [T, B, …]; None is zero.
    """

    def __init__(
        self,
        run: SampleRun,
        y0: Leaves,
        p: Leaves,
        clock: SampleClock,
        timed: bool,
        grads: OptionalLeaves,
    ) -> None:
        self._run, self._y0, self._p, self._clock = run, y0, p, clock
        self._timed, self._grads = timed, grads
        self._grad_y: Leaves = tuple(torch.zeros_like(wide(x)) for x in y0)
        self._grad_carry: Leaves | None = None
        self._grad_p = Total(len(p))
        shape = (run.accepted_steps.n_steps, run.n_samples)
        self._grad_t = torch.zeros(shape if timed else (0, 0), dtype=torch.float64, device="cpu")
        self._grad_dt = torch.zeros_like(self._grad_t)
        self._grad_start = torch.zeros((), device="cpu")
        self._grad_inside = torch.zeros_like(run.outputs_at) if timed else self._grad_t

    def pull_round(
        self, scheme: PerSample, n: int, state: Leaves, snapshot: Snapshot | None,
        slopes: list[Leaves] | None,
    ) -> None:  # fmt: skip
        """Transposes round n from the state before it."""
        run, n_y = self._run, len(self._y0)
        if snapshot is not None:
            snapshot.restore()
        self._inject(n)
        (t, dt), wanted = self._clock.step(n), self._clock.reads(n)
        mark = run.fingerprints.get(n + 1)
        grads = scheme.step_vjp(
            run.field, t, dt, state[:n_y], state[n_y:], self._p, self._grad_y, self._grad_carry,
            kept=slopes if snapshot is None else None, after=mark is not None,
            reads=cotangents(wanted, self._grads, run.n_samples),
        )  # fmt: skip
        if mark is not None and grads.after is not None:
            mark.check(grads.after[: run.field.n_state], float(t.max()))
        self._take(n, grads.y, grads.carry, grads.t, grads.dt, grads.p)
        self._take_inside([place for place, _ in wanted], grads.reads)
        self._tell(n, t, dt, state[:n_y])

    def pull_graph(self, graphs: SampleGraphs, kept: KeptStep, retain: bool) -> None:
        """Transposes a round by its graph."""
        n_y, run, p = len(self._y0), self._run, graphs.p
        self._inject(kept.n)
        grads = (*self._grad_y, *(self._grad_carry or ()))
        pairs = [*zip(kept.outputs, grads, strict=False)]
        for place, y in kept.inside:
            rows = scattered_rows(place, self._grads, run.n_samples)
            pairs += [(x, g) for x, g in zip(y, rows, strict=True) if g is not None]
        outer = [(x, g) for x, g in pairs if x.requires_grad]
        wanted = [i for i, x in enumerate(p) if x.requires_grad]
        times = [x for x in (*kept.times, *kept.times_inside) if x.requires_grad]
        inputs = [*kept.inputs, *times, *(p[i] for i in wanted)]
        check_reachable(kept.outputs, inputs)
        found = list[Tensor | None](
            torch.autograd.grad(
                [x for x, _ in outer],
                inputs,
                [g.to(x.dtype) for x, g in outer],
                retain_graph=retain,
                allow_unused=True,
            )
        )
        run.field.transposes += kept.evaluations
        n, m = len(kept.inputs), len(kept.inputs) + len(times)
        state = tuple(
            torch.zeros_like(x) if g is None else g
            for x, g in zip(kept.inputs, found[:n], strict=True)
        )
        grad_p: list[Tensor | None] = [None] * len(p)
        for i, g in zip(wanted, found[m:], strict=True):
            grad_p[i] = g
        grad_t, grad_dt = (found[n], found[n + 1]) if times else (None, None)
        self._take(kept.n, state[:n_y], state[n_y:] or None, grad_t, grad_dt, tuple(grad_p))
        if times:
            self._take_inside([place for place, _ in kept.inside], found[n + 2 : m])
        t, dt = kept.times
        self._tell(kept.n, t, dt, kept.inputs[:n_y])

    def finish(self) -> Cotangents:
        """Transposes `init`, and adds the cotangent of the output at the start."""
        run = self._run
        if self._grad_carry is not None:
            if run.initial is not None:
                run.initial.restore()
            start = run.landings[:, 0].contiguous()
            scheme = run.persample(self._y0)
            grads = scheme.init_vjp(run.field, start, self._y0, self._p, self._grad_carry)
            self._grad_y = tuple(a + b for a, b in zip(self._grad_y, grads.y, strict=True))
            self._grad_p.add(grads.p)
            if self._timed and grads.t is not None:
                self._grad_start = grads.t
        grad_y = tuple(
            a if g is None else a + g[0] for a, g in zip(self._grad_y, self._grads, strict=True)
        )
        times: list[Tensor | None] = []
        if self._timed:
            total = self._clock.vjp(self._grad_t, self._grad_dt)
            total[:, 0] += self._grad_start
            times = [total if run.stops is None else run.stops.vjp(total) + self._grad_inside]
        return Cotangents(grad_y, self._grad_p.result(), times)

    def _inject(self, n: int) -> None:
        self._grad_y = inject(self._grad_y, self._grads, self._clock.landing(n))

    def _take(
        self, n: int, y: Leaves, carry: Leaves | None, t: Tensor | None, dt: Tensor | None,
        p: OptionalLeaves,
    ) -> None:  # fmt: skip
        """Takes in the cotangents of what round n was given."""
        self._grad_y, self._grad_carry = tuple(map(wide, y)), carry
        self._grad_p.add(p)
        if self._timed and t is not None:
            self._grad_t[n] = t
        if self._timed and dt is not None:
            self._grad_dt[n] = dt

    def _take_inside(self, places: Sequence[Place], grads: Sequence[Tensor | None]) -> None:
        """Takes in the cotangents of the times at which samples were read."""
        if self._timed:
            for (j, b), g in zip(places, grads, strict=True):
                if g is not None:
                    self._grad_inside[b, j] = g[b]

    def _tell(self, n: int, t: Tensor, dt: Tensor, y: Leaves) -> None:
        run = self._run
        if run.monitor is not None:
            run.count()
            run.monitor.step("backward", n, t, dt, y, run.stats)  # pyright: ignore
