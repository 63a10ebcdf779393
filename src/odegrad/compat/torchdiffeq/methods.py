"""The names of torchdiffeq's methods, and what they are here.

Two are not what their names suggest: ``rk4`` is Kutta's 3/8 rule, and the error estimate of ``dopri5`` is
2/3 of the usual one. Its solvers without the first-same-as-last property, ``adaptive_heun`` and
``fehlberg2``, go on from the slope at their last stage as if it were that at the new state; here each
step begins with the slope at its state.

References:
    L. F. Shampine, *Some practical Runge–Kutta formulas*, Math. Comp. 46 (1986).
    K. Heun, *Neue Methoden zur approximativen Integration der Differentialgleichungen einer
        unabhängigen Veränderlichen*, Z. Math. Phys. 45 (1900).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from odegrad.compat.torchdiffeq.errors import MethodNotAvailableError
from odegrad.errors import InvalidValueError, warn
from odegrad.schemes import (
    RK38,
    AdamsBashforth,
    AdamsBashforthMoulton,
    AdaptiveHeun,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    Heun,
    Midpoint,
    Tsit5,
)
from odegrad.schemes.base import Scheme
from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.tableau import Tableau

__all__ = ["Heun3", "Method", "ShampineDopri5", "method_named"]


@dataclass(frozen=True)
class ShampineDopri5(Dopri5):
    """Dormand and Prince's pair with Shampine's weights for the solution to compare with."""

    tableau = dataclasses.replace(
        Dopri5.tableau,
        b_embedded=(
            1951 / 21600,
            0.0,
            22642 / 50085,
            451 / 720,
            -12231 / 42400,
            649 / 6300,
            1 / 60,
        ),
    )


@dataclass(frozen=True)
class Heun3(ExplicitRungeKutta):
    """Heun's third-order scheme: order 3, three stages."""

    tableau = Tableau(
        a=((), (1 / 3,), (0.0, 2 / 3)),
        b=(1 / 4, 0.0, 3 / 4),
        c=(0.0, 1 / 3, 2 / 3),
        order=3,
    )


ADAPTIVE = frozenset({"callback_step", "callback_accept_step", "callback_reject_step"})
FIXED = frozenset({"callback_step"})


@dataclass(frozen=True)
class Method:
    """A method of torchdiffeq.

    Arguments:
        solver: What torchdiffeq calls it in its warnings.
        make: Makes the scheme from the options that are its own.
        adaptive: Whether its steps are.
        keys: Those options.
    """

    solver: str
    make: Callable[..., Scheme]
    adaptive: bool = False
    keys: frozenset[str] = frozenset()

    @property
    def callbacks(self) -> frozenset[str]:
        """The callbacks that it calls."""
        return ADAPTIVE if self.adaptive else FIXED


_ADAMS = frozenset({"implicit", "max_iters", "max_order"})


MOST, LEAST = 12, 4
"""The highest order of Adams methods, and that below which torchdiffeq takes one-step methods."""


def _bashforth(max_order: int = MOST, **options: Any) -> Scheme:
    """Adams–Bashforth: two steps of the 3/8 rule, then a slope more each step, up to max_order − 1."""
    del options
    order = min(max_order, MOST)
    if order < LEAST:
        warn(f"max_order is below {LEAST}, so the solver reduces to `rk4`.")
        return RK38()
    return AdamsBashforth(order - 1, RK38(), 2)


def _moulton(
    max_order: int = MOST, max_iters: int = 4, implicit: bool = True, **options: Any
) -> Scheme:
    """Adams–Bashforth–Moulton, with all of the `max_iters` corrections at every step."""
    order = min(max_order, MOST)
    if order < LEAST or not implicit or max_iters < 1:
        return _bashforth(max_order, **options)
    return AdamsBashforthMoulton(order, RK38(), 2, corrections=max_iters)


_METHODS = {
    "dopri8": Method("Dopri8Solver", Dopri8, adaptive=True),
    "dopri5": Method("Dopri5Solver", ShampineDopri5, adaptive=True),
    "tsit5": Method("Tsit5Solver", Tsit5, adaptive=True),
    "bosh3": Method("Bosh3Solver", Bosh3, adaptive=True),
    "fehlberg2": Method("Fehlberg2", Fehlberg2, adaptive=True),
    "adaptive_heun": Method("AdaptiveHeunSolver", AdaptiveHeun, adaptive=True),
    "euler": Method("Euler", Euler),
    "midpoint": Method("Midpoint", Midpoint),
    "heun2": Method("Heun2", Heun),
    "heun3": Method("Heun3", Heun3),
    "rk4": Method("RK4", RK38),
    "explicit_adams": Method("AdamsBashforth", _bashforth, keys=_ADAMS),
    "implicit_adams": Method("AdamsBashforthMoulton", _moulton, keys=_ADAMS),
    "fixed_adams": Method("AdamsBashforthMoulton", _moulton, keys=_ADAMS),
}

_SCIPY = {
    "RK45": "dopri5",
    "RK23": "bosh3",
    "DOP853": "dopri8",
    "LSODA": "dopri5",
    "Radau": "dopri5",
    "BDF": "dopri5",
}

_NEAREST = {
    "implicit_euler": "euler",
    "implicit_midpoint": "midpoint",
    "trapezoid": "heun2",
    "radauIIA3": "heun3",
    "gl4": "rk4",
    "radauIIA5": "dopri5",
    "gl6": "dopri8",
    "sdirk2": "midpoint",
    "trbdf2": "heun2",
}


def method_named(name: str | None, options: dict[str, Any]) -> Method:
    """The method with this name, None being ``dopri5``.

    Raises:
        InvalidValueError: If torchdiffeq has no such method.
        MethodNotAvailableError: If odegrad has none; the message names the nearest.
    """
    name = "dopri5" if name is None else name
    if name in _METHODS:
        return _METHODS[name]
    if name == "scipy_solver":
        solver = options.get("solver", "LSODA")
        nearest = _SCIPY.get(solver, "dopri5")
        raise MethodNotAvailableError(
            f"method='scipy_solver' (solver={solver!r}) has no gradient at all; the nearest method is "
            f"{nearest!r}. If f is stiff, tighter tolerances or smaller steps are needed"
        )
    if name in _NEAREST:
        raise MethodNotAvailableError(
            f"implicit methods are not available yet; the nearest one to {name!r} is "
            f"{_NEAREST[name]!r}, which is explicit: take smaller steps if f is stiff"
        )
    names = ", ".join(f'"{key}"' for key in _METHODS)
    raise InvalidValueError(f'Invalid method "{name}". Must be one of {{{names}}}')
