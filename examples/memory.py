"""One gradient with a fraction of the memory, and still the same gradient.

Backpropagation through 500 Runge–Kutta steps keeps every graph. `Discrete` keeps what it is allowed to,
and takes the fewest steps again; the loss of each label is evaluated inside the sweeps.

Run: python examples/memory.py
"""

from __future__ import annotations

import torch

import odegrad

LABELS, STEPS = 100, 5  # so many intervals, of so many steps each


def main() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, 8),
    ).double()
    y0 = torch.randn(32, 8, dtype=torch.float64)
    labels = torch.randn(LABELS + 1, 32, 8, dtype=torch.float64)
    ts = torch.linspace(0.0, 2.0, LABELS + 1, dtype=torch.float64)
    problem = {"scheme": odegrad.RK4(), "stepsize": odegrad.Steps(STEPS)}

    def f(t, y):
        return net(y)

    def loss_at(j, y):
        return (y - labels[j]).square().mean()

    def gradient(mode):
        sol = odegrad.solve(f, y0, ts, gradient=mode, loss_at=loss_at, **problem)
        grads = torch.autograd.grad(sol.loss, list(net.parameters()))
        return torch.cat([g.flatten() for g in grads]), sol.stats

    exact, _ = gradient(odegrad.Tape())
    modes = {
        "every graph": odegrad.Discrete(odegrad.StoreAll(keep=odegrad.Keep.GRAPH)),
        "every state": odegrad.Discrete(),
        "4 MiB": odegrad.Discrete(memory="4MiB"),
        "1 MiB": odegrad.Discrete(memory="1MiB"),
        "5 states": odegrad.Discrete(odegrad.Binomial(5)),
    }
    print(f"{'allowed':>12} {'kept':>12} {'evaluations':>12} {'difference':>12}")
    for name, mode in modes.items():
        found, stats = gradient(mode)
        difference = float((found - exact).norm() / exact.norm())
        kept = f"{stats.kept_bytes / 2**20:.2f} MiB"
        print(f"{name:>12} {kept:>12} {stats.recompute_factor:>12.2f} {difference:>12.1e}")
        assert difference < 1e-12

    print("\nThe same is known before anything runs:\n")
    odegrad.plan(f, y0, ts, gradient=odegrad.Discrete(memory="4MiB"), loss_at=loss_at, **problem)


if __name__ == "__main__":
    main()
