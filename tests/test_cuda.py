"""On a CUDA device: what differs there from the CPU, for the eager engine.

That is, the device's random numbers, autocast and loss scaling, the allocator that budgets are measured
by, checkpoints in pinned memory and on disk, and times on the CPU beside states on the device. CUDA
graphs are in test_recorded.py, transfers in test_storage.py. Without a device these tests are skipped;
ODEGRAD_TEST_DEVICE=cpu runs their logic on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import odegrad
from odegrad import PID, Discrete, Keep, Steps, StoreAll, Tape
from odegrad.allocations import peak_bytes
from odegrad.budget import budget_bytes
from odegrad.checkpoints import Binomial, Every, Online, Rewind, Tiered
from odegrad.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event

DEVICE = torch.device(os.environ.get("ODEGRAD_TEST_DEVICE", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
    # torch says so whenever a thread of autograd is the first to call the library.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
]
POLICIES = [
    Discrete(),
    Discrete(StoreAll(keep=Keep.GRAPH)),
    Discrete(Every(3)),
    Discrete(Binomial(3)),
    Discrete(Online(4)),
    Discrete(Tiered(2, 2)),
    Discrete(Tiered(2, 1, device=2)),
    Discrete(memory="2MiB"),
]
STEPS = [Steps(9), PID(1e-5, 1e-7)]


class Field(nn.Module):
    """A time-dependent network."""

    def __init__(self, dropout: float = 0.0, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Linear(width, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.b(self.dropout(torch.tanh(self.a(y * t.cos().unsqueeze(-1)))))


def network(dtype: torch.dtype = torch.float64, **options: Any) -> Field:
    torch.manual_seed(0)
    return Field(**options).to(DEVICE, dtype)


def start(n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    y0 = torch.sin(torch.arange(3.0 * n, dtype=torch.float64)).reshape(n, 3)
    return y0.to(DEVICE, dtype).requires_grad_()


def times(on: torch.device | str = "cpu") -> Tensor:
    return torch.tensor([0.0, 0.3, 0.55, 1.0], dtype=torch.float64, device=on, requires_grad=True)


def gradients(ys: Tensor, *of: Tensor) -> list[Tensor]:
    squares = ys.abs().square()
    weights = torch.arange(1.0, len(ys) + 1, dtype=squares.dtype, device=ys.device)
    loss = torch.einsum("t...,t->", squares, weights)
    return list(torch.autograd.grad(loss, of))


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.device == b.device
        assert a.isfinite().all()
        assert float((a - b).norm()) <= tolerance * float(b.norm())


@pytest.mark.parametrize("stepsize", STEPS)
@pytest.mark.parametrize("gradient", POLICIES, ids=str)
def test_policies(stepsize: Any, gradient: Discrete) -> None:
    net, y0, ts = network(), start(), times()
    sol = odegrad.solve(net, y0, ts, stepsize=stepsize, gradient=gradient)
    tape = odegrad.solve(net, y0, ts, stepsize=sol.grid, gradient=Tape())
    every = (y0, ts, *net.parameters())
    agree(gradients(sol.ys, *every), gradients(tape.ys, *every))
    assert torch.equal(sol.ys, tape.ys)


def test_rewinding() -> None:
    net, y0 = network(), start()
    scheme = odegrad.Reversible(odegrad.RK4())
    found = [
        odegrad.solve(net, y0, [0.0, 1.0], scheme=scheme, stepsize=Steps(9), gradient=g).ys
        for g in (Discrete(Rewind()), Tape())
    ]
    every = (y0, *net.parameters())
    agree(gradients(found[0], *every), gradients(found[1], *every))


@pytest.mark.parametrize("on", ["cpu", "device"])
@pytest.mark.parametrize("land", [True, False])
def test_times_on_either_device(on: str, land: bool) -> None:
    net, y0, ts = network(), start(), times(DEVICE if on == "device" else "cpu")
    sol = odegrad.solve(net, y0, ts, stepsize=PID(1e-5, 1e-7), land=land)
    tape = odegrad.solve(net, y0, ts, stepsize=sol.grid, gradient=Tape())
    every = (y0, ts, *net.parameters())
    agree(gradients(sol.ys, *every), gradients(tape.ys, *every))
    assert sol(0.4).device == y0.device


@pytest.mark.parametrize("stepsize", STEPS)
@pytest.mark.parametrize("land", [True, False])
@pytest.mark.parametrize("gradient", POLICIES, ids=str)
def test_where_new_tensors_are_on_the_device(stepsize: Any, land: bool, gradient: Any) -> None:
    """As after torch.set_default_device."""
    net, y0 = network(), start()
    every = (y0, *net.parameters())
    options = {"stepsize": stepsize, "land": land, "gradient": gradient}
    expected = odegrad.solve(net, y0, [0.0, 0.3, 1.0], **options).ys
    with torch.device(DEVICE):
        ys = odegrad.solve(net, y0, [0.0, 0.3, 1.0], **options).ys
        found = gradients(ys, *every)
    assert torch.equal(ys, expected)
    agree(found, gradients(expected, *every))


@pytest.mark.parametrize("stepsize", [Steps(9), odegrad.Fixed(0.13)])
@pytest.mark.parametrize("gradient", POLICIES[:-1], ids=str)
def test_the_random_numbers_of_the_device(stepsize: Any, gradient: Discrete) -> None:
    """Dropout is drawn again in recomputation as it was drawn, and the generator is left as by Tape."""
    net, y0 = network(dropout=0.4), start()
    every = (y0, *net.parameters())

    def run(mode: Any) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(7)
        sol = odegrad.solve(net, y0, [0.0, 0.4, 1.0], stepsize=stepsize, gradient=mode)
        return gradients(sol.ys, *every), torch.rand(3, device=DEVICE)

    found, after = run(gradient)
    expected, after_tape = run(Tape())
    agree(found, expected)
    assert torch.equal(after, after_tape)


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("gradient", POLICIES[:4], ids=str)
def test_autocast(dtype: torch.dtype, gradient: Discrete) -> None:
    """The same numbers, and the gradient of the program that ran: to the rounding of its products."""
    net, y0 = network(torch.float32, width=64), start(64, torch.float32)
    every = (y0, *net.parameters())

    def run(mode: Any) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(DEVICE.type, dtype):
            ys = odegrad.solve(net, y0, [0.0, 1.0], stepsize=Steps(16), gradient=mode).ys
        return ys, gradients(ys, *every)

    ys, found = run(gradient)
    expected, tape = run(Tape())
    assert torch.equal(ys, expected)
    agree(found, tape, 2e-2 if dtype is torch.bfloat16 else 3e-3)


def test_loss_scaling() -> None:
    """Training with float16 products and a scaler: overflow is skipped, then the loss falls."""
    net = network(torch.float32, width=32)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**24, growth_interval=1000)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    y0, losses = start(32, torch.float32).detach(), []
    for _ in range(25):
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.float16):
            ys = odegrad.solve(net, y0, [0.0, 1.0], stepsize=Steps(8)).ys
        loss = functional.mse_loss(ys[-1].float(), -y0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert scaler.get_scale() < 2.0**24
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("budget", ["1MiB", "2MiB", "8MiB"])
@pytest.mark.parametrize("stepsize", [Steps(200), PID(1e-6, 1e-8)])
def test_a_budget_is_kept(budget: str, stepsize: Any) -> None:
    """By the measure of torch's allocator."""
    net, y0 = network(torch.float32, width=16), start(1024, torch.float32)

    def gradient() -> None:
        mode = Discrete(memory=budget)
        ys = odegrad.solve(net, y0, [0.0, 5.0], stepsize=stepsize, gradient=mode).ys
        ys[-1].square().sum().backward()
        y0.grad = None
        net.zero_grad(set_to_none=True)

    gradient()  # cuBLAS takes its workspace
    assert peak_bytes(gradient, DEVICE) <= budget_bytes(budget, DEVICE)


def test_a_budget_too_small() -> None:
    y0 = start(1024, torch.float32)
    with pytest.raises(odegrad.errors.MemoryBudgetError, match="memory="):
        odegrad.solve(
            network(torch.float32),
            y0,
            [0.0, 1.0],
            stepsize=Steps(9),
            gradient=Discrete(memory="8KiB"),
        )


def test_a_share_of_what_is_free() -> None:
    net, y0 = network(), start()
    mode = Discrete(memory=odegrad.Share(0.01))
    sol = odegrad.solve(net, y0, [0.0, 1.0], stepsize=Steps(9), gradient=mode)
    tape = odegrad.solve(net, y0, [0.0, 1.0], stepsize=Steps(9), gradient=Tape())
    agree(gradients(sol.ys, y0), gradients(tape.ys, y0))


@pytest.mark.parametrize("stepsize", [Steps(9), PID(1e-5, 1e-7)])
def test_steps_for_each_sample(stepsize: Any) -> None:
    net, y0 = network(), start()
    every = (y0, *net.parameters())
    found = odegrad.solve(net, y0, [0.0, 0.5, 1.0], stepsize=stepsize, batch=0)
    modes = (Discrete(), Tape())
    results = [
        gradients(
            odegrad.solve(net, y0, [0.0, 0.5, 1.0], stepsize=stepsize, batch=0, gradient=g).ys,
            *every,
        )
        for g in modes
    ]
    agree(*results)
    for i in range(len(y0)):
        alone = odegrad.solve(net, y0[i], [0.0, 0.5, 1.0], stepsize=stepsize, land=True)
        torch.testing.assert_close(found.ys[:, i], alone.ys, rtol=1e-12, atol=1e-14)


def test_complex_states() -> None:
    turn = torch.tensor([[0.1j, 1.0], [-1.0, -0.2 + 0.3j]], device=DEVICE, dtype=torch.complex128)
    turn.requires_grad_()
    y0 = torch.tensor([1.0 + 0.5j, 0.3j], device=DEVICE, dtype=torch.complex128, requires_grad=True)
    found = [
        odegrad.solve(lambda t, y: turn @ y, y0, [0.0, 1.0], stepsize=Steps(6), gradient=g).ys
        for g in (Discrete(), Tape())
    ]
    agree(gradients(found[0], y0, turn), gradients(found[1], y0, turn))
    exact = torch.linalg.matrix_exp(turn) @ y0
    assert float((found[0][-1] - exact).detach().abs().max()) < 1e-4


def test_second_derivatives() -> None:
    net, y0 = network(), start()
    parameters = list(net.parameters())
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in parameters]

    def loss(mode: Any) -> Callable[[], Tensor]:
        return lambda: (
            odegrad.solve(net, y0, [0.0, 1.0], stepsize=Steps(6), gradient=mode)
            .ys[-1].pow(4).sum()
        )  # fmt: skip

    def product(value: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(value, parameters, create_graph=True)
        along = sum((a * b).sum() for a, b in zip(first, direction, strict=True))
        return list(torch.autograd.grad(along, parameters, materialize_grads=True))

    agree(product(loss(Discrete(Binomial(3)))()), product(loss(Tape())()), 1e-11)


def test_transforms() -> None:
    net, y0 = network(), start().detach()

    def end(y: Tensor, mode: Any) -> Tensor:
        return odegrad.solve(net, y, [0.0, 1.0], stepsize=Steps(5), gradient=mode).ys[-1]

    jacobian = torch.func.jacrev(lambda y: end(y, Discrete()))(y0)
    torch.testing.assert_close(jacobian, torch.func.jacfwd(lambda y: end(y, Tape()))(y0))
    each = torch.func.vmap(lambda y: end(y, Discrete()))(y0)
    torch.testing.assert_close(each, end(y0, Tape()))


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_stand_in_for_torchdiffeq(method: str) -> None:
    net, y0 = network(), start()
    every = (y0, *net.parameters())
    t = torch.tensor([0.0, 0.4, 1.0], device=DEVICE, dtype=torch.float64)
    options = {"step_size": 0.1} if method == "rk4" else None
    a = odeint(net, y0, t, method=method, options=options)
    b = odeint_adjoint(net, y0, t, method=method, options=options)
    assert torch.equal(a, b)
    agree(gradients(a, *every), gradients(b, *every))


def test_an_event_of_the_stand_in() -> None:
    gravity = torch.tensor(9.81, dtype=torch.float64, device=DEVICE, requires_grad=True)
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64, device=DEVICE)

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -gravity])

    t0 = torch.tensor(0.0, dtype=torch.float64, device=DEVICE)
    t, _ = odeint_event(fall, y0, t0, event_fn=lambda t, y: y[0], rtol=1e-9, atol=1e-9)
    t.backward()
    assert abs(t.item() - (2 / 9.81) ** 0.5) < 1e-10
    assert abs(gravity.grad.item() + 0.5 * 2**0.5 * 9.81**-1.5) < 1e-10


@pytest.mark.parametrize("gradient", [Discrete(), Tape(), Discrete(memory="2MiB")], ids=str)
def test_events(gradient: Any) -> None:
    """A ball that bounces on the device, against the closed form; a floor on the CPU; a network."""
    g, e = (torch.tensor(x, dtype=torch.float64, device=DEVICE) for x in (9.81, 0.8))
    floor = torch.tensor(0.1, dtype=torch.float64)
    every = [x.requires_grad_() for x in (g, e, floor)]
    bounce = odegrad.Event(
        lambda t, y: y[0] - floor,
        direction=-1,
        jump=lambda t, y: torch.stack([y[0], -e * y[1]]),
    )
    sol = odegrad.solve(
        lambda t, y: torch.stack([y[1], -g * torch.ones_like(y[1])]),
        torch.tensor([1.1, 0.0], dtype=torch.float64, device=DEVICE),
        times(DEVICE)[[0, 3]] * 1.5,
        events=(bounce,),
        gradient=gradient,
    )
    (found,) = sol.events
    assert found.times.device.type == found.states.device.type == DEVICE.type
    fall = (2.0 * (1.1 - floor.to(DEVICE)) / g).sqrt()
    expected = fall * (1.0 + 2.0 * e)
    assert abs(found.times[1] - expected) < 1e-10
    for a, b in zip(
        torch.autograd.grad(found.times[1], every),
        torch.autograd.grad(expected, every),
        strict=True,
    ):
        assert abs(a - b) < 1e-10
    net, y0 = network(), start()
    level = nn.Linear(3, 1).to(DEVICE, torch.float64)
    crossed = odegrad.Event(lambda t, y: level(y[0]) + t - 0.6, terminal=False)
    pairs = []
    for mode in (gradient, Tape()):
        sol = odegrad.solve(net, y0, [0.0, 1.0], events=(crossed,), gradient=mode)
        assert len(sol.events[0].times) == 1
        of = [y0, *net.parameters(), *level.parameters()]
        pairs.append(torch.autograd.grad(sol.events[0].times.sum() + sol.ys.sum(), of))
    agree(*map(list, pairs))


def test_the_audit(tmp_path: Path) -> None:
    net, y0 = network(), start().detach()
    report = odegrad.audit(net, y0, [0.0, 0.5, 1.0], lambda ys: ys[-1].square().sum())
    assert report.passed, str(report)
    report.html(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_controls() -> None:
    control = odegrad.controls.PiecewiseLinear([0.0, 0.3, 1.0], [3]).to(DEVICE, torch.float64)
    y0 = start()
    found = [
        odegrad.solve(lambda t, y: control(t) - y, y0, [0.0, 1.0], stepsize=Steps(4), gradient=g).ys
        for g in (Discrete(), Tape())
    ]
    every = (y0, *control.parameters())
    agree(gradients(found[0], *every), gradients(found[1], *every))
