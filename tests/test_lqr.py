"""Optimal control: the continuous optimum, that of the discretised problem, and what odegrad finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor, nn

import odegrad
from lqr import EULER, LQR, MIDPOINT, RK4, THREE_STATES, continuous, discretised
from odegrad.compiled import using_backend
from odegrad.controls import PiecewiseConstant

PROBLEM = THREE_STATES
ONE_CONTROL = LQR(
    A=np.array([[0.0, 1.0], [-2.0, 0.3]]),
    B=np.array([[0.0], [1.5]]),
    Q=np.array([[1.0, 0.2], [0.2, 0.4]]),
    R=np.array([[0.3]]),
    S=np.array([[2.0, -0.5], [-0.5, 1.0]]),
    y0=np.array([-1.0, 0.4]),
    T=1.3,
)

problems = pytest.mark.parametrize("problem", [THREE_STATES, ONE_CONTROL], ids=["3", "2"])


# The references, against each other.


@problems
def test_continuous_optimum(problem):
    """(y, a)' = (A y − BR⁻¹Bᵀa, −Q y − Aᵀa), a(T) = S y(T), by matrix exponentials."""
    A, d = problem.A, len(problem.A)
    gain = np.linalg.solve(problem.R, problem.B.T)
    H = np.block([[A, -problem.B @ gain], [-problem.Q, -A.T]])
    E = expm(problem.T * H)
    a0 = np.linalg.solve(
        E[d:, d:] - problem.S @ E[:d, d:], (problem.S @ E[:d, :d] - E[d:, :d]) @ problem.y0
    )
    times = np.linspace(0, problem.T, 23)
    both = np.stack([expm(t * H) @ np.concatenate([problem.y0, a0]) for t in times])
    found = continuous(problem, times)
    np.testing.assert_allclose(found.states, both[:, :d], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.costates, both[:, d:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.controls, -both[:, d:] @ gain.T, rtol=0, atol=1e-12)
    assert found.cost == pytest.approx(0.5 * problem.y0 @ a0, abs=1e-12)


@problems
@pytest.mark.parametrize(
    ("tableau", "order"), [(EULER, 1), (MIDPOINT, 2), (RK4, 2)], ids=["Euler", "Midpoint", "RK4"]
)
def test_the_discretised_optimum_converges(problem, tableau, order):
    """Order 2 at best: constant pieces, compared with the optimal control in their middles.

    At the start of its piece a control is the optimal one to order 1 only.
    """
    errors = []
    for n in (120, 240):
        h = problem.T / n
        found = discretised(problem, tableau, n)
        u = found.optimum()
        middles = continuous(problem, h * (np.arange(n) + 0.5))
        starts = continuous(problem, h * np.arange(n))
        errors.append(
            [
                abs(found.cost(u) - middles.cost),
                abs(u - middles.controls).max(),
                abs(found.gradients(u)[0] - starts.costates[0]).max(),
                abs(u - starts.controls).max(),
            ]
        )
        assert np.abs(found.gradients(u)[1]).max() <= 1e-15
    measured = np.log2(np.array(errors[0]) / np.array(errors[1]))
    np.testing.assert_allclose(measured, [order, order, order, 1], atol=0.08)


# odegrad, against the discretised problem.


class Driven(nn.Module):
    """y' = A y + B u(t), the running cost ½ (yᵀQy + uᵀRu) and the final one ½ yᵀSy."""

    def __init__(self, problem: LQR, n: int) -> None:
        super().__init__()
        self.problem = problem
        for name in "ABQRS":
            self.register_buffer(name, torch.from_numpy(getattr(problem, name)))
        self.u = PiecewiseConstant(
            np.linspace(0.0, problem.T, n + 1),
            (problem.B.shape[1],),
            init=torch.zeros(n, problem.B.shape[1], dtype=torch.float64),
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.A @ y + self.B @ self.u(t)

    def running(self, t: Tensor, y: Tensor) -> Tensor:
        u = self.u(t)
        return 0.5 * (y @ self.Q @ y + u @ self.R @ u)

    def cost(self, y0: Tensor, scheme: odegrad.schemes.Scheme, **options: object) -> Tensor:
        """J, with one step per piece."""
        sol = odegrad.solve(
            self,
            y0,
            [0.0, self.problem.T],
            scheme=scheme,
            stepsize=odegrad.Steps(1),
            running=self.running,
            **options,
        )
        assert sol.grid.n_steps == len(self.u.values)
        return sol.running[-1] + 0.5 * sol.ys[-1] @ self.S @ sol.ys[-1]


def random_controls(f: Driven) -> np.ndarray:
    u = np.random.default_rng(0).standard_normal(f.u.values.shape)
    with torch.no_grad():
        f.u.values.copy_(torch.from_numpy(u))
    return u


@problems
@pytest.mark.parametrize(
    ("tableau", "scheme"),
    [(EULER, odegrad.Euler()), (MIDPOINT, odegrad.Midpoint()), (RK4, odegrad.RK4())],
    ids=["Euler", "Midpoint", "RK4"],
)
@pytest.mark.parametrize("gradient", [odegrad.Discrete(), odegrad.Tape()], ids=["Discrete", "Tape"])
def test_the_gradient_is_that_of_the_discretised_problem(problem, tableau, scheme, gradient):
    n = 40
    f, reference = Driven(problem, n), discretised(problem, tableau, n)
    u = random_controls(f)
    y0 = torch.tensor(problem.y0, requires_grad=True)
    cost = f.cost(y0, scheme, gradient=gradient)
    assert cost.item() == pytest.approx(reference.cost(u), rel=1e-12)
    found = torch.autograd.grad(cost, [y0, f.u.values])
    for a, b in zip(found, reference.gradients(u), strict=True):
        assert np.linalg.norm(a.numpy() - b) <= 1e-12 * np.linalg.norm(b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("compile", [False, True])
def test_no_stage_reads_the_next_piece(dtype, compile):
    """Also where times are rounded to float32, and in compiled sweeps: a wrong piece is a gross error."""
    n = 100
    f, reference = Driven(PROBLEM, n), discretised(PROBLEM, RK4, n)
    u = random_controls(f)
    f.to(dtype)
    y0 = torch.tensor(PROBLEM.y0, dtype=dtype)
    with using_backend("interpreter"):
        cost = f.cost(y0, odegrad.RK4(), compile=compile)
        (found,) = torch.autograd.grad(cost, [f.u.values])
    expected = reference.gradients(u)[1]
    error = np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected)
    assert error <= (1e-5 if dtype is torch.float32 else 1e-12)


def test_conjugate_gradients_find_the_optimum():
    """J is quadratic, so that ∇J(u + v) − ∇J(u) is the Hessian times v, to rounding."""
    f, y0 = Driven(PROBLEM, 100), torch.tensor(PROBLEM.y0)

    def gradient(u: Tensor) -> Tensor:
        with torch.no_grad():
            f.u.values.copy_(u)
        return torch.autograd.grad(f.cost(y0, odegrad.RK4()), f.u.values)[0]

    u = torch.zeros_like(f.u.values)
    at_zero = gradient(u)
    residual = direction = -at_zero
    iterations = 0
    while residual.norm() > 1e-12 * at_zero.norm():
        product = gradient(direction) - at_zero
        size = residual.square().sum()
        step = size / (direction * product).sum()
        u, residual = u + step * direction, residual - step * product
        direction = residual + residual.square().sum() / size * direction
        iterations += 1
        assert iterations <= 20
    optimum = discretised(PROBLEM, RK4, 100).optimum()
    assert np.abs(u.numpy() - optimum).max() <= 1e-8


def test_lbfgs_finds_the_optimum():
    """With a line search until the cost is no longer resolved, then by gradients alone.

    A line search compares costs, which do not show half of the digits: an error e adds ½ eᵀHe only. The
    cost is scaled because torch's L-BFGS learns nothing from a step with yᵀs ≤ 1e-10.
    """
    f, y0 = Driven(PROBLEM, 100), torch.tensor(PROBLEM.y0)
    reference = discretised(PROBLEM, RK4, 100)
    optimum = reference.optimum()

    def error_after(iterations: int, line_search: str | None, scale: float) -> float:
        optimizer = torch.optim.LBFGS(
            [f.u.values],
            max_iter=iterations,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn=line_search,
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            cost = scale * f.cost(y0, odegrad.RK4())
            cost.backward()
            return cost

        optimizer.step(closure)
        found = f.u.values.detach().numpy()
        assert reference.cost(found) == pytest.approx(reference.cost(optimum), rel=1e-13)
        return np.abs(found - optimum).max()

    assert error_after(15, "strong_wolfe", 1.0) <= 1e-6
    assert error_after(15, None, 1e12) <= 1e-8
