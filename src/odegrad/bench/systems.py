"""Who computes the gradient: the protocol that everything measured follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from odegrad.bench.workloads import Problem, State, Workload
from odegrad.schemes.base import Scheme

__all__ = ["Counts", "Prepared", "System", "differentiate", "last"]


@dataclass(frozen=True)
class Counts:
    """What the forward sweep of one gradient did, and what it kept.

    Arguments:
        accepted: Accepted steps; a mean where the samples of a batch take steps of their own.
        rejected: Rejected steps, likewise.
        f_evaluations: Evaluations of f; None if unknown.
        kept_bytes: What is held between the sweeps, beside y0 and the parameters; None if unknown.
    """

    accepted: float
    rejected: float
    f_evaluations: int | None = None
    kept_bytes: int | None = None


def _same(gradient: Any) -> tuple[Tensor, ...]:
    return gradient


@dataclass(frozen=True)
class Prepared:
    """One system at work on one workload.

    Arguments:
        gradient: Solves and differentiates with respect to `Problem.inputs`; has finished when it
            returns.
        count: Says what such a solve does; not for timing.
        as_tensors: Turns what `gradient` returned into tensors like `Problem.inputs`.
    """

    gradient: Callable[[], Any]
    count: Callable[[], Counts]
    as_tensors: Callable[[Any], tuple[Tensor, ...]] = _same


class System(Protocol):
    """Something that computes gradients of solves."""

    @property
    def name(self) -> str:
        """How tables and the command line call it."""
        ...

    @property
    def exact(self) -> bool:
        """Whether its gradient is the derivative of the numbers that it computes."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether its first gradient compiles something that depends on the workload."""
        ...

    def scheme(self, workload: Workload) -> Scheme:
        """The scheme that it runs for a workload, among odegrad's."""
        ...

    def obstacle(self, workload: Workload) -> str | None:
        """Why it cannot do this workload here, or None if it can."""
        ...

    def prepare(self, workload: Workload) -> Prepared:
        """Sets up everything that a training loop would set up once."""
        ...


def last(ys: Any) -> State:
    """The final state of states with a leading axis for the times."""
    return tuple(y[-1] for y in ys) if isinstance(ys, tuple) else ys[-1]


def differentiate(y: State, problem: Problem) -> tuple[Tensor, ...]:
    """The cotangents of `Problem.inputs` for the loss, the sum of squares of a final state y."""
    leaves = y if isinstance(y, tuple) else (y,)
    loss = torch.stack([x.square().sum() for x in leaves]).sum()
    return torch.autograd.grad(loss, problem.inputs)
