"""Data-parallel training of a neural ODE: each rank solves for its share of the batch.

The solve is one node of the autograd graph, so that DistributedDataParallel sees one gradient for each
parameter, averages it over the ranks, and adds nothing to what odegrad does. Ranks may take different
numbers of adaptive steps. Prints whether the ranks agree after training, and how far the averaged
gradient is from that of one process over the whole batch.

Run: torchrun --standalone --nproc-per-node 2 examples/ddp.py
or, as a single process: python examples/ddp.py
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import odegrad


def network() -> odegrad.NeuralODE:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    return odegrad.NeuralODE(net, stepsize=odegrad.PID(rtol=1e-6, atol=1e-8))


def data(rank: int) -> tuple[Tensor, Tensor]:
    """Points, and where a rotation by a quarter takes them; those of later ranks lie farther out."""
    generator = torch.Generator().manual_seed(rank)
    x = (1 + 2 * rank) * torch.randn(32, 2, dtype=torch.float64, generator=generator)
    return x, torch.stack([-x[:, 1], x[:, 0]], dim=1)


def loss(model: nn.Module, rank: int) -> Tensor:
    x, target = data(rank)
    return (model(x, [0.0, 1.0])[-1] - target).square().mean()


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def main() -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        rank, world = dist.get_rank(), dist.get_world_size()
        model: nn.Module = DistributedDataParallel(network())
    else:
        rank, world = 0, 1
        model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    loss(model, rank).backward()
    alone = network()
    for other in range(world):
        (loss(alone, other) / world).backward()
    error = float((gradient(model) - gradient(alone)).norm() / gradient(alone).norm())

    values = []
    for _ in range(10):
        optimizer.zero_grad()
        value = loss(model, rank)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))

    found = torch.cat([p.detach().flatten() for p in model.parameters()])
    everywhere = [torch.zeros_like(found) for _ in range(world)]
    if world > 1:
        # DistributedDataParallel keeps its group, and gloo's threads, until the interpreter ends; there
        # torch aborts if such a thread lets go of a tensor of Python's (pytorch/pytorch#179291). A
        # group of its own is gone, with its threads, when it is destroyed.
        dist.all_gather(everywhere, found, group=dist.new_group())
        dist.destroy_process_group()
    else:
        everywhere = [found]
    agree = all(torch.equal(x, found) for x in everywhere)
    if rank == 0:
        print(f"processes: {world}")
        print(f"loss on rank 0: {values[0]:.3f} at first, {values[-1]:.3f} after 10 steps")
        print(f"ranks agree: {agree}")
        print(f"averaged gradient − gradient of one process, relative: {error:.1e}")
    if not agree or error > 1e-12:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
