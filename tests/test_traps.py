"""Bugs seen in other libraries: each test fails when the bug is planted.

The numbers are those of the list of §5.16 in the project's notes on the mathematics: 1 skipping stages
with b_i = 0, 2 counting a first-same-as-last stage twice, 3 a gradient through the starting step, 4 a
gradient through the controller, 5 times cast to float32, 6 steps from round(t / dt), 7 a second
backward that fails, 8 parameters changed by backward, 12 f instead of the discrete derivative in t.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import GRAPHS, autonomous, leaf, loss, mlp, relative
from odegrad import Discrete, Every, Steps, Tape
from odegrad.schemes import SCHEMES
from odegrad.schemes.explicit import ExplicitRungeKutta


def dopri5_gradients(scheme: Any) -> list[Tensor]:
    return autonomous().gradient(Discrete(), scheme, Steps(2))[0]


def test_trap_1_a_planted_skip_of_zero_weights_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dopri5 has b_2 = 0 but a_32 ≠ 0. The planted bug drops that stage's cotangent."""
    expected, _ = autonomous().gradient(Tape(), odegrad.Dopri5(), Steps(2))
    assert relative(dopri5_gradients(odegrad.Dopri5()), expected) < 1e-13
    import odegrad.schemes.explicit as module

    honest = module.combine

    def skipping(h: Any, weights: Any, slopes: Any) -> Any:
        return None if weights and weights[0] == 0.0 else honest(h, weights, slopes)

    monkeypatch.setattr(module, "combine", skipping)
    assert relative(dopri5_gradients(odegrad.Dopri5()), expected) > 1e-7


def test_trap_2_each_evaluation_is_transposed_once() -> None:
    """n steps of an s-stage FSAL scheme: n (s − 1) + 1 evaluations; the last slope is never pulled."""
    for scheme, stages in ((odegrad.Bosh3(), 4), (odegrad.Dopri5(), 7), (odegrad.Tsit5(), 7)):
        grads, sol = autonomous().gradient(Discrete(), scheme, Steps(3))
        n = sol.stats.accepted
        assert sol.stats.vjps == n * (stages - 1)
        # Forward n (s − 1) + 1; the backward sweep evaluates what it pulls: the carry is stored.
        assert sol.stats.f_evaluations == 2 * n * (stages - 1) + 1
        expected, _ = autonomous().gradient(Tape(), scheme, Steps(3))
        assert relative(grads, expected) < 1e-12


def test_trap_2_planted_double_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug pulls the first slope through f again beside handing it on."""
    honest = ExplicitRungeKutta.step_vjp

    def doubled(
        self: Any, field: Any, t: Any, dt: Any, y: Any, carry: Any, p: Any, *rest: Any, **more: Any
    ) -> Any:
        grads = honest(self, field, t, dt, y, carry, p, *rest, **more)
        if grads.carry is None:
            return grads
        _, again, _ = field.vjp(t, y, p, grads.carry)
        return grads._replace(y=tuple(a + b for a, b in zip(grads.y, again, strict=True)))

    expected, _ = autonomous().gradient(Tape(), odegrad.Dopri5(), Steps(2))
    monkeypatch.setattr(ExplicitRungeKutta, "step_vjp", doubled)
    assert relative(dopri5_gradients(odegrad.Dopri5()), expected) > 1e-3


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS, Tape()])
def test_traps_3_and_4_no_gradient_through_start_and_controller(gradient: Any) -> None:
    """An adaptive solve has the gradient of its own recorded grid, to the last bit."""
    problem = autonomous()
    pid = odegrad.PID(rtol=1e-3, atol=1e-4, p=0.3, i=0.4)
    found, sol = problem.gradient(gradient, odegrad.Dopri5(), pid)
    expected, replay = problem.gradient(gradient, odegrad.Dopri5(), sol.grid)
    assert torch.equal(sol.ys, replay.ys)
    assert relative(found, expected) <= 1e-15
    assert replay.grid == sol.grid


def test_trap_3_a_planted_leak_through_the_starting_step_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import odegrad.sweeps.adaptive as module

    honest = module.starting_step

    def leaking(field: Any, control: Any, order: Any, t: Any, sign: Any, y: Any, p: Any) -> Any:
        total = y[0].sum()
        return honest(field, control, order, t, sign, y, p) * (1 + total - total.detach())

    pid = odegrad.PID(rtol=1e-3, atol=1e-4)
    expected, _ = autonomous().gradient(Tape(), odegrad.Dopri5(), pid)
    monkeypatch.setattr(module, "starting_step", leaking)
    found, _ = autonomous().gradient(Tape(), odegrad.Dopri5(), pid)
    assert relative(found, expected) > 1e-13


def test_trap_5_times_keep_their_precision() -> None:
    """f sees t in the widest dtype of the state; times beyond float32 stay apart."""
    seen: list[Tensor] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t)
        return torch.ones_like(y)

    ts = [1e6, 1e6 + 1e-3]
    y0 = torch.zeros(1, dtype=torch.float64)
    sol = odegrad.solve(f, y0, ts, scheme=odegrad.RK4(), stepsize=Steps(4))
    assert {t.dtype for t in seen} == {torch.float64}
    assert len({t.item() for t in seen}) >= 9
    assert sol.ys[-1].item() == pytest.approx(ts[1] - ts[0], rel=1e-12)
    mixed = (torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    seen.clear()
    out = odegrad.solve(
        lambda t, y: (f(t, y[0]), y[1]),
        mixed,
        [0.0, 1.0],
        scheme=odegrad.Euler(),
        stepsize=Steps(1),
    )
    assert seen[-1].dtype == torch.float64
    assert [y.dtype for y in out.ys] == [torch.float32, torch.float64]


def test_trap_6_fixed_steps_of_rounded_times() -> None:
    ts = torch.linspace(0, 1, 11)
    sol = odegrad.solve(
        lambda t, y: -y, torch.ones(1), ts, scheme=odegrad.Euler(), stepsize=odegrad.Fixed(0.1)
    )
    assert [len(s) for s in sol.grid.segments] == [1] * 10


@pytest.mark.parametrize("gradient", [Discrete(), Discrete(Every(3)), GRAPHS])
def test_trap_7_backward_twice(gradient: Any) -> None:
    problem = autonomous()
    ys = odegrad.solve(problem.f, problem.y0, [0.0, 1.0], stepsize=Steps(8), gradient=gradient).ys
    value = loss(ys)
    first = torch.autograd.grad(value, problem.y0_leaves, retain_graph=True)
    second = torch.autograd.grad(value, problem.y0_leaves)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, problem.y0_leaves)


def test_trap_8_backward_changes_no_parameter() -> None:
    net, y0 = mlp(), leaf(4, 3)
    before = [p.clone() for p in net.parameters()]
    versions = [p._version for p in net.parameters()]
    odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0]).ys.sum().backward()
    assert versions == [p._version for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_parameters_changed_between_the_sweeps_are_noticed(gradient: Any) -> None:
    net, y0 = mlp(), leaf(4, 3)
    value = odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0], gradient=gradient).ys.sum()
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_trap_12_time_gradient_is_that_of_the_steps() -> None:
    """One Euler step of y' = a y over h: dy/dt_1 = a y_0, where f(t_1, y_1) is a (1 + h a) y_0."""
    ts = torch.tensor([0.0, 0.5], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64)
    ys = odegrad.solve(lambda t, y: -2 * y, y0, ts, scheme=odegrad.Euler(), stepsize=Steps(1)).ys
    (grad,) = torch.autograd.grad(ys[-1].sum(), ts)
    assert grad.tolist() == [2.0, -2.0]


# Randomness and buffers: f is evaluated again in the backward sweep and has to see the same.


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(3, 16, bias=False), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)
        ).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y)


@pytest.mark.parametrize("scheme", [odegrad.RK4(), odegrad.Bosh3()])
@pytest.mark.parametrize("gradient", [Discrete(), Discrete(Every(2)), GRAPHS])
def test_dropout_and_batch_norm(scheme: Any, gradient: Any) -> None:
    results = []
    for mode in (Tape(), gradient):
        net, y0 = Noisy(), leaf(8, 3)
        torch.manual_seed(1)
        sol = odegrad.solve(net, y0, [0.0, 1.0], scheme=scheme, stepsize=Steps(5), gradient=mode)
        grads = list(torch.autograd.grad(loss(sol.ys), [y0, *net.parameters()]))
        buffers = [b.clone() for b in net.buffers()]
        results.append((sol.ys, grads, buffers, torch.rand(1)))
    (ys, grads, buffers, after), (ys2, grads2, buffers2, after2) = results
    assert torch.equal(ys, ys2)
    assert relative(grads2, grads) <= 1e-12
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers2, strict=True))
    assert torch.equal(after, after2)


def test_random_f_with_adaptive_steps_warns() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)).double()
    with pytest.warns(odegrad.errors.OdegradWarning, match="random numbers"):
        odegrad.solve(lambda t, y: net(y), leaf(4, 3), [0.0, 0.1], stepsize=odegrad.PID(1e-1, 1e-1))


def test_autocast_is_replayed() -> None:
    """Under autocast f computes in bfloat16; so it has to in the backward sweep, outside autocast."""
    net = mlp(16).float()
    results = []
    for gradient in (Tape(), Discrete(), GRAPHS):
        y0 = leaf(4, 3).detach().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            ys = odegrad.solve(
                lambda t, y: net(y),
                y0,
                [0.0, 1.0],
                scheme=odegrad.RK4(),
                stepsize=Steps(4),
                gradient=gradient,
            ).ys
        assert ys.dtype == torch.float32
        results.append(list(torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()])))
    assert (
        max(relative(x, results[0]) for x in results[1:]) <= 2e-2
    )  # sums of bfloat16 products, in another order


# Nothing outlives the graph.


def test_a_stored_state_is_handed_out_as_a_copy() -> None:
    """At an aligned address, where a product of matrices has the bits that it had; and nobody's else."""
    from odegrad.sweeps.slab import Slab

    slab = Slab(rows=3)
    states = [(torch.randn(3, dtype=torch.float64),) for _ in range(3)]
    for i, state in enumerate(states):
        slab.put(i, state, None)
    for i, (expected,) in enumerate(states):
        ((found,), _) = slab.get(i)
        assert found.data_ptr() % 16 == 0
        assert found.untyped_storage().nbytes() == 24
        found.zero_()
        assert torch.equal(slab.get(i)[0][0], expected)


def test_states_die_with_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from odegrad.sweeps import slab

    chunks: list[weakref.ref[Tensor]] = []
    honest = slab.Slab.tensors

    def watched(self: slab.Slab) -> Any:
        found = honest(self)
        chunks.extend(weakref.ref(x) for x in found)
        return found

    monkeypatch.setattr(slab.Slab, "tensors", watched)
    problem = autonomous()
    sol = odegrad.solve(problem.f, problem.y0, [0.0, 1.0], stepsize=Steps(8))
    gc.collect()
    assert chunks
    assert any(r() is not None for r in chunks)
    del sol
    gc.collect()
    assert all(r() is None for r in chunks)


@pytest.mark.parametrize(
    "scheme", [cls for cls in SCHEMES if issubclass(cls, ExplicitRungeKutta)][::4]
)
def test_nothing_is_kept_under_no_grad(scheme: Any) -> None:
    problem = autonomous()
    with torch.no_grad():
        sol = odegrad.solve(problem.f, problem.y0, [0.0, 1.0], scheme=scheme(), stepsize=Steps(4))
    assert sol.stats.kept_bytes == 0
    assert not sol.ys.requires_grad
    expected = 4 * scheme.tableau.stages if not scheme.tableau.fsal else 4 * 6 + 1
    assert sol.stats.f_evaluations == expected
