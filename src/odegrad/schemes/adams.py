"""Adams–Bashforth schemes, and their correction by Adams–Moulton.

With k slopes f_i = f(t_i, y_i) and the polynomial P through those at t_n, t_{n−1}, …, t_{n−k+1},

    Adams–Bashforth:   y_{n+1} = y_n + ∫ P(τ) dτ = y_n + Σ_i w_i f_{n−i}     over [t_n, t_{n+1}],

of order k. An Adams–Bashforth–Moulton step of order k ≥ 2 predicts so from k − 1 slopes and corrects

    y ← y_n + w*_0 f(t_{n+1}, y) + Σ_i w*_{i+1} f_{n−i}

m times, with the weights w* of the polynomial through t_{n+1} as well: P(EC)^m E. The last E is f_{n+1},
of the next step. m is a fixed number, so that the step is a formula, which is differentiated as written.

The weights are those of the times of the slopes, whatever these are, and depend on them: at equal
steps they are the rational numbers of the tables. So the order is kept on every grid, and what is
computed depends smoothly on the times, hence is differentiated exactly with respect to them. (Weights
for equal steps alone would make every change of the step a new beginning, and so a jump.) The carry
is the times and the slopes; see `odegrad.schemes.multistep`, which also says how a solve starts.

Limits. The region of stability shrinks as the order rises: on the negative real axis Adams–Bashforth
needs |h λ| < 2 / Σ |w_i / h|, which is 0.3 at order 4, 0.024 at order 8 and 0.0017 at order 12;
corrections help.

References:
    E. Hairer, S. P. Nørsett & G. Wanner, *Solving Ordinary Differential Equations I*, III.1
        (equal steps), III.5 (unequal ones).
    F. Bashforth & J. C. Adams, *An attempt to test the theories of capillary action* (1883).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.schemes.checks import check_whole
from odegrad.schemes.interpolatory import interpolatory_weights
from odegrad.schemes.multistep import Adams, first_number, plus
from odegrad.state import Leaves, Time

__all__ = ["AdamsBashforth", "AdamsBashforthMoulton"]


@dataclass(frozen=True)
class AdamsBashforth(Adams):
    """Adams–Bashforth: explicit, order 1 to 12, one evaluation per step.

    The arguments are those of `Adams`. ``AdamsBashforth(order - 1, RK38(), 2)`` on equal steps takes the
    steps of torchdiffeq's ``explicit_adams`` with ``max_order=order``, at least 4.

    Example:
        >>> import torch, odegrad
        >>> y0, ts = torch.ones(1, dtype=torch.float64), [0.0, 1.0]
        >>> scheme = odegrad.AdamsBashforth(order=4)
        >>> sol = odegrad.solve(lambda t, y: -y, y0, ts, scheme=scheme, stepsize=odegrad.Steps(50))
        >>> round(float(sol.ys[-1]), 6)
        0.367879
        >>> sol.stats.f_evaluations  # three steps of RK4
        59
        >>> odegrad.AdamsBashforth(order=13)
        Traceback (most recent call last):
        odegrad.errors.InvalidValueError: order must be from 1 to 12, received 13; ...
    """

    @property
    def _slots(self) -> int:
        return self.order - 1

    def _advance(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        nodes: Tensor,
        h: Tensor,
        slopes: Sequence[Leaves],
        p: Leaves,
    ) -> Leaves:
        """y + Σ_i w_i f_{n−i}."""
        del field, t, dt, p
        return plus(y, interpolatory_weights(nodes, h), slopes)


@dataclass(frozen=True)
class AdamsBashforthMoulton(Adams):
    """Adams–Bashforth–Moulton, P(EC)^m E: order 1 to 12, m + 1 evaluations per step.

    Of order 1 it is Euler's step and m corrections by the implicit Euler step. The further arguments are
    those of `Adams`. ``AdamsBashforthMoulton(order, RK38(), 2, corrections=4)`` on equal steps takes the
    steps of torchdiffeq's ``implicit_adams`` with ``max_order=order``, at least 4, except that
    that one stops correcting a step once it finds that it has converged.

    Arguments:
        corrections: m, at least 1.

    Raises:
        InvalidTypeError: If an argument has another type.
        InvalidValueError: If a number is out of range.

    Example:
        >>> import torch, odegrad
        >>> y0, ts = torch.ones(1, dtype=torch.float64), [0.0, 1.0]
        >>> scheme = odegrad.AdamsBashforthMoulton(order=4)
        >>> sol = odegrad.solve(lambda t, y: -y, y0, ts, scheme=scheme, stepsize=odegrad.Steps(50))
        >>> round(float(sol.ys[-1]), 7)
        0.3678794
        >>> sol.stats.f_evaluations  # two steps of RK4
        104
    """

    corrections: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("corrections", self.corrections, 1, None, "AdamsBashforth has none")

    @property
    def _slots(self) -> int:
        return max(0, self.order - 2)

    def _advance(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        nodes: Tensor,
        h: Tensor,
        slopes: Sequence[Leaves],
        p: Leaves,
    ) -> Leaves:
        """The prediction, corrected m times; of no length, where both ends are one node, as it is."""
        new = plus(y, interpolatory_weights(nodes, h), slopes)
        if first_number(h) == 0.0:
            return new
        read = min(len(slopes), self.order - 1)
        both = torch.cat([h[..., None], nodes[..., :read]], dim=-1)
        weights = interpolatory_weights(both, h)
        for _ in range(self.corrections):
            new = plus(y, weights, [field(t + dt, new, p), *slopes[:read]])
        return new
