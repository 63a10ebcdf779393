"""An exception or Ctrl-C at every call of f, in both sweeps: nothing is left, the next solve is right.

f raises at its k-th call, for every k that an undisturbed solve with its backward pass makes. Afterwards
the world is as before: grad mode, autocast, modes of torch functions, generators, buffers, parameters,
their .grad, training modes, the default dtype, files. In a forward sweep generators and buffers are where
the calls of f so far have put them, as in any loop over f. The same solve then gives the same bits as one
that nothing disturbed.

`python tests/test_faults.py` counts the injections.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import relative
from odegrad import (
    PID,
    Backsolve,
    Binomial,
    Blockwise,
    Discrete,
    Every,
    Keep,
    Online,
    Quadrature,
    Rewind,
    Steps,
    StoreAll,
    Tangent,
    Tape,
    Tiered,
)
from odegrad.compiled import using_backend

TIMES = [0.0, 0.3, 0.8]


class Fault(Exception):
    """What f raises."""


class Field(nn.Module):
    """A field that counts its calls, remembers the world before each, and raises at one of them."""

    def __init__(self, noisy: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        middle = [nn.BatchNorm1d(4), nn.Dropout(0.3)] if noisy else [nn.Tanh()]
        self.net = nn.Sequential(nn.Linear(2, 4), *middle, nn.Linear(4, 2))
        self.frozen = nn.BatchNorm1d(2).eval()
        self.calls, self.fault, self.kind = 0, 0, Fault
        self.before: list[list[Tensor]] | None = None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.before is not None:
            self.before.append(random_world(self))
        if self.calls == self.fault:
            raise self.kind("injected")
        return self.frozen(self.net(y)).to(y.dtype) - y * t


def random_world(f: nn.Module) -> list[Tensor]:
    """What calls of f move on: the generator and the buffers."""
    return [torch.get_rng_state(), *(b.clone() for b in f.buffers())]


def fixed_world(f: nn.Module, y0: Tensor) -> list[Any]:
    """What nothing may change."""
    stacks = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_anomaly_enabled(),
        torch.get_default_dtype(),
        torch._C._functorch.maybe_current_level(),
        stacks,
        [m.training for m in f.modules()],
        [(id(p), p.requires_grad, p.grad is None, p._version) for p in f.parameters()],
        [id(b) for b in f.buffers()],
        (y0._version, y0.grad is None, y0.tolist()),
    ]


def open_files() -> int:
    """How many of odegrad's files are open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += "odegrad-" in os.readlink(entry)
    return found


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@dataclass
class Case:
    """A solve with its backward pass.

    Attributes:
        name: Its name.
        gradient: The gradient mode.
        noisy: Whether f has dropout and batch normalization in training mode.
        autocast: Whether the solve runs under autocast.
        plans: Whether f is called to plan the solve, too.
        more: Further options.
    """

    name: str
    gradient: Any
    noisy: bool = True
    autocast: bool = True
    plans: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def forward(self, f: Field, y0: Tensor) -> Tensor:
        options = {"scheme": odegrad.Bosh3(), "stepsize": Steps(1), **self.more}
        with torch.autocast("cpu", torch.bfloat16, self.autocast):
            return odegrad.solve(f, y0, TIMES, gradient=self.gradient, **options).ys

    def backward(self, f: Field, y0: Tensor, ys: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(ys.square().sum(), [y0, *f.parameters()]))


def start(case: Case) -> tuple[Field, Tensor]:
    f = Field(case.noisy)
    torch.manual_seed(11)
    return f, torch.linspace(-1, 1, 8).reshape(4, 2).requires_grad_()


def inject_everywhere(case: Case, kind: type[BaseException]) -> int:
    """Injects a fault at every call; returns how many."""
    f, y0 = start(case)
    f.before = []
    ys = case.forward(f, y0)
    ahead, between = f.calls, random_world(f)
    right = [ys.detach().clone(), *case.backward(f, y0, ys)]
    total, before = f.calls, f.before
    assert ahead >= 7
    del ys
    files = open_files()
    for k in range(1, total + 1):
        f, y0 = start(case)
        f.fault, f.kind = k, kind
        world, ys, message = fixed_world(f, y0), None, ""
        try:
            ys = case.forward(f, y0)
            assert fixed_world(f, y0) == world, f"solved: call {k}"
            case.backward(f, y0, ys)
        except kind as error:
            message = str(error)
        assert message == "injected", f"call {k}"
        assert (ys is None) == (k <= ahead)
        assert fixed_world(f, y0) == world, f"call {k}"
        # f raises before it draws: in the forward sweep the calls before are all that happened.
        allowed = [between if ys is not None else before[k - 1]]
        if ys is None and case.plans:  # what it tries beforehand leaves no trace
            allowed.append(before[0])
        assert any(same(random_world(f), w) for w in allowed), f"generators, buffers: call {k}"
        ys = None
        fresh, y0 = start(case)
        f.load_state_dict(fresh.state_dict())
        f.fault = 0
        ys = case.forward(f, y0)
        again = [ys.detach(), *case.backward(f, y0, ys)]
        assert same(again, right), f"the solve after call {k}"
        del ys, again
    for _ in range(200):
        if open_files() <= files:
            break
        torch.zeros(1).sum().item()
        gc.collect()
    assert open_files() <= files
    return total


def cases(directory: str) -> list[Case]:
    adaptive = {"stepsize": PID(1e-2, 1e-2, dt0=0.5)}
    return [
        Case("StoreAll", Discrete(StoreAll())),
        Case("StoreAll, stages", Discrete(StoreAll(Keep.STAGES))),
        Case("StoreAll, graphs", Discrete(StoreAll(Keep.GRAPH))),
        Case("Every", Discrete(Every(2))),
        Case("Binomial", Discrete(Binomial(1))),
        Case("Online", Discrete(Online(2))),
        Case("Blockwise", Discrete(Blockwise(Binomial(1), 2))),
        Case("Blockwise, graphs", Discrete(Blockwise(Binomial(1), 2, Keep.GRAPH))),
        Case("Tiered", Discrete(Tiered(ram=0, disk=1, directory=directory))),
        Case("a budget", Discrete(memory="1MiB"), plans=True),
        Case(
            "Rewind",
            Discrete(Rewind()),
            False,
            more={"scheme": odegrad.ALF(), "stepsize": Steps(3)},
        ),
        Case("RK4", Discrete(Binomial(1)), more={"scheme": odegrad.RK4()}),
        Case("adaptive", Discrete(Binomial(1)), False, more=adaptive),
        Case("adaptive, graphs", Discrete(StoreAll(Keep.GRAPH)), False, more=adaptive),
        Case("Tape", Tape()),
        Case("Backsolve", Backsolve(), False, False),
        Case("Quadrature", Quadrature(), False, False),
        Case("Tangent", Tangent(), False, False),
    ]


NAMES = [case.name for case in cases("")]


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_at_every_call_of_f(name: str, kind: Any, tmp_path: Path) -> None:
    (case,) = (case for case in cases(str(tmp_path)) if case.name == name)
    assert inject_everywhere(case, kind) >= 8
    assert list(tmp_path.iterdir()) == []


# Where f is compiled, only a callback can raise.


def inject_in_callbacks(kind: type[BaseException], **options: Any) -> int:
    """Injects a fault at every call of the callback; returns how many."""
    f, y0 = start(Case("", None, False))
    calls, fault = 0, 0

    def callback(info: odegrad.StepInfo) -> None:
        nonlocal calls
        calls += 1
        if calls == fault:
            raise kind("injected")

    def gradients() -> list[Tensor]:
        ys = odegrad.solve(f, y0, TIMES, callback=callback, **options).ys
        return [ys.detach(), *torch.autograd.grad(ys.square().sum(), [y0, *f.net.parameters()])]

    right, world = gradients(), fixed_world(f, y0)
    total = calls
    for k in range(1, total + 1):
        calls, fault = 0, k
        random = random_world(f)
        with pytest.raises(kind, match="injected"):
            gradients()
        assert fixed_world(f, y0) == world
        assert same(random_world(f), random)
        fault = 0
        assert same(gradients(), right)
    return total


COMPILED: list[dict[str, Any]] = [
    {"gradient": Discrete(), "stepsize": Steps(3)},
    {"gradient": Discrete(StoreAll(Keep.GRAPH)), "stepsize": Steps(3)},
    {"gradient": Discrete(Binomial(1)), "stepsize": PID(1e-3, 1e-3)},
]


def compiled_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """The field as one graph, without a count of its calls."""

    def forward(self: Field, t: Tensor, y: Tensor) -> Tensor:
        return self.frozen(self.net(y)) - y * t

    monkeypatch.setattr(Field, "forward", forward)


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("options", COMPILED, ids=lambda o: str(o["gradient"]))
def test_a_fault_at_every_callback_of_a_compiled_solve(
    options: dict[str, Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_field(monkeypatch)
    with using_backend("interpreter"):
        assert inject_in_callbacks(kind, compile=True, scheme=odegrad.Bosh3(), **options) >= 6


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
def test_a_fault_at_every_callback(kind: Any) -> None:
    for gradient in (Discrete(Binomial(1)), Discrete(StoreAll(Keep.GRAPH))):
        assert inject_in_callbacks(kind, gradient=gradient, stepsize=Steps(3)) == 12


# An interrupted backward pass, and the same solution again.


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["StoreAll", "Binomial", "Tiered", "RK4", "Backsolve"])
def test_backward_again_after_a_fault(name: str, kind: Any, tmp_path: Path) -> None:
    """With retain_graph=True an interrupted backward pass may be repeated; else it says why not."""
    (case,) = (case for case in cases(str(tmp_path)) if case.name == name)
    f, y0 = start(case)
    ys = case.forward(f, y0)
    right = case.backward(f, y0, ys)
    for retain in (True, False):
        f, y0 = start(case)
        inputs = [y0, *f.parameters()]
        ys = case.forward(f, y0)
        f.calls, f.fault, f.kind = 0, 3, kind
        with pytest.raises(kind, match="injected"):
            torch.autograd.grad(ys.square().sum(), inputs, retain_graph=retain)
        assert y0.grad is None
        if retain:
            found = list(torch.autograd.grad(ys.square().sum(), inputs))
            assert relative(found, right) == 0.0
        else:
            with contextlib.suppress(odegrad.errors.GradientUnavailableError, RuntimeError):
                found = list(torch.autograd.grad(ys.square().sum(), inputs))
                assert relative(found, right) == 0.0


@contextlib.contextmanager
def _patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def count() -> int:
    """All injections of the tests above."""
    total = 0
    kinds: list[Callable[..., BaseException]] = [Fault, KeyboardInterrupt]
    with tempfile.TemporaryDirectory() as directory:
        for case in cases(directory):
            total += sum(inject_everywhere(case, kind) for kind in kinds)
    for gradient in (Discrete(Binomial(1)), Discrete(StoreAll(Keep.GRAPH))):
        for kind in kinds:
            total += inject_in_callbacks(kind, gradient=gradient, stepsize=Steps(3))
    with _patched() as patch, using_backend("interpreter"):
        compiled_field(patch)
        for options in COMPILED:
            for kind in kinds:
                more = {"compile": True, "scheme": odegrad.Bosh3(), **options}
                total += inject_in_callbacks(kind, **more)
    return total


if __name__ == "__main__":
    print(count())
