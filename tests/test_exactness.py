"""The gradient is the derivative of the computed numbers: against Tape and against outsiders."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor, nn

import odegrad
from cases import CASES, GRAPHS, SCHEME_STEPS, TIMES, Case, autonomous, leaf, loss, mlp, relative
from odegrad import Discrete, Every, Steps, Tape

modes = pytest.mark.parametrize("gradient", [Discrete(), GRAPHS], ids=["states", "graphs"])


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts kept graphs after every second step, so that few steps have several of them."""
    monkeypatch.setattr("odegrad.sweeps.graphs.STRETCH", 2)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("scheme", "stepsize"), SCHEME_STEPS, ids=lambda x: getattr(x, "__name__", type(x).__name__)
)
@modes
def test_discrete_equals_tape(
    case: Callable[[], Case], scheme: Any, stepsize: Any, gradient: Any
) -> None:
    problem = case()
    expected, tape = problem.gradient(Tape(), scheme(), stepsize)
    found, sol = problem.gradient(gradient, scheme(), stepsize)
    assert sol.grid == tape.grid
    assert sol.grid.n_steps == sol.stats.accepted > 2
    for a, b in zip(
        torch.utils._pytree.tree_leaves(sol.ys),
        torch.utils._pytree.tree_leaves(tape.ys),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
    assert relative(found, expected) <= 1e-12
    assert sol.stats.vjps > 0
    assert sol.stats.recomputed == 0


@pytest.mark.parametrize(
    ("scheme", "stepsize"),
    SCHEME_STEPS[::5],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
@pytest.mark.parametrize("k", [1, 2, 7, 1000])
def test_every_schedule_gives_the_same(scheme: Any, stepsize: Any, k: int) -> None:
    problem = CASES[1]()
    expected, all_stored = problem.gradient(Discrete(), scheme(), stepsize)
    found, sol = problem.gradient(Discrete(Every(k)), scheme(), stepsize)
    assert torch.equal(sol.ys, all_stored.ys)
    assert relative(found, expected) <= 1e-13
    n = sol.stats.accepted
    blocks = [min(k, n - i) for i in range(0, n, k)]
    if not isinstance(stepsize, odegrad.PID):  # the forward sweep kept the last block, a full one
        del blocks[0]
    assert sol.stats.recomputed == sum(b - 1 for b in blocks)


@pytest.mark.parametrize("times", [(1.1, 0.4, 0.1), (0.1, 0.4, 0.4, 1.1), (0.7,), (-1.0, 2.0)])
@pytest.mark.parametrize("stepsize", [Steps(2), odegrad.Fixed(0.2), odegrad.PID(1e-5, 1e-7)])
@modes
def test_descending_repeated_and_single_times(times: Any, stepsize: Any, gradient: Any) -> None:
    problem = CASES[1]()
    if len(times) == 1:  # only the output at the start: the identity
        sol = odegrad.solve(
            problem.f, problem.y0, list(times), problem.args, stepsize=stepsize, gradient=gradient
        )
        assert torch.equal(sol.ys[0], problem.y0)
        (grad,) = torch.autograd.grad(sol.ys.sum(), problem.y0_leaves)
        assert torch.equal(grad, torch.ones_like(grad))
        return
    expected, _ = problem.gradient(Tape(), odegrad.Dopri5(), stepsize, times)
    found, sol = problem.gradient(gradient, odegrad.Dopri5(), stepsize, times)
    assert relative(found, expected) <= 1e-12
    for j in range(len(times) - 1):
        if times[j] == times[j + 1]:
            assert torch.equal(sol.ys[j], sol.ys[j + 1])


@pytest.mark.parametrize("outputs", [[0], [1], [-1], [0, 2]])
def test_losses_on_some_outputs(outputs: list[int]) -> None:
    problem = autonomous()
    grads = []
    for gradient in (Tape(), Discrete(), GRAPHS):
        ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
        ys = odegrad.solve(problem.f, problem.y0, ts, gradient=gradient).ys
        found = torch.autograd.grad(
            loss(ys[outputs]),
            [problem.y0, ts, *problem.others],
            allow_unused=True,
            materialize_grads=True,
        )
        grads.append(list(found))
    assert max(relative(x, grads[0]) for x in grads[1:]) <= 1e-12


def test_one_leaf_of_a_structured_state_in_the_loss() -> None:
    problem = CASES[2]()
    grads = []
    for gradient in (Tape(), Discrete(), GRAPHS):
        ys = odegrad.solve(problem.f, problem.y0, TIMES, gradient=gradient).ys
        grads.append(list(torch.autograd.grad(loss(ys["s"]), problem.y0_leaves)))
    assert max(relative(x, grads[0]) for x in grads[1:]) <= 1e-12


# Oracles that share no code with the library.


def plain_rk4(f: Any, y: Tensor, ts: Tensor, n: int) -> Tensor:
    """Classical Runge–Kutta, n equal steps per interval, written out."""
    ys = [y]
    for j in range(len(ts) - 1):
        h = (ts[j + 1] - ts[j]) / n
        for i in range(n):
            t = ts[j] + i * h
            k1 = f(t, y)
            k2 = f(t + h / 2, y + h / 2 * k1)
            k3 = f(t + h / 2, y + h / 2 * k2)
            k4 = f(t + h, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        ys.append(y)
    return torch.stack(ys)


def test_against_plain_runge_kutta_under_autograd() -> None:
    problem = CASES[1]()
    found, _ = problem.gradient(Discrete(), odegrad.RK4(), Steps(5))
    ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    ys = plain_rk4(lambda t, y: problem.f(t, y, *problem.args), problem.y0, ts, 5)
    inputs = [problem.y0, *problem.others, ts]
    assert relative(found, list(torch.autograd.grad(loss(ys), inputs))) <= 1e-12


def plain_pair(
    rk: Any, w: np.ndarray, y: np.ndarray, grid: list[float], amplitude: complex
) -> np.ndarray:
    """An explicit scheme with SciPy's coefficients on a recorded grid, for y' = tanh(W y) a cos t."""
    for t, u in pairwise(grid):
        h, k = u - t, []
        for i in range(rk.n_stages):
            stage = y + h * sum((rk.A[i, j] * k[j] for j in range(i)), 0 * y)
            k.append(np.tanh(w @ stage) * amplitude * np.cos(t + rk.C[i] * h))
        y = y + h * sum(rk.B[i] * k[i] for i in range(rk.n_stages))
    return y


@pytest.mark.parametrize(
    ("scheme", "rk"),
    [
        (odegrad.Dopri5(), scipy.integrate.RK45),
        (odegrad.Bosh3(), scipy.integrate.RK23),
    ],
)
def test_against_complex_step_with_scipys_coefficients(scheme: Any, rk: Any) -> None:
    w = torch.tensor(np.random.default_rng(0).normal(size=(3, 3)), requires_grad=True)
    y0, a = leaf(3), torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    sol = odegrad.solve(
        lambda t, y: torch.tanh(w @ y) * a * torch.cos(t),
        y0,
        [0.0, 2.0],
        scheme=scheme,
        stepsize=odegrad.PID(rtol=1e-3, atol=1e-4),
    )
    grads = torch.autograd.grad(sol.ys[-1].sum(), [y0, w, a])
    grid = sol.grid.times([0.0, 2.0])
    yn, wn, an = y0.detach().numpy(), w.detach().numpy(), a.item()
    np.testing.assert_allclose(sol.ys[-1].detach(), plain_pair(rk, wn, yn, grid, an), rtol=1e-13)
    step = 1e-30
    for i in range(3):
        e = np.eye(3)[i] * step * 1j
        value = plain_pair(rk, wn, yn + e, grid, an).sum().imag / step
        assert abs(value - grads[0][i].item()) <= 1e-12 * grads[0].norm()
        for j in range(3):
            dw = np.zeros((3, 3), complex)
            dw[i, j] = step * 1j
            value = plain_pair(rk, wn + dw, yn, grid, an).sum().imag / step
            assert abs(value - grads[1][i, j].item()) <= 1e-12 * grads[1].norm()
    value = plain_pair(rk, wn, yn, grid, an + step * 1j).sum().imag / step
    assert abs(value - grads[2].item()) <= 1e-12 * abs(grads[2].item())


def test_linear_system_closed_form() -> None:
    """Euler on y' = a y: y_N = (1 + h a)^N y_0, and its derivatives."""
    a, y0 = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True), leaf(1)
    ts = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    ys = odegrad.solve(lambda t, y: a * y, y0, ts, scheme=odegrad.Euler(), stepsize=Steps(10)).ys
    grads = torch.autograd.grad(ys[-1].sum(), [a, y0, ts])
    h, z = 0.2, 1 - 0.7 * 0.2
    expected = [10 * h * z**9 * y0.item(), z**10, -0.7 * z**9 * y0.item()]
    assert grads[0].item() == pytest.approx(expected[0], rel=1e-14)
    assert grads[1].item() == pytest.approx(expected[1], rel=1e-14)
    assert grads[2].tolist() == pytest.approx([-expected[2], expected[2]], rel=1e-13)


def test_complex_state() -> None:
    w = torch.randn(2, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    w.requires_grad_()
    y0 = torch.tensor([1 + 1j, 0.5 - 1j], dtype=torch.complex128, requires_grad=True)
    grads = []
    for gradient in (Tape(), Discrete(), GRAPHS):
        ts = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        ys = odegrad.solve(lambda t, y: torch.tanh(w @ y) * t, y0, ts, gradient=gradient).ys
        grads.append(list(torch.autograd.grad(ys[-1].abs().square().sum(), [w, y0, ts])))
    assert max(relative(x, grads[0]) for x in grads[1:]) <= 1e-12
    assert torch.autograd.gradcheck(
        lambda w, y: odegrad.solve(
            lambda t, y: torch.tanh(w @ y), y, [0.0, 1.0], stepsize=Steps(3)
        ).ys[-1],
        (w, y0),
    )


# functional_call: the headline. The field's module is called with weights that are not its own.


class Model(nn.Module):
    def __init__(self, gradient: Any, stepsize: Any) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3).double()
        self.ode = odegrad.NeuralODE(mlp(), gradient=gradient, stepsize=stepsize)

    def forward(self, x: Tensor) -> Tensor:
        return self.ode(self.encoder(x), [0.0, 0.5, 1.0])[-1]


@pytest.mark.parametrize("stepsize", [Steps(4), odegrad.PID(1e-5, 1e-7)])
def test_functional_call_with_fast_weights(stepsize: Any) -> None:
    torch.manual_seed(0)
    x = leaf(4, 3)
    grads = []
    for gradient in (Tape(), Discrete(), Discrete(Every(3)), GRAPHS):
        torch.manual_seed(0)
        model = Model(gradient, stepsize)
        slow = dict(model.named_parameters())
        fast = {k: (1.5 * v.detach() + 0.1).requires_grad_() for k, v in slow.items()}
        value = torch.func.functional_call(model, fast, (x,)).square().sum()
        grads.append(list(torch.autograd.grad(value, list(fast.values()))))
        assert all(v.grad is None for v in slow.values())
        assert all(a is b for a, b in zip(model.parameters(), slow.values(), strict=True))
    assert max(relative(x, grads[0]) for x in grads[1:]) <= 1e-12


@pytest.mark.parametrize("stepsize", [Steps(4), odegrad.PID(1e-5, 1e-7)])
def test_inner_loop_of_meta_learning(stepsize: Any) -> None:
    """Gradient through one gradient step taken on fast weights: a second derivative."""
    x = leaf(4, 3)
    results = []
    for gradient in (Tape(), Discrete(), GRAPHS):
        torch.manual_seed(0)
        model = Model(gradient, stepsize)
        weights = dict(model.named_parameters())
        value = torch.func.functional_call(model, weights, (x,)).square().sum()
        inner = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        fast = {k: w - 0.1 * g for (k, w), g in zip(weights.items(), inner, strict=True)}
        outer = torch.func.functional_call(model, fast, (x,)).square().sum()
        results.append(list(torch.autograd.grad(outer, list(weights.values()))))
    assert max(relative(x, results[0]) for x in results[1:]) <= 1e-11


@modes
def test_torch_func_grad(gradient: Any) -> None:
    x = leaf(4, 3).detach()
    torch.manual_seed(0)
    model = Model(gradient, Steps(4))
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def value(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (x,)).square().sum()

    found = torch.func.grad(value)(weights)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert relative(list(found.values()), list(expected)) <= 1e-12


def test_higher_derivatives() -> None:
    net, y0 = mlp(4, 2), leaf(3, 2)
    inputs = [y0, *net.parameters()]
    results = []
    for gradient in (Tape(), Discrete(), GRAPHS):
        ts = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        ys = odegrad.solve(
            lambda t, y: net(y) * (1 + t), y0, ts, stepsize=Steps(2), gradient=gradient
        ).ys
        found: list[Tensor] = []
        value = loss(ys)
        for _ in range(3):
            grads = torch.autograd.grad(value, [*inputs, ts], create_graph=True)
            found += grads
            value = torch.stack([g.square().sum() for g in grads]).sum()
        results.append([g.detach() for g in found])
    assert max(relative(x, results[0]) for x in results[1:]) <= 1e-11


@modes
def test_gradcheck_and_gradgradcheck(gradient: Any) -> None:
    w = leaf(2, 2)
    y0 = leaf(2, seed=1)
    ts = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=True)

    def run(w: Tensor, y0: Tensor, ts: Tensor) -> Tensor:
        field = lambda t, y: torch.tanh(w @ y) * torch.cos(t)  # noqa: E731
        return odegrad.solve(
            field, y0, ts, scheme=odegrad.Bosh3(), stepsize=Steps(3), gradient=gradient
        ).ys

    assert torch.autograd.gradcheck(run, (w, y0, ts))
    assert torch.autograd.gradgradcheck(run, (w, y0, ts))


@modes
def test_running_cost_is_the_schemes_own_quadrature(gradient: Any) -> None:
    """A quadrature leaf equals an extra state that is not fed back, and does not change the steps."""
    net, y0, weight = mlp(), leaf(4, 3), leaf(seed=5)

    def cost(t: Tensor, y: Tensor) -> Tensor:
        return weight * (y.square().sum(-1) * torch.exp(-t))

    def extended(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return net(z[0]), cost(t, z[0])

    inputs = [y0, weight, *net.parameters()]
    pid = odegrad.PID(1e-4, 1e-6)
    plain = odegrad.solve(lambda t, y: net(y), y0, TIMES, stepsize=pid)
    sol = odegrad.solve(
        lambda t, y: net(y), y0, TIMES, stepsize=pid, running=cost, gradient=gradient
    )
    assert sol.grid == plain.grid
    assert torch.equal(sol.ys, plain.ys)
    assert sol.running is not None
    assert sol.running.shape == (3, 4)
    zero = torch.zeros(4, dtype=torch.float64)
    other = odegrad.solve(extended, (y0, zero), TIMES, stepsize=sol.grid, gradient=Tape())
    torch.testing.assert_close(sol.running, other.ys[1], rtol=1e-13, atol=1e-13)
    found = torch.autograd.grad(sol.running[-1].sum() + loss(sol.ys), inputs)
    expected = torch.autograd.grad(other.ys[1][-1].sum() + loss(other.ys[0]), inputs)
    assert relative(list(found), list(expected)) <= 1e-12


def test_gradient_converges_at_the_order_of_the_scheme() -> None:
    """The discrete gradient tends to the gradient of the exact solution, y0 · t · exp(a t)."""
    for scheme in (odegrad.Midpoint(), odegrad.RK4()):
        errors = []
        for n in (8, 16):
            a = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
            y0 = torch.ones(1, dtype=torch.float64)
            sol = odegrad.solve(
                lambda t, y, a: a * y, y0, [0, 1], (a,), scheme=scheme, stepsize=Steps(n)
            )
            (grad,) = torch.autograd.grad(sol.ys[-1].sum(), a)
            errors.append(abs(grad.item() - np.exp(0.9)))
        assert np.log2(errors[0] / errors[1]) == pytest.approx(scheme.order, abs=0.2)
