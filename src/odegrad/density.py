"""Where in time a parameter learns: the density of its gradient.

The gradient is an integral (Hu 2024), p̄ = ∫ g(t) dt with g(t) = f_p(t, y(t))ᵀ a(t). Its discrete form is
a sum over steps, p̄ = Σ_n p̄_n, and

    g_n = p̄_n / h_n

is the mean of the density over step n, to the order of the scheme: nothing is divided by b_i. The g_n
sum to the gradient, Σ_n h_n g_n = p̄, exactly.

Reference: J. Hu, *A note on the adjoint method for neural ODE network*, arXiv 2402.15141 (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from odegrad.assemble import Problem, assemble
from odegrad.checkpoints import StoreAll
from odegrad.errors import GradientUnavailableError, InvalidTypeError, InvalidValueError
from odegrad.gradients import Discrete, Gradient, Mismatched
from odegrad.schemes import ExplicitRungeKutta, Tsit5
from odegrad.schemes.base import Scheme
from odegrad.solve import solved
from odegrad.state import Leaves, OptionalLeaves
from odegrad.stepsize import PID, StepSize

__all__ = ["GradientDensity", "gradient_density"]


@dataclass(frozen=True)
class GradientDensity:
    """The density of a gradient over time, a mean for each of N intervals.

    Attributes:
        edges: The ends of the intervals, float64, shape [N + 1], in the direction of the solve.
        values: By name, one density for each tensor that f reads and that requires grad, of shape
            [N, *tensor.shape]; of shape [N] if norms were asked for.
        are_norms: Whether they were.
    """

    edges: Tensor
    values: Mapping[str, Tensor]
    are_norms: bool = False

    def gradient(self, name: str) -> Tensor:
        """Σ_n (t_{n+1} − t_n) g_n: the gradient of that tensor.

        Raises:
            InvalidValueError: If only norms were kept.
        """
        if self.are_norms:
            raise InvalidValueError("norms do not sum to the gradient; leave out norms=True")
        values = self.values[name]
        widths = self.edges.diff().to(values.device, values.dtype)
        return torch.tensordot(widths, values, dims=1)


def gradient_density(
    f: Callable[..., Any],
    y0: Any,
    ts: Tensor | Sequence[float],
    loss: Callable[..., Tensor],
    args: tuple[Any, ...] = (),
    *,
    scheme: Scheme = Tsit5(),
    stepsize: StepSize = PID(),
    running: Callable[..., Any] | None = None,
    breakpoints: Sequence[float] | Tensor = (),
    bins: int | Sequence[float] | None = None,
    norms: bool = False,
) -> GradientDensity:
    """Solves, takes the gradient of a loss, and says which times it came from.

    Memory is one number per parameter and step, or bin; with `norms`, and without bins, one per tensor
    and step. What the loss reads besides the solution has no density. Nothing is added to ``.grad``.

    Arguments:
        f: As for `odegrad.solve`, like all that is not named here.
        y0: As for `odegrad.solve`.
        ts: As for `odegrad.solve`.
        loss: Maps ys to a 0-dim tensor; with a running cost, ys and `Solution.running`.
        args: As for `odegrad.solve`.
        scheme: As for `odegrad.solve`.
        stepsize: As for `odegrad.solve`.
        running: As for `odegrad.solve`.
        breakpoints: As for `odegrad.solve`.
        bins: None is the steps themselves; an int is that many equal intervals of time; else their ends,
            in the direction of the solve, from ts[0] to ts[-1]. What a step contributes is shared among
            the bins that it lies in by its length in each.
        norms: Whether to give Euclidean norms of the densities.

    Raises:
        GradientUnavailableError: If f reads nothing that requires grad, or ys do not enter the loss.
        InvalidValueError: If the bins do not run from ts[0] to ts[-1], or are too few.
        OdegradError: If something is wrong with another argument, as `odegrad.solve` says.

    Example:
        >>> import torch, odegrad
        >>> rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        >>> y0 = torch.ones(1, dtype=torch.float64)
        >>> found = odegrad.gradient_density(
        ...     lambda t, y: -rate * y, y0, [0.0, 1.0], lambda ys: ys[-1].sum(), bins=4
        ... )
        >>> (density,) = found.values.values()
        >>> density, found.gradient(next(iter(found.values)))  # −exp(−1), whenever
        (tensor([-0.3679, -0.3679, -0.3679, -0.3679], dtype=torch.float64),
         tensor(-0.3679, dtype=torch.float64))
    """
    if not callable(loss):
        raise InvalidTypeError(f"loss must be callable as loss(ys), received {type(loss).__name__}")
    # With the carry of a Runge–Kutta scheme, a step would have the share of its neighbour's first slope.
    gradient: Gradient = Discrete(StoreAll())
    if isinstance(scheme, ExplicitRungeKutta):
        gradient = Mismatched(scheme)
    problem = assemble(
        f,
        y0,
        ts,
        args,
        scheme=scheme,
        stepsize=stepsize,
        gradient=gradient,
        compile=False,
        running=running,
        breakpoints=breakpoints,
    )
    wanted = [i for i, x in enumerate(problem.p) if x.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        raise GradientUnavailableError(
            "f reads no tensor that requires grad (or gradients are off), so there is no density; "
            "mark the parameters with requires_grad_()"
        )
    record = _Record(problem, wanted, bins, norms)
    problem.run.witness = record
    solution = solved(problem)
    value = loss(solution.ys) if running is None else loss(solution.ys, solution.running)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GradientUnavailableError(
            "loss must return one number, as a tensor that depends on ys; it returned "
            f"{value if not isinstance(value, Tensor) else f'a tensor of shape {list(value.shape)}'}"  # pyright: ignore[reportUnnecessaryIsInstance]
        )
    inputs = [problem.p[i] for i in wanted]
    torch.autograd.grad(value.reshape(()), inputs, allow_unused=True)
    return record.result()


class _Record:
    """Takes note of what each step contributes."""

    def __init__(
        self,
        problem: Problem,
        wanted: list[int],
        bins: int | Sequence[float] | None,
        norms: bool,
    ) -> None:
        self._run, self._p, self._wanted, self._norms = problem.run, problem.p, wanted, norms
        times = problem.run.times
        self._bins = None if bins is None else _bin_edges(bins, times[0], times[-1])
        self._steps: list[float] = []
        self._sums: list[Tensor] = []
        self._pending: tuple[int, list[Tensor]] | None = None

    def step(self, n: int, grad_y: Leaves, grad_p: OptionalLeaves) -> None:
        """Takes note of step n."""
        del grad_y
        found = [
            x if (x := grad_p[i]) is not None else torch.zeros_like(self._p[i])
            for i in self._wanted
        ]
        if self._pending is not None:
            k, before = self._pending
            if k == n:
                found = [a + b for a, b in zip(before, found, strict=True)]
            else:
                self._put(k, before)
        self._pending = (n, found)

    def _put(self, n: int, grads: list[Tensor]) -> None:
        """Adds what step n contributes."""
        by_norm = self._norms and self._bins is None  # the others are summed before
        if not self._steps:
            self._steps = self._run.accepted_grid.times(
                [self._run.times[j] for j in self._run.landed]
            )
            rows = len(self._bins or self._steps) - 1
            self._sums = [
                g.new_zeros(rows).abs() if by_norm else g.new_zeros((rows, *g.shape)) for g in grads
            ]
        shares = [(n, 1.0)]
        if self._bins is not None:
            shares = _shares(self._bins, self._steps[n], self._steps[n + 1])
        for total, g in zip(self._sums, grads, strict=True):
            for k, share in shares:
                total[k] += g.norm() if by_norm else share * g

    def result(self) -> GradientDensity:
        """The densities.

        Raises:
            GradientUnavailableError: If no step was transposed.
        """
        if self._pending is None:
            raise GradientUnavailableError(
                "there is no density: ts has a single time, or the loss does not depend on ys"
            )
        self._put(*self._pending)
        edges = torch.tensor(self._bins or self._steps, dtype=torch.float64, device="cpu")
        names = self._run.field.names()
        values: dict[str, Tensor] = {}
        for total, i in zip(self._sums, self._wanted, strict=True):
            widths = edges.diff().to(total.device)
            if self._norms:
                widths = widths.abs()
                total = total.reshape(len(widths), -1).abs().square().sum(dim=1).sqrt()
            widths = widths.to(total.abs().dtype).reshape(-1, *(1,) * (total.ndim - 1))
            name = names[i] if names[i] not in values else f"{names[i]} ({i})"
            values[name] = torch.where(widths == 0, torch.zeros_like(total), total / widths)
        return GradientDensity(edges, values, self._norms)


def _bin_edges(bins: int | Sequence[float], start: float, stop: float) -> list[float]:
    """The ends of the bins, from `start` to `stop`."""
    if isinstance(bins, bool) or (isinstance(bins, int) and bins < 1):
        raise InvalidValueError(f"bins must be at least 1, or the ends of bins; received {bins!r}")
    if isinstance(bins, int):
        return [start + (stop - start) * k / bins for k in range(bins)] + [stop]
    edges, sign = [float(x) for x in bins], -1.0 if stop < start else 1.0
    rises = all(sign * a < sign * b for a, b in pairwise(edges))
    if len(edges) < 2 or not rises or not (edges[0], edges[-1]) == (start, stop):
        raise InvalidValueError(
            f"the ends of the bins must run from ts[0] = {start} to ts[-1] = {stop} in one direction; "
            f"received {len(edges)} of them: {edges[:3]} … {edges[-1:]}"
        )
    return edges


def _shares(edges: list[float], start: float, stop: float) -> list[tuple[int, float]]:
    """The bins that an interval lies in, with the share of its length in each."""
    low, high = min(start, stop), max(start, stop)
    lengths: dict[int, float] = {}
    for k, (a, b) in enumerate(pairwise(edges)):
        common = min(high, max(a, b)) - max(low, min(a, b))
        if common > 0.0 or (low == high and common == 0.0):
            lengths[k] = common or 1.0
    total = sum(lengths.values())
    return [(k, length / total) for k, length in lengths.items()]
