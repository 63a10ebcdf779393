"""Does f give again what it gave? A state in three numbers, to be compared with its recomputation.

The transpose of a step evaluates f again. It is the transpose of the step that was taken only if f then
returns the same; else the gradient would be silently wrong. So the last state that a backward sweep will
arrive at again is remembered by Σ y, ‖y‖₂ and ‖y‖₃, and compared with what it arrives at.

The comparison is to a tolerance of 1000 eps: some kernels (attention, recurrent cells) round in another
way when autograd records. What differs less, or in other steps only, is not seen; `odegrad.audit` looks
at all steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.errors import NonDeterministicFieldError
from odegrad.state import Leaves

__all__ = ["Fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """What is remembered of a state.

    Arguments:
        numbers: Three for each leaf that has entries; tensors, so that no device is waited for.
        eps: The coarsest machine epsilon that plays a part.
    """

    numbers: Leaves
    eps: float

    @staticmethod
    def of(y: Leaves, read: Leaves, autocast: torch.dtype | None) -> Fingerprint:
        """That of the state y of a field that reads some tensors, perhaps under autocast."""
        dtypes = {x.dtype for x in (*y, *read) if x.dtype.is_floating_point or x.dtype.is_complex}
        eps = max(torch.finfo(d).eps for d in (*dtypes, *(() if autocast is None else (autocast,))))
        return Fingerprint(tuple(_numbers(x) for x in y if x.numel()), eps)

    def check(self, y: Leaves, t: float) -> None:
        """Compares with a state that was computed again by the step from time t.

        Raises:
            NonDeterministicFieldError: If it is another one.
        """
        tolerance = min(1e3 * self.eps, 0.1)
        worst = 0.0
        for old, x in zip(self.numbers, (x for x in y if x.numel()), strict=True):
            total, two, three = (old - _numbers(x)).abs().tolist()
            size, cubic = float(old[1]), float(old[2])
            # |Σ y| is at most √n ‖y‖₂.
            difference = max(
                total / ((size * x.numel() ** 0.5) or 1.0),
                two / (size or 1.0),
                three / (cubic or 1.0),
            )
            worst = max(worst, difference)
        if worst > tolerance:  # False for NaN: a solve that has become NaN is another matter
            raise NonDeterministicFieldError(
                "f does not give again what it gave: evaluated again in the step from t = "
                f"{t:.6g}, it leads to a state that differs by {worst:.1e}, so the gradient would be "
                "wrong. It may read a clock, a counter, a cache, or a random generator of its own "
                "(NumPy's, a torch.Generator), or something was changed through .data since the solve. "
                "Make f a function of (t, y); or let nothing be evaluated again: gradient=Tape(), or "
                "Discrete(StoreAll(keep=Keep.GRAPH)). odegrad.audit finds the module; "
                "Discrete(replay_check=False) does not look"
            )


def _numbers(x: Tensor) -> Tensor:
    """(Σ x, ‖x‖₂, ‖x‖₃) in double precision; of the real and imaginary parts of complex numbers."""
    x = x.detach()
    x = torch.view_as_real(x) if x.is_complex() else x
    wide = {"dtype": torch.float64} if x.device.type != "mps" else {"dtype": torch.float32}
    norm = torch.linalg.vector_norm
    return torch.stack([x.sum(**wide), norm(x, 2, **wide), norm(x, 3, **wide)])
