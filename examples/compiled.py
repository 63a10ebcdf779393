"""The same gradient from both engines, and what each takes: python examples/compiled.py."""

import time

import torch

import odegrad

torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(2, 50),
    torch.nn.Tanh(),
    torch.nn.Linear(50, 50),
    torch.nn.Tanh(),
    torch.nn.Linear(50, 2),
).double()
y0 = torch.randn(20, 2, dtype=torch.float64)
ts = torch.linspace(0.0, 5.0, 6, dtype=torch.float64)


def gradient(**options):
    sol = odegrad.solve(lambda t, y: net(y), y0, ts, scheme=odegrad.RK4(), **options)
    return torch.autograd.grad(sol.ys.square().mean(), net.parameters())


def seconds(**options):
    start = time.perf_counter()
    gradient(**options)
    return time.perf_counter() - start


choices = {
    "eager, states": {},
    "eager, graphs": {"gradient": odegrad.Discrete(odegrad.StoreAll(keep=odegrad.Keep.GRAPH))},
    "compiled, states": {"compile": True},
}
exact = gradient(stepsize=odegrad.Steps(50), gradient=odegrad.Tape())
print(f"{'':18}{'first':>10}{'later':>10}   largest difference from backpropagation")
for name, options in choices.items():
    options = {"stepsize": odegrad.Steps(50), **options}
    first, later = seconds(**options), min(seconds(**options) for _ in range(3))
    difference = max(
        float((a - b).abs().max()) for a, b in zip(gradient(**options), exact, strict=True)
    )
    print(f"{name:18}{first:8.2f} s{1e3 * later:7.1f} ms   {difference:.1e}")
    assert difference < 1e-12
