"""Butcher tableaux that cannot be wrong: every order condition is checked when one is made.

A Runge–Kutta scheme has order p iff for every rooted tree τ with at most p vertices

    Σ_i b_i Φ_i(τ) = 1 / γ(τ),

where Φ is the elementary weight and γ the density: for the tree with subtrees τ_1 … τ_m,

    Φ_i(τ) = Π_k Σ_j a_ij Φ_j(τ_k),     γ(τ) = |τ| Π_k γ(τ_k).

Reference: Hairer, Nørsett & Wanner, *Solving Ordinary Differential Equations I*, II.2, thm 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

from odegrad.errors import InvalidValueError

__all__ = ["Tableau", "density", "trees"]

Tree: TypeAlias = tuple["Tree", ...]
"""A rooted tree: the tuple of the subtrees at its root, in sorted order."""

_TOLERANCE = 5e-14  # published coefficients are rounded to 16 digits or are rationals that exact


@dataclass(frozen=True)
class Tableau:
    """The coefficients of an explicit Runge–Kutta scheme, checked at construction.

    Arguments:
        a: The strictly lower triangle, row i with i entries.
        b: The weights of the solution that is advanced.
        c: The nodes, c_i = Σ_j a_ij.
        order: The order of that solution.
        b_embedded: The weights of the solution that it is compared with, if any.
        embedded_order: The order of that other solution.

    Attributes:
        fsal: Whether the last stage is f at the end of the step, hence the next step's first.
        b_error: The weights b − b_embedded of the error estimate, or None.

    Raises:
        InvalidValueError: If shapes disagree or an order condition fails.

    Example:
        >>> from odegrad.schemes.tableau import Tableau
        >>> Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5), order=2).stages
        2
        >>> Tableau(a=((), (0.5,)), b=(0.5, 0.5), c=(0.0, 0.5), order=2)
        Traceback (most recent call last):
        odegrad.errors.InvalidValueError: b does not have order 2: ...
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    b_embedded: tuple[float, ...] | None = None
    embedded_order: int | None = None
    fsal: bool = field(init=False, repr=False, compare=False, default=False)
    b_error: tuple[float, ...] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        s = len(self.b)
        if len(self.a) != s or len(self.c) != s or any(len(r) != i for i, r in enumerate(self.a)):
            raise InvalidValueError(
                f"an explicit tableau of {s} stages needs {s} nodes and rows of 0 … {s - 1} "
                f"entries; received {len(self.c)} nodes and rows of {[len(r) for r in self.a]}"
            )
        for i, row in enumerate(self.a):
            if abs(math.fsum(row) - self.c[i]) > _TOLERANCE * max(1.0, sum(map(abs, row))):
                raise InvalidValueError(f"row {i} of a sums to {math.fsum(row)}, c is {self.c[i]}")
        self._check(self.b, self.order, "b")
        if (self.b_embedded is None) != (self.embedded_order is None):
            raise InvalidValueError("b_embedded and embedded_order go together")
        if self.b_embedded is not None and self.embedded_order is not None:
            self._check(self.b_embedded, self.embedded_order, "b_embedded")
            error = tuple(x - y for x, y in zip(self.b, self.b_embedded, strict=True))
            object.__setattr__(self, "b_error", error)
        fsal = self.c[-1] == 1.0 and self.b[-1] == 0.0 and self.a[-1] == self.b[:-1]
        object.__setattr__(self, "fsal", fsal)

    @property
    def stages(self) -> int:
        """The number of stages s."""
        return len(self.b)

    @property
    def error_order(self) -> int | None:
        """k, where the error estimate is O(h^k)."""
        return None if self.embedded_order is None else min(self.order, self.embedded_order) + 1

    @property
    def partner(self) -> tuple[tuple[float, ...], ...]:
        """â_ij = b_j − b_j a_ji / b_i, the matrix of the scheme's symplectic partner.

        The transposed steps of the scheme (a, b, c) are the steps of the scheme (â, b, c) for the costate
        equation λ' = −f_yᵀ λ along the stages of the solution: the two form a partitioned scheme with

            b_i â_ij + b_j a_ji = b_i b_j,

        which conserves ⟨λ, δy⟩. The stage costates are Λ_i = κ_i / (h b_i).

        Raises:
            InvalidValueError: If some b_i is 0: there is no partner then, and the transposed step, which
                divides by nothing, is its limit.

        Reference: J. M. Sanz-Serna, *Symplectic Runge–Kutta schemes for adjoint equations, automatic
        differentiation, optimal control, and more*, SIAM Review 58 (2016), theorem 3.

        Example:
            >>> import odegrad
            >>> odegrad.Euler.tableau.partner
            ((1.0,),)
        """
        b = self.b
        if 0.0 in b:
            raise InvalidValueError(
                f"a scheme has a symplectic partner iff no b_i is 0; b[{b.index(0.0)}] is 0 here. Its "
                "transposed step is the limit"
            )
        full = [[*row, *(0.0,) * (self.stages - len(row))] for row in self.a]
        return tuple(
            tuple(bj - bj * full[j][i] / bi for j, bj in enumerate(b)) for i, bi in enumerate(b)
        )

    def elementary(self, tree: Tree) -> tuple[float, ...]:
        """Φ_i(tree) of each stage."""
        return self._weight(tree, {})[0]

    def _check(self, b: tuple[float, ...], order: int, name: str) -> None:
        if len(b) != self.stages:
            raise InvalidValueError(f"{name} has {len(b)} weights for {self.stages} stages")
        weights: dict[Tree, tuple[tuple[float, ...], tuple[float, ...]]] = {}
        for n in range(1, order + 1):
            for tree in trees(n):
                phi, size = self._weight(tree, weights)
                total = math.fsum(x * y for x, y in zip(b, phi, strict=True))
                scale = math.fsum(abs(x) * y for x, y in zip(b, size, strict=True))
                if abs(total - 1.0 / density(tree)) > _TOLERANCE * max(1.0, scale):
                    raise InvalidValueError(
                        f"{name} does not have order {order}: the condition of tree {tree} "
                        f"gives {total!r}, not 1/{density(tree)}"
                    )

    def _weight(
        self, tree: Tree, known: dict[Tree, tuple[tuple[float, ...], tuple[float, ...]]]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Φ(tree), and the same with |a|, which bounds its rounding error."""
        if tree not in known:
            phi, size = [1.0] * self.stages, [1.0] * self.stages
            for branch in tree:
                inner_phi, inner_size = self._weight(branch, known)
                for i, row in enumerate(self.a):
                    phi[i] *= sum(x * y for x, y in zip(row, inner_phi, strict=False))
                    size[i] *= sum(abs(x) * y for x, y in zip(row, inner_size, strict=False))
            known[tree] = tuple(phi), tuple(size)
        return known[tree]


@cache
def trees(n: int) -> tuple[Tree, ...]:
    """All rooted trees with n vertices.

    Example:
        >>> from odegrad.schemes.tableau import trees
        >>> [len(trees(n)) for n in range(1, 9)]
        [1, 1, 2, 4, 9, 20, 48, 115]
    """
    return tuple(_forests(n - 1, n - 1, len(trees(n - 1)) - 1 if n > 1 else 0))


def _forests(total: int, size: int, index: int) -> Iterator[Tree]:
    """Multisets of trees with `total` vertices, none behind tree `index` of those with `size`."""
    if total == 0:
        yield ()
        return
    for m in range(min(size, total), 0, -1):
        options = trees(m)
        last = index if m == size else len(options) - 1
        for i in range(last, -1, -1):
            for rest in _forests(total - m, m, i):
                yield (options[i], *rest)


@cache
def vertices(tree: Tree) -> int:
    """The number of vertices of a tree."""
    return 1 + sum(vertices(branch) for branch in tree)


@cache
def density(tree: Tree) -> int:
    """γ(tree)."""
    return vertices(tree) * math.prod(density(branch) for branch in tree)
