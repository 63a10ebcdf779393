"""How hard to throw a ball, so that it is at a place after some bounces: gradients through the bounces.

The times of the bounces, and how many there are, depend on the throw; the loss is differentiated through
all of them by the implicit function theorem.

Run: python examples/bouncing_ball.py
"""

from __future__ import annotations

import torch

import odegrad

TARGET, SECONDS = 2.5, 2.0


def f(t, y):
    x, height, across, up = y
    return torch.stack([across, up, torch.zeros_like(x), -9.81 * torch.ones_like(height)])


def main() -> None:
    throw = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    friction = torch.tensor([0.9, -0.8], dtype=torch.float64)  # what a bounce leaves of the speeds
    floor = odegrad.Event(
        lambda t, y: y[1],
        direction=-1,
        jump=lambda t, y: torch.cat([y[:2], friction * y[2:]]),
    )
    optimizer = torch.optim.Adam([throw], lr=0.1)
    for i in range(61):
        y0 = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), throw])
        sol = odegrad.solve(f, y0, [0.0, SECONDS], events=(floor,))
        loss = (sol.ys[-1, 0] - TARGET).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 20 == 0:
            bounces = ", ".join(f"{t:.3f}" for t in sol.events[0].times.tolist())
            print(f"{i:3}  loss {loss.item():.2e}  bounces at {bounces}")


if __name__ == "__main__":
    main()
