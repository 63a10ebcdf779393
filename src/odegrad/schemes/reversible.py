"""Any explicit Runge–Kutta scheme, made reversible: the construction of McCallum and Foster.

With Ψ_h(t, y) the increment of the base scheme and λ the coupling, the carry is a second state z, which
starts as y, and one step is

    y' = λ y + (1 − λ) z + Ψ_h(t, z),     z' = z − Ψ₋ₕ(t + h, y'),

and its inverse, exact up to rounding, is

    z = z' + Ψ₋ₕ(t + h, y'),     y = (y' − (1 − λ) z − Ψ_h(t, z)) / λ.

The order is the base's. Each costs two increments: 2s evaluations of f for a base of s stages. For a
base whose last stage is the next step's first, an increment has s − 1; the error estimate takes one more.

The transpose is the default one: the graph of the whole step, 2s evaluations and one pass through it.
One written by hand, stage by stage, evaluates as much and took 1.0 to 1.4 times as long.

Limits. Where the solution decays as exp(−μt), the difference y − z is multiplied by about λ exp(hμ) per
step: it is damped only while hμ < −log λ ≈ 1 − λ, and grows from there on, slowly at first (from the
size of the base's local errors) but whatever h. The inverse multiplies it by the reciprocal of that, so
by 1/λ where the solution neither grows nor decays: λ⁻ᴺ over N steps. A smaller λ is for decaying
solutions, and one closer to 1 for many steps; λ = 1 has no damping and nothing for the inverse to
amplify. With λ = 0.999, λ⁻ᴺ is 2.7 for N = 1000 and 2·10⁴ for N = 10⁴.

Reference: S. McCallum & J. Foster, *Efficient, accurate and stable gradients for neural ODEs*, arXiv
2410.11648 (2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from odegrad.errors import InvalidTypeError
from odegrad.field import VectorField
from odegrad.schemes.base import Scheme, Step
from odegrad.schemes.checks import check_between
from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tsit5 import Tsit5
from odegrad.state import Leaves, Time, axpy, combine, scale

__all__ = ["Reversible"]


@dataclass(frozen=True)
class Reversible(Scheme):
    """An explicit Runge–Kutta scheme, made reversible by a second state.

    Not for states in half precision: the increments would be rounded before they are added.

    Arguments:
        base: The scheme: any explicit Runge–Kutta scheme.
        coupling: λ in (0, 1]: how much of y, rather than of z, the next y starts from.

    Raises:
        InvalidTypeError: If the base is no such scheme or the coupling no number.
        InvalidValueError: If the coupling is not in (0, 1].

    Example:
        >>> import torch, odegrad
        >>> y0, ts = torch.ones(1, dtype=torch.float64), [0.0, 1.0]
        >>> scheme = odegrad.Reversible(odegrad.RK4())
        >>> sol = odegrad.solve(lambda t, y: -y, y0, ts, scheme=scheme, stepsize=odegrad.Steps(10))
        >>> round(float(sol.ys[-1]), 5)
        0.36788
        >>> sol.stats.f_evaluations
        80
        >>> scheme.order, scheme.error_order, odegrad.Reversible(odegrad.Bosh3()).error_order
        (4, None, 3)
    """

    base: ExplicitRungeKutta = dataclasses.field(default_factory=Tsit5)
    coupling: float = 0.999
    order: int = dataclasses.field(init=False, repr=False, compare=False)
    error_order: int | None = dataclasses.field(init=False, repr=False, compare=False)
    reversible = True

    def __post_init__(self) -> None:
        _check_base(self.base)
        check_between("coupling", self.coupling, 0.0, "take one slightly below 1, such as 0.999")
        object.__setattr__(self, "order", self.base.order)
        object.__setattr__(self, "error_order", self.base.error_order)

    def init(self, field: VectorField, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """The second state, which is y."""
        del field, t, p
        return y

    def step(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> Step:
        """One step; see the head of this module."""
        tab = self.base.tableau
        slopes = self._slopes(field, t, dt, carry, p, whole=True)
        mixed = axpy(scale(self.coupling, y), 1.0, (1.0 - self.coupling,), (carry,))
        new = axpy(mixed, 1.0, (1.0,), (self._increment(dt, slopes),))
        back = self._increment(-dt, self._slopes(field, t + dt, -dt, new, p))
        error = None
        if tab.b_error is not None:
            with torch.no_grad():
                error = combine(dt, tab.b_error, slopes)
        return Step(y=new, carry=axpy(carry, 1.0, (-1.0,), (back,)), error=error)

    def unstep(
        self, field: VectorField, t: Time, dt: Time, y: Leaves, carry: Leaves, p: Leaves
    ) -> tuple[Leaves, Leaves]:
        """The inverse of one step: two increments."""
        back = self._increment(-dt, self._slopes(field, t + dt, -dt, y, p))
        z = axpy(carry, 1.0, (1.0,), (back,))
        increment = self._increment(dt, self._slopes(field, t, dt, z, p))
        rest = axpy(y, 1.0, (self.coupling - 1.0, -1.0), (z, increment))
        return scale(1.0 / self.coupling, rest), z

    def _slopes(
        self,
        field: VectorField,
        t: Time,
        dt: Time,
        y: Leaves,
        p: Leaves,
        *,
        whole: bool = False,
    ) -> list[Leaves]:
        """The base's stage slopes from (t, y): those that the increment needs, or all if `whole`."""
        tab = self.base.tableau
        n = tab.stages
        while not whole and tab.b[n - 1] == 0.0:
            n -= 1
        slopes: list[Leaves] = []
        for i in range(n):
            stage = axpy(y, dt, tab.a[i], slopes)
            slopes.append(field(t + dt * tab.c[i], stage, p))
        return slopes

    def _increment(self, dt: Time, slopes: Sequence[Leaves]) -> Leaves:
        """Ψ = h Σ b_i k_i."""
        increment = combine(dt, self.base.tableau.b, slopes)
        assert increment is not None, "the weights of a scheme sum to 1"
        return increment


def _check_base(base: object) -> None:
    if isinstance(base, type):
        raise InvalidTypeError(
            f"base must be an object, received the class {base.__name__}; write base={base.__name__}()"
        )
    if not isinstance(base, ExplicitRungeKutta):
        raise InvalidTypeError(
            f"base must be an explicit Runge–Kutta scheme such as RK4(), received {base!r}"
        )
