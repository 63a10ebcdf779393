"""Does f give the same again? The states computed twice, and once more from the stored ones.

The transpose of a step evaluates f again at the states of the forward sweep. It is the transpose of what
was computed only if f then returns the same numbers. So the accepted steps are taken twice from the
start, and each of them once more from the state before it, and all states are compared to the last bit.
Random numbers of torch's generators and changes of buffers are replayed by odegrad, and only named here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odegrad.audit.check import Check
from odegrad.audit.culprits import Call, culprit, same, watched
from odegrad.audit.subject import Subject
from odegrad.audit.world import World
from odegrad.grid import Clock
from odegrad.schemes import Step
from odegrad.state import Leaves, nbytes
from odegrad.sweeps.steps import Accepted, steps

__all__ = ["replays"]

_MOST_BYTES = 128 << 20
"""Of states to compare with; where they take more, every k-th step is compared."""
_ROUNDING = 100.0
"""Differences of so many ε are those of kernels whose order of summation varies."""


def replays(subject: Subject, world: World) -> Check:
    """Takes all steps twice, and each again from the state before it."""
    stride = 1 + subject.n_steps * nbytes(subject.y) // _MOST_BYTES
    ahead: dict[int, Leaves] = {}
    differing: list[int] = []
    worst = 0.0

    def compare(n: int, after: Leaves) -> None:
        nonlocal worst
        if not same(list(ahead[n]), list(after)):
            differing.append(n)
            worst = max(worst, _difference(ahead[n], after))

    def remember(accepted: Accepted) -> None:
        if accepted.n % stride == 0:
            ahead[accepted.n] = _copied(_after(accepted.step))
            compare(accepted.n, _again(subject, accepted))

    def repeat(accepted: Accepted) -> None:
        if accepted.n % stride == 0:
            compare(accepted.n, _after(accepted.step))

    _march(subject, remember)
    _march(subject, repeat)
    notes, others = _notes(subject, world)
    numbers = {"steps": len(ahead), "stride": stride, "difference": worst}
    if not _loss_repeats(subject):
        text = "the loss itself gives another number for the same ys"
        return Check("replay", "flagged", "; ".join([text, *notes]), numbers, text)
    if not differing:
        text = f"states are bitwise the same again, and recomputed from stored ones ({len(ahead)} steps)"
        return Check(
            "replay", "information" if notes else "passed", "; ".join([*notes, text]), numbers
        )
    numbers |= {"first_step": min(differing)}
    when = (
        f"step {min(differing)} of {subject.n_steps} gives other numbers when it is taken again "
        f"(relative difference {worst:.0e})"
    )
    if worst <= _ROUNDING * subject.eps:
        text = f"{when}, by rounding alone: use torch.use_deterministic_algorithms(True)"
        return Check("replay", "information", "; ".join([text, *notes]), numbers)
    who = _who(subject, min(differing), others)
    return Check("replay", "flagged", "; ".join([who, when, *notes]), numbers, who)


def _march(subject: Subject, see: Callable[[Accepted], object], stop: int | None = None) -> None:
    """Takes the accepted steps from the start, and shows each to `see`."""
    run = subject.run(subject.grid)
    clock = Clock(subject.grid, run.times)
    stop = clock.n_steps if stop is None else stop

    def walk() -> None:
        if clock.n_steps:
            y = _copied(subject.y)
            carry = run.scheme.init(run.field, run.times[0], y, subject.p)
            for accepted in steps(run, clock, 0, stop, y, carry, subject.p):
                see(accepted)

    with torch.no_grad():
        run.field.bound(subject.p, walk)


def _again(subject: Subject, accepted: Accepted) -> Leaves:
    """State and carry after a step, taken once more; generators and buffers end as they were."""
    base = subject.base
    here = None if accepted.snapshot is None else base.field.snapshot()
    if accepted.snapshot is not None:
        accepted.snapshot.restore()
    y, carry = _copied(accepted.y), _copied(accepted.carry)

    def step() -> Step:
        return base.scheme.step(base.field, accepted.t, accepted.dt, y, carry, subject.p)

    with torch.no_grad():
        found = base.field.bound(subject.p, step)
    if here is not None:
        here.restore()
    return _after(found)


def _notes(subject: Subject, world: World) -> tuple[list[str], list[str]]:
    """Who draws random numbers and changes buffers, and which other generators are drawn from."""
    first: list[Accepted] = []
    _march(subject, first.append, min(1, subject.n_steps))
    others = world.other_generators()
    if not first:
        return [], others
    calls = _watched(subject, first[0])
    described = subject.names.described
    drawing = list(dict.fromkeys(call.name for call in calls if call.draws))
    notes = [f"{described(name)} draws random numbers: they are replayed" for name in drawing]
    if subject.base.field.stochastic and not drawing:
        notes.append("f itself draws random numbers: they are replayed")
    for name in dict.fromkeys(call.name for call in calls if call.changed):
        buffers = ", ".join(next(c.changed for c in calls if c.name == name and c.changed))
        mode = ", training" if subject.names.modules[name].training else ""
        text = f"{described(name)[:-1]}{mode}) changes its buffers {buffers}: they are replayed"
        notes.append(text)
    return notes, others


def _watched(subject: Subject, accepted: Accepted) -> list[Call]:
    device = subject.base.field.device
    return watched(subject.names, device, lambda: _again(subject, accepted))[1]


def _who(subject: Subject, n: int, others: list[str]) -> str:
    """The culprit, by name."""
    found: list[Accepted] = []
    _march(subject, found.append, n + 1)
    first, second = _watched(subject, found[-1]), _watched(subject, found[-1])
    name = culprit(first, second)
    foreign = f"; it draws from {' and '.join(others)}, which is not replayed" if others else ""
    if name is not None:
        who = subject.names.described(name)
        return f"{who} gives other outputs for equal inputs and equal random numbers{foreign}"
    return (
        "no module's output differs: f itself is not a function of (t, y): it reads a clock, a counter "
        f"or another generator{foreign}"
    )


def _loss_repeats(subject: Subject) -> bool:
    """Whether the loss is a function of the outputs."""
    found: list[Tensor] = []
    for _ in range(2):
        subject.run(subject.grid)
        with torch.no_grad():
            found.append(subject.objective.value(subject.first.outputs))
    return same(found[:1], found[1:])


def _after(step: Step) -> Leaves:
    return (*step.y, *step.carry)


def _copied(leaves: Leaves) -> Leaves:
    return tuple(x.detach().clone() for x in leaves)


def _difference(a: Leaves, b: Leaves) -> float:
    """The largest ‖x − y‖ / ‖x‖ over leaves."""
    return max(
        float((x - y).norm() / x.norm().clamp_min(1e-300)) for x, y in zip(a, b, strict=True)
    )
