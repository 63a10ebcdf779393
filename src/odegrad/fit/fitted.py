"""A fitted model: what `model.pt` holds, and what predicts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odegrad.errors import InvalidValueError
from odegrad.fit.config import Config
from odegrad.fit.data import Series
from odegrad.fit.models import MLP, LotkaVolterra, Model, Transform
from odegrad.gradients import Gradient
from odegrad.solution import Solution
from odegrad.solve import solve
from odegrad.stepsize import StepSize

__all__ = ["Fitted", "load"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model in the units of the data it was fitted to.

    Arguments:
        model: The vector field and the initial state, in transformed values.
        transform: From values to transformed values.
        config: How it was fitted.
        time: The name of the time column.
        states: The names of the states, D of them.
        t0: The time of the initial state, in the units of the data.
    """

    model: Model
    transform: Transform
    config: Config
    time: str
    states: tuple[str, ...]
    t0: float

    @classmethod
    def start(cls, series: Series, n_train: int, config: Config) -> Fitted:
        """The model before training: a first guess from the first `n_train` rows.

        Random weights come from ``config.seed``; the global random state is left alone.
        """
        values, t0 = series.values[:n_train], float(series.times[0])
        ts = series.times[:n_train] - t0
        transform = Transform.of(config.transform or "none", values)
        zs = transform(values)
        z0 = zs[0].to(config.torch_dtype)
        if config.model == "lotka-volterra":
            model = LotkaVolterra(z0, LotkaVolterra.guess(ts, values), transform.log)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                model = MLP(z0, config.hidden or (), MLP.time_scale(ts, zs))
        model = model.to(config.device)
        return cls(model, transform, config, series.time, series.states, t0)

    def elapsed(self, times: Tensor) -> Tensor:
        """Times since t0 in the dtype and on the device of the model; subtracted in float64."""
        return (times.to(torch.float64) - self.t0).to(self.model.z0)

    def solve(
        self,
        times: Tensor,
        *,
        gradient: Gradient | None = None,
        stepsize: StepSize | None = None,
    ) -> Solution:
        """The trajectory in transformed values from ``times[0]`` = t0, differentiably.

        Arguments:
            times: Times of the data, ascending, shape [T].
            gradient: None is the one of the configuration.
            stepsize: None is the one of the configuration.

        Returns:
            A `Solution` with ys of shape [T, D].
        """
        return solve(
            self.model,
            self.model.z0,
            self.elapsed(times),
            scheme=self.config.make_scheme(),
            stepsize=stepsize or self.config.make_stepsize(),
            gradient=gradient or self.config.make_gradient(),
        )

    def predict(self, times: Tensor | Sequence[float]) -> Tensor:
        """The values at any times from t0 on, in any order.

        Arguments:
            times: Shape [T], in the units of the time column.

        Returns:
            Shape [T, D], float64, on the CPU, in the units of the data; the states are in the
            order of `states`.

        Raises:
            InvalidValueError: If a time lies before t0.
        """
        wanted = torch.as_tensor(times, dtype=torch.float64).reshape(-1)
        if len(wanted) == 0:
            return wanted.new_zeros((0, len(self.states)))
        if not bool((wanted >= self.t0).all()):
            raise InvalidValueError(
                f"the model starts at {self.time} = {self.t0:.15g}, received "
                f"{self.time} = {float(wanted.min()):.15g}; ask for that time or later ones"
            )
        grid, where = torch.unique(
            torch.cat((wanted.new_tensor([self.t0]), wanted)), return_inverse=True
        )
        with torch.no_grad():
            ys = self.solve(grid).ys.to("cpu", torch.float64)
        return self.transform.invert(ys)[where[1:]]

    def save(self, path: Path) -> None:
        """Writes everything that `load` needs; the file appears whole or not at all."""
        part = path.with_name(path.name + ".part")
        tau = self.model.tau if isinstance(self.model, MLP) else None
        torch.save(
            {
                "format": FORMAT,
                "config": self.config.as_dict(),
                "transform": asdict(self.transform),
                "tau": tau,
                "time": self.time,
                "states": list(self.states),
                "t0": self.t0,
                "parameters": {k: v.cpu() for k, v in self.model.state_dict().items()},
            },
            part,
        )
        os.replace(part, path)


def load(path: str | os.PathLike[str], device: str = "cpu") -> Fitted:
    """The model that `odegrad fit` wrote.

    ::

        import odegrad.fit

        model = odegrad.fit.load("odegrad-fit-DATA/model.pt")
        values = model.predict([1921.0, 1922.0])  # shape [2, number of states], units of the data

    Arguments:
        path: The file ``model.pt``.
        device: Where the model computes from now on.

    Raises:
        InvalidValueError: If the file was written by a later version of odegrad or by another program.
    """
    saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not hasattr(saved, "get") or saved.get("format") != FORMAT:
        raise InvalidValueError(
            f"{os.fspath(path)} is not a model of this version of odegrad fit; fit it again"
        )
    choices: dict[str, Any] = {**saved["config"], "device": device}
    config = Config(**choices)
    kept = saved["parameters"]
    log, mean, std = (saved["transform"][k] for k in ("log", "mean", "std"))
    if config.model == "lotka-volterra":
        model: Model = LotkaVolterra(kept["z0"], kept["log_rates"].exp(), log)
    else:
        model = MLP(kept["z0"], config.hidden or (), saved["tau"])
    model.load_state_dict(kept)
    transform = Transform(log, tuple(mean), tuple(std))
    states = tuple(saved["states"])
    return Fitted(model.to(device), transform, config, saved["time"], states, saved["t0"])
