"""How far is each gradient from backpropagation through the very same steps?

For an MLP vector field, prints the relative difference to `Tape` of the discrete adjoint and of the
traditional one, for several schemes on a fixed grid. The first is rounding; the second is an error of
the order of the scheme: that gradient is inconsistent with the computed loss.

Run: python examples/exactness.py
"""

from __future__ import annotations

import torch
from torch import Tensor

import odegrad


def gradient(mode: object, scheme: object, n: int) -> Tensor:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 2)
    ).double()
    y0 = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    sol = odegrad.solve(
        lambda t, y: net(y**3),
        y0,
        [0.0, 1.0],
        scheme=scheme,
        stepsize=odegrad.Steps(n),
        gradient=mode,
    )
    grads = torch.autograd.grad(sol.ys[-1].square().mean(), [y0, *net.parameters()])
    return torch.cat([g.flatten() for g in grads])


def main() -> None:
    print(f"{'scheme':>10} {'steps':>6} {'Discrete − Tape':>16} {'Backsolve − Tape':>17}")
    for scheme in (odegrad.Euler(), odegrad.Midpoint(), odegrad.RK4(), odegrad.Dopri5()):
        for n in (25, 50, 100):
            tape = gradient(odegrad.Tape(), scheme, n)
            others = [
                gradient(mode, scheme, n) for mode in (odegrad.Discrete(), odegrad.Backsolve())
            ]
            exact, traditional = [float((g - tape).norm() / tape.norm()) for g in others]
            print(f"{type(scheme).__name__:>10} {n:>6} {exact:>16.1e} {traditional:>17.1e}")


if __name__ == "__main__":
    main()
