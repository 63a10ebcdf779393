"""Second derivatives in the memory of a schedule."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import CASES, GRAPHS, SCHEME_STEPS, Case, leaf, loss, mlp, relative
from odegrad import Discrete, Steps, Tape
from odegrad.allocations import peak_bytes
from odegrad.compiled import using_backend
from odegrad.errors import (
    GradientUnavailableError,
    InvalidTypeError,
    InvalidValueError,
)

TIMES = [0.1, 0.4, 1.1]

SCHEDULES = [
    Discrete(),
    Discrete(odegrad.Binomial(2)),
    Discrete(odegrad.Every(2)),
    Discrete(odegrad.StoreAll(odegrad.Keep.STAGES)),
    Discrete(odegrad.Tiered(1, 3)),
    Discrete(odegrad.Blockwise(odegrad.Binomial(2), 2, odegrad.Keep.GRAPH)),
    Discrete(memory="1MiB"),
    GRAPHS,
]


def product(
    case: Case, gradient: Any, scheme: Any, stepsize: Any, **more: Any
) -> tuple[list[Tensor], Any]:
    inputs = [*case.y0_leaves, *case.others]
    v = [leaf(*x.shape, seed=11 + i).detach() for i, x in enumerate(inputs)]
    grids: list[Any] = []

    def value() -> Tensor:
        sol = odegrad.solve(
            case.f,
            case.y0,
            TIMES,
            case.args,
            scheme=scheme,
            stepsize=stepsize,
            gradient=gradient,
            **more,
        )
        grids.append(sol.grid)
        return loss(sol.ys)

    found = odegrad.hvp(value, inputs, v)
    return [*found.gradient, *found.product], grids[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gradient", SCHEDULES, ids=str)
def test_equal_to_double_backward_of_tape(case: Any, gradient: Any) -> None:
    expected, _ = product(case(), Tape(), odegrad.Tsit5(), Steps(3))
    found, _ = product(case(), gradient, odegrad.Tsit5(), Steps(3))
    assert relative(found, expected) < 1e-11


@pytest.mark.parametrize(
    ("scheme", "stepsize"), [x for x in SCHEME_STEPS if not isinstance(x[1], odegrad.Fixed)]
)
def test_every_scheme(scheme: Any, stepsize: Any) -> None:
    found, grid = product(CASES[1](), Discrete(odegrad.Binomial(2)), scheme(), stepsize)
    expected, _ = product(CASES[1](), Tape(), scheme(), grid)
    assert relative(found, expected) < 1e-11


def test_compiled() -> None:
    with using_backend("interpreter"):
        found, _ = product(CASES[1](), Discrete(), odegrad.RK4(), Steps(3), compile=True)
    expected, _ = product(CASES[1](), Tape(), odegrad.RK4(), Steps(3))
    assert relative(found, expected) < 1e-11


def test_rewinding() -> None:
    found, _ = product(CASES[1](), Discrete(odegrad.Rewind(2)), odegrad.ALF(), Steps(4))
    expected, _ = product(CASES[1](), Tape(), odegrad.ALF(), Steps(4))
    assert relative(found, expected) < 1e-11


def test_running_costs_complex_states_and_dropout() -> None:
    net = torch.nn.Sequential(mlp(), torch.nn.Dropout(0.3))
    w = torch.tensor([0.4 + 0.5j, -0.3j, 0.2], dtype=torch.complex128, requires_grad=True)
    z0, y0 = leaf(4, 3).detach().to(torch.complex128).requires_grad_(), leaf(4, 3)
    inputs = [z0, y0, w, *net.parameters()]
    v = [torch.ones_like(x) for x in inputs]

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, y = state
        return w * z * y, net(y) + (z * z.conj()).real

    def run(gradient: Any) -> list[Tensor]:
        def value() -> Tensor:
            torch.manual_seed(2)
            sol = odegrad.solve(
                f, (z0, y0), [0.0, 0.5, 1.0], scheme=odegrad.Heun(), stepsize=Steps(3), gradient=gradient,
                running=lambda t, state: (state[1] * t).square().sum() * w.abs().sum(),
            )  # fmt: skip
            assert sol.running is not None
            return (
                sol.ys[0][-1].abs().square().sum() + sol.ys[1].sin().sum() + sol.running.sin().sum()
            )

        found = odegrad.hvp(value, inputs, v)
        return [*found.gradient, *found.product]

    expected = run(Tape())
    for gradient in (Discrete(), Discrete(odegrad.Binomial(2)), GRAPHS):
        assert relative(run(gradient), expected) < 1e-11


def test_taylor() -> None:
    """|L(x + εv) − L − ε⟨g, v⟩ − ε²/2 ⟨v, Hv⟩| = O(ε³)."""
    net, y0 = mlp(), leaf(4, 3)
    inputs = list(net.parameters())
    v = [leaf(*x.shape, seed=3 + i).detach() for i, x in enumerate(inputs)]

    def value() -> Tensor:
        sol = odegrad.solve(
            lambda t, y: net(y), y0, TIMES, scheme=odegrad.RK4(), stepsize=Steps(4),
            gradient=Discrete(odegrad.Binomial(3)),
        )  # fmt: skip
        return loss(sol.ys)

    found = odegrad.hvp(value, inputs, v)
    inner = lambda a, b: float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))  # noqa: E731
    first, second = inner(found.gradient, v), inner(found.product, v)
    rest = []
    for eps in (1e-2, 5e-3, 2.5e-3):
        with torch.no_grad():
            for x, d in zip(inputs, v, strict=True):
                x += eps * d
            rest.append(abs(float(value() - found.loss) - eps * first - 0.5 * eps**2 * second))
            for x, d in zip(inputs, v, strict=True):
                x -= eps * d
    assert min(math.log2(a / b) for a, b in itertools.pairwise(rest)) > 2.9


def test_memory_is_that_of_the_schedule() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 64))
    y0 = torch.randn(64, 64)
    inputs, v = list(net.parameters()), [torch.ones_like(x) for x in net.parameters()]

    def peak(gradient: Any, n: int) -> int:
        def value() -> Tensor:
            options: dict[str, Any] = {"scheme": odegrad.RK4(), "stepsize": Steps(n)}
            sol = odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0], gradient=gradient, **options)
            return sol.ys[-1].square().sum()

        odegrad.hvp(value, inputs, v)
        return peak_bytes(lambda: odegrad.hvp(value, inputs, v), torch.device("cpu"))

    few, many = (peak(Discrete(odegrad.Binomial(4)), n) for n in (8, 64))
    assert many < 1.1 * few
    assert peak(Tape(), 64) > 8 * many


class Exp(torch.autograd.Function):
    """exp, written without a forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.exp()
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].exp()


def test_what_f_takes_off_the_graph_stays_off() -> None:
    """And f needs no forward mode."""
    a, y0 = leaf(2), leaf(2)
    inputs, v = [a, y0], [torch.ones(2, dtype=torch.float64)] * 2

    def f(t: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            scale = y.abs().max() * a.norm()
        return -a * Exp.apply(y) / (1 + scale) + a.detach() * y.detach().square()

    def run(gradient: Any) -> list[Tensor]:
        def value() -> Tensor:
            return odegrad.solve(f, y0, [0.0, 0.3], stepsize=Steps(3), gradient=gradient).ys.sum()

        return list(odegrad.hvp(value, inputs, v).product)

    assert relative(run(Discrete()), run(Tape())) < 1e-12


def test_times_and_streamed_losses() -> None:
    net, y0 = mlp(), leaf(4, 3)
    ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    inputs = [y0, ts, *net.parameters()]
    v = [leaf(*x.shape, seed=3 + i).detach() for i, x in enumerate(inputs)]

    def run(gradient: Any, streamed: bool) -> list[Tensor]:
        def value() -> Tensor:
            more = {"loss_at": lambda j, y: (j + 1) * y.sin().sum()} if streamed else {}
            sol = odegrad.solve(
                lambda t, y: net(y),
                y0,
                ts,
                scheme=odegrad.RK4(),
                stepsize=Steps(2),
                gradient=gradient,
                **more,
            )
            if streamed:
                assert sol.loss is not None
                return sol.loss
            return loss(sol.ys)

        return list(odegrad.hvp(value, inputs, v).product)

    for streamed in (False, True):
        assert relative(run(Discrete(), streamed), run(Tape(), streamed)) < 1e-11


def test_third_derivatives_go_on() -> None:
    y0 = leaf(3)

    def third(gradient: Any) -> Tensor:
        ys = odegrad.solve(
            lambda t, y: y.sin(), y0, [0.0, 1.0], stepsize=Steps(2), gradient=gradient
        ).ys
        value = ys[-1].square().sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(value, y0, create_graph=True)
            value = g.square().sum()
        return torch.autograd.grad(value, y0)[0]

    assert relative([third(Discrete())], [third(Tape())]) < 1e-12


def test_nothing_is_left_behind() -> None:
    net, y0 = mlp(), leaf(4, 3)
    state = torch.get_rng_state()

    def value() -> Tensor:
        return odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0], stepsize=Steps(2)).ys.sum()

    found = odegrad.hvp(value, [y0], [torch.ones_like(y0)])
    assert y0.grad is None
    assert all(p.grad is None for p in net.parameters())
    assert not any(x.requires_grad for x in (found.loss, *found.gradient, *found.product))
    assert torch.equal(state, torch.get_rng_state())
    linear = odegrad.hvp(y0.sum, [y0], [torch.ones_like(y0)])
    assert torch.equal(linear.product[0], torch.zeros_like(y0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, [], []), InvalidTypeError, "loss must be callable"),
        ((lambda: 1, leaf(1), [leaf(1)]), InvalidTypeError, r"write \[x\], \[v\]"),
        ((lambda: 1, [leaf(1)], []), InvalidValueError, "1 inputs but 0"),
        ((lambda: 1, [leaf(1)], [3]), InvalidTypeError, r"v\[0\] must be tensors"),
        ((lambda: 1, [torch.ones(1)], [leaf(1)]), InvalidValueError, "does not require grad"),
        ((lambda: 1, [leaf(1)], [leaf(2)]), InvalidValueError, r"v\[0\] has shape \[2\]"),
        ((lambda: 1, [leaf(1)], [leaf(1)]), InvalidValueError, "it returned int"),
        ((lambda: leaf(2), [leaf(1)], [leaf(1)]), InvalidValueError, r"it returned shape \[2\]"),
        (
            (lambda: torch.ones(()), [leaf(1)], [leaf(1)]),
            GradientUnavailableError,
            "does not depend",
        ),
    ],
)
def test_bad_arguments(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        odegrad.hvp(*arguments)
