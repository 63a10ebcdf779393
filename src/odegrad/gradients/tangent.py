"""The gradient by forward sensitivities: one tangent of the solve per number to differentiate for.

For every input number x_k the tangent ẏ of the outputs along it is carried forward, and

    ∂L/∂x_k = ⟨ȳ, ẏ⟩.

Exact like the transposed steps, at a cost that grows with the number of inputs: for few parameters, or
to check the others, since it shares no code with a backward sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.errors import GradientUnavailableError
from odegrad.gradients.base import Gradient, landing_times
from odegrad.gradients.node import Rule, apply
from odegrad.gradients.rules import again
from odegrad.state import Leaves, OptionalLeaves, inner
from odegrad.sweeps import Run, forward
from odegrad.sweeps.tangent import tangent

__all__ = ["Tangent"]

_AT_ONCE = 32
"""How many tangents are carried at once."""

_MOST = 100_000
"""The most numbers to differentiate for."""


@dataclass(frozen=True)
class Tangent(Gradient):
    """Forward sensitivities: exact, nothing kept, about three solves per number to differentiate for.

    The solve is taken again in the backward pass, up to 32 tangents at once by `torch.vmap` if f allows
    that, else one by one. f has to be differentiable by torch's forward mode.

    Raises:
        GradientUnavailableError: When solving, if y0, parameters and ts hold more than 100 000 numbers;
            in the backward pass, under nested transforms of `torch.func`.
    """

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves inside one autograd node."""
        inputs = (*y0, *p, ts)
        count = sum(_numbers(x) for x in inputs if x.requires_grad)
        if count > _MOST:
            raise GradientUnavailableError(
                f"Tangent carries one sensitivity per number to differentiate for: {count} here. It is "
                "for few parameters; use gradient=Discrete(), whose cost does not depend on them"
            )
        return apply(_rule(run, len(y0)), inputs)


def _rule(run: Run, n_y: int) -> Rule:
    def primal(inputs: Leaves) -> tuple[Leaves, Leaves]:
        y0, p = inputs[:n_y], inputs[n_y:-1]
        outputs, _ = run.repeatable(p, lambda: forward(run, y0, p, run.times))
        run.mark()
        return outputs, ()

    def transpose(
        inputs: Leaves, kept: Leaves, grads: OptionalLeaves, needs: Sequence[bool], retain: bool
    ) -> OptionalLeaves:
        del kept, retain
        run.check_unchanged()
        given = (*inputs[:-1], landing_times(inputs[-1]).detach())
        active = [i for i, need in enumerate(needs) if need]
        sizes = [_numbers(given[i]) for i in active]
        pieces = torch.arange(sum(sizes), device="cpu").split(_AT_ONCE)
        values = [_derivatives(run, given, n_y, active, piece, grads) for piece in pieces]
        run.count()
        result: list[Tensor | None] = [None] * len(inputs)
        for i, x in zip(active, torch.cat(values).split(sizes), strict=True):
            result[i] = _shaped(x, inputs[i])
        return tuple(result)

    return Rule(primal, transpose, lambda inputs, _: again(run, n_y, inputs), "Tangent")


def _derivatives(
    run: Run,
    given: Leaves,
    n_y: int,
    active: Sequence[int],
    places: Tensor,
    grads: OptionalLeaves,
) -> Tensor:
    """The derivatives of ⟨ȳ, outputs⟩ along some of the numbers of the active inputs, float64."""
    if not len(places):
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    sizes = [_numbers(given[i]) for i in active]

    def along(row: Tensor) -> Leaves:
        parts = zip(active, row.split(sizes), strict=True)
        directions = tuple(_shaped(x, given[i]) for i, x in parts)
        _, tangents = tangent(run, given, n_y, active, directions)
        return tuple(x for x, g in zip(tangents, grads, strict=True) if g is not None)

    rows = torch.nn.functional.one_hot(places, sum(sizes)).to(torch.float64)
    present = [g for g in grads if g is not None]
    before = run.field.evaluations
    try:
        found = torch.func.vmap(along, randomness="same")(rows)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if "escaped?" in str(error):  # torch's forward mode met a tensor of another level
            raise GradientUnavailableError(
                "Tangent does not go through nested transforms of torch.func; use gradient=Discrete()"
            ) from error
        # f does something that vmap refuses.
        run.field.evaluations = before
        found = tuple(torch.stack(x) for x in zip(*map(along, rows), strict=True))
    like = (
        rows.new_zeros(len(rows), device=present[0].device)
        if present
        else rows.new_zeros(len(rows))
    )
    return inner(
        found, tuple(g.expand_as(x) for g, x in zip(present, found, strict=True)), like
    ).cpu()


def _numbers(x: Tensor) -> int:
    """How many real numbers a tensor holds."""
    return x.numel() * (2 if x.is_complex() else 1)


def _shaped(row: Tensor, like: Tensor) -> Tensor:
    """Real numbers as a tensor with the shape, dtype and device of another one."""
    if like.is_complex():
        row = torch.view_as_complex(row.reshape(*like.shape, 2))
    return row.reshape(like.shape).to(like)
