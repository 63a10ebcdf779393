"""What two ranks compute, for test_distributed.py: python ranks.py RANK STORE OUT.

Every scenario compares gradients with those of one process, by `Tape`, and gives numbers or the error
that was raised; rank 0 writes them down.
"""

from __future__ import annotations

import datetime
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import odegrad
from odegrad import PID, Binomial, Discrete, Keep, Steps, StoreAll, Tape

WORLD = 2
ADAPTIVE = PID(1e-5, 1e-7)
STATES = Discrete()
SCENARIOS: dict[str, Any] = {}
GRADIENTS = {
    "states": STATES,
    "graphs": Discrete(StoreAll(keep=Keep.GRAPH)),
    "binomial": Discrete(Binomial(3)),
    "memory": Discrete(memory="1MiB"),
    "tape": Tape(),
}


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(3, 8), nn.Linear(8, 3), nn.Linear(3, 3)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(y * (1 + t))))


class Model(nn.Module):
    """A solve between two layers; the last layer of the field is never used."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1)
        self.ode = odegrad.NeuralODE(Field(), **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.ode(self.first(x), [0.0, 1.0])[-1])


class Read(nn.Module):
    """Reads a module's parameters without calling it."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return Field.forward(self.field, t, y)


def model(gradient: Any = STATES, stepsize: Any = ADAPTIVE) -> Model:
    torch.manual_seed(0)
    return Model(gradient=gradient, stepsize=stepsize).double()


def batches() -> list[Tensor]:
    """One for each rank; the second takes more steps."""
    torch.manual_seed(1)
    x = torch.randn(WORLD, 4, 3, dtype=torch.float64)
    return [x[0], 20.0 * x[1]]


def loss(y: Tensor) -> Tensor:
    return y.square().mean()


def single(net: nn.Module, times: float = 1.0) -> nn.Module:
    """`net` with the gradient of the mean loss over all batches, in one process."""
    net.zero_grad()
    for x in batches():
        (times / WORLD * loss(net(x))).backward()
    return net


def error(net: nn.Module, expected: nn.Module, values: bool = False) -> float:
    """The largest relative difference of gradients (or of the parameters themselves)."""
    found = []
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        a, b = (p, q) if values else (p.grad, q.grad)
        if a is None or b is None:  # only a tape leaves out what is not used
            found.append(0.0 if b is None and (a is None or not a.any()) else float("inf"))
            continue
        a = a.full_tensor() if hasattr(a, "full_tensor") else a
        size = float(b.norm())
        found.append(float((a - b).norm()) / size if size else float(a.abs().max()))
    return max(found)


def mine() -> Tensor:
    return batches()[dist.get_rank()]


def scenario(function: Any) -> Any:
    SCENARIOS[function.__name__] = function
    return function


# DistributedDataParallel.


@scenario
def ddp() -> Any:
    found = {}
    for name, gradient in GRADIENTS.items():
        net = DistributedDataParallel(model(gradient), find_unused_parameters=name == "tape")
        loss(net(mine())).backward()
        found[name] = error(net.module, single(model(Tape())))
    return found


@scenario
def ddp_joint_batch() -> Any:
    net = DistributedDataParallel(model(stepsize=Steps(5)))
    loss(net(mine())).backward()
    whole = model(Tape(), Steps(5))
    loss(whole(torch.cat(batches()))).backward()
    return {"steps": error(net.module, whole)}


@scenario
def step_counts() -> Any:
    net = model()
    sol = odegrad.solve(net.ode.net, net.first(mine()), [0.0, 1.0], stepsize=ADAPTIVE)
    n = torch.tensor(sol.grid.n_steps)
    counts = [torch.zeros_like(n) for _ in range(WORLD)]
    dist.all_gather(counts, n)
    return [int(x) for x in counts]


@scenario
def ddp_unused() -> Any:
    """Three iterations for each set of options: unused parameters get zeros."""
    found = {}
    for option in ("", "find_unused_parameters", "static_graph", "gradient_as_bucket_view"):
        net = DistributedDataParallel(model(), **({option: True} if option else {}))
        for _ in range(3):
            net.zero_grad()
            loss(net(mine())).backward()
        unused = net.module.ode.net.unused.weight.grad
        assert unused is not None
        assert not unused.any()
        found[option or "plain"] = error(net.module, single(model(Tape())))
    return found


@scenario
def ddp_accumulation() -> Any:
    net = DistributedDataParallel(model())
    with net.no_sync():
        loss(net(mine())).backward()
    local = model()
    loss(local(mine())).backward()
    before = error(net.module, local)
    loss(net(mine())).backward()
    return {"no_sync": before, "then": error(net.module, single(model(Tape()), 2.0))}


@scenario
def ddp_offloaded() -> Any:
    net = DistributedDataParallel(model())
    with net.no_sync(), save_on_cpu():
        loss(net(mine())).backward()
    with save_on_cpu():
        value = loss(net(mine()))
    value.backward()
    return {"both": error(net.module, single(model(Tape()), 2.0))}


# fully_shard.


def trained(net: Model, sharded: nn.Module) -> dict[str, float]:
    """Two iterations with a step of an optimiser in between, beside the same in one process."""
    twin = model(Tape())
    optimisers = [torch.optim.SGD(x.parameters(), lr=1e-3) for x in (sharded, twin)]
    found = {}
    for i in range(2):
        sharded.zero_grad()
        loss(sharded(mine())).backward()
        found[f"gradient {i}"] = error(net, single(twin))
        for optimiser in optimisers:
            optimiser.step()
    return found | {"parameters": error(net, twin, values=True)}


@scenario
def fsdp() -> Any:
    found = {}
    for name, gradient in GRADIENTS.items():
        for again in (True, False)[: 2 if name == "states" else 1]:
            net = model(gradient)
            fully_shard(net, reshard_after_forward=again)
            result = trained(net, net)
            found |= {f"{name}, reshard {again}, {key}": x for key, x in result.items()}
    return found


@scenario
def fsdp_in_parts() -> Any:
    """Each layer and the NeuralODE on their own: gathered, gone, and gathered again for backward."""
    net = model()
    for part in (net.first, net.ode, net.last, net):
        fully_shard(part)
    return trained(net, net)


@scenario
def fsdp_accumulation() -> Any:
    net = model()
    fully_shard(net)
    for last in (False, True):
        net.set_requires_gradient_sync(last)
        loss(net(mine())).backward()
    return {"both": error(net, single(model(Tape()), 2.0))}


@scenario
def fsdp_offloaded() -> Any:
    net = model()
    fully_shard(net, reshard_after_forward=True)
    with save_on_cpu():
        value = loss(net(mine()))
    value.backward()
    return {"once": error(net, single(model(Tape())))}


@scenario
def tensor_parallel() -> Any:
    """One field over both ranks, whose state is the same on both."""
    found = {}
    for name, gradient in GRADIENTS.items():
        for stepsize in (Steps(5), ADAPTIVE):
            net, whole = model(gradient, stepsize), model(Tape(), stepsize)
            plan = {"a": ColwiseParallel(), "b": RowwiseParallel()}
            parallelize_module(net.ode.net, init_device_mesh("cpu", (WORLD,)), plan)
            for x in (net, whole):
                loss(x(batches()[0])).backward()
            found[f"{name}, {stepsize}"] = error(net, whole)
    return found


# What is refused. Only rank 0 calls these, so that whatever communicates would wait for ever.


def refused(net: Any) -> str:
    """The error of solving with a field that must not be called, in one rank alone."""
    if dist.get_rank() != 0:
        return ""
    try:
        x = batches()[0].requires_grad_()
        loss(odegrad.solve(net, x, [0.0, 1.0], stepsize=Steps(2)).ys).backward()
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "nothing was raised"


@scenario
def refused_ddp() -> Any:
    return refused(DistributedDataParallel(Field().double()))


@scenario
def refused_fsdp() -> Any:
    net = Field().double()
    fully_shard(net)
    return refused(net)


@scenario
def refused_fsdp_layer() -> Any:
    net = Field().double()
    fully_shard(net.a)
    return refused(net)


@scenario
def refused_sharded() -> Any:
    net = Field().double()
    fully_shard(net)
    return refused(Read(net))


@scenario
def refused_sync_batch_norm() -> Any:
    norm = nn.SyncBatchNorm(3).double()
    return refused(lambda t, y: norm(y))


@scenario
def refused_sync_batch_norm_adaptive() -> Any:
    norm = nn.SyncBatchNorm(3).double()
    with torch.no_grad():
        if dist.get_rank() != 0:
            return ""
        try:
            odegrad.solve(lambda t, y: norm(y), batches()[0], [0.0, 1.0])
        except odegrad.errors.DistributedError as raised:
            return f"{type(raised).__name__}: {raised}"
    return "nothing was raised"


@scenario
def allowed_sync_batch_norm() -> Any:
    """Not called by f, or in evaluation mode."""
    field, found = Field().double(), []
    field.norm = nn.SyncBatchNorm(3).double()
    for f in (field, nn.Sequential(field.norm, nn.Tanh()).eval()):
        model = odegrad.NeuralODE(f, stepsize=Steps(2))
        x = batches()[0].requires_grad_()
        loss(model(x, [0.0, 1.0])).backward()
        found.append(bool(x.grad.any()))
    return found


def main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", odegrad.errors.OdegradWarning)
    patience = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", f"file://{store}", patience, WORLD, rank)
    found = {}
    for name, function in SCENARIOS.items():
        found[name] = function()
        dist.barrier()
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
