"""Small vector fields shared by the tests: float64, batch axis first, every tensor reached by name.

`raw(t, y, theta, args)` is the field as a pure function, which an oracle differentiates; `f` is the same
as a user would write it, with `theta` captured by closure. t may be a 0-dim tensor or of shape [B].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.field import VectorField
from odegrad.state import Structure

BATCH = 3


@dataclass
class Problem:
    """A vector field with everything that it reads."""

    name: str
    raw: Callable[..., Any]
    y0: Any
    theta: list[Tensor]
    args: tuple[Tensor, ...] = ()
    raw_running: Callable[..., Tensor] | None = None

    def f(self, t, y, *args):
        return self.raw(t, y, self.theta, args)

    @property
    def leaves(self):
        """The leaves of the state, without the quadrature."""
        return tuple(torch.utils._pytree.tree_leaves(self.y0))

    def field(self, y0=None) -> VectorField:
        """The library's field; `y0` replaces the initial state, for another batch size."""
        y0 = self.y0 if y0 is None else y0
        raw, running, theta = self.raw, self.raw_running, self.theta

        def f(t, y, *args):
            return raw(t, y, theta, args)

        def cost(t, y, *args):
            return running(t, y, theta, args)

        leaves = tuple(torch.utils._pytree.tree_leaves(y0))
        return VectorField(f, Structure(y0), leaves, self.args, cost if running else None)

    def flat(self, t, leaves, theta, args, *, like=None):
        """The field on flat leaves with a quadrature behind them, written without the library."""
        spec = torch.utils._pytree.tree_structure(self.y0 if like is None else like)
        n = spec.num_leaves
        y = torch.utils._pytree.tree_unflatten(list(leaves[:n]), spec)
        slopes = torch.utils._pytree.tree_leaves(self.raw(t, y, theta, args))
        if self.raw_running is not None:
            slopes.append(self.raw_running(t, y, theta, args))
        return slopes


def _randn(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _over(t, y):
    """t with trailing axes, so that a time per sample multiplies y's samples."""
    return t.reshape(t.shape + (1,) * (y.ndim - 1)) if t.ndim else t


def mlp() -> Problem:
    """An autonomous perceptron."""
    theta = [
        _randn(3, 5, seed=1) / 2,
        _randn(5, seed=2) / 2,
        _randn(5, 3, seed=3) / 2,
        _randn(3, seed=4) / 2,
    ]

    def raw(t, y, theta, args):
        del t, args
        w1, b1, w2, b2 = theta
        return torch.tanh(y @ w1 + b1) @ w2 + b2

    return Problem("mlp", raw, _randn(BATCH, 3, seed=5), _wanted(theta))


def forced() -> Problem:
    """A field that depends on t, a captured tensor and an argument."""

    def raw(t, y, theta, args):
        (w,), (a,) = theta, args
        return torch.sin(w * _over(t, y)) * y - y**2 / 4 + a * torch.cos(_over(t, y))

    theta, args = _wanted([_randn(2, seed=6)]), tuple(_wanted([_randn(2, seed=7)]))
    return Problem("forced", raw, _randn(BATCH, 2, seed=8), theta, args)


def nested() -> Problem:
    """A dict of leaves of different shapes, one of which depends on t."""

    def raw(t, y, theta, args):
        del args
        (w,) = theta
        q, (p, s) = y["q"], y["rest"]
        return {
            "q": p.sum(-1) * w + _over(t, q) * torch.sin(q),
            "rest": (torch.tanh(q).unsqueeze(-1) * w - p / 3, s * q.sum(-1).cos()),
        }

    y0 = {
        "q": _randn(BATCH, 2, seed=9),
        "rest": (_randn(BATCH, 2, 2, seed=10), _randn(BATCH, seed=11)),
    }
    return Problem("nested", raw, y0, _wanted([_randn(2, seed=12)]))


def complex_valued() -> Problem:
    """A complex state with real and complex parameters."""

    def raw(t, y, theta, args):
        del args
        w, c = theta
        return 1j * w * y + c * y * y.conj() * _over(t, y)

    theta = [_randn(2, seed=13), _randn(2, seed=14, dtype=torch.complex128) / 2]
    y0 = _randn(BATCH, 2, seed=15, dtype=torch.complex128)
    return Problem("complex", raw, y0, _wanted(theta))


def with_running() -> Problem:
    """A field with a running cost, hence a quadrature leaf."""
    problem = forced()

    def cost(t, y, theta, args):
        return (y**2 * theta[0] + args[0] * _over(t, y)).sum(-1)

    problem.name, problem.raw_running = "running", cost
    return problem


def _wanted(tensors):
    return [x.requires_grad_() for x in tensors]


PROBLEMS = (mlp, forced, nested, complex_valued, with_running)


# Closed forms: (f, y0, solution), for orders of accuracy.

CLOSED_FORMS = {
    "linear": (
        lambda t, y: torch.stack([-0.3 * y[0] + 2 * y[1], -2 * y[0] - 0.3 * y[1]]),
        [1.0, 0.5],
        lambda t: [
            math.exp(-0.3 * t) * (math.cos(2 * t) + 0.5 * math.sin(2 * t)),
            math.exp(-0.3 * t) * (0.5 * math.cos(2 * t) - math.sin(2 * t)),
        ],
    ),
    "Bernoulli": (lambda t, y: -2 * t * y**2, [1.0], lambda t: [1 / (1 + t * t)]),
    "driven": (
        lambda t, y: -3 * (y - math.sin(2 * float(t) + 0.3)) + 2 * math.cos(2 * float(t) + 0.3),
        [1.0],
        lambda t: [math.sin(2 * t + 0.3) + (1 - math.sin(0.3)) * math.exp(-3 * t)],
    ),
    "logistic": (lambda t, y: 3 * y * (1 - y), [0.1], lambda t: [1 / (1 + 9 * math.exp(-3 * t))]),
}
