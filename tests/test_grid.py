"""Grids: fractions, times, and the transpose from step times to landing times."""

from __future__ import annotations

import pickle

import pytest
import torch

from odegrad.errors import InvalidValueError
from odegrad.grid import Clock, Grid, Nodes, Uniform, stack_times, step_time

GRID = Grid((Uniform(3), Nodes((0.0, 0.1, 0.35, 1.0)), Uniform(1)))
TIMES = [0.2, 1.7, 2.0, 5.5]


def test_uniform():
    segment = Uniform(4)
    assert len(segment) == 4
    assert [segment.start(i) for i in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert {segment.width(i) for i in range(4)} == {0.25}
    # Equal steps are one number, whatever the rounding of their starts.
    assert {step_time(Uniform(7), i, 0.3, 1.1)[1] for i in range(7)} == {(1.1 - 0.3) * (1 / 7)}


def test_nodes():
    segment = Nodes((0.0, 0.25, 1.0))
    assert len(segment) == 2
    assert [segment.start(i) for i in range(2)] == [0.0, 0.25]
    assert [segment.width(i) for i in range(2)] == [0.25, 0.75]


@pytest.mark.parametrize("n", [0, -1])
def test_bad_uniform(n):
    with pytest.raises(InvalidValueError, match="at least one step"):
        Uniform(n)


@pytest.mark.parametrize(
    "fractions",
    [
        (), (0.0,), (1.0,), (0.0, 0.5), (0.1, 1.0), (0.0, 0.5, 0.5, 1.0), (0.0, 0.6, 0.5, 1.0),
        (0.0, float("nan"), 1.0), (0.0, 1.0, 1.0), (0.0, -0.1, 1.0), (0.0, 1.1, 1.0),
    ],
    ids=str,
)  # fmt: skip
def test_bad_nodes(fractions):
    with pytest.raises(InvalidValueError, match="fractions"):
        Nodes(fractions)


def test_grid():
    assert GRID.n_steps == 7
    assert GRID.segment(1, 0.0, 1.0, 0.0) is GRID.segments[1]
    GRID.check(3)
    for n in (2, 4):
        with pytest.raises(InvalidValueError, match="replay it with as many times"):
            GRID.check(n)
    with pytest.raises(InvalidValueError, match="3 segments"):
        GRID.segment(3, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("value", [GRID, *GRID.segments, Grid(())], ids=repr)
def test_values(value):
    assert eval(repr(value)) == value
    assert pickle.loads(pickle.dumps(value)) == value
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))


def test_clock_numbers_steps_through_segments():
    clock = Clock(GRID, TIMES)
    assert clock.n_steps == 7
    assert [clock.locate(n) for n in range(7)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0),
    ]  # fmt: skip
    assert [clock.landing(n) for n in range(7)] == [None, None, 1, None, None, 2, 3]
    assert clock.step(0) == (0.2, (1.7 - 0.2) * (1 / 3))
    assert clock.step(6) == (2.0, 3.5)
    assert Clock(Grid(()), [0.0]).n_steps == 0


@pytest.mark.parametrize("times", [TIMES, [-t for t in TIMES], TIMES[::-1]], ids=str)
def test_times(times):
    clock, all_times = Clock(GRID, times), GRID.times(times)
    assert len(all_times) == GRID.n_steps + 1
    assert all_times[0] == times[0]
    assert all_times[-1] == times[-1]
    assert [all_times[n] for n in (0, 3, 6, 7)] == times
    for n in range(GRID.n_steps):
        t, h = clock.step(n)
        assert t == all_times[n]
        assert t + h == pytest.approx(all_times[n + 1], rel=1e-15, abs=1e-15)


def test_tensor_clock_has_the_same_bits():
    tensor = Clock(GRID, torch.tensor(TIMES, dtype=torch.float64))
    for n in range(GRID.n_steps):
        for x, y in zip(tensor.step(n), Clock(GRID, TIMES).step(n), strict=True):
            assert x.dtype == torch.float64
            assert x.shape == ()
            assert x.item() == y


@pytest.mark.parametrize("missing", ["nothing", "t", "dt"])
def test_transpose_to_landing_times(missing):
    """Against autograd on a tensor clock."""
    ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    clock = Clock(GRID, ts)
    generator = torch.Generator().manual_seed(0)
    grads: list[torch.Tensor | None] = [None] * len(TIMES)
    loss = torch.zeros((), dtype=torch.float64)
    plain = Clock(GRID, TIMES)
    for n in range(GRID.n_steps):
        w_t, w_h = torch.randn(2, dtype=torch.float64, generator=generator)
        t, h = clock.step(n)
        loss = loss + (0 if missing == "t" else w_t * t) + (0 if missing == "dt" else w_h * h)
        plain.step_vjp(n, None if missing == "t" else w_t, None if missing == "dt" else w_h, grads)
    (expected,) = torch.autograd.grad(loss, ts)
    got = stack_times(grads, ts.detach())
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


def test_transpose_is_sparse_and_does_not_alias():
    """A landing time that no step touches keeps None; a cotangent is never changed in place."""
    grads: list[torch.Tensor | None] = [None] * len(TIMES)
    one = torch.ones((), dtype=torch.float64)
    clock = Clock(GRID, TIMES)
    clock.step_vjp(6, one, None, grads)
    assert [g if g is None else float(g) for g in grads] == [None, None, 1.0, None]
    clock.step_vjp(6, one, one, grads)
    assert [g if g is None else float(g) for g in grads] == [None, None, 1.0, 1.0]
    assert float(one) == 1.0
    like = torch.zeros(4, dtype=torch.float32)
    assert torch.equal(stack_times(grads, like), torch.tensor([0.0, 0.0, 1.0, 1.0]))
