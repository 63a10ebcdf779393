"""Rewritten operations equal the originals up to rounding, and tanh's coefficients are the best ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odegrad.compiled.rewrite import (
    REWRITES,
    TANH_P,
    TANH_Q,
    TANH_RANGE,
    rational_tanh,
)
from odegrad.compiled.tracing import Fakes

aten = torch.ops.aten


def everywhere() -> Tensor:
    """Numbers of float32 of both signs and of all sizes, dense where tanh bends."""
    small = torch.logspace(-38, 1, 200_001)
    return torch.cat([torch.linspace(-12, 12, 1_000_001), small, -small])


def test_tanh_is_as_accurate_as_it_claims() -> None:
    x = everywhere()
    exact = torch.tanh(x.double())
    error = (rational_tanh(x).double() - exact).abs()
    unit = torch.from_numpy(np.spacing(exact.abs().float().numpy())).double()
    assert float(error.max()) <= 4e-7
    assert float((error / unit).max()) <= 6.0


def test_tanh_is_odd_bounded_and_keeps_what_is_not_finite() -> None:
    x = everywhere()
    y = rational_tanh(x)
    assert torch.equal(rational_tanh(-x), -y)
    assert float(y.abs().max()) == 1.0
    ends = rational_tanh(torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0]))
    torch.testing.assert_close(ends, torch.tensor([1.0, -1.0, torch.nan, 0.0]), equal_nan=True)


def lawson(rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """The coefficients in the order of powers of s, by weighted least squares.

    The relative error of x P(s) / Q(s) is (P / f − Q) / Q with f = tanh(x) / x. Linearised, the Q in the
    denominator is the last round's; each round multiplies the weights by the error (C. L. Lawson, 1961).
    """
    n = 1000
    x = TANH_RANGE * (1 - np.cos(np.linspace(0, np.pi, n + 1)[1:])) / 2
    f, powers = np.tanh(x) / x, np.vander((x / TANH_RANGE) ** 2, 5, increasing=True)
    weights, q, solution = np.ones(n), np.ones(n), np.zeros(9)
    for _ in range(rounds):
        scale = np.sqrt(weights) / q
        matrix = np.hstack([powers / f[:, None], -powers[:, 1:]])
        solution = np.linalg.lstsq(matrix * scale[:, None], scale, rcond=None)[0]
        q = 1 + powers[:, 1:] @ solution[5:]
        weights *= np.abs(powers @ solution[:5] / (q * f) - 1)
        weights /= weights.sum()
    scales = TANH_RANGE ** (2 * np.arange(5))
    return solution[:5] / scales, np.array([1, *solution[5:]]) / scales


def test_tanhs_coefficients_are_lawsons() -> None:
    p, q = lawson(300)
    np.testing.assert_allclose(TANH_P, p, rtol=1e-4)
    np.testing.assert_allclose(TANH_Q, q, rtol=1e-4)
    np.testing.assert_allclose(TANH_P[0], p[0], rtol=1e-9)


def test_tanhs_coefficients_in_exact_arithmetic() -> None:
    x = np.linspace(1e-3, TANH_RANGE, 100_001)
    ratio = np.polyval(TANH_P[::-1], x * x) / np.polyval(TANH_Q[::-1], x * x)
    assert np.abs(x * ratio / np.tanh(x) - 1).max() == pytest.approx(2.1e-8, rel=0.02)
    assert float(torch.tanh(torch.tensor(TANH_RANGE))) > 1 - 2**-24  # rounds to 1


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes", [(5, 3, 7), (5, 4, 2), (5, 9, 2), (3, 9, 8), (1, 6, 6), (6, 6, 1)]
)
def test_small_products(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, k, n = sizes
    a, b = normal(m, k, dtype=dtype), normal(k, n, seed=1, dtype=dtype)
    found = REWRITES[aten.mm.default](a, b)
    assert found is not NotImplemented
    eps = torch.finfo(dtype).eps
    assert bool(((found - a @ b).abs() <= k * eps * (a.abs() @ b.abs())).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_and_a_sum(dtype: torch.dtype) -> None:
    for shape in ((7,), (5, 7), (1, 7)):
        c, a, b = normal(*shape, dtype=dtype), normal(5, 9, dtype=dtype), normal(9, 7, dtype=dtype)
        found = REWRITES[aten.addmm.default](c, a, b)
        expected = torch.addmm(c, a, b)
        bound = 10 * torch.finfo(dtype).eps * (c.abs() + a.abs() @ b.abs())
        assert bool(((found - expected).abs() <= bound).all())


def test_what_is_not_rewritten() -> None:
    """Large or long products, other dtypes, scaled sums, and tanh in double precision."""
    mm, addmm, tanh = (REWRITES[op.default] for op in (aten.mm, aten.addmm, aten.tanh))
    assert mm(normal(8, 8), normal(8, 8)) is NotImplemented
    assert mm(normal(300, 3), normal(3, 300)) is NotImplemented
    assert (
        mm(normal(2, 3, dtype=torch.bfloat16), normal(3, 2, dtype=torch.bfloat16)) is NotImplemented
    )
    complex_ = normal(2, 2, dtype=torch.complex128)
    assert mm(complex_, complex_) is NotImplemented
    assert addmm(normal(2), normal(2, 2), normal(2, 2), beta=0.5) is NotImplemented
    assert tanh(normal(3)) is NotImplemented
    assert tanh(normal(3, dtype=torch.bfloat16)) is NotImplemented


def test_the_tracer_rewrites() -> None:
    """Traced with the rewrites, a layer has no such operation left, and the same values."""
    fakes = Fakes()
    given = [normal(5, dtype=torch.float32), normal(4, 3, dtype=torch.float32)]
    weight = normal(3, 5, seed=2, dtype=torch.float32)

    def layer(c: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
        return [torch.tanh(torch.addmm(c, x, w))]

    graph = fakes.trace(layer, [*given, weight], REWRITES)
    targets = {node.target for node in graph.graph.nodes}
    assert not targets & {aten.mm.default, aten.addmm.default, aten.tanh.default}
    torch.testing.assert_close(graph(*given, weight)[0], layer(*given, weight)[0])
