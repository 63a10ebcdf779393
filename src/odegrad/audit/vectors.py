"""Small computations with lists of tensors: directions, products, norms, angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odegrad.state import Leaves, inner

__all__ = [
    "angle",
    "count",
    "detached",
    "difference",
    "direction",
    "filled",
    "flat",
    "norm",
    "own",
    "products",
]


def own(x: Tensor) -> Tensor:
    """The tensor itself, or a copy where hooks or a history of the user's would take part."""
    plain = x.is_leaf and not x._backward_hooks  # pyright: ignore[reportPrivateUsage]
    return x if plain else x.detach().requires_grad_(x.requires_grad)


def detached(x: Any) -> Any:
    """A tensor off its graph; anything else as it is."""
    return x.detach() if isinstance(x, Tensor) else x


def filled(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> Leaves:
    """Gradients, with zeros where there are none."""
    pairs = zip(like, grads, strict=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in pairs)


def count(x: Tensor) -> int:
    """How many real numbers a tensor holds."""
    return x.numel() * (2 if x.is_complex() else 1)


def direction(x: Tensor, generator: torch.Generator, last: bool) -> Tensor:
    """A random direction of the size of x; times (`last`) move by parts of their smallest gap."""
    shape = (*x.shape, 2) if x.is_complex() else tuple(x.shape)
    v = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    if last:
        gaps = x.diff().abs()
        size = float(gaps[gaps > 0].min()) / 4 if bool((gaps > 0).any()) else 0.0
        return size * v.clamp(-1, 1)
    v = (torch.view_as_complex(v) if x.is_complex() else v).to(x)
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    size = float(inner((x,), (x,), zero)) / max(1, x.numel())
    return v * (size**0.5 or 1.0)


def flat(leaves: Leaves) -> Tensor:
    """All leaves as one real float64 vector on the CPU."""
    parts: list[Tensor] = []
    for x in leaves:
        real = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
        parts.append(real.detach().reshape(-1).to("cpu", torch.float64))
    return torch.cat(parts)


def difference(g: Tensor, oracle: Tensor) -> float:
    """‖g − oracle‖ / ‖oracle‖; infinite if g is not finite."""
    if not bool(torch.isfinite(g).all()):
        return math.inf
    norm = float(oracle.norm())
    return float((g - oracle).norm()) / norm if norm else float(g.norm())


def angle(g: Tensor, oracle: Tensor) -> float | None:
    """The angle between two gradients in degrees; None if one of them is zero or not finite."""
    a, b = float(g.norm()), float(oracle.norm())
    if not (0 < a < math.inf and 0 < b < math.inf):
        return None
    u, v = g / a, oracle / b
    return math.degrees(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))


def norm(leaves: Leaves) -> float:
    """The norm over all leaves, in float64."""
    return math.sqrt(sum(float(x.abs().to(torch.float64).square().sum()) for x in leaves))


def products(a: Leaves, b: Leaves) -> tuple[float, float]:
    """Re⟨a, b⟩ and the sum of the absolute values of its terms, in float64."""
    value = absolute = 0.0
    for x, y in zip(a, b, strict=True):
        terms = _wide(x.conj() if x.is_complex() else x) * _wide(y)
        terms = terms.real if terms.is_complex() else terms
        value += float(terms.sum())
        absolute += float(terms.abs().sum())
    return value, absolute


def _wide(x: Tensor) -> Tensor:
    wide = torch.complex128 if x.is_complex() else torch.float64
    return x.detach().to("cpu", wide)
