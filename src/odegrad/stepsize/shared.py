"""One number for all samples of a vmap, which share their steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["shared_number"]


def shared_number(x: Tensor) -> float:
    """The value of a 0-dim tensor; under `torch.func.vmap` the largest of all samples, NaN if one is.

    So an attempted step is accepted if it is good enough for every sample.
    """
    functorch: Any = torch._C._functorch  # pyright: ignore
    x = x.detach()
    while functorch.is_functorch_wrapped_tensor(x):
        batched, axis = functorch.is_batchedtensor(x), functorch.maybe_get_bdim(x)
        x = functorch.get_unwrapped(x)
        if batched:
            x = x.amax(dim=axis)
    return float(x)
