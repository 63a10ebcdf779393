"""The numbers of a fit: errors beside a persistence baseline, parameters, work.

With residuals over the rows of a part (the training rows, or the held-out rows):

    RMS log error = sqrt(mean (log x̂ − log x)²),     RMSE = sqrt(mean (x̂ − x)²).

Persistence forecasts the last training value for all later times. It is the least a forecast has to beat.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.fit.check import GradientCheck
from odegrad.fit.data import Series
from odegrad.fit.fitted import Fitted
from odegrad.fit.models import LotkaVolterra
from odegrad.fit.training import Outcome

__all__ = ["ErrorRow", "Quantity", "error_rows", "forecast_verdict", "metrics", "quantities"]


@dataclass(frozen=True)
class ErrorRow:
    """The errors of one state, or of all states, in one part of the series; None is undefined.

    Arguments:
        part: ``fit`` or ``forecast``.
        state: The name of the state, or None for all together.
        rows: How many rows the part has.
        rms_log: RMS log error of the model.
        rmse: RMSE of the model, in the units of the data.
        persistence_rms_log: The same of persistence (forecast only).
        persistence_rmse: The same of persistence (forecast only).
    """

    part: str
    state: str | None
    rows: int
    rms_log: float | None
    rmse: float
    persistence_rms_log: float | None = None
    persistence_rmse: float | None = None


@dataclass(frozen=True)
class Quantity:
    """A fitted number with its unit.

    Arguments:
        name: Such as ``alpha``.
        symbol: Such as ``α``.
        value: The number.
        unit: Such as ``1/year``.
        meaning: In words.
    """

    name: str
    symbol: str
    value: float
    unit: str
    meaning: str


def error_rows(fitted: Fitted, series: Series, n_train: int) -> list[ErrorRow]:
    """The errors of each part: every state for itself, then all together."""
    predicted, values = fitted.predict(series.times), series.values
    held = values[n_train - 1].expand_as(values)
    rows: list[ErrorRow] = []
    for part, span in (("fit", slice(0, n_train)), ("forecast", slice(n_train, None))):
        truth, guess, still = values[span], predicted[span], held[span]
        if len(truth) == 0:
            continue
        columns: list[tuple[str | None, slice]] = [(None, slice(None))]
        if len(series.states) > 1:
            columns = [(s, slice(i, i + 1)) for i, s in enumerate(series.states)] + columns
        for state, column in columns:
            x, y, z = truth[:, column], guess[:, column], still[:, column]
            row = ErrorRow(part, state, len(truth), _rms_log(y, x), _rmse(y, x))
            if part == "forecast":
                row = ErrorRow(*_fields(row), _rms_log(z, x), _rmse(z, x))
            rows.append(row)
    return rows


def _fields(row: ErrorRow) -> tuple[str, str | None, int, float | None, float]:
    return row.part, row.state, row.rows, row.rms_log, row.rmse


def _rmse(guess: Tensor, truth: Tensor) -> float:
    return float((guess - truth).square().mean().sqrt())


def _rms_log(guess: Tensor, truth: Tensor) -> float | None:
    """None where a logarithm does not exist."""
    if not bool((guess > 0).all() and (truth > 0).all()):
        return None
    return _rmse(guess.log(), truth.log())


def forecast_verdict(rows: list[ErrorRow]) -> str | None:
    """One honest line on the forecast, or None without held-out rows."""
    last = rows[-1]
    if last.part != "forecast":
        return None
    kind, model, still = _comparison(last)
    numbers = f"{kind} on the {last.rows} held-out rows: model {model:.3g}, persistence {still:.3g}"
    if still <= model:
        return f"Persistence beats the model on the hold-out ({numbers})."
    lost = [
        row.state
        for row in rows
        if row.part == "forecast" and row.state is not None and _loses(_comparison(row))
    ]
    but = f"; for {', '.join(lost)} alone, persistence wins" if lost else ""
    return f"The model beats persistence on the hold-out ({numbers}){but}."


def _comparison(row: ErrorRow) -> tuple[str, float, float]:
    """The measure that both forecasts have, and its value for the model and for persistence."""
    if row.rms_log is not None and row.persistence_rms_log is not None:
        return "RMS log error", row.rms_log, row.persistence_rms_log
    assert row.persistence_rmse is not None
    return "RMSE", row.rmse, row.persistence_rmse


def _loses(comparison: tuple[str, float, float]) -> bool:
    _, model, still = comparison
    return still <= model


def quantities(fitted: Fitted) -> list[Quantity]:
    """The rates (Lotka–Volterra only) and the initial values, with units."""
    found: list[Quantity] = []
    if isinstance(fitted.model, LotkaVolterra):
        prey, predator = fitted.states
        alpha, beta, gamma, delta = fitted.model.rates
        per = f"1/{fitted.time}"
        found = [
            Quantity("alpha", "α", alpha, per, f"growth of {prey}"),
            Quantity("beta", "β", beta, f"{per} per {predator}", f"loss of {prey} to {predator}"),
            Quantity("gamma", "γ", gamma, per, f"decline of {predator}"),
            Quantity("delta", "δ", delta, f"{per} per {prey}", f"gain of {predator} from {prey}"),
        ]
    start = fitted.transform.invert(fitted.model.z0.detach().to("cpu", torch.float64))
    for name, value in zip(fitted.states, start.tolist(), strict=True):
        meaning = f"initial value at {fitted.time} {fitted.t0:.10g}"
        found.append(Quantity(f"{name}_0", f"{name}₀", value, f"unit of {name}", meaning))
    return found


def metrics(
    fitted: Fitted,
    series: Series,
    n_train: int,
    outcome: Outcome,
    rows: list[ErrorRow],
    check: GradientCheck | None,
    seconds: float,
) -> dict[str, Any]:
    """Everything that was measured, as plain data for JSON.

    `seconds` and the times and bytes under ``gradient_check`` depend on the machine; all else is the
    same for the same seed on the same machine.
    """
    plain: dict[str, Any] = {
        "data": {
            "file": series.path.name,
            "time": series.time,
            "states": list(series.states),
            "rows": len(series.times),
            "training_rows": n_train,
        },
        "config": fitted.config.as_dict(),
        "training": {
            "epochs": len(outcome.epochs),
            "best": None if outcome.best is None else asdict(outcome.best),
            "interrupted": outcome.interrupted,
            "converged": outcome.converged,
            "note": outcome.note,
            "seconds": seconds,
            "loss": [epoch.loss for epoch in outcome.epochs],
            "loss_rows": [epoch.rows for epoch in outcome.epochs],
        },
        "errors": [asdict(row) for row in rows],
        "forecast": forecast_verdict(rows),
        "quantities": [asdict(q) for q in quantities(fitted)],
        "gradient_check": None if check is None else check.as_dict(),
    }
    cleaned: dict[str, Any] = _json(plain)
    return cleaned


def _json(value: Any) -> Any:
    """`value` with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
