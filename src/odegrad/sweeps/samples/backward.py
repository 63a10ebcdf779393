"""The backward sweep of a batch: the transposes of its rounds, from the last to the first.

With λ the cotangent of the state, before the transpose of each round the cotangents of the outputs of
those samples join λ that are at a landing time after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.checkpoints import (
    Advance,
    Checkpoints,
    Drop,
    Keep,
    Restore,
    Store,
    Transpose,
    Unstep,
)
from odegrad.errors import annotate
from odegrad.reach import check_reachable
from odegrad.replay import Snapshot
from odegrad.samplegrid import SampleClock
from odegrad.schemes.persample import PerSample
from odegrad.state import Leaves, OptionalLeaves, wide
from odegrad.sweeps.cotangents import Cotangents, Total
from odegrad.sweeps.kept import Current, Kept
from odegrad.sweeps.samples.batch import SampleRun
from odegrad.sweeps.samples.forward import graphed, rounds
from odegrad.sweeps.samples.outputs import inject
from odegrad.sweeps.samples.tape import KeptStep, SampleGraphs, SampleTape
from odegrad.sweeps.tape import Tape

__all__ = ["pull"]


def pull(
    run: SampleRun,
    y0: Leaves,
    p: Leaves,
    timed: bool,
    checkpoints: Checkpoints,
    kept: Kept,
    grads: OptionalLeaves,
    retain: bool,
) -> Cotangents:
    """Transposes a solve whose forward sweep is through.

    Arguments:
        run: The solve.
        y0: The initial state.
        p: The tensors that f reads, bound; those that require grad get a cotangent.
        timed: Whether the landing times get cotangents.
        checkpoints: The schedule that the forward sweep followed.
        kept: What it kept.
        grads: The cotangents of its outputs; None is zero.
        retain: Whether what was kept has to serve again.

    Returns:
        The cotangents; those of the times as one tensor of shape [B, T], in a list.
    """
    engine = _Engine(run, y0, p, timed, checkpoints, kept, grads, retain)
    if run.monitor is not None:
        run.monitor.start("backward")
    here, n = run.field.snapshot(), run.accepted_steps.n_steps
    actions = checkpoints.backward(n, known=True) if n else ()
    try:
        for action in kept.store.ahead(actions):
            match action:
                case Advance(start, stop, None, keep) if stop is not None:
                    engine.advance(start, stop, keep)
                case Store(i, tier):
                    kept.store.put(i, *engine.at(i), tier)
                    run.stats.note(kept)
                case Restore(i):
                    engine.current = Current(i, *kept.store.get(i))
                case Drop(i):
                    kept.store.drop(i)
                case Unstep(start, stop):
                    engine.unstep(start, stop)
                case Transpose(start, stop):
                    engine.transpose(start, stop)
                case _:
                    raise AssertionError(f"{action} has no place in a backward sweep")
        found = engine.costate.finish()
        run.field.check_connected(p)
        return found
    except Exception as error:
        annotate(error, "while evaluating f again, in the backward pass of odegrad.solve")
        raise
    finally:
        if here is not None:
            here.restore()
        run.count()
        if run.monitor is not None:
            run.monitor.stop()


class _Engine:
    """Executes a schedule's actions round by round."""

    def __init__(
        self,
        run: SampleRun,
        y0: Leaves,
        p: Leaves,
        timed: bool,
        checkpoints: Checkpoints,
        kept: Kept,
        grads: OptionalLeaves,
        retain: bool,
    ) -> None:
        self._run, self._p, self._kept, self._timed, self._retain = run, p, kept, timed, retain
        self._clock = SampleClock(run.accepted_steps, run.landings)
        self._scheme = run.persample(y0)
        self.costate = _Costate(run, y0, p, self._clock, timed, grads)
        self._n_leaves, self.current, self._first = len(y0), kept.current(), kept.tape
        n = run.accepted_steps.n_steps
        self._rows = checkpoints.bounds(n, known=True).tape if n else 0

    def at(self, i: int) -> tuple[Leaves, Snapshot | None]:
        """The current state, which has to be state i, and what belongs to it."""
        assert self.current is not None
        assert self.current.i == i, f"state {self.current.i} is current, not {i}"
        return self.current.state, self.current.snapshot

    def advance(self, start: int, stop: int, keep: Keep | None) -> None:
        """Takes rounds again."""
        state, snapshot = self.at(start)
        if snapshot is not None:
            snapshot.restore()
        run, kept, n = self._run, self._kept, self._n_leaves
        parts = (state[:n], state[n:])
        run.stats.recomputed += stop - start - (keep is not None)
        if keep is Keep.GRAPH:
            kept.tape = graphs = SampleGraphs(self._p, self._timed)
            walk = graphed(run, self._scheme, self._clock, start, stop, parts, self._p, graphs)
            for _ in walk:
                pass
            self.current = None
            run.stats.note(kept)
            return
        tape: Tape | None = None
        if keep is not None:
            kept.tape = tape = Tape(keep, self._rows)
        # Of a round that is on the tape by its state, nothing else is needed.
        end = stop - 1 if keep is Keep.STATE else stop
        with torch.no_grad():
            for found in rounds(run, self._scheme, self._clock, start, end, *parts, self._p):
                if tape is not None:
                    before = (*found.y, *found.carry)
                    tape.put(found.n, before, found.snapshot, found.step.dense)
                parts = (found.step.y, found.step.carry)
        after, here = (*parts[0], *parts[1]), run.field.snapshot()
        if tape is not None and keep is Keep.STATE:
            tape.put(end, after, here, ())
        self.current = Current(stop, after, here) if keep is None else None
        run.stats.note(kept)

    def unstep(self, start: int, stop: int) -> None:
        """Takes rounds back."""
        state, _ = self.at(start)
        y, carry = state[: self._n_leaves], state[self._n_leaves :]
        with torch.no_grad():
            for n in reversed(range(stop, start)):
                t, dt = self._clock.step(n)
                y, carry = self._scheme.unstep(self._run.field, t, dt, y, carry, self._p)
        self.current = Current(stop, (*y, *carry), None, rewound=True)

    def transpose(self, start: int, stop: int) -> None:
        """Transposes rounds."""
        tape = self._kept.tape
        if tape is None:
            assert stop == start + 1
            self.costate.pull_round(self._scheme, start, *self.at(start), None)
            return
        if isinstance(tape, SampleGraphs):
            retain = self._retain and tape is self._first
            for kept in tape.backwards(retain):
                self.costate.pull_graph(tape, kept, retain)
        else:
            assert isinstance(tape, Tape | SampleTape)
            for n in reversed(range(start, stop)):
                self.costate.pull_round(self._scheme, n, *tape.get(n, self._n_leaves))
            if isinstance(tape, Tape):
                tape.clear()
        self._kept.tape = None


class _Costate:
    """The cotangents of state and carry, of the tensors that f reads, and of times and steps."""

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
        self._grad_t = torch.zeros(shape if timed else (0, 0), dtype=torch.float64)
        self._grad_dt, self._grad_start = torch.zeros_like(self._grad_t), torch.zeros(())

    def pull_round(
        self, scheme: PerSample, n: int, state: Leaves, snapshot: Snapshot | None,
        slopes: list[Leaves] | None,
    ) -> None:  # fmt: skip
        """Transposes round n from the state before it."""
        run, n_y = self._run, len(self._y0)
        if snapshot is not None:
            snapshot.restore()
        self._inject(n)
        t, dt = self._clock.step(n)
        mark = run.fingerprints.get(n + 1)
        grads = scheme.step_vjp(
            run.field, t, dt, state[:n_y], state[n_y:], self._p, self._grad_y, self._grad_carry,
            kept=slopes if snapshot is None else None, after=mark is not None,
        )  # fmt: skip
        if mark is not None and grads.after is not None:
            mark.check(grads.after[: run.field.n_state], float(t.max()))
        self._take(n, grads.y, grads.carry, grads.t, grads.dt, grads.p)
        self._tell(n, t, dt, state[:n_y])

    def pull_graph(self, graphs: SampleGraphs, kept: KeptStep, retain: bool) -> None:
        """Transposes a round by its graph."""
        n_y, run, p = len(self._y0), self._run, graphs.p
        self._inject(kept.n)
        grads = (*self._grad_y, *(self._grad_carry or ()))
        pairs = [(x, g) for x, g in zip(kept.outputs, grads, strict=False) if x.requires_grad]
        wanted = [i for i, x in enumerate(p) if x.requires_grad]
        times = [x for x in kept.times if x.requires_grad]
        inputs = [*kept.inputs, *times, *(p[i] for i in wanted)]
        check_reachable(kept.outputs, inputs)
        found = torch.autograd.grad(
            [x for x, _ in pairs],
            inputs,
            [g.to(x.dtype) for x, g in pairs],
            retain_graph=retain,
            allow_unused=True,
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
        grad_t, grad_dt = found[n:m] if times else (None, None)
        self._take(kept.n, state[:n_y], state[n_y:] or None, grad_t, grad_dt, tuple(grad_p))
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
            times = [total]
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

    def _tell(self, n: int, t: Tensor, dt: Tensor, y: Leaves) -> None:
        run = self._run
        if run.monitor is not None:
            run.count()
            run.monitor.step("backward", n, t, dt, y, run.stats)  # pyright: ignore
