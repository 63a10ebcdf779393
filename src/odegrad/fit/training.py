"""Training: minimise the mean squared error L = mean_{i,d} (z_d(t_i) − z_{i,d})² of transformed values.

mlp: a warm start fits the field alone to difference quotients (no solve, hence cheap); then AdamW with a
cosine decay and clipped gradients runs on a horizon that grows from a third of the series to all of it,
because a long trajectory of an untrained field has a loss full of local minima.
lotka-volterra: L-BFGS with a strong Wolfe line search from a least-squares guess.

References:
    J. M. Varah, *A spline least squares method for numerical parameter estimation in differential
        equations*, SIAM J. Sci. Stat. Comput. 3 (1982): the warm start.
    I. Loshchilov, F. Hutter, *Decoupled weight decay regularization*, ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from odegrad.errors import SolveError
from odegrad.fit.fitted import Fitted
from odegrad.fit.models import slopes

__all__ = ["Epoch", "Outcome", "train"]

WARM_UP = 300
HORIZONS = (0.3, 0.55, 0.8)  # of the rows, each for a sixth of the epochs; then all rows
WEIGHT_DECAY = 0.1
CLIP = 1.0
PATIENCE = 3  # L-BFGS iterations without progress before it stops


@dataclass(frozen=True)
class Epoch:
    """What is reported after each optimiser step.

    Arguments:
        n: The number of the epoch, from 1.
        rows: How many rows the loss is taken over.
        loss: The mean squared error of the transformed values before the step.
    """

    n: int
    rows: int
    loss: float


@dataclass
class Outcome:
    """How training went; the model that was trained holds the best parameters afterwards.

    Attributes:
        epochs: One entry per optimiser step.
        best: The epoch with the lowest loss over the most rows, or None if there was no epoch.
        interrupted: Whether Ctrl-C ended it.
        converged: Whether it ended because nothing was left to gain.
        note: Why it ended early otherwise, or None.
    """

    epochs: list[Epoch] = field(default_factory=list[Epoch])
    best: Epoch | None = None
    interrupted: bool = False
    converged: bool = False
    note: str | None = None


class _Best:
    """Remembers the parameters of the lowest loss; more rows beat fewer."""

    def __init__(self, fitted: Fitted, outcome: Outcome, report: Callable[[Epoch], None]) -> None:
        self._model, self._outcome, self._report = fitted.model, outcome, report
        self._kept = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self._model.state_dict().items()}

    def see(self, rows: int, loss: float) -> None:
        """Notes one epoch whose loss belongs to the present parameters."""
        outcome = self._outcome
        epoch = Epoch(len(outcome.epochs) + 1, rows, loss)
        best = outcome.best
        if math.isfinite(loss) and (best is None or (-rows, loss) < (-best.rows, best.loss)):
            self._kept = self._copy()
            outcome.best = epoch
        outcome.epochs.append(epoch)
        self._report(epoch)

    def restore(self) -> None:
        """Puts the best parameters back."""
        self._model.load_state_dict(self._kept)


def train(
    fitted: Fitted, times: Tensor, values: Tensor, report: Callable[[Epoch], None]
) -> Outcome:
    """Trains `fitted.model` in place; Ctrl-C ends it early with the best parameters.

    Arguments:
        fitted: The model to train, and how.
        times: The training times, shape [T], in the units of the data.
        values: The training values, shape [T, D], in the units of the data.
        report: Called after each epoch.

    Raises:
        SolveError: If the very first trajectory cannot be computed.
    """
    outcome = Outcome()
    best = _Best(fitted, outcome, report)
    zs = fitted.transform(values).to(fitted.model.z0)
    run = _lbfgs if fitted.config.model == "lotka-volterra" else _adam
    try:
        outcome.converged = run(fitted, times, zs, best)
    except KeyboardInterrupt:
        outcome.interrupted = True
    except SolveError as error:
        if outcome.best is None:
            raise
        outcome.note = f"a solve failed ({error}); try a smaller --lr"
    best.restore()
    return outcome


def _loss(fitted: Fitted, times: Tensor, zs: Tensor) -> Tensor:
    """L over the given rows."""
    return (fitted.solve(times).ys - zs).square().mean()


def _adam(fitted: Fitted, times: Tensor, zs: Tensor, best: _Best) -> bool:
    config, parameters = fitted.config, list(fitted.model.parameters())
    epochs, lr = config.epochs or 1, config.lr or 0.01
    _warm_up(fitted, fitted.elapsed(times), zs, lr)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-3 * lr)
    for rows in _horizons(len(times), epochs):
        optimizer.zero_grad()
        loss = _loss(fitted, times[:rows], zs[:rows])
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        best.see(rows, loss.item())
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        decay.step()
    return False


def _horizons(rows: int, epochs: int) -> Iterable[int]:
    """For each epoch, the number of rows from the start that it sees."""
    stage = max(1, epochs // (2 * len(HORIZONS)))
    for n in range(epochs):
        i = n // stage
        share = HORIZONS[i] if i < len(HORIZONS) and n < epochs - 1 else 1.0
        yield min(rows, max(3, math.ceil(share * rows)))


def _warm_up(fitted: Fitted, ts: Tensor, zs: Tensor, lr: float) -> None:
    """Fits the field alone: f at the middle of each interval to the difference quotient over it."""
    middle, slope = slopes(ts, zs)
    # Slopes in units of 1 / τ are of order one, whatever the unit of time.
    scale = slope.square().mean().sqrt().clamp_min(torch.finfo(zs.dtype).tiny)
    optimizer = torch.optim.Adam(fitted.model.parameters(), lr=lr)
    for _ in range(WARM_UP):
        optimizer.zero_grad()
        error = (fitted.model(ts[0], middle) - slope) / scale
        error.square().mean().backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()


def _lbfgs(fitted: Fitted, times: Tensor, zs: Tensor, best: _Best) -> bool:
    optimizer = torch.optim.LBFGS(
        fitted.model.parameters(),
        max_iter=1,
        max_eval=25,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    first = float(_loss(fitted, times, zs).detach())

    def closure() -> Tensor:
        optimizer.zero_grad()
        try:
            loss = _loss(fitted, times, zs)
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        except SolveError:  # the line search went too far: a wall that it turns back from
            return zs.new_tensor(1e6 * (1.0 + first))
        return loss.detach()

    previous, idle = math.inf, 0
    for _ in range(fitted.config.epochs or 1):
        optimizer.step(closure)
        with torch.no_grad():
            loss = float(_loss(fitted, times, zs))
        best.see(len(times), loss)
        idle = idle + 1 if previous - loss <= 1e-12 * loss else 0
        if idle == PATIENCE:
            return True
        previous = loss
    return False
