"""What all controls share: fixed numbers beside the parameters, dtypes, and what a solver may ask.

A control is linear in its parameters, u(t) = Σ_j φ_j(t) c_j. The knots or the interval that fix the φ_j
are exact Python floats. What is computed from them lies in float64 buffers that are not in the
state_dict and keep their dtype when the parameters change theirs, so that knots are rounded once, to
the dtype of t. The φ_j are computed in the wider of the dtypes of t and the parameters, at least in
float32, and the result has the dtype of the parameters: t says where to look, not how precisely.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odegrad.errors import InvalidTypeError
from odegrad.state import real_dtype

__all__ = ["Control", "Shape", "spread", "take"]

Shape = tuple[int, ...]
"""The shape of u at one time."""


class Control(nn.Module, ABC):
    """A trainable function of time, θ(t).

    A solver looks for controls among the modules that f reads. It ends a step at every one of their
    `breakpoints`, where a step across would lose the order of the scheme; and for a control that is not
    `continuous` it evaluates f inside of each step only, where the value is that of the step's piece.

    Arguments:
        shape: The shape of u at one time.

    Example:
        >>> import torch
        >>> from odegrad.controls import Control
        >>> class Ramp(Control):
        ...     def __init__(self):
        ...         super().__init__(())
        ...         self.rate = torch.nn.Parameter(torch.tensor(2.0))
        ...
        ...     @property
        ...     def breakpoints(self):
        ...         return (0.0,)
        ...
        ...     def forward(self, t):
        ...         return self.rate * torch.as_tensor(t).relu()
        >>> Ramp()(3.0).item(), Ramp().continuous
        (6.0, True)
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(self, t: Tensor | float) -> Tensor:
        """u(t), of shape [*t.shape, *shape]; t is a float, a 0-dim tensor or one of shape [B]."""

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The times, ascending, at which u or a derivative of it may jump."""
        return ()

    @property
    def continuous(self) -> bool:
        """Whether u itself does not jump."""
        return True

    # Fixed numbers.

    def _constants(self) -> dict[str, Tensor]:
        """The buffers, in float64, computed from exact numbers."""
        return {}

    def _hold_constants(self) -> None:
        for name, value in self._constants().items():
            self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        # .to() and the like move buffers and also round them (to_empty loses them): make them anew.
        super()._apply(fn, recurse)
        for name, value in self._constants().items():
            self._buffers[name] = value.to(device=getattr(self, name).device)
        return self

    # Dtypes.

    def _time(self, t: Tensor | float, like: Tensor) -> Tensor:
        """t as a tensor; numbers are float64, on the device of the parameter `like`."""
        if isinstance(t, Tensor):
            if not t.dtype.is_floating_point:
                raise InvalidTypeError(
                    f"{type(self).__name__} needs a floating-point time, received {t.dtype}; "
                    "pass t.double()"
                )
            return t
        if not isinstance(t, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                f"{type(self).__name__} needs a time as a number or a tensor, received "
                f"{type(t).__name__}"
            )
        return torch.scalar_tensor(t, dtype=torch.float64, device=like.device)


def wide_dtype(t: Tensor, parameter: Tensor) -> torch.dtype:
    """The dtype to compute basis functions in."""
    dtype = torch.promote_types(t.dtype, real_dtype(parameter.dtype))
    return torch.promote_types(dtype, torch.float32)


def take(x: Tensor, k: Tensor) -> Tensor:
    """x[k], of shape [*k.shape, *x.shape[1:]]; unlike x[k], never looks at a 0-dim k."""
    return x.index_select(0, k.reshape(-1)).reshape(k.shape + x.shape[1:])


def spread(weight: Tensor, parameter: Tensor) -> Tensor:
    """One weight per time in the dtype of a parameter [n, *shape], to multiply [*t.shape, *shape]."""
    weight = weight.to(parameter.dtype)
    return weight.reshape(weight.shape + (1,) * (parameter.ndim - 1))
