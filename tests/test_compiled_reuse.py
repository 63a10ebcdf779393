"""What was compiled is found again where it is the same, and only there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import TIMES, leaf, loss, mlp, relative
from compiling import close, forget_graphs
from odegrad import Steps, Tape
from odegrad.compiled import using_backend
from odegrad.compiled.tracing import Fakes

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one whenever a program is made."""
    forget_graphs(monkeypatch)
    made: list[Any] = []
    honest = Fakes.trace

    def spy(self: Fakes, function: Any, *rest: Any) -> Any:
        made.append(function)
        return honest(self, function, *rest)

    monkeypatch.setattr(Fakes, "trace", spy)
    return made


def both(f: Callable[..., Any], y0: Tensor, inputs: list[Tensor], **options: Any) -> None:
    """Compiled and eager agree: states, gradients, and which gradients there are."""
    results = []
    for compiled in (True, False):
        kind: dict[str, Any] = {"stepsize": Steps(3), "compile": compiled, **options}
        sol = odegrad.solve(f, y0, TIMES, **kind)
        grads = torch.autograd.grad(loss(sol.ys), inputs, allow_unused=True, retain_graph=True)
        results.append((sol.ys, grads))
    (ys, found), (expected_ys, expected) = results
    close(ys, expected_ys)
    assert [g is None for g in found] == [g is None for g in expected]
    for a, b in zip(found, expected, strict=True):
        assert a is None or b is None or float((a - b).norm()) <= 1e-12 * float(b.norm())


class Field(nn.Module):
    """A field with a parameter, an argument and a Python number."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, t: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return self.factor * self.net(y) * torch.cos(a * t)


CHANGES: dict[str, dict[str, Any]] = {
    "the same": {},
    "values": {"y0": leaf(4, 3, seed=3), "args": (leaf(seed=4),), "ts": (2.0, 1.0, 0.5)},
    "tolerances": {"stepsize": odegrad.PID(1e-8, 1e-9, p=0.2, safety=0.7, dt_max=0.1)},
    "one more time": {"ts": (0.1, 0.4, 0.7, 1.1)},
    "limits": {"max_steps": 900, "check_finite": False},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_is_made_again(change: dict[str, Any], traces: list[Any]) -> None:
    f = Field()

    def solve(**options: Any) -> None:
        given = {"y0": leaf(4, 3), "ts": TIMES, "args": (leaf(seed=1),), **options}
        kind = {"stepsize": odegrad.PID(1e-4, 1e-6), "compile": True, **given}
        odegrad.solve(f, kind.pop("y0"), kind.pop("ts"), **kind).ys.sum().backward()

    solve()
    made = len(traces)
    assert made > 0
    solve(**change)
    assert len(traces) == made


def test_more_fixed_steps_and_times_need_no_other_program(traces: list[Any]) -> None:
    f, y0, a, made = Field(), leaf(4, 3), leaf(seed=1), list[int]()
    for stepsize, ts in ((Steps(2), TIMES), (odegrad.Fixed(0.01), [0.0, 0.1, 0.5, 0.9, 3.0])):
        odegrad.solve(f, y0, ts, (a,), stepsize=stepsize, compile=True).ys.sum().backward()
        made.append(len(traces))
    labelled = 2  # landings inside a chunk: one more loop, its body and its condition
    assert made[1] - made[0] <= labelled


def test_other_shapes_and_dtypes_get_their_own_programs(traces: list[Any]) -> None:
    w = leaf(3, 3, seed=1)
    f = lambda t, y: torch.tanh(y @ w.to(y.dtype)) * t  # noqa: E731
    for y0 in (leaf(4, 3), leaf(5, 3), leaf(2, 4, 3)):
        before = len(traces)
        both(f, y0, [y0, w])
        assert len(traces) > before
    before = len(traces)
    y0 = leaf(4, 3)
    both(f, y0, [y0, w])
    assert len(traces) == before
    narrow = y0.detach().float()
    found, expected = (
        odegrad.solve(f, narrow, TIMES, stepsize=Steps(3), compile=c).ys for c in (True, False)
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_gradients_of_other_inputs_are_found(traces: list[Any]) -> None:
    """Whether y0, parameters or times need a gradient may change from solve to solve."""
    net = mlp()
    for y0 in (leaf(4, 3), leaf(4, 3).detach()):
        for frozen in (False, True):
            net[0].requires_grad_(not frozen)
            inputs = [x for x in (y0, *net.parameters()) if x.requires_grad]
            both(lambda t, y: net(y), y0, inputs)


def test_an_optimizers_steps_are_seen() -> None:
    net, y0 = mlp(), leaf(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        both(lambda t, y: net(y), y0, [y0, *net.parameters()])
        optimizer.zero_grad()
        odegrad.solve(lambda t, y: net(y), y0, TIMES, compile=True).ys.square().sum().backward()
        optimizer.step()


def test_a_replaced_parameter_is_seen() -> None:
    net, y0 = mlp(), leaf(4, 3)
    f = lambda t, y: net(y)  # noqa: E731
    both(f, y0, [y0, *net.parameters()])
    net[0].weight = nn.Parameter(leaf(8, 3, seed=9).detach())
    both(f, y0, [y0, *net.parameters()])


def test_a_changed_number_is_seen() -> None:
    f, y0, a = Field(), leaf(4, 3), leaf(seed=1)
    for f.factor in (1.0, 2.0, -1.0, 2.0):
        both(f, y0, [y0, *f.parameters()], args=(a,))


def test_changed_closures_and_arguments_are_seen() -> None:
    """Functions with the same code, other numbers and tensors in their cells; numbers in args."""

    def make(k: float, w: Tensor) -> Callable[..., Tensor]:
        return lambda t, y, m: k * w * y * m

    for k, m in ((1.0, 2.0), (2.0, 2.0), (2.0, 3.0)):
        w, y0 = leaf(3, seed=int(k)), leaf(3)
        both(make(k, w), y0, [y0, w], args=(m,))


def test_switching_to_training_mode_is_seen() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double().eval()
    y0 = leaf(4, 3)
    f = lambda t, y: net(y)  # noqa: E731
    both(f, y0, [y0])
    net.train()
    with pytest.warns(odegrad.errors.OdegradWarning, match="random numbers"):
        odegrad.solve(f, y0, TIMES, stepsize=Steps(3), compile=True)
    net.eval()
    both(f, y0, [y0])


@dataclass
class Unhashable:
    """A callable that compares by value."""

    w: Tensor

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.w * y * t

    def method(self, t: Tensor, y: Tensor) -> Tensor:
        return self.w * y


def scaled(w: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return w * y * t


def test_callables_of_every_kind() -> None:
    w, y0 = leaf(3, seed=1), leaf(3)
    for f in (Unhashable(w), Unhashable(w).method, functools.partial(scaled, w)):
        both(f, y0, [y0, w])
    both(torch.mul, y0, [y0])


def test_more_functions_than_dynamo_likes() -> None:
    """Dynamo bounds the graphs of one code object in all its uses; each f has to have its own."""
    y0 = leaf(3)
    with torch._dynamo.config.patch(accumulated_recompile_limit=4):
        for i in range(6):
            names: dict[str, Any] = {}
            exec(f"def f(t, y): return -{i + 1}.0 * y", names)
            both(names["f"], y0, [y0])


# Parameters.


def test_fast_weights_with_a_history() -> None:
    net, y0 = mlp(), leaf(4, 3)
    slow = dict(net.named_parameters())
    weights = {name: 1.2 * p + 0.1 for name, p in slow.items()}
    f = lambda t, y: torch.func.functional_call(net, weights, (y,))  # noqa: E731
    both(f, y0, [y0, *slow.values()])


class Solve(nn.Module):
    """A model that solves."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.f, self.options = mlp(), options

    def forward(self, x: Tensor) -> Tensor:
        return odegrad.solve(lambda t, y: self.f(y), x, TIMES, stepsize=Steps(3), **self.options).ys


def test_functional_call_around_the_solve() -> None:
    y0, grads = leaf(4, 3), []
    for model in (Solve(compile=True), Solve(gradient=Tape())):
        fast = {k: (1.5 * v.detach() + 0.1).requires_grad_() for k, v in model.named_parameters()}
        value = loss(torch.func.functional_call(model, fast, (y0,)))
        grads.append(list(torch.autograd.grad(value, [y0, *fast.values()])))
    assert relative(*grads) <= 1e-12


def test_tied_parameters() -> None:
    a, b = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    b.weight = a.weight
    y0 = leaf(2, 3)
    both(lambda t, y: torch.tanh(b(torch.tanh(a(y)))), y0, [y0, a.weight, a.bias, b.bias])


def test_one_tensor_as_state_argument_and_capture() -> None:
    w = leaf(3)
    both(lambda t, y, a: w * y * a, w, [w], args=(w,))


class Partly(nn.Module):
    """Reads one layer, and one whose weight is frozen; a third is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.frozen, self.unread = (nn.Linear(3, 3).double() for _ in range(3))
        self.frozen.weight.requires_grad_(requires_grad=False)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.frozen(torch.tanh(self.read(y)))


def test_frozen_parameters_get_none() -> None:
    net, y0 = Partly(), leaf(2, 3)
    both(net, y0, [y0, *net.read.parameters(), net.frozen.bias])
    odegrad.solve(net, y0, TIMES, compile=True).ys.sum().backward()
    assert net.frozen.weight.grad is None


def test_unread_parameters_get_what_the_eager_engine_gives() -> None:
    """Zeros, as DistributedDataParallel expects."""
    net, y0 = Partly(), leaf(2, 3)
    both(net, y0, [y0, *net.unread.parameters()])


def test_unread_arguments_get_what_the_eager_engine_gives() -> None:
    y0, a, b = leaf(3), leaf(3, seed=1), leaf(3, seed=2)
    both(lambda t, y, a, b: a * y, y0, [y0, a, b], args=(a, b))


# Autocast.


def test_autocast_gets_its_own_program() -> None:
    """Equal to the eager engine under autocast, in both orders of use; see the times in between."""
    net, y0 = mlp(16).float(), torch.ones(4, 3)
    f = lambda t, y: net(y)  # noqa: E731
    kind: dict[str, Any] = {"scheme": odegrad.RK4(), "stepsize": Steps(4)}

    def solve(autocast: bool, compiled: bool) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ys = odegrad.solve(f, y0, [0.0, 1.0], compile=compiled, **kind).ys
        return ys, list(torch.autograd.grad(ys.square().sum(), list(net.parameters())))

    wide = solve(autocast=False, compiled=False)
    for autocast, tolerance in ((False, 1e-5), (True, 2e-2), (False, 1e-5), (True, 2e-2)):
        found, expected = (solve(autocast, compiled) for compiled in (True, False))
        torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
        assert relative(found[1], expected[1]) <= tolerance
        assert (float((found[0] - wide[0]).detach().abs().max()) > 1e-4) is autocast
