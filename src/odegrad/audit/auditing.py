"""The audit: is this gradient, on this model, the gradient of the computed loss?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odegrad.audit.budget import Budget
from odegrad.audit.check import Check, ModeRow, short
from odegrad.audit.convergence import convergence
from odegrad.audit.costates import costates
from odegrad.audit.coverage import coverage
from odegrad.audit.duality import duality
from odegrad.audit.modes import compare, spoken
from odegrad.audit.names import Names
from odegrad.audit.replays import replays
from odegrad.audit.report import Audit
from odegrad.audit.steps import step_term
from odegrad.audit.subject import Subject
from odegrad.audit.taylor import taylor
from odegrad.audit.world import World
from odegrad.checkpoints import Keep, StoreAll
from odegrad.gradients import Discrete, Gradient, Tape
from odegrad.schemes import Scheme, Tsit5
from odegrad.stepsize import PID, StepSize

__all__ = ["audit"]

BUDGET = 100_000
"""Evaluations of f, transposes included."""


def audit(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float],
    loss: Callable[..., Any],
    args: tuple[Any, ...] = (),
    *,
    scheme: Scheme = Tsit5(),
    stepsize: StepSize = PID(),
    gradient: Gradient = Discrete(),
    running: Callable[..., Any] | None = None,
    seed: int = 0,
    progress: bool = False,
    budget: int = BUDGET,
) -> Audit:
    """Checks whether the gradient of this solve is the gradient of the loss that it computes.

    Steps end at all of `ts`, as with ``land=True``, since some gradient modes start anew there. Nothing
    of the user's is changed: not parameters nor their ``grad``, random generators, buffers, training
    modes. The checks, each on the accepted steps:

    * duality: the gradient is the transpose of the steps' tangent, without any step parameter;
    * taylor: the loss follows the gradient, with a remainder that falls quadratically;
    * replay: f gives the same numbers again, and if not, which module does not;
    * coverage: which tensors get no gradient, though the loss depends on them;
    * step sizes: how much is neglected by holding adaptive steps still;
    * costate: its growth backwards, and whether solving backwards comes back to y0;
    * modes, convergence: all gradient modes side by side, and against the step size.

    Arguments:
        f: As for `odegrad.solve`, like those not listed here.
        y0: The initial state.
        ts: The times.
        loss: Maps ys (a pytree with leaves of shape [T, ...]) to a 0-dim tensor; with a running cost it
            is called as loss(ys, running) with `Solution.running`, shape [T, ...].
        args: Further arguments of f.
        scheme: How to step.
        stepsize: Step sizes.
        gradient: The gradient mode under audit.
        running: A running cost.
        seed: Of the random directions.
        progress: Whether to say on standard error what is being checked.
        budget: Evaluations of f, transposes included, that all comparisons together may take; what is
            skipped is said. Duality, Taylor remainders, replay and coverage are checked in any case,
            which takes about 25 solves.

    Returns:
        An `Audit`: ``report.passed``, ``report.verdict``, ``print(report)``, ``report.html(path)``.

    Raises:
        OdegradError: If the solve, or its gradient, fails, as `odegrad.solve` does.

    Example:
        >>> import torch, odegrad
        >>> rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> y0 = torch.ones(1, dtype=torch.float64)
        >>> report = odegrad.audit(lambda t, y: -rate * y, y0, [0.0, 1.0], lambda ys: ys[-1].sum())
        >>> report.passed, report.verdict[:39]
        (True, 'exact: the gradient of the computed los')
    """
    names = Names([f, loss, *([] if running is None else [running])], args)
    tensors = [x for x in pytree.tree_leaves(y0) if isinstance(x, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    world = World(names.modules.values(), device)
    say = _Progress(progress)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            say("the solve and its gradient")
            subject = Subject(
                f, y0, ts, loss, args, scheme=scheme, stepsize=stepsize, gradient=gradient,
                running=running, names=names, world=world,
            )  # fmt: skip
            return _audited(subject, world, Budget(subject, budget), seed, say)
    finally:
        world.restore()


class _Progress:
    """Says what is being done."""

    def __init__(self, shown: bool) -> None:
        self._shown, self._start = shown, time.perf_counter()

    def __call__(self, what: str) -> None:
        if self._shown:
            seconds = time.perf_counter() - self._start
            print(f"audit {seconds:5.1f} s: {what}", file=sys.stderr, flush=True)


def _audited(
    subject: Subject, world: World, budget: Budget, seed: int, say: Callable[[str], object]
) -> Audit:
    generator = torch.Generator().manual_seed(seed)

    def asked(name: str, what: Callable[[], Check], cost: float = 0.0) -> Check:
        """A check, or why it could not be made."""
        if cost and not budget.allows(cost):
            return Check(name, "unknown", budget.skipped(cost))
        say(name)
        try:
            return what()
        except Exception as error:
            return Check(name, "unknown", f"could not be checked: {short(error)}")

    replay = asked("replay", lambda: replays(subject, world))
    covered = asked("coverage", lambda: coverage(subject, generator))
    left_out = covered.numbers.get("hidden", [])
    dual = asked("duality", lambda: duality(subject, generator))
    series = asked("taylor", lambda: taylor(subject, generator, left_out))
    if replay.status == "flagged" and not _evaluates_again(subject.gradient):
        why = "f does not give the same numbers again, which only this gradient mode does not need"
        dual, series = (Check(name, "unknown", why) for name in ("duality", "taylor"))
    checks = [dual, series, replay, covered]
    cost = subject.cost
    budget.begin()
    retraced = asked("costate", lambda: costates(subject), 2 * cost)
    rows: tuple[ModeRow, ...] = ()

    def compared() -> Check:
        nonlocal rows
        rows, check = compare(subject, budget)
        return check

    side_by_side = asked("modes", compared, 4 * cost)
    held = asked("step sizes", lambda: step_term(subject, generator), 5 * cost * subject.adaptive)
    checks += [held, retraced, side_by_side]
    if replay.status == "flagged":
        why = "f is not the same function twice"
        checks.append(Check("convergence", "unknown", why))
    else:
        checks.append(asked("convergence", lambda: convergence(subject, budget), 10 * cost))
    return Audit(_facts(subject), tuple(checks), rows, tuple(subject.warned))


def _evaluates_again(gradient: Gradient) -> bool:
    """Whether the backward sweep evaluates f again."""
    graphs = isinstance(gradient, Discrete) and gradient.checkpoints == StoreAll(Keep.GRAPH)
    return not (graphs or isinstance(gradient, Tape))


def _facts(subject: Subject) -> dict[str, Any]:
    stats = subject.first.run.stats
    return {
        "scheme": spoken(subject.base.scheme),
        "stepsize": spoken(subject.stepsize),
        "gradient": spoken(subject.gradient),
        "steps": subject.n_steps,
        "rejected": stats.rejected,
        "times": len(subject.times),
        "loss": subject.loss,
        "numbers": subject.numbers,
        "rounding": subject.rounding,
        "evaluations": subject.evaluations,
    }
