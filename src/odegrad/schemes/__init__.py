"""Integration schemes. `SCHEMES` lists each once: tests, docs and benchmarks iterate over it."""

from __future__ import annotations

from odegrad.schemes.adams import AdamsBashforth, AdamsBashforthMoulton
from odegrad.schemes.adaptive_heun import AdaptiveHeun
from odegrad.schemes.alf import ALF
from odegrad.schemes.base import Scheme, Step, StepGrad
from odegrad.schemes.bosh3 import Bosh3
from odegrad.schemes.cash_karp import CashKarp
from odegrad.schemes.dopri5 import Dopri5
from odegrad.schemes.dopri8 import Dopri8
from odegrad.schemes.euler import Euler
from odegrad.schemes.explicit import ExplicitRungeKutta
from odegrad.schemes.fehlberg2 import Fehlberg2
from odegrad.schemes.heun import Heun
from odegrad.schemes.kutta3 import Kutta3
from odegrad.schemes.midpoint import Midpoint
from odegrad.schemes.ralston import Ralston
from odegrad.schemes.reversible import Reversible
from odegrad.schemes.reversible_heun import ReversibleHeun
from odegrad.schemes.rk4 import RK4
from odegrad.schemes.rk38 import RK38
from odegrad.schemes.rkf45 import RKF45
from odegrad.schemes.ssprk3 import SSPRK3
from odegrad.schemes.tableau import Tableau
from odegrad.schemes.tsit5 import Tsit5

__all__ = [
    "ALF",
    "SCHEMES",
    "AdamsBashforth",
    "AdamsBashforthMoulton",
    "AdaptiveHeun",
    "Bosh3",
    "CashKarp",
    "Dopri5",
    "Dopri8",
    "Euler",
    "ExplicitRungeKutta",
    "Fehlberg2",
    "Heun",
    "Kutta3",
    "Midpoint",
    "RK38",
    "RK4",
    "RKF45",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "SSPRK3",
    "Scheme",
    "Step",
    "StepGrad",
    "Tableau",
    "Tsit5",
]

SCHEMES: tuple[type[Scheme], ...] = (
    Euler,
    Midpoint,
    Heun,
    Ralston,
    Kutta3,
    SSPRK3,
    RK4,
    RK38,
    AdaptiveHeun,
    Fehlberg2,
    Bosh3,
    RKF45,
    CashKarp,
    Dopri5,
    Tsit5,
    Dopri8,
    ALF,
    ReversibleHeun,
    Reversible,
    AdamsBashforth,
    AdamsBashforthMoulton,
)
"""All schemes: Runge–Kutta ones from the simplest to the most accurate, reversible and multistep ones."""
