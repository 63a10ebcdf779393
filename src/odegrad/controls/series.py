"""Controls that are sums of global smooth functions: a Fourier and a Chebyshev series."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odegrad.controls.base import Control, wide_dtype
from odegrad.controls.initial import (
    Guess,
    checked_count,
    checked_interval,
    checked_shape,
    initial,
    least_squares,
    sample,
)

__all__ = ["Chebyshev", "Fourier"]


class _Series(Control):
    """u(t) = Σ_j φ_j(x) c_j, where x is 0 at `start` and 1 at `stop`."""

    def __init__(self, start: float, stop: float, shape: Sequence[int]) -> None:
        super().__init__(checked_shape(shape))
        self.start, self.stop = checked_interval(start, stop)

    @abstractmethod
    def _basis(self, x: Tensor) -> Tensor:
        """The φ_j(x), of shape [*x.shape, n]."""

    def _sum(self, t: Tensor | float, coefficients: Tensor) -> Tensor:
        t = self._time(t, coefficients)
        x = (t.to(wide_dtype(t, coefficients)) - self.start) / (self.stop - self.start)
        return torch.tensordot(self._basis(x).to(coefficients.dtype), coefficients, dims=1)

    def _fit(self, u: Callable[[Tensor], Any], x: Tensor) -> Tensor:
        """The coefficients that fit u best at the places x."""
        times = (self.start + (self.stop - self.start) * x).tolist()
        return least_squares(self._basis(x), sample(u, times, self.shape))


class Fourier(_Series):
    """A trigonometric polynomial with the period T = stop − start.

    u(t) = c + Σ_{m=1}^{modes} a_m cos(2π m (t − start) / T) + b_m sin(2π m (t − start) / T).

    Arguments:
        start: Where the period begins.
        stop: Where it ends.
        modes: The number of frequencies, at least 1.
        shape: The shape of u at one time.
        init: The initial `mean` c [*shape], `cosine` a and `sine` b [modes, *shape]: three tensors or
            a function t ↦ u(t), of which the truncated series is taken from 4 modes + 4 samples in
            one period; zeros by default.

    Raises:
        InvalidTypeError: If an argument has an unusable type.
        InvalidValueError: If start ≥ stop, modes < 1, or init has another shape.

    Reference: Trefethen, *Spectral Methods in MATLAB*, SIAM 2000, chapter 3.

    Example:
        >>> import math
        >>> from odegrad.controls import Fourier
        >>> u = Fourier(0.0, 2 * math.pi, 3, init=lambda t: t.sin() ** 2)  # (1 − cos 2t) / 2
        >>> print(f"{u.mean.item():.4f} {u.cosine[1].item():.4f} {u(math.pi / 2).item():.4f}")
        0.5000 -0.5000 1.0000
    """

    _frequencies: Tensor

    def __init__(
        self,
        start: float,
        stop: float,
        modes: int,
        shape: Sequence[int] = (),
        *,
        init: Guess = None,
    ) -> None:
        super().__init__(start, stop, shape)
        self.modes = checked_count("modes", modes, least=1)
        self._hold_constants()
        size = (modes, *self.shape)
        mean, cosine, sine = initial(
            init, {"mean": self.shape, "cosine": size, "sine": size}, self._sample
        )
        self.mean = nn.Parameter(mean)
        self.cosine = nn.Parameter(cosine)
        self.sine = nn.Parameter(sine)

    def forward(self, t: Tensor | float) -> Tensor:
        """u(t), of shape [*t.shape, *shape]."""
        return self._sum(t, torch.cat([self.mean.unsqueeze(0), self.cosine, self.sine]))

    def extra_repr(self) -> str:
        """The period, the number of modes and the shape, for repr."""
        return f"{self.start} to {self.stop}, modes={self.modes}, shape={self.shape}"

    def _basis(self, x: Tensor) -> Tensor:
        phase = x.unsqueeze(-1) * self._frequencies.to(x.dtype)
        return torch.cat([torch.ones_like(phase[..., :1]), phase.cos(), phase.sin()], dim=-1)

    def _constants(self) -> dict[str, Tensor]:
        return {"_frequencies": 2 * math.pi * torch.arange(1, self.modes + 1, dtype=torch.float64)}

    def _sample(self, u: Callable[[Tensor], Any]) -> list[Tensor]:
        n = 4 * self.modes + 4
        c = self._fit(u, torch.arange(n, dtype=torch.float64) / n)
        return [c[0], c[1 : self.modes + 1], c[self.modes + 1 :]]


class Chebyshev(_Series):
    """A polynomial on [start, stop], by its coefficients in Chebyshev polynomials.

    u(t) = Σ_{j=0}^{degree} c_j T_j(z),    z = 2 (t − start) / (stop − start) − 1,

    where T_{m+j} = 2 T_m T_j − T_{m−j} gives the polynomials beyond m = 1, 2, 4, … all at once: a few
    operations on all of them, where Clenshaw's recurrence needs three for each. Rounding grows like
    degree² near the ends of the interval. Outside of the interval the polynomial goes on, and grows fast.

    Arguments:
        start: The left end.
        stop: The right end.
        degree: The degree, at least 0.
        shape: The shape of u at one time.
        init: The initial `coefficients`: a tensor [degree + 1, *shape] or a function t ↦ u(t), which
            is fitted by least squares at 2 degree + 2 Chebyshev points; zeros by default.

    Raises:
        InvalidTypeError: If an argument has an unusable type.
        InvalidValueError: If start ≥ stop, degree < 0, or init has another shape.

    References:
        Trefethen, *Approximation Theory and Approximation Practice*, SIAM 2013, chapters 3 and 4.
        Clenshaw, A note on the summation of Chebyshev series, *Math. Tables Aids Comput.* 9 (1955).

    Example:
        >>> from odegrad.controls import Chebyshev
        >>> u = Chebyshev(0.0, 2.0, 3, init=lambda t: t**3)
        >>> print(f"{u(0.5).item():.4f} {u(2.0).item():.4f}")
        0.1250 8.0000
    """

    def __init__(
        self,
        start: float,
        stop: float,
        degree: int,
        shape: Sequence[int] = (),
        *,
        init: Guess = None,
    ) -> None:
        super().__init__(start, stop, shape)
        self.degree = checked_count("degree", degree, least=0)
        (coefficients,) = initial(
            init, {"coefficients": (self.degree + 1, *self.shape)}, self._sample
        )
        self.coefficients = nn.Parameter(coefficients)

    def forward(self, t: Tensor | float) -> Tensor:
        """u(t), of shape [*t.shape, *shape]."""
        return self._sum(t, self.coefficients)

    def extra_repr(self) -> str:
        """The interval, the degree and the shape, for repr."""
        return f"{self.start} to {self.stop}, degree={self.degree}, shape={self.shape}"

    def _basis(self, x: Tensor) -> Tensor:
        z = 2 * x - 1
        if self.degree == 0:
            return torch.ones_like(z).unsqueeze(-1)
        basis = torch.stack([torch.ones_like(z), z], dim=-1)
        while (m := basis.shape[-1] - 1) < self.degree:
            n = min(m, self.degree - m)
            reflected = basis[..., m - n : m].flip(-1)
            beyond = 2 * basis[..., m:] * basis[..., 1 : n + 1] - reflected
            basis = torch.cat([basis, beyond], dim=-1)
        return basis

    def _sample(self, u: Callable[[Tensor], Any]) -> list[Tensor]:
        n = 2 * self.degree + 2
        angle = math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return [self._fit(u, (1 - angle.cos()) / 2)]
