"""A module around `odegrad.solve`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from odegrad.batch import Samples
from odegrad.errors import InvalidTypeError
from odegrad.events import Event, checked_events
from odegrad.gradients import Discrete, Gradient
from odegrad.schemes import Tsit5
from odegrad.schemes.base import Scheme
from odegrad.solve import OnFailure, solve
from odegrad.stepsize import PID, StepSize

__all__ = ["NeuralODE"]


class NeuralODE(nn.Module):
    """y' = net(t, y), as a module; only the parameters of `net` are in its state_dict.

    Arguments:
        net: A module whose forward takes (t, y, *args), or y alone.
        scheme: As for `odegrad.solve`.
        stepsize: As for `odegrad.solve`.
        gradient: As for `odegrad.solve`.
        compile: As for `odegrad.solve`.
        land: As for `odegrad.solve`.
        batch: As for `odegrad.solve`; `net` gets t of shape [B] then.
        events: As for `odegrad.solve`. Modules that they read are not parts of this one.
        on_failure: As for `odegrad.solve`.

    Example:
        >>> import torch, odegrad
        >>> model = odegrad.NeuralODE(torch.nn.Linear(2, 2), stepsize=odegrad.Steps(4))
        >>> model(torch.ones(3, 2), [0.0, 0.5, 1.0]).shape
        torch.Size([3, 3, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        scheme: Scheme = Tsit5(),
        stepsize: StepSize = PID(),
        gradient: Gradient = Discrete(),
        compile: bool = False,
        land: bool | None = None,
        batch: int | Samples | None = None,
        events: Sequence[Event] = (),
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__()
        self.net = net
        self.scheme = scheme
        self.stepsize = stepsize
        self.gradient = gradient
        self.compiles = compile  # nn.Module.compile is a method
        self.land = land
        self.batch = batch
        self.events = checked_events(events)
        self.on_failure: OnFailure = on_failure
        self._autonomous = _takes_one(net)

    def forward(self, y0: Any, ts: Tensor | Sequence[float], args: tuple[Any, ...] = ()) -> Any:
        """The states at `ts`, leaves of shape [len(ts), *leaf.shape]; y0 is the state at ts[0].

        With events it is a pair: the states at those of `ts` that were reached, the first ones, and for
        each event its `odegrad.Occurrences`.
        """
        if self._autonomous and args:
            raise InvalidTypeError(
                f"{type(self.net).__name__} takes the state alone, but args were given; "
                "write its forward as forward(self, t, y, *args)"
            )
        field = self._state_only if self._autonomous else self.net
        sol = solve(
            field,
            y0,
            ts,
            args,
            scheme=self.scheme,
            stepsize=self.stepsize,
            gradient=self.gradient,
            compile=self.compiles,
            land=self.land,
            batch=self.batch,
            events=self.events,
            on_failure=self.on_failure,
        )
        return (sol.ys, sol.events) if self.events else sol.ys

    def extra_repr(self) -> str:
        """The choices, for repr."""
        choices = f"scheme={self.scheme}, stepsize={self.stepsize}, gradient={self.gradient}"
        choices += "" if self.batch is None else f", batch={self.batch}"
        choices += f", events={len(self.events)}" if self.events else ""
        return f"{choices}, compile=True" if self.compiles else choices

    def _state_only(self, t: Tensor, y: Any) -> Any:
        del t
        return self.net(y)


def _takes_one(net: nn.Module) -> bool:
    """Whether the module's forward takes the state alone."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(net.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return False
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) == 1
