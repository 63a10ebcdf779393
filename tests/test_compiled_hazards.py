"""What a vector field or its user does that once misled the compiled engine, or well could have."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import odegrad
from cases import GRAPHS, TIMES, leaf, loss, mlp, relative
from compiling import leaves, warnings_of
from odegrad import PID, Discrete, Dopri5, Every, Steps, errors
from odegrad.compiled import Programs, using_backend

FIXED: dict[str, Any] = {"scheme": odegrad.RK4(), "stepsize": Steps(3)}
FREE: dict[str, Any] = {"scheme": odegrad.Tsit5(), "stepsize": PID(1e-5, 1e-7)}
KEPT: dict[str, Any] = {"scheme": Dopri5(), "stepsize": PID(1e-5, 1e-7), "gradient": GRAPHS}

ROW, X, B = leaf(3), leaf(4, 3), leaf(4, 3, seed=2)
W, SCALAR, EMPTY = leaf(3, 3, seed=1), leaf(seed=3), leaf(0, 3)
INDEX = torch.tensor([2, 0, 0])


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with using_backend("interpreter"):
        yield


def taken(f: Any, y0: Any, inputs: list[Tensor], **options: Any) -> tuple[Any, list[Tensor]]:
    """A solution; its states and the gradients of their loss."""
    ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    sol = odegrad.solve(f, y0, ts, **options)
    grads = torch.autograd.grad(loss(sol.ys), [*inputs, ts], materialize_grads=True)
    return sol, [*(x.detach() for x in leaves(sol.ys)), *grads]


def agree(f: Any, y0: Any, inputs: list[Tensor], reason: str = "", **options: Any) -> Any:
    """The compiled engine, or with one warning its replacement, gives what the eager one gives."""
    options = {**FIXED, **options}
    (sol, found), seen = warnings_of(lambda: taken(f, y0, inputs, compile=True, **options))
    assert len(seen) == bool(reason), seen
    assert all(reason in s for s in seen), seen
    eager, expected = taken(f, y0, inputs, **options)
    assert (sol.stats.accepted, sol.stats.rejected) == (eager.stats.accepted, eager.stats.rejected)
    assert relative(found, expected) <= 1e-12
    return sol


# Operations in place.


class InPlace:
    """Fields that change tensors which they made; a namespace only."""

    def doubled(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        z = y.clone()
        z.mul_(2)
        return w[0] * y - z

    def filled(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        a, b = torch.zeros_like(y), torch.zeros_like(y)
        a[0] = w[0, 0] * y[1]
        b[1] = y[0]
        return a + 2 * b

    def clamped(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        h = torch.tanh(w @ y)
        r = h.clone()
        r[0] = 0
        return h * y + r

    def rectified(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        h = w @ y
        before = h.clone()
        return nn.ReLU(inplace=True)(h) - before

    def shifted(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        h = w @ y
        h += 1.0
        return torch.tanh(h)

    def read_twice(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        x = y * 1
        a = x + 1
        x.add_(1)
        return torch.tanh(w @ (a * (x + 1)))

    def differences(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        z = y.clone()
        z[1:] -= y[:-1]
        return w @ z


@pytest.mark.parametrize("kind", [FIXED, FREE, KEPT], ids=["fixed", "free", "kept"])
@pytest.mark.parametrize("name", [name for name in vars(InPlace) if name[0] != "_"])
def test_operations_in_place(name: str, kind: dict[str, Any]) -> None:
    agree(vars(InPlace)[name], ROW, [ROW, W], args=(W,), **kind)


@pytest.mark.parametrize("stores", [False, True])
def test_a_tensor_from_outside_that_f_changes(stores: bool) -> None:
    """It is refused before anything has changed: both engines start from the same."""

    def solve(compiled: bool) -> Tensor:
        calls, log = torch.zeros((), dtype=torch.float64), list[Tensor]()

        def f(t: Tensor, y: Tensor) -> Tensor:
            calls.add_(1)
            if stores:
                log[:] = [y * calls]
            return -y * calls

        return odegrad.solve(f, ROW.detach(), TIMES, compile=compiled, **FIXED).ys

    found, seen = warnings_of(lambda: solve(compiled=True))
    assert len(seen) == 1
    assert "changes a tensor that it reads" in seen[0]
    assert torch.equal(found, solve(compiled=False))


half = functools.partial(torch.autocast, "cpu", torch.bfloat16)


def test_programs_made_after_autocast_do_not_lose_it() -> None:
    """The backward sweep makes a march outside autocast, which the next solve finds."""
    net, y0 = mlp(16).float(), torch.ones(4, 3)
    solve = functools.partial(odegrad.solve, lambda t, y: net(y), y0, TIMES, compile=True)
    with half():
        first = solve(stepsize=PID(dt0=0.01), gradient=Discrete(Every(3)))
    first.ys.square().sum().backward()
    with half():
        second = solve(stepsize=first.grid)
    assert torch.equal(first.ys, second.ys)


def test_gradients_do_not_depend_on_the_autocast_around_them() -> None:
    """Tsit5 keeps a slope, whose start is transposed in Python."""
    net, y0 = mlp(16).float(), torch.ones(4, 3, requires_grad=True)
    with half():
        ys = odegrad.solve(lambda t, y: net(y), y0, TIMES, stepsize=Steps(1), compile=True).ys
        inputs = [y0, *net.parameters()]
        inside = torch.autograd.grad(ys.square().sum(), inputs, retain_graph=True)
    outside = torch.autograd.grad(ys.square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("inner", [False, True])
def test_hooks_registered_and_removed_later(register: str, inner: bool) -> None:
    net = mlp()

    def hook(module: nn.Module, *values: Any) -> Any:
        return -2 * values[-1] if len(values) == 2 else (-2 * values[0][0],)

    def solved() -> Tensor:
        return agree(lambda t, y: net(y), X, [X, *net.parameters()]).ys

    without = solved()
    handle = getattr(net[0] if inner else net, register)(hook)
    assert not torch.allclose(solved(), without)
    handle.remove()
    assert torch.equal(solved(), without)


@pytest.mark.parametrize("shared", [True, False], ids=["the same field", "fields of their own"])
def test_first_solves_in_three_threads(shared: bool) -> None:
    start = threading.Barrier(3, timeout=60)
    nets = [mlp(5)] * 3 if shared else [mlp(5), mlp(6), mlp(7)]

    def solve(net: nn.Module, **options: Any) -> list[Tensor]:
        return taken(lambda t, y: net(y) * t, X, [X, *net.parameters()], **options)[1]

    def first(net: nn.Module) -> list[Tensor]:
        start.wait()
        with using_backend("interpreter"):
            return solve(net, compile=True)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(first, nets))
    for net, results in zip(nets, found, strict=True):
        expected = solve(net)
        assert relative(results, expected) <= 1e-12
        assert relative(solve(net, compile=True), expected) <= 1e-12


# Controllers and norms of the user's own.


class Patient(PID):
    def decide(self, ratio: float, history: Any, order: int) -> Any:
        found = super().decide(ratio, history, order)
        return type(found)(found.accept, found.factor / 2, found.history)


class Strict(PID):
    def scaled_norm(self, x: Any, y0: Any, y1: Any) -> Tensor:
        return 10 * super().scaled_norm(x, y0, y1)


@pytest.mark.parametrize("control", [Patient, Strict])
def test_a_subclass_of_pid(control: type[PID]) -> None:
    f = lambda t, y: torch.cos(3 * t) * y  # noqa: E731
    plain = agree(f, ROW, [ROW], **FREE)
    own = agree(f, ROW, [ROW], control.__name__, **{**FREE, "stepsize": control(1e-5, 1e-7)})
    assert own.stats.accepted != plain.stats.accepted


SCALE = 1.0


class Scaled:
    def __call__(self, x: Any) -> Tensor:
        return self.scale * x[0].abs().max()


class Unhashable(Scaled):
    __hash__ = None


def norms(scale: float) -> list[Callable[[Any], Tensor]]:
    def with_default(x: Any, *, k: float = scale) -> Tensor:
        return k * x[0].abs().max()

    with_global = lambda x: SCALE * x[0].abs().max()  # noqa: E731
    return [with_default, with_global, lambda x: scale * x[0].abs().max()]


def test_norms_that_read_values_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they read changes from 1 to 100 between two solves."""
    objects, counts = [Scaled(), Unhashable()], list[set[int]]()
    for scale in (1.0, 100.0):
        monkeypatch.setattr(sys.modules[__name__], "SCALE", scale)
        monkeypatch.setattr(Scaled, "scale", scale, raising=False)
        counts.append(set())
        for norm in (*objects, *norms(scale)):
            kind = {"scheme": Dopri5(), "stepsize": PID(1e-5, 1e-7, norm=norm)}
            sol = agree(lambda t, y: t * y, ROW, [ROW], "the norm", **kind)
            counts[-1].add(sol.stats.accepted)
    (loose,), (strict,) = counts
    assert strict > loose


def test_a_closed_norm_made_anew_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    met, honest = set[Programs](), Programs.adaptive_march

    def spy(self: Programs, *given: Any) -> Any:
        met.add(self)
        return honest(self, *given)

    monkeypatch.setattr(Programs, "adaptive_march", spy)
    for _ in range(3):
        norm = lambda x: torch.cat([a.reshape(-1) for a in x]).abs().max()  # noqa: E731
        agree(lambda t, y: -2 * t * y, ROW, [ROW], stepsize=PID(norm=norm), scheme=Dopri5())
    (programs,) = met
    assert [key[0] for key in programs._made].count("adaptive") == 1


class Logging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.last, self.logs = mlp(), None, list[Tensor]()

    def forward(self, t: Tensor, y: Any) -> Any:
        h = torch.tanh(self.net(y["q"] if isinstance(y, dict) else y)) * (2 + t)
        self.last = h
        self.logs.append(h.sum())
        return {"p": h, "q": -y["p"]} if isinstance(y, dict) else h

    def cost(self, t: Tensor, y: Any) -> Tensor:
        self.last = self.net(y["q"] if isinstance(y, dict) else y)
        return self.last.sum()


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("y0", [X, {"p": B, "q": X}], ids=["tensor", "dict"])
def test_a_field_that_stores_tensors(y0: Any, running: bool) -> None:
    net = Logging()
    options: dict[str, Any] = {**FIXED, "running": net.cost if running else None}
    for _ in range(2):  # the second time, what was captured is found
        net.logs.clear()
        agree(net, y0, [X, B, *net.parameters()], **options)
        net.logs.clear()
        odegrad.solve(net, y0, TIMES, compile=True, **options)
        at_start = torch.tanh(net.net(X)) * (2 + TIMES[0])
        torch.testing.assert_close(net.last, net.net(X) if running else at_start)
        torch.testing.assert_close(net.logs[0], at_start.sum())


# Kinds of states and fields.


FIELDS: dict[str, tuple[Callable[..., Any], Any, list[Tensor]]] = {
    "a number as state": (lambda t, y: -SCALAR * y * t, SCALAR, [SCALAR]),
    "an empty state": (lambda t, y: y @ W, EMPTY, [EMPTY, W]),
    "an empty leaf": (lambda t, y: (y[0] @ W, y[1] @ W), (EMPTY, X), [EMPTY, X, W]),
    "an expanded state": (lambda t, y: torch.tanh(y @ W), ROW.expand(4, 3), [ROW, W]),
    "a transposed state": (lambda t, y: torch.tanh(W @ y), X.T, [X, W]),
    "its argument": (lambda t, y: y, X, [X]),
    "one tensor twice": (lambda t, y: dict.fromkeys("ab", y["a"] @ W), {"a": X, "b": B}, [X, B, W]),
    "a constant": (lambda t, y: B, X, [X, B]),
    "a constant view": (lambda t, y: ROW.expand(4, 3), X, [X, ROW]),
    "a view of what it reads": (lambda t, y: functional.linear(y, W, W[0]), X, [X, W]),
    "an index": (lambda t, y: (y @ W)[..., INDEX], X, [X, W]),
    "compiled": (torch.compile(lambda t, y: torch.sin(y @ W), backend="eager"), X, [X, W]),
}


@pytest.mark.parametrize("kind", [FIXED, KEPT], ids=["fixed", "kept"])
@pytest.mark.parametrize("name", FIELDS)
def test_kinds_of_states_and_fields(name: str, kind: dict[str, Any]) -> None:
    f, y0, inputs = FIELDS[name]
    agree(f, y0, inputs, **kind)


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_a_sparse_matrix(gradient: Any) -> None:
    """It cannot be captured, and the eager engine has to know it, too."""
    sparse = torch.eye(4, dtype=torch.float64).to_sparse()
    agree(lambda t, y: torch.sparse.mm(sparse, y @ W), X, [X, W], "sparse", gradient=gradient)


# What changes between solves, and around them.


def test_tied_then_untied_then_frozen() -> None:
    a, b = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    own = b.weight
    for b.weight, trained in ((a.weight, True), (own, True), (own, False), (a.weight, True)):
        own.requires_grad_(trained)
        inputs = [x for x in {*a.parameters(), *b.parameters()} if x.requires_grad]
        agree(lambda t, y: b(torch.tanh(a(y))), X, [X, *inputs])


def test_deterministic_algorithms() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        agree(lambda t, y: torch.tanh(y @ W)[:, INDEX], X, [X, W])
    finally:
        torch.use_deterministic_algorithms(before)


def test_inference_mode_first() -> None:
    net = mlp()
    f = lambda t, y: net(y) * t  # noqa: E731
    with torch.inference_mode():
        found = odegrad.solve(f, X.detach(), TIMES, compile=True, **FREE).ys
    sol = agree(f, X, [X, *net.parameters()], **FREE)
    torch.testing.assert_close(found.clone(), sol.ys, rtol=1e-12, atol=1e-12)


def test_an_array_of_numpy_in_a_closure() -> None:
    array = np.ones(3)
    f = lambda t, y: -torch.from_numpy(array) * y  # noqa: E731
    for _ in range(3):
        agree(f, ROW, [ROW])
        array *= 2


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_parameters_changed_before_backward(gradient: Any) -> None:
    net = mlp()
    ys = odegrad.solve(lambda t, y: net(y), X, TIMES, gradient=gradient, compile=True).ys
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(net.parameters(), 0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


def test_importing_the_library_is_cheap() -> None:
    """What only compile=True needs takes seconds to import."""
    names = "('sympy', 'torch._dynamo', 'odegrad.compiled')"
    code = f"import sys, odegrad; print([x for x in {names} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_smallest_step_is_tried_and_not_for_ever() -> None:
    calls, y0 = list[None](), torch.ones(1, dtype=torch.float64)

    def f(t: Tensor, y: Tensor) -> Tensor:
        calls.append(None)
        return torch.tanh(1e4 * (t - 0.5)) * y

    with pytest.raises(errors.StepTooSmallError, match=r"below 0\.01"):
        odegrad.solve(f, y0, [0.0, 1.1], stepsize=PID(1e-9, 1e-9, dt_min=1e-2))
    assert len(calls) < 1000
