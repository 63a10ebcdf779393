"""DETEST: the 25 problems of Hull et al., five of each kind, from 0 to 20.

A: single equations. B: small systems. C: moderate systems. D: orbits of eccentricity 0.1 … 0.9. E:
equations of higher order. `end` are the first components of y(20) as they are published with the
programs of Enright and Pryce, so that a mistake in an equation or an initial value shows.

References:
    T. E. Hull, W. H. Enright, B. M. Fellen, A. E. Sedgwick, *Comparing numerical methods for ordinary
        differential equations*, SIAM J. Numer. Anal. 9 (1972).
    W. H. Enright, J. D. Pryce, *Two FORTRAN packages for assessing initial value methods*, ACM
        Trans. Math. Softw. 13 (1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DETEST", "END", "Detest"]

END = 20.0


@dataclass(frozen=True)
class Detest:
    """A problem y' = f(t, y), y(0) = y0, in float64.

    Arguments:
        f: Takes t, 0-dim, and y of shape [n].
        y0: The initial state.
        end: The first components of y(20).
    """

    f: Callable[[Tensor, Tensor], Tensor]
    y0: tuple[float, ...]
    end: tuple[float, ...]


def _stacked(f: Callable[..., tuple[Tensor, ...]]) -> Callable[[Tensor, Tensor], Tensor]:
    """f(t, y_1, …, y_n), which returns as many numbers, on vectors."""
    return lambda t, y: torch.stack(f(t, *y.unbind()))


def _linear(matrix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: matrix @ y


def _decay(rates: list[float]) -> Tensor:
    """The matrix of a chain of decays y_i → y_i+1 at these rates; the last one is stable."""
    lost = torch.tensor([*rates, 0.0], dtype=torch.float64)
    return torch.diag(-lost) + torch.diag(lost[:-1], -1)


def _diffusion(n: int) -> Tensor:
    """The second difference of n points with zeros beyond the ends."""
    ones = torch.ones(n - 1, dtype=torch.float64)
    return torch.diag(ones, 1) + torch.diag(ones, -1) - 2.0 * torch.eye(n, dtype=torch.float64)


def _unit(n: int) -> tuple[float, ...]:
    return (1.0, *[0.0] * (n - 1))


# C5, the five outer planets around the sun: positions and velocities of each, in astronomical units and
# hundreds of days; masses in those of the inner solar system.

_GRAVITY, _SUN = 2.95912208286, 1.00000597682
_MASSES = torch.tensor(
    [0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778],
    dtype=torch.float64,
)  # fmt: skip
_PLANETS = (
    (3.42947415189, 3.35386959711, 1.35494901715, -0.557160570446, 0.505696783289, 0.230578543901),
    (6.64145542550, 5.97156957878, 2.18231499728, -0.415570776342, 0.365682722812, 0.169143213293),
    (11.2630437207, 14.6952576794, 6.27960525067, -0.325325669158, 0.189706021964, 0.0877265322780),
    (-30.1552268759, 1.65699966404, 1.43785752721, -0.0240476254170, -0.287659532608, -0.117219543175),
    (-21.1238353380, 28.4465098142, 15.3882659679, -0.176860753121, -0.216393453025, -0.0148647893090),
)  # fmt: skip


def _planets(t: Tensor, y: Tensor) -> Tensor:
    """x_j'' = G (−(M + m_j) x_j / r_j³ + Σ_{k≠j} m_k ((x_k − x_j) / d_jk³ − x_k / r_k³))."""
    x, v = y.reshape(2, 5, 3).unbind()
    towards_sun = x / x.square().sum(1, keepdim=True) ** 1.5
    apart = x[None, :] - x[:, None]  # of k from j
    # A planet is at no distance from itself; the 1 keeps its share, 0, from being 0/0.
    squared = apart.square().sum(2) + torch.eye(5, dtype=y.dtype)
    pulled = (apart / squared[:, :, None] ** 1.5 - towards_sun[None]) * _MASSES[:, None]
    others = pulled.sum(1) + _MASSES[:, None] * towards_sun  # k = j is no other
    a = _GRAVITY * (others - (_SUN + _MASSES[:, None]) * towards_sun)
    return torch.cat([v.flatten(), a.flatten()])


def _orbit(t: Tensor, x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    cubed = (x * x + y * y) ** 1.5
    return u, v, -x / cubed, -y / cubed


def _apside(e: float) -> tuple[float, ...]:
    """The start of an orbit of eccentricity e where it is nearest to the centre."""
    return (1.0 - e, 0.0, 0.0, math.sqrt((1.0 + e) / (1.0 - e)))


def _torus(t: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    r = torch.sqrt(x * x + y * y)
    return -y - x * z / r, x - y * z / r, x / r


DETEST: dict[str, Detest] = {
    "A1": Detest(lambda t, y: -y, (1.0,), (2.061153353012535e-09,)),
    "A2": Detest(lambda t, y: -(y**3) / 2.0, (1.0,), (2.182178902359887e-01,)),
    "A3": Detest(lambda t, y: y * torch.cos(t), (1.0,), (2.491650271850414e00,)),
    "A4": Detest(lambda t, y: y / 4.0 * (1.0 - y / 20.0), (1.0,), (1.773016648131483e01,)),
    "A5": Detest(lambda t, y: (y - t) / (y + t), (4.0,), (-7.887826688964196e-01,)),
    "B1": Detest(
        _stacked(lambda t, x, y: (2.0 * (x - x * y), x * y - y)),
        (1.0, 3.0),
        (6.761876008576667e-01, 1.860816099640036e-01),
    ),
    "B2": Detest(
        _stacked(lambda t, x, y, z: (y - x, x - 2.0 * y + z, y - z)),
        (2.0, 0.0, 1.0),
        (1.000000001030576e00, 1.000000000000000e00, 9.999999989694235e-01),
    ),
    "B3": Detest(
        _stacked(lambda t, x, y, z: (-x, x - y * y, y * y)),
        (1.0, 0.0, 0.0),
        (2.061153488557776e-09, 5.257228022048349e-02, 9.474277177183630e-01),
    ),
    "B4": Detest(
        _stacked(_torus),
        (3.0, 0.0, 0.0),
        (9.826950928005993e-01, 2.198447081694832e00, 9.129452507276399e-01),
    ),
    "B5": Detest(
        _stacked(lambda t, x, y, z: (y * z, -x * z, -0.51 * x * y)),
        (0.0, 1.0, 1.0),
        (-9.396570798729192e-01, -3.421177754000779e-01, 7.414126596199957e-01),
    ),
    "C1": Detest(
        _linear(_decay([1.0] * 9)),
        _unit(10),
        (2.061153622240064e-09, 4.122307244619555e-08, 4.122307244716968e-07, 2.748204829855288e-06),
    ),
    "C2": Detest(
        _linear(_decay([float(i) for i in range(1, 10)])),
        _unit(10),
        (2.061153577984930e-09, 2.061153573736588e-09, 2.061153569488245e-09, 2.061153565239902e-09),
    ),
    "C3": Detest(
        _linear(_diffusion(10)),
        _unit(10),
        (2.948119211022058e-03, 5.635380154844266e-03, 7.829072515926013e-03, 9.348257908594937e-03),
    ),
    "C4": Detest(
        _linear(_diffusion(51)),
        _unit(51),
        (3.124111453721466e-03, 6.015416842150318e-03, 8.470021834842650e-03, 1.033682931733337e-02),
    ),
    "C5": Detest(
        _planets,
        tuple(x for part in (slice(3), slice(3, 6)) for planet in _PLANETS for x in planet[part]),
        (-4.792730224323733e00, -2.420550725448973e00, -9.212509306014886e-01, -4.217310404035213e00),
    ),
    "D1": Detest(
        _stacked(_orbit),
        _apside(0.1),
        (2.198835352008397e-01, 9.427076846341813e-01, -9.787659841058176e-01, 3.287977990962036e-01),
    ),
    "D2": Detest(
        _stacked(_orbit),
        _apside(0.3),
        (-1.777027357140412e-01, 9.467784719905892e-01, -1.030294163192969e00, 1.211074890053952e-01),
    ),
    "D3": Detest(
        _stacked(_orbit),
        _apside(0.5),
        (-5.780432953035361e-01, 8.633840009194193e-01, -9.595083730380727e-01, -6.504915126712089e-02),
    ),
    "D4": Detest(
        _stacked(_orbit),
        _apside(0.7),
        (-9.538990293416394e-01, 6.907409024219432e-01, -8.212674270877433e-01, -1.539574259125825e-01),
    ),
    "D5": Detest(
        _stacked(_orbit),
        _apside(0.9),
        (-1.295266250987574e00, 4.003938963792321e-01, -6.775390924707566e-01, -1.270838154278686e-01),
    ),
    "E1": Detest(
        _stacked(lambda t, y, v: (v, -v / (t + 1.0) - (1.0 - 0.25 / (t + 1.0) ** 2) * y)),
        (0.6713967071418030, 0.09540051444747446),
        (1.456723600728308e-01, -9.883500195574063e-02),
    ),
    "E2": Detest(
        _stacked(lambda t, y, v: (v, (1.0 - y * y) * v - y)),
        (2.0, 0.0),
        (2.008149762174948e00, -4.250887527320057e-02),
    ),
    "E3": Detest(
        _stacked(lambda t, y, v: (v, y**3 / 6.0 - y + 2.0 * torch.sin(2.78535 * t))),
        (0.0, 0.0),
        (-1.004178858647128e-01, 2.411400132095954e-01),
    ),
    "E4": Detest(
        _stacked(lambda t, y, v: (v, 0.032 - 0.4 * v * v)),
        (30.0, 0.0),
        (3.395091444646555e01, 2.767822659672869e-01),
    ),
    "E5": Detest(
        _stacked(lambda t, y, v: (v, torch.sqrt(1.0 + v * v) / (25.0 - t))),
        (0.0, 0.0),
        (1.411797390542629e01, 2.400000000000002e00),
    ),
}  # fmt: skip
