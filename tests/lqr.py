"""A linear-quadratic problem: its optimum in continuous time, and that of its discretisation.

    y' = A y + B u,    J = ½ ∫_0^T (yᵀQy + uᵀRu) dt + ½ y(T)ᵀ S y(T).

In continuous time the costate is a = P y and the optimal control u = −R⁻¹Bᵀa, with P by the Riccati
equation −P' = AᵀP + PA − PBR⁻¹BᵀP + Q, P(T) = S, and J = ½ y(0)ᵀ P(0) y(0).

The discretised problem has one explicit Runge–Kutta step and one constant control per piece, and the
running cost by the scheme's own quadrature, h Σ_i b_i ℓ(Y_i, u). All stages are linear in
x = (y0, u_1, …, u_N), so that J = ½ xᵀGx with a dense matrix. Neither shares code with the library.

Reference: Bryson & Ho, *Applied Optimal Control*, Taylor & Francis 1975, chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

Tableau = tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]
"""(a, b) of an explicit scheme; the problem does not read the time."""

EULER: Tableau = (((),), (1.0,))
MIDPOINT: Tableau = (((), (1 / 2,)), (0.0, 1.0))
RK4: Tableau = (((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


@dataclass(frozen=True)
class LQR:
    """The problem.

    Arguments:
        A: Shape [d, d].
        B: Shape [d, m].
        Q: Shape [d, d], symmetric, positive semidefinite.
        R: Shape [m, m], symmetric, positive definite.
        S: Shape [d, d], like Q.
        y0: Shape [d].
        T: The horizon.
    """

    A: np.ndarray
    B: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    S: np.ndarray
    y0: np.ndarray
    T: float


THREE_STATES = LQR(
    A=np.array([[0.0, 1.0, 0.0], [-1.0, -0.2, 0.5], [0.3, 0.0, -0.7]]),
    B=np.array([[0.0, 0.4], [1.0, 0.0], [0.2, 1.0]]),
    Q=np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]]),
    R=np.array([[0.5, 0.1], [0.1, 0.8]]),
    S=np.array([[1.0, 0.0, 0.2], [0.0, 2.0, 0.0], [0.2, 0.0, 1.0]]),
    y0=np.array([1.0, -0.5, 0.7]),
    T=2.0,
)


@dataclass(frozen=True)
class Optimum:
    """The optimum in continuous time.

    Arguments:
        states: y at the times asked for, shape [n, d].
        costates: a = P y there, shape [n, d].
        controls: u there, shape [n, m].
        cost: J.
    """

    states: np.ndarray
    costates: np.ndarray
    controls: np.ndarray
    cost: float


def continuous(problem: LQR, times: np.ndarray) -> Optimum:
    """The continuous optimum at `times`, which ascend within [0, T], to about 1e-12.

    P is integrated from T to 0, then the closed loop y' = (A − BR⁻¹BᵀP) y from 0.
    """
    A, B, Q, T = problem.A, problem.B, problem.Q, problem.T
    d = len(A)
    gain = np.linalg.solve(problem.R, B.T)  # u = −gain a
    # Short steps, so that the interpolant between them is as good as they are.
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13, "max_step": T / 200}

    def riccati(t: float, p: np.ndarray) -> np.ndarray:
        P = p.reshape(d, d)
        return -(A.T @ P + P @ A - P @ B @ gain @ P + Q).ravel()

    p = solve_ivp(riccati, (T, 0.0), problem.S.ravel(), dense_output=True, **options).sol

    def closed_loop(t: float, y: np.ndarray) -> np.ndarray:
        return A @ y - B @ (gain @ (p(t).reshape(d, d) @ y))

    y = solve_ivp(closed_loop, (0.0, T), problem.y0, dense_output=True, **options).sol
    states = y(times).T
    costates = np.stack([p(t).reshape(d, d) @ x for t, x in zip(times, states, strict=True)])
    cost = 0.5 * problem.y0 @ p(0.0).reshape(d, d) @ problem.y0
    return Optimum(states, costates, -costates @ gain.T, float(cost))


@dataclass(frozen=True)
class Discretised:
    """J = ½ xᵀGx for x = (y0, u), with u the controls of all pieces one after the other.

    Arguments:
        G: Shape [d + N m, d + N m].
        y0: Shape [d].
        m: The number of controls.
    """

    G: np.ndarray
    y0: np.ndarray
    m: int

    def cost(self, u: np.ndarray) -> float:
        """J at controls of shape [N, m]."""
        x = np.concatenate([self.y0, u.ravel()])
        return float(0.5 * x @ self.G @ x)

    def gradients(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(∂J/∂y0, ∂J/∂u), shapes [d] and [N, m]."""
        d = len(self.y0)
        grad = self.G @ np.concatenate([self.y0, u.ravel()])
        return grad[:d], grad[d:].reshape(-1, self.m)

    def optimum(self) -> np.ndarray:
        """The controls that minimise J, shape [N, m]: G_uu u = −G_uy y0."""
        d = len(self.y0)
        u = np.linalg.solve(self.G[d:, d:], -self.G[d:, :d] @ self.y0)
        return u.reshape(-1, self.m)


def discretised(problem: LQR, tableau: Tableau, n: int) -> Discretised:
    """The problem with n equal steps and as many pieces of the control."""
    a, b = tableau
    d, m = problem.B.shape
    h, size = problem.T / n, d + n * m
    y = np.eye(d, size)  # every quantity is a matrix that multiplies x
    G = np.zeros((size, size))
    for k in range(n):
        u = np.eye(m, size, d + k * m)
        slopes: list[np.ndarray] = []
        for row, weight in zip(a, b, strict=True):
            stage = y + h * sum((w * s for w, s in zip(row, slopes, strict=True)), 0.0 * y)
            slopes.append(problem.A @ stage + problem.B @ u)
            G += h * weight * (stage.T @ problem.Q @ stage + u.T @ problem.R @ u)
        y = y + h * sum((w * s for w, s in zip(b, slopes, strict=True)), 0.0 * y)
    return Discretised(G + y.T @ problem.S @ y, problem.y0, m)
