"""The choices of one fit, checked together and completed with defaults."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from odegrad.fit.errors import OptionError
from odegrad.gradients import Backsolve, Discrete, Gradient, Tape
from odegrad.schemes import SCHEMES
from odegrad.schemes.base import Scheme
from odegrad.stepsize import PID, Fixed, Steps, StepSize

__all__ = ["Config"]

MODELS = ("mlp", "lotka-volterra")
TRANSFORMS = ("log", "standardise", "log-standardise", "none")
GRADIENTS = {
    "discrete": Discrete,
    "tape": Tape,
    "backsolve": Backsolve,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Config:
    """What to fit and how; None means "choose for me", and `completed` does.

    Arguments:
        model: ``mlp`` or ``lotka-volterra``.
        transform: What is applied to the values before they are modelled.
        scheme: The name of a scheme, in any case.
        rtol: Relative tolerance of adaptive steps, in units of the transformed values.
        atol: Absolute tolerance of adaptive steps, in units of the transformed values.
        steps: Equal steps between neighbouring data times, instead of tolerances.
        dt: The largest step, in units of time, instead of tolerances.
        gradient: ``discrete``, ``tape`` or ``backsolve``.
        epochs: Optimiser steps.
        lr: Adam's first learning rate (mlp only).
        hidden: Widths of the hidden layers (mlp only).
        seed: Of the initial weights (mlp only).
        holdout: The last fraction of the rows, kept out of the training, in [0, 1).
        device: A torch device.
        dtype: ``float32`` or ``float64``.
    """

    model: str = "mlp"
    transform: str | None = None
    scheme: str = "Tsit5"
    rtol: float | None = None
    atol: float | None = None
    steps: int | None = None
    dt: float | None = None
    gradient: str = "discrete"
    epochs: int | None = None
    lr: float | None = None
    hidden: tuple[int, ...] | None = None
    seed: int = 0
    holdout: float = 0.2
    device: str = "cpu"
    dtype: str = "float64"

    def completed(self, positive: bool) -> Config:
        """The same choices with every default filled in.

        Arguments:
            positive: Whether all values of the series are positive.

        Raises:
            OptionError: If a choice, or a combination of choices, cannot be used.
        """
        values = asdict(self)
        values["scheme"] = type(self.make_scheme()).__name__
        values.update(self._tolerances())
        self._check_ranges()
        mlp = self.model == "mlp"
        if not mlp and (self.lr is not None or self.hidden is not None):
            option = "--lr" if self.lr is not None else "--hidden"
            raise OptionError(f"{option} belongs to --model mlp; leave it out for {self.model}")
        if not mlp and self.transform not in (None, "log", "none"):
            raise OptionError(
                f"--model {self.model} does not take --transform {self.transform}; "
                "use log (relative errors) or none (absolute errors)"
            )
        default = ("log-standardise" if positive else "standardise") if mlp else "log"
        values["transform"] = self.transform or default
        values["epochs"] = self.epochs or (400 if mlp else 60)
        if mlp:
            values["lr"] = 0.01 if self.lr is None else self.lr
            values["hidden"] = self.hidden or (32, 32)
        return Config(**values)

    def _tolerances(self) -> dict[str, float | None]:
        """rtol and atol, after a check that there is one rule for the steps and not two."""
        adaptive = self.rtol is not None or self.atol is not None
        given = [
            name
            for name, chosen in (
                ("--steps", self.steps is not None),
                ("--dt", self.dt is not None),
                ("--rtol/--atol", adaptive),
            )
            if chosen
        ]
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} exclude each other; choose one")
        if self.steps is not None or self.dt is not None:
            return {"rtol": None, "atol": None}
        if self.make_scheme().error_order is None:
            raise OptionError(
                f"{type(self.make_scheme()).__name__} has no error estimate to adapt its steps; "
                "add --steps 4 or --dt, or take an adaptive scheme such as tsit5"
            )
        rtol = self.rtol
        if rtol is None:
            # Few parameters are worth many digits; float32 does not have them.
            double = 1e-5 if self.model == "mlp" else 1e-7
            rtol = double if self.dtype == "float64" else 1e-4
        return {"rtol": rtol, "atol": 1e-2 * rtol if self.atol is None else self.atol}

    def _check_ranges(self) -> None:
        tolerances = [x for x in (self.rtol, self.atol) if x is not None]
        rules = [
            ("--holdout", 0 <= self.holdout < 1, "in [0, 1)", self.holdout),
            ("--epochs", self.epochs is None or self.epochs > 0, "at least 1", self.epochs),
            ("--steps", self.steps is None or self.steps > 0, "at least 1", self.steps),
            ("--dt", self.dt is None or 0 < self.dt < math.inf, "positive", self.dt),
            ("--lr", self.lr is None or 0 < self.lr < math.inf, "positive", self.lr),
            ("--hidden", all(n > 0 for n in self.hidden or ()), "positive widths", self.hidden),
            ("--rtol/--atol", all(0 < x < math.inf for x in tolerances), "positive", tolerances),
        ]
        for option, holds, rule, value in rules:
            if not holds:
                raise OptionError(f"{option} must be {rule}, received {value}; change it")

    def make_scheme(self) -> Scheme:
        """The scheme, by its name."""
        names = {cls.__name__.lower(): cls for cls in SCHEMES}
        found = names.get(self.scheme.lower())
        if found is None:
            close = difflib.get_close_matches(self.scheme.lower(), list(names), n=3)
            options = [names[name].__name__ for name in close or names]
            raise OptionError(
                f"no scheme is called {self.scheme!r}; "
                f"{'did you mean' if close else 'choose from'} {', '.join(options)}"
            )
        return found()

    def make_stepsize(self) -> StepSize:
        """The rule for the steps."""
        if self.steps is not None:
            return Steps(self.steps)
        if self.dt is not None:
            return Fixed(self.dt)
        assert self.rtol is not None, "call completed() first"
        assert self.atol is not None, "call completed() first"
        return PID(rtol=self.rtol, atol=self.atol)

    def make_gradient(self) -> Gradient:
        """The way to differentiate."""
        return GRADIENTS[self.gradient]()

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the model."""
        return DTYPES[self.dtype]

    def check_device(self) -> None:
        """Raises `OptionError` if torch cannot compute on the device."""
        try:
            torch.zeros(1, device=self.device, dtype=self.torch_dtype)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise OptionError(f"--device {self.device}: {reason}; use --device cpu") from error

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON and for ``Config(**d)``."""
        return asdict(self)
