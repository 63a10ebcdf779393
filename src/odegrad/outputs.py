"""What a vector field may return: tensors shaped like the state, not what only broadcasts to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odegrad.errors import FieldOutputError, FieldOutputTypeError, InvalidTypeError, warn
from odegrad.state import Leaves, Structure

__all__ = ["Outputs"]


class Outputs:
    """Checks the results of f at every call.

    Arguments:
        state: The structure of the state.
        y0: Its leaves, which fix dtypes and devices.

    Raises:
        FieldOutputError: From `slopes`, if the result is not a derivative of the state.
        InvalidTypeError: From `cost`, if the running cost is not one real tensor.
    """

    def __init__(self, state: Structure, y0: Leaves) -> None:
        self._state = state
        self._like = [(x.dtype, x.device) for x in y0]
        self._warned = False

    def slopes(self, result: Any, y: Leaves) -> list[Tensor]:
        """The leaves of what f returned for the state y, in the dtypes of the state."""
        slopes = self._state.flatten(result)
        if slopes is None:
            raise FieldOutputTypeError(
                f"f must return the structure of the state, {self._state!r}; "
                f"it returned {type(result).__name__}: {Structure(result)!r}"
            )
        for i, (slope, leaf, (dtype, device)) in enumerate(zip(slopes, y, self._like, strict=True)):
            if not isinstance(slope, Tensor):
                raise FieldOutputTypeError(
                    f"f must return tensors; leaf {self.leaf(i)} is a {type(slope).__name__}"
                )
            if slope.shape != leaf.shape:
                raise FieldOutputError(
                    f"f returned shape {list(slope.shape)} where the state is {list(leaf.shape)} "
                    f"(leaf {self.leaf(i)}); the derivative has the shape of the state"
                )
            if slope.device != device:
                raise FieldOutputError(
                    f"f returned a tensor on {slope.device} where the state is on {device} "
                    f"(leaf {self.leaf(i)}); move the model or the state with .to(...)"
                )
            if slope.dtype != dtype:
                slopes[i] = self._cast(slope, dtype, i)
        return slopes

    def _cast(self, slope: Tensor, dtype: torch.dtype, i: int) -> Tensor:
        if slope.dtype.is_complex and not dtype.is_complex:
            raise FieldOutputError(
                f"f returned {slope.dtype} where the state is {dtype} (leaf {self.leaf(i)}); "
                "make the initial state complex"
            )
        if not slope.dtype.is_floating_point and not slope.dtype.is_complex:
            raise FieldOutputError(
                f"f returned {slope.dtype} where the state is {dtype} (leaf {self.leaf(i)}); "
                "return a floating-point derivative"
            )
        if torch.finfo(slope.dtype).bits > torch.finfo(dtype).bits and not self._warned:
            self._warned = True
            warn(
                f"f returned {slope.dtype} for a {dtype} state (leaf {self.leaf(i)}); it is rounded "
                "to the state's dtype. Make f return that dtype, or solve in the wider one"
            )
        return slope.to(dtype)

    def cost(self, cost: Any) -> Tensor:
        """What the running cost returned."""
        if not isinstance(cost, Tensor) or not cost.dtype.is_floating_point:
            got = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
            raise InvalidTypeError(f"running must return one real tensor, it returned {got}")
        return cost

    def leaf(self, i: int) -> str:
        """A name for leaf i, for messages."""
        return f"{i}{self._state.leaf_names()[i]}"
