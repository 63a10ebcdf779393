"""After torch.set_default_device: what odegrad makes for itself lies where it needs it.

The default device is "meta" here, whose tensors hold no numbers: one that is made there by mistake is
noticed on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import leaf, mlp, relative
from odegrad import PID, Discrete, Every, Keep, Steps, StoreAll, Tape

NET, Y0, TS = mlp(), leaf(4, 3), [0.0, 0.5, 1.0]


def field(t: Tensor, y: Tensor) -> Tensor:
    return NET(y)


def gradient(**options: Any) -> list[Tensor]:
    sol = odegrad.solve(field, Y0, TS, **options)
    value = sol.ys.square().sum() if sol.loss is None else sol.loss
    if sol.running is not None:
        value = value + sol.running.sum()
    return list(torch.autograd.grad(value, [Y0, *NET.parameters()]))


def read_later() -> list[Tensor]:
    sol = odegrad.solve(field, Y0, TS)
    return list(torch.autograd.grad(sol([0.7, 0.2]).square().sum(), [Y0, *NET.parameters()]))


def bounces() -> list[Tensor]:
    """Two that occur, one with a jump, and one that never does."""
    events = (
        odegrad.Event(lambda t, y: y[0, 0] - 1.53, terminal=False),
        odegrad.Event(lambda t, y: t - 0.3, jump=lambda t, y: 0.5 * y),
        odegrad.Event(lambda t, y: y.square().sum() + 1.0),
    )
    sol = odegrad.solve(field, Y0, TS, events=events)
    assert [len(found.times) for found in sol.events] == [1, 1, 0]
    value = sol.ys.square().sum() + sol([0.7, 0.2]).sum()
    value = value + sum(found.times.sum() + found.states.sin().sum() for found in sol.events)
    return list(torch.autograd.grad(value, [Y0, *NET.parameters()]))


def density() -> list[Tensor]:
    found = odegrad.gradient_density(field, Y0.detach(), TS, lambda ys: ys[-1].sum(), bins=4)
    return [found.edges, *found.values.values()]


def audit() -> list[Tensor]:
    found = odegrad.audit(field, Y0.detach(), TS, lambda ys: ys[-1].sum())
    assert found.passed, str(found)
    return [torch.tensor(found.check("taylor").numbers["rate"], device="cpu")]


MODES = [
    Discrete(),
    Discrete(Every(3)),
    Discrete(StoreAll(keep=Keep.GRAPH)),
    Discrete(memory="1MiB"),
    Tape(),
    odegrad.Backsolve(),
    odegrad.Quadrature(),
    odegrad.Tangent(),
    odegrad.Mismatched(odegrad.RK4()),
]
CALLS: dict[str, Callable[[], list[Tensor]]] = {
    **{str(mode): lambda mode=mode: gradient(gradient=mode) for mode in MODES},
    **{
        f"batch=0, {mode}, {steps}": lambda m=mode, s=steps: gradient(
            gradient=m, stepsize=s, batch=0
        )
        for mode in (*MODES[:3], Tape())
        for steps in (PID(), Steps(4))
    },
    "batch=0 along a grid": lambda: gradient(
        batch=0, stepsize=odegrad.solve(field, Y0, TS, batch=0).grid
    ),
    "multistep": lambda: gradient(scheme=odegrad.AdamsBashforthMoulton(4), stepsize=Steps(9)),
    "dense output": lambda: gradient(land=False),
    "running": lambda: gradient(running=lambda t, y: y.square().sum()),
    "loss_at": lambda: gradient(loss_at=lambda j, y: y.square().sum()),
    "sol(t)": read_later,
    "events": bounces,
    "density": density,
    "audit": audit,
}


@pytest.mark.parametrize("call", CALLS)
def test_the_default_device_does_not_matter(call: str) -> None:
    expected = CALLS[call]()
    with torch.device("meta"):
        found = CALLS[call]()
    assert all(x.device.type == "cpu" for x in found)
    assert relative(found, expected) == 0.0


def test_a_sample_that_fails() -> None:
    """One of them from the start: what stands in for it is found among the others."""
    bad = torch.tensor([[1.0], [float("inf")], [1.0], [1.0]], dtype=torch.float64)

    def some(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return NET(y) * a

    with torch.device("meta"):
        sol = odegrad.solve(
            some, Y0, TS, (bad,), batch=odegrad.Samples(args=(0,)), on_failure="nan"
        )
    assert sol.succeeded.tolist() == [True, False, True, True]
