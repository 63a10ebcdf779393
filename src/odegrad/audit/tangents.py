"""How the outputs of the audited solve change along a direction.

By torch's forward mode. Where f has none (a custom ``autograd.Function`` without ``jvp``), by transposing
backpropagation: u ↦ Jᵀu is linear in u, so that J v is the gradient of ⟨Jᵀu, v⟩ with respect to u. That
shares f's own transpose with the backward sweep, but nothing of the sweep itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from odegrad.audit.subject import Subject
from odegrad.audit.vectors import filled
from odegrad.grid import Clock
from odegrad.state import Leaves, inner
from odegrad.sweeps import Run
from odegrad.sweeps.forward import replay
from odegrad.sweeps.tangent import tangent

__all__ = ["carried"]


def carried(
    subject: Subject, active: Sequence[int], directions: Leaves
) -> tuple[Leaves, Literal["forward mode", "transposing twice"]]:
    """The tangents of the outputs along the accepted grid, and how they were had.

    Arguments:
        subject: The solve.
        active: Which of its inputs change.
        directions: How they change, one tensor per active input.
    """
    inputs, n_y = subject.inputs, subject.n_y
    try:
        return tangent(_begun(subject), inputs, n_y, active, directions)[1], "forward mode"
    except (RuntimeError, NotImplementedError):
        pass
    try:
        # The transform refuses modules that change buffers; dual numbers do not.
        return _dual(subject, active, directions), "forward mode"
    except (RuntimeError, NotImplementedError):
        return _transposed_twice(subject, active, directions), "transposing twice"


def _begun(subject: Subject) -> Run:
    run = subject.run(subject.grid)
    run.grid, run.initial = subject.grid, subject.first.run.initial
    return run


def _outputs(run: Run, subject: Subject, given: list[Tensor], timed: bool) -> Leaves:
    """The accepted steps once more, from given inputs."""
    n_y = subject.n_y
    y0, p = tuple(given[:n_y]), tuple(given[n_y:-1])
    times = given[-1] if timed else run.times
    clock = Clock(subject.grid, times)
    return run.field.bound(p, lambda: replay(run, clock, y0, p, times[0]))


def _dual(subject: Subject, active: Sequence[int], directions: Leaves) -> Leaves:
    """The same by dual numbers, without a transform."""
    run = _begun(subject)
    with torch.no_grad(), forward_ad.dual_level():
        given = list(subject.inputs)
        for i, v in zip(active, directions, strict=True):
            given[i] = forward_ad.make_dual(given[i], v)
        found = _outputs(run, subject, given, timed=len(given) - 1 in active)
        tangents = [forward_ad.unpack_dual(x).tangent for x in found]
        return tuple(
            torch.zeros_like(x) if v is None else v.clone()  # pyright: ignore[reportUnnecessaryComparison]
            for x, v in zip(found, tangents, strict=True)
        )


def _transposed_twice(subject: Subject, active: Sequence[int], directions: Leaves) -> Leaves:
    """The transpose of u ↦ Jᵀu."""
    run = _begun(subject)
    given = [x.detach() for x in subject.inputs]
    for i in active:
        given[i].requires_grad_()
    found = _outputs(run, subject, given, timed=len(given) - 1 in active)
    reached = [x for x in found if x.requires_grad]
    u = [torch.zeros_like(x, requires_grad=True) for x in reached]
    pulled = torch.autograd.grad(
        reached, [given[i] for i in active], u, create_graph=True, materialize_grads=True,
        allow_unused=True,
    )  # fmt: skip
    product = inner(pulled, directions, torch.zeros((), dtype=torch.float64, device="cpu"))
    grads = filled(torch.autograd.grad(product, u, allow_unused=True), u)
    tangents = iter(grads)
    return tuple(next(tangents) if x.requires_grad else torch.zeros_like(x) for x in found)
