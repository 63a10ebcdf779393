"""The transposed steps of another scheme, at the states of the solve: what "only if" costs.

A costate recursion is the gradient of the computed numbers if and only if it is the transpose of the
scheme that computed them (Hu 2024). This is the recursion

    λ_n = DΨ(t_n, h_n, y_n)ᵀ λ_{n+1},     p̄ = Σ_n D_pΨ(t_n, h_n, y_n)ᵀ λ_{n+1}

for another scheme Ψ on the same grid. It converges to the gradient of the exact solution at the lower of
both orders, and is exact for Ψ = Φ.

Reference: J. Hu, *A note on the adjoint method for neural ODE network*, arXiv 2402.15141 (2024).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from odegrad.checkpoints import StoreAll
from odegrad.errors import InvalidTypeError
from odegrad.gradients.base import Gradient, may_need_gradient
from odegrad.gradients.node import apply
from odegrad.gradients.rules import eager_rule
from odegrad.schemes import Heun, Scheme
from odegrad.schemes.restarted import Restarted
from odegrad.state import Leaves
from odegrad.sweeps import Run

__all__ = ["Mismatched"]


@dataclass(frozen=True)
class Mismatched(Gradient):
    """The costate recursion of a scheme that did not compute the solution. To learn from, not to use.

    First derivatives only.

    Arguments:
        scheme: The scheme whose steps are transposed.

    Raises:
        InvalidTypeError: If it is no scheme.
    """

    scheme: Scheme = field(default_factory=Heun)

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, Scheme):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                f"Mismatched: scheme must be an object such as Heun(), received {self.scheme!r}"
            )

    def solve(self, run: Run, y0: Leaves, p: Leaves, ts: Tensor) -> Leaves:
        """Solves inside one autograd node."""
        wanted = tuple(map(may_need_gradient, (*p, ts)))
        inside = run.scheme.inside if isinstance(run.scheme, Restarted) else 0.0
        other = Restarted(self.scheme, inside)
        return apply(eager_rule(run, StoreAll(), len(y0), wanted, other), (*y0, *p, ts))
