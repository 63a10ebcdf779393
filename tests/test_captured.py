"""Fields that read tensors in unusual ways: the gradient is Tape's, or there is an error."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import GRAPHS, leaf, mlp, relative
from odegrad import Discrete, Steps, Tape, errors

TS = [0.0, 0.5, 1.0]
BOTH = (Tape(), Discrete())


def both(build: Callable[[Any], tuple[Tensor, list[Tensor]]]) -> None:
    """`build` solves with a gradient mode and returns a loss and what to differentiate."""
    results = []
    for gradient in (*BOTH, GRAPHS):
        value, inputs = build(gradient)
        grads = torch.autograd.grad(value, inputs, materialize_grads=True, allow_unused=True)
        results.append(list(grads))
    assert max(relative(x, results[0]) for x in results[1:]) <= 1e-12
    assert max(float(g.abs().max()) for g in results[0]) > 0


class Inside(nn.Module):
    """A module whose forward solves with a module that it holds."""

    def __init__(self, gradient: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.m = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
        self.gradient = gradient

    def forward(self, y: Tensor) -> Tensor:
        return odegrad.solve(
            lambda t, y: torch.tanh(self.m(y)), y, TS, stepsize=Steps(3), gradient=self.gradient
        ).ys[-1]


@pytest.mark.parametrize("frozen", [False, True])
def test_functional_call_with_some_weights_that_need_no_gradient(frozen: bool) -> None:
    y0 = leaf(3)

    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        model = Inside(gradient)
        model.requires_grad_(not frozen)
        weight, bias = leaf(3, 3, seed=1), leaf(3, seed=2).detach()
        given = {"m.0.weight": weight, "m.0.bias": bias}
        return torch.func.functional_call(model, given, (y0,)).sum(), [weight, y0]

    both(build)


@pytest.mark.parametrize("frozen", [False, True])
def test_one_fast_weight_in_two_places(frozen: bool) -> None:
    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        model = Inside(gradient)
        model.requires_grad_(not frozen)
        weight = leaf(3, 3, seed=1)
        given = {"m.0.weight": weight, "m.2.weight": weight}
        return torch.func.functional_call(model, given, (leaf(3),)).sum(), [weight]

    both(build)


def test_a_module_in_args() -> None:
    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        class Outer(Inside):
            def forward(self, y: Tensor) -> Tensor:
                field = lambda t, y, net: torch.tanh(net(y))  # noqa: E731
                return odegrad.solve(
                    field, y, TS, (self.m,), stepsize=Steps(3), gradient=gradient
                ).ys[-1]

        weight = leaf(3, 3, seed=1)
        fast = weight * 2
        model = Outer(gradient).requires_grad_(False)
        return torch.func.functional_call(model, {"m.0.weight": fast}, (leaf(3),)).sum(), [weight]

    both(build)


def test_a_parameter_that_is_also_an_argument() -> None:
    net = mlp()

    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        w = net[2].weight
        ys = odegrad.solve(
            lambda t, y, w: net(y) + (y @ w).sum(-1, keepdim=True),
            leaf(2, 3),
            TS,
            (w,),
            stepsize=Steps(3),
            gradient=gradient,
        ).ys
        return ys.square().sum(), [w, net[0].weight]

    both(build)


def test_a_solve_inside_a_field() -> None:
    w0, y0 = leaf(seed=3), leaf(2)

    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        w = w0.exp()

        def f(t: Tensor, y: Tensor) -> Tensor:
            inner = odegrad.solve(
                lambda s, z: -z * z * w, y, [0.0, 0.3], stepsize=Steps(2), gradient=gradient
            )
            return torch.tanh(inner.ys[-1])

        value = odegrad.solve(f, y0, TS, stepsize=Steps(2), gradient=gradient).ys[-1].sum()
        (first,) = torch.autograd.grad(value, w0, create_graph=True)
        return first + value, [w0, y0]

    both(build)


class Square(torch.autograd.Function):
    """Reads its arguments where no function mode sees them."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(y, w)
        return y * w * w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, w = ctx.saved_tensors
        return grad * w * w, (2 * grad * y * w).sum()


@pytest.mark.parametrize(
    ("gradient", "scheme", "orders"),
    [
        (Discrete(), odegrad.RK4(), 2),
        (GRAPHS, odegrad.RK4(), 1),
        (Discrete(), odegrad.ALF(), 2),
        (Discrete(), odegrad.ReversibleHeun(), 2),
    ],
)
def test_a_custom_function_is_followed_or_refused(gradient: Any, scheme: Any, orders: int) -> None:
    """What it reads cannot be replaced: in a graph of several evaluations f has no tangent."""
    w, v, y0 = leaf(seed=1), leaf(seed=2), leaf(2)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -Square.apply(y, w) * v * 0.1

    def derivatives(gradient: Any) -> Iterator[list[Tensor]]:
        ys = odegrad.solve(f, y0, TS, scheme=scheme, stepsize=Steps(3), gradient=gradient).ys
        value = ys[-1].sum()
        while True:
            found = torch.autograd.grad(value, [w, v, y0], create_graph=True)
            yield [x.detach() for x in found]
            value = sum(x.square().sum() for x in found)

    found, expected = derivatives(gradient), derivatives(Tape())
    for _ in range(orders):
        assert relative(next(found), next(expected)) <= 1e-12
    with pytest.raises(errors.UnreachableTensorError):
        next(found)


def test_hooks_see_one_gradient() -> None:
    grads = []
    for gradient in (*BOTH, GRAPHS):
        w, calls = leaf(seed=1), list[float]()

        def hook(g: Tensor, calls: list[float] = calls) -> Tensor:
            calls.append(g.item())
            return 2 * g

        w.register_hook(hook)
        odegrad.solve(
            lambda t, y, w=w: -w * y, leaf(2), TS, stepsize=Steps(3), gradient=gradient
        ).ys[-1].sum().backward()
        assert gradient == Tape() or len(calls) == 1
        grads.append([w.grad])
    assert max(relative(x, grads[0]) for x in grads[1:]) <= 1e-12


def test_train_and_eval_mode_are_replayed() -> None:
    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        ys = odegrad.solve(
            lambda t, y: net(y), leaf(4, 3), TS, stepsize=Steps(2), gradient=gradient
        ).ys
        net.eval()
        return ys.square().sum(), list(net.parameters())

    both(build)


def test_modules_stay_in_the_mode_in_which_they_are() -> None:
    """That of the solve is theirs during the backward sweep only."""
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    for gradient in BOTH:
        ys = odegrad.solve(
            lambda t, y: net(y), leaf(4, 3), TS, stepsize=Steps(2), gradient=gradient
        ).ys
        net.eval()
        ys.sum().backward()
        assert not any(m.training for m in net.modules())
        net.train()


def changed_tensor(kind: str) -> tuple[Callable[..., Tensor], Tensor]:
    x = torch.ones(3, dtype=torch.float64)
    frozen = nn.Linear(3, 3).double().requires_grad_(False)
    norm = nn.BatchNorm1d(3).double().eval()
    w = leaf(seed=1)
    return {
        "captured": (lambda t, y: -w * y * x, x),
        "frozen": (lambda t, y: w * frozen(y), frozen.weight),
        "buffer": (lambda t, y: w * norm(y), norm.running_var),
    }[kind]


@pytest.mark.parametrize("kind", ["captured", "frozen", "buffer"])
@pytest.mark.parametrize("gradient", [Discrete(), odegrad.Backsolve()])
def test_constants_changed_between_the_sweeps_are_noticed(kind: str, gradient: Any) -> None:
    f, x = changed_tensor(kind)
    ys = odegrad.solve(f, leaf(2, 3), TS, stepsize=Steps(2), gradient=gradient).ys
    with torch.no_grad():
        x.mul_(3)
    with pytest.raises(errors.ChangedTensorError, match="changed in place between"):
        ys.sum().backward()


def test_what_f_does_not_read_may_change() -> None:
    """A trainer that f hangs on keeps a running total and other modules with buffers."""

    class Trainer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
            self.other = nn.BatchNorm1d(3).double()
            self.total = torch.zeros((), dtype=torch.float64)

    trainer, y0 = Trainer(), leaf(4, 3)
    encoded = trainer.other(y0)
    ys = odegrad.solve(
        lambda t, y: trainer.net(y), encoded, TS, scheme=odegrad.RK4(), stepsize=Steps(2)
    ).ys
    trainer.total += 1.0
    version = trainer.other.running_mean._version
    ys.square().sum().backward()
    assert trainer.other.running_mean._version == version
    assert trainer.net[1].num_batches_tracked == 16  # 2 intervals, 2 steps, 4 stages
    assert y0.grad is not None


def test_a_leaf_returned_unchanged_from_a_hidden_place() -> None:
    w = leaf(2, seed=1)
    hidden = deque([w])

    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        def f(t: Tensor, y: Tensor) -> Tensor:
            return hidden[0] if t > 0.6 else -y

        ys = odegrad.solve(f, leaf(2), TS, stepsize=Steps(3), gradient=gradient).ys
        return ys.square().sum(), [w]

    both(build)


class Slotted:
    """Keeps its tensor where no scan looks."""

    __slots__ = ("w",)


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS])
def test_a_leaf_returned_unchanged_that_no_search_finds_is_refused(gradient: Any) -> None:
    hidden = Slotted()
    hidden.w = leaf(2, seed=1)
    ys = odegrad.solve(
        lambda t, y: hidden.w if t > 0.6 else -y, leaf(2), TS, stepsize=Steps(3), gradient=gradient
    ).ys
    with pytest.raises(errors.UnreachableTensorError):
        ys.sum().backward()


def test_a_reused_output_buffer_is_refused() -> None:
    buffer = torch.zeros(2, dtype=torch.float64)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.mul(y, -1, out=buffer)

    with torch.no_grad(), pytest.raises(errors.FieldOutputError, match="one buffer"):
        odegrad.solve(f, leaf(2).detach(), TS, scheme=odegrad.RK4(), stepsize=Steps(2))


def test_randomness_does_not_depend_on_the_grad_mode() -> None:
    net = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)
    ).double()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    results = []
    for grad in (True, False):
        net.load_state_dict(start)
        torch.manual_seed(0)
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.OdegradWarning)
            sol = odegrad.solve(
                lambda t, y: net(y), leaf(4, 3), [0.0, 0.2], stepsize=odegrad.PID(0.3, 0.3)
            )
        results.append((sol.ys.detach(), net[1].num_batches_tracked.clone(), torch.rand(1)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_randomness_that_the_first_call_does_not_show_is_refused() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y * (torch.rand(2, dtype=torch.float64) if t > 0.3 else 1.0)

    with pytest.raises(errors.RandomFieldError, match="random numbers"):
        odegrad.solve(f, leaf(2), TS, stepsize=Steps(3))
    ys = odegrad.solve(f, leaf(2), TS, stepsize=Steps(3), gradient=Tape()).ys
    assert ys.requires_grad


def test_times_as_a_list_of_tensors() -> None:
    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        end = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        ys = odegrad.solve(lambda t, y: -y * t, leaf(2), [0.0, end], gradient=gradient).ys
        return ys.sum(), [end]

    both(build)


def test_zero_dimensional_states_and_costs() -> None:
    def build(gradient: Any) -> tuple[Tensor, list[Tensor]]:
        y0 = leaf()
        sol = odegrad.solve(
            lambda t, y: -y * y,
            y0,
            TS,
            stepsize=Steps(3),
            gradient=gradient,
            running=lambda t, y: y.square(),
        )
        assert sol.ys.shape == (3,)
        assert sol.running is not None
        return sol.ys.sum() + sol.running[-1], [y0]

    both(build)
    empty = torch.zeros(0, 3, dtype=torch.float64)
    assert odegrad.solve(lambda t, y: -y, empty, TS, stepsize=Steps(2)).ys.shape == (3, 0, 3)
    assert odegrad.solve(lambda t, y: -y, empty, TS).ys.shape == (3, 0, 3)


def test_inference_mode() -> None:
    net = mlp()
    with torch.inference_mode():
        y0 = torch.ones(2, 3, dtype=torch.float64)
        for stepsize in (Steps(3), odegrad.PID(1e-4, 1e-4)):
            sol = odegrad.solve(lambda t, y: net(y), y0, TS, stepsize=stepsize)
            assert bool(torch.isfinite(sol.ys).all())


def test_zero_absolute_tolerance_and_a_component_that_stays_zero() -> None:
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    sol = odegrad.solve(lambda t, y: -y, y0, TS, stepsize=odegrad.PID(rtol=1e-8, atol=0.0))
    assert sol.ys[-1].tolist() == pytest.approx([0.36787944117, 0.0], rel=1e-7)


LOSS: Tensor | None = None


def test_names_of_attributes_are_not_taken_for_globals() -> None:
    """A global that is called like an attribute f reads must not join the graph of the next solve."""

    class Holder:
        def __init__(self) -> None:
            self.LOSS = 2.0

    holder, net, log = Holder(), mlp(), list[Tensor]()

    def f(t: Tensor, y: Tensor) -> Tensor:
        k = net(y) * holder.LOSS
        log.append(k.norm())
        return k

    for _ in range(2):
        ys = odegrad.solve(f, leaf(2, 3), TS, stepsize=Steps(2)).ys
        globals()["LOSS"] = ys.square().sum()
        LOSS.backward()


# Transforms that a node with a transpose alone would not serve.


def squared(t: Tensor, y: Tensor) -> Tensor:
    return -y * y * torch.cos(t)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_tape_serves_forward_mode() -> None:
    net, x, v = mlp(), leaf(3).detach(), leaf(3, seed=1).detach()

    def run(x: Tensor, gradient: Any = BOTH[0]) -> Tensor:
        field = lambda t, y: torch.tanh(net(y) + x)  # noqa: E731
        return odegrad.solve(
            field, torch.ones_like(x), TS, stepsize=Steps(2), gradient=gradient
        ).ys[-1]

    _, tangent = torch.func.jvp(run, (x,), (v,))
    weights = leaf(3, seed=2).detach()
    x_ = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((run(x_, Discrete()) * weights).sum(), x_)
    assert (tangent.detach() * weights).sum().item() == pytest.approx(
        (grad * v).sum().item(), rel=1e-12
    )
    times = torch.tensor(TS, dtype=torch.float64)

    def timed(ts: Tensor) -> Tensor:
        return odegrad.solve(squared, x.abs(), ts, stepsize=Steps(2), gradient=Tape()).ys[-1]

    _, tangent = torch.func.jvp(timed, (times,), (torch.tensor([0.0, 0.0, 1.0]).double(),))
    assert float(tangent.abs().max()) > 0.01


def test_tape_serves_vmap_on_fixed_steps() -> None:
    net, x = mlp(), leaf(4, 3).detach()

    def run(x: Tensor) -> Tensor:
        return odegrad.solve(lambda t, y: net(y), x, TS, stepsize=Steps(2), gradient=BOTH[0]).ys[-1]

    mapped = torch.func.vmap(run)(x)
    torch.testing.assert_close(mapped, torch.stack([run(row) for row in x]))
