"""One gradient in a tenth, a hundredth and a five-hundredth of the memory, and still the same gradient.

Run it: ``python examples/memory.py``. Backpropagation through 500 Runge–Kutta steps keeps every graph;
`Discrete` keeps what it is allowed to, and takes the fewest steps again.
"""

import torch

import odegrad

STEPS = 500

torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8)
).double()
y0 = torch.randn(32, 8, dtype=torch.float64)
labels = torch.randn(101, 32, 8, dtype=torch.float64)
problem = {"scheme": odegrad.RK4(), "stepsize": odegrad.Steps(STEPS // 100)}
ts = torch.linspace(0.0, 2.0, 101, dtype=torch.float64)


def f(t, y):
    return net(y)


def gradient(mode):
    """The gradient of the squared distance from the labels, with the loss evaluated inside the sweeps."""

    def loss_at(j, y):
        return (y - labels[j]).square().mean()

    sol = odegrad.solve(f, y0, ts, gradient=mode, loss_at=loss_at, **problem)
    return torch.autograd.grad(sol.loss, list(net.parameters())), sol.stats


modes = {
    "a graph per step": odegrad.Discrete(odegrad.StoreAll(odegrad.Keep.GRAPH)),
    "a state per step": odegrad.Discrete(),
    "4 MiB": odegrad.Discrete(memory="4MiB"),
    "2 MiB": odegrad.Discrete(memory="2MiB"),
    "5 states": odegrad.Discrete(odegrad.Binomial(5)),
}
exact, _ = gradient(odegrad.Tape())
print(f"{'':18} {'kept between steps':>20} {'steps taken':>12} {'difference':>12}")
for name, mode in modes.items():
    found, stats = gradient(mode)
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
    taken = STEPS + stats.recomputed
    print(f"{name:18} {stats.kept_bytes / 2**20:16.2f} MiB {taken:12} {error:12.1e}")
    assert error < 1e-12

print("\nodegrad.plan says so before anything runs:\n")
odegrad.plan(f, y0, ts, gradient=odegrad.Discrete(memory="4MiB"), **problem)
