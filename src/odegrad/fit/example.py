"""A solve to audit: the Lotka–Volterra equations on the hare and lynx data that ship with odegrad."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odegrad.data import hare_lynx as hare_lynx_file
from odegrad.fit.data import read_series
from odegrad.fit.models import LotkaVolterra, Transform
from odegrad.stepsize import PID

__all__ = ["hare_lynx"]


def hare_lynx() -> dict[str, Any]:
    """The arguments of `odegrad.audit` for the first guess of ``odegrad fit --model lotka-volterra``.

    The state is (log hare, log lynx), in float64; the loss is the mean squared error of the logarithms at
    the 21 years of the data.

    ::

        odegrad audit odegrad.fit:hare_lynx --out report.html

    Example:
        >>> from odegrad.fit import hare_lynx
        >>> sorted(hare_lynx())
        ['f', 'loss', 'stepsize', 'ts', 'y0']
    """
    series = read_series(hare_lynx_file())
    transform = Transform.of("log", series.values)
    data, ts = transform(series.values), series.times - series.times[0]
    model = LotkaVolterra(data[0], LotkaVolterra.guess(ts, series.values), log=True)

    def loss(ys: Tensor) -> Tensor:
        return (ys - data).square().mean()

    return {
        "f": model,
        "y0": model.z0,
        "ts": ts,
        "loss": loss,
        "stepsize": PID(rtol=1e-7, atol=1e-9),
    }
