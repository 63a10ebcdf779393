"""A loss evaluated inside the sweeps: the numbers of the loss computed from ys, and no more memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import SCHEME_STEPS, leaf, mlp, relative
from compiling import in_chunks_of
from odegrad import PID, Binomial, Blockwise, Discrete, Every, Keep, Online, Steps, StoreAll, Tape
from odegrad.allocations import peak_bytes
from odegrad.checkpoints import Tiered
from odegrad.compiled import using_backend
from odegrad.errors import (
    ChangedTensorError,
    FieldOutputError,
    InvalidTypeError,
    InvalidValueError,
    NonFiniteStateError,
    RandomFieldError,
)

TIMES = (0.1, 0.3, 0.3, 0.8, 1.1)

GRADIENTS = [
    Tape(),
    Discrete(),
    Discrete(StoreAll(Keep.STAGES)),
    Discrete(StoreAll(Keep.GRAPH)),
    Discrete(Every(3)),
    Discrete(Binomial(2)),
    Discrete(Tiered(ram=1, disk=1)),
    Discrete(Blockwise(Binomial(2), 3, Keep.STAGES)),
    Discrete(Blockwise(Online(2), 2, Keep.GRAPH)),
    Discrete(memory="64MiB"),
]
each = pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
kinds = pytest.mark.parametrize("stepsize", [Steps(3), PID(1e-4, 1e-6)], ids=["fixed", "adaptive"])


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odegrad.sweeps.graphs.STRETCH", 3)


class Problem:
    """A field and a loss that share tensors, and read others that are their own.

    Attributes:
        inputs: All that a gradient may be taken of, but ts.
    """

    def __init__(self) -> None:
        self.net, self.decoder = mlp(), nn.Linear(3, 2).double()
        self.shared, self.code, self.rate = leaf(3, seed=1), leaf(3, seed=2), leaf(seed=3)
        self.targets = leaf(len(TIMES), 4, 2, seed=4)
        self.weights = torch.linspace(0.5, 1.5, len(TIMES), dtype=torch.float64)
        self.history = self.code.exp()
        self.y0 = leaf(4, 3)
        owned = [self.y0, self.shared, self.code, self.rate, self.targets]
        self.inputs = [*owned, *self.net.parameters(), *self.decoder.parameters()]

    def f(self, t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return self.net(y) * torch.cos(rate * t) + self.shared * t - 0.1 * self.history * y

    def loss_at(self, j: int, y: Tensor, rate: Tensor) -> Tensor:
        error = self.decoder(y * self.shared) - self.targets[j] * rate
        return (error.square().mean() + (self.history * y).sin().sum()) * self.weights[j]

    def from_ys(self, ys: Tensor) -> Tensor:
        """The same loss, from what a solve without it puts out."""
        return sum(self.loss_at(j, y, self.rate) for j, y in enumerate(ys))

    def gradients(
        self, streamed: bool, gradient: Any, scheme: Any, stepsize: Any, **options: Any
    ) -> tuple[list[Tensor], odegrad.Solution]:
        """The loss and its gradient."""
        ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
        options |= {"scheme": scheme, "stepsize": stepsize, "gradient": gradient}
        options |= {} if streamed else {"land": True}  # as a streamed loss does
        if streamed:
            options["loss_at"] = self.loss_at
        sol = odegrad.solve(self.f, self.y0, ts, (self.rate,), **options)
        value = sol.loss if streamed else self.from_ys(sol.ys)
        assert value is not None
        assert value.shape == ()
        assert (sol.ys is None) is streamed
        grads = torch.autograd.grad(value, [*self.inputs, ts], retain_graph=True)
        return [value.detach(), *grads], sol


@each
@kinds
def test_equal_to_the_loss_of_ys(gradient: Any, stepsize: Any) -> None:
    problem = Problem()
    expected, plain = problem.gradients(False, Tape(), odegrad.Bosh3(), stepsize)
    found, sol = problem.gradients(True, gradient, odegrad.Bosh3(), stepsize)
    assert sol.grid == plain.grid
    assert relative(found, expected) <= 1e-13


@pytest.mark.parametrize(
    ("scheme", "stepsize"), SCHEME_STEPS, ids=lambda x: getattr(x, "__name__", type(x).__name__)
)
def test_all_schemes(scheme: Any, stepsize: Any) -> None:
    problem = Problem()
    expected, _ = problem.gradients(False, Tape(), scheme(), stepsize)
    k = SCHEME_STEPS.index((scheme, stepsize))
    found, _ = problem.gradients(True, GRADIENTS[k % len(GRADIENTS)], scheme(), stepsize)
    assert relative(found, expected) <= 1e-13


@each
def test_descending_times(gradient: Any) -> None:
    problem, results = Problem(), []
    for streamed in (False, True):
        ts = torch.tensor(TIMES[::-1], dtype=torch.float64, requires_grad=True)
        options: dict[str, Any] = {"stepsize": Steps(2), "gradient": gradient}
        if streamed:
            options["loss_at"] = problem.loss_at
        sol = odegrad.solve(problem.f, problem.y0, ts, (problem.rate,), **options)
        value = sol.loss if streamed else problem.from_ys(sol.ys)
        results.append(torch.autograd.grad(value, [*problem.inputs, ts], retain_graph=True))
    assert relative(list(results[1]), list(results[0])) <= 1e-13


@each
@kinds
def test_running_cost_at_the_end(gradient: Any, stepsize: Any) -> None:
    """`running` is that to the last time alone."""
    problem, weight, results = Problem(), leaf(seed=7), []
    cost = lambda t, y, rate: weight * (y.square().sum() + rate * t)  # noqa: E731
    inputs = [*problem.inputs, weight]
    for streamed in (False, True):
        options: dict[str, Any] = {"stepsize": stepsize, "gradient": gradient, "running": cost}
        options |= {"loss_at": problem.loss_at} if streamed else {"land": True}
        sol = odegrad.solve(problem.f, problem.y0, TIMES, (problem.rate,), **options)
        assert sol.running is not None
        end = sol.running if streamed else sol.running[-1]
        assert end.shape == ()
        value = (sol.loss if streamed else problem.from_ys(sol.ys)) * 2 + end.square()
        grads = torch.autograd.grad(value, inputs, retain_graph=True)
        (alone,) = torch.autograd.grad(end, [problem.y0], retain_graph=True)
        results.append([end.detach(), alone, *grads])
    assert relative(results[1], results[0]) <= 1e-13


@each
def test_structured_states(gradient: Any) -> None:
    net, q, v, s = mlp(dim=2), leaf(4, 2), leaf(4, 2, seed=1), leaf(4, seed=2)

    def f(t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
        q, v = y["qv"]
        return {"qv": (v, net(q) - 0.3 * v), "s": (q * v).sum(-1) * torch.exp(-t)}

    def loss_at(j: int, y: dict[str, Any]) -> Tensor:
        q, v = y["qv"]
        return (q * v).sin().sum() * (j + 1) + (y["s"] ** 2).sum()

    inputs, results = [q, v, s, *net.parameters()], []
    y0 = {"qv": (q, v), "s": s}
    for streamed in (False, True):
        options: dict[str, Any] = {"loss_at": loss_at} if streamed else {}
        sol = odegrad.solve(f, y0, TIMES, stepsize=Steps(2), gradient=gradient, **options)
        value = sol.loss
        if not streamed:
            states = [
                {"qv": tuple(x[j] for x in sol.ys["qv"]), "s": sol.ys["s"][j]}
                for j in range(len(TIMES))
            ]
            value = sum(loss_at(j, y) for j, y in enumerate(states))
        results.append([value.detach(), *torch.autograd.grad(value, inputs)])
    assert relative(results[1], results[0]) <= 1e-13


@each
def test_losses_at_some_times_only(gradient: Any) -> None:
    """Zeros elsewhere, which depend on nothing."""
    net, y0, results = mlp(), leaf(4, 3), []
    for last in (False, True):

        def loss_at(j: int, y: Tensor, last: bool = last) -> Tensor:
            wanted = j == (len(TIMES) - 1 if last else 0)
            return y.square().sum() if wanted else torch.zeros((), dtype=torch.float64)

        options = {"stepsize": Steps(3), "gradient": gradient}
        sol = odegrad.solve(lambda t, y: net(y), y0, TIMES, loss_at=loss_at, **options)
        found = torch.autograd.grad(
            sol.loss, [y0, *net.parameters()], allow_unused=True, materialize_grads=True
        )
        if not last:
            assert relative([found[0]], [2 * y0.detach()]) <= 1e-15
            assert all(not g.any() for g in found[1:])
            continue
        ys = odegrad.solve(lambda t, y: net(y), y0, TIMES, stepsize=Steps(3), gradient=Tape()).ys
        results = torch.autograd.grad(ys[-1].square().sum(), [y0, *net.parameters()])
        assert relative(list(found), list(results)) <= 1e-13


@each
@kinds
def test_a_single_time(gradient: Any, stepsize: Any) -> None:
    y0, w = leaf(3), leaf(3, seed=1)
    options = {"stepsize": stepsize, "gradient": gradient}
    sol = odegrad.solve(
        lambda t, y: w * y, y0, [0.5], loss_at=lambda j, y: (w * y).square().sum(), **options
    )
    assert sol.loss is not None
    found = torch.autograd.grad(sol.loss, [y0, w])
    expected = [2 * w * w * y0, 2 * w * y0 * y0]
    assert relative(list(found), [x.detach() for x in expected]) <= 1e-15


@each
def test_where_no_gradient_is_wanted(gradient: Any) -> None:
    problem = Problem()
    options: dict[str, Any] = {"stepsize": Steps(3), "gradient": gradient}
    expected = problem.gradients(False, Tape(), odegrad.Tsit5(), Steps(3))[0][0]
    with torch.no_grad():
        sol = odegrad.solve(
            problem.f, problem.y0, TIMES, (problem.rate,), loss_at=problem.loss_at, **options
        )
    assert sol.loss is not None
    assert not sol.loss.requires_grad
    assert sol.stats.kept_bytes == 0
    assert relative([sol.loss], [expected]) <= 1e-14


@each
def test_what_only_the_loss_reads_suffices_for_a_gradient(gradient: Any) -> None:
    w = leaf(3, seed=1)
    y0 = torch.ones(3, dtype=torch.float64)
    sol = odegrad.solve(
        lambda t, y: -y,
        y0,
        [0.0, 1.0],
        stepsize=Steps(4),
        gradient=gradient,
        loss_at=lambda j, y: (w * y).sum(),
    )
    ys = odegrad.solve(lambda t, y: -y, y0, [0.0, 1.0], stepsize=Steps(4)).ys
    (found,) = torch.autograd.grad(sol.loss, w)
    assert relative([found], [ys.sum(0)]) <= 1e-14


@each
def test_backward_twice_and_second_derivatives(gradient: Any) -> None:
    problem, results = Problem(), []
    for streamed in (False, True):
        ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
        options: dict[str, Any] = {"stepsize": Steps(2), "scheme": odegrad.Heun()}
        if streamed:
            options |= {"loss_at": problem.loss_at, "gradient": gradient}
        else:
            options["gradient"] = Tape()
        sol = odegrad.solve(problem.f, problem.y0, ts, (problem.rate,), **options)
        value, inputs = sol.loss if streamed else problem.from_ys(sol.ys), [*problem.inputs, ts]
        once = torch.autograd.grad(value, inputs, retain_graph=True)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(once, first, strict=True))
        total = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(total, inputs, retain_graph=True)
        results.append([*(g.detach() for g in first), *second])
    assert relative(results[1], results[0]) <= 1e-12


class Model(nn.Module):
    """A solve with its loss inside a module."""

    def __init__(self, gradient: Any) -> None:
        super().__init__()
        self.net, self.decoder, self.gradient = mlp(), nn.Linear(3, 1).double(), gradient

    def forward(self, y0: Tensor, target: Tensor) -> Tensor:
        loss = odegrad.solve(
            lambda t, y: self.net(y),
            y0,
            TIMES,
            stepsize=Steps(3),
            gradient=self.gradient,
            loss_at=lambda j, y: (self.decoder(y)[:, 0] - target[j]).square().mean(),
        ).loss
        assert loss is not None
        return loss


@each
def test_functional_call(gradient: Any) -> None:
    """With weights that are not the module's own, in the field and in the loss."""
    y0, target, results = leaf(4, 3), leaf(len(TIMES), 4, seed=1), []
    for used in (Tape(), gradient):
        torch.manual_seed(0)
        model = Model(used)
        slow = dict(model.named_parameters())
        fast = {k: (1.5 * v.detach() + 0.1).requires_grad_() for k, v in slow.items()}
        value = torch.func.functional_call(model, fast, (y0, target))
        results.append(list(torch.autograd.grad(value, [y0, target, *fast.values()])))
        assert all(v.grad is None for v in slow.values())
    assert relative(results[1], results[0]) <= 1e-13


def test_torch_func_grad() -> None:
    y0, target = leaf(4, 3).detach(), leaf(len(TIMES), 4, seed=1).detach()
    model = Model(Discrete(Binomial(2)))
    weights = {k: v.detach() for k, v in model.named_parameters()}
    found = torch.func.grad(lambda w: torch.func.functional_call(model, w, (y0, target)))(weights)
    expected = torch.autograd.grad(model(y0, target), list(model.parameters()))
    assert relative(list(found.values()), list(expected)) <= 1e-13


def test_a_parameter_that_is_only_added_to_the_state() -> None:
    """Autograd gives both one and the same gradient, or a view of one number."""
    shift, w = leaf(3), leaf(seed=1)
    losses: list[Any] = [
        lambda j, y: (y + shift).sum(),
        lambda j, y: torch.dot(y + shift, y.detach() + 1),
    ]
    for loss_at in losses:
        grads = []
        for gradient in (Tape(), Discrete(), Discrete(StoreAll(Keep.GRAPH))):
            y0 = leaf(3, seed=2)
            sol = odegrad.solve(
                lambda t, y: -w * y + shift,
                y0,
                TIMES,
                stepsize=Steps(2),
                loss_at=loss_at,
                gradient=gradient,
            )
            assert sol.loss is not None
            grads.append(list(torch.autograd.grad(sol.loss, [y0, shift, w])))
        assert max(relative(x, grads[0]) for x in grads[1:]) <= 1e-13


def test_autocast_and_single_precision() -> None:
    """The loss is evaluated under the autocast state of the solve, in both sweeps."""
    torch.manual_seed(0)
    net, decoder, dtypes = nn.Linear(3, 3), nn.Linear(3, 2), list[torch.dtype]()

    def loss_at(j: int, y: Tensor) -> Tensor:
        z = decoder(y)
        dtypes.append(z.dtype)
        return z.float().square().mean()

    y0 = torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        sol = odegrad.solve(lambda t, y: net(y), y0, TIMES, stepsize=Steps(2), loss_at=loss_at)
    assert sol.loss is not None
    assert sol.loss.dtype is torch.float32
    sol.loss.backward()
    assert set(dtypes) == {torch.bfloat16}
    assert decoder.weight.grad is not None


def test_the_loss_sees_each_label_once_in_each_sweep() -> None:
    calls: list[tuple[int, bool]] = []

    def loss_at(j: int, y: Tensor) -> Tensor:
        calls.append((j, torch.is_grad_enabled()))
        return y.square().sum()

    y0 = leaf(3)
    for gradient in GRADIENTS[1:-1]:
        sol = odegrad.solve(
            lambda t, y: -y, y0, TIMES, stepsize=Steps(3), gradient=gradient, loss_at=loss_at
        )
        forward = [j for j, _ in calls][-len(TIMES) :]
        assert forward == list(range(len(TIMES)))
        calls.clear()
        assert sol.loss is not None
        sol.loss.backward()
        assert sorted(calls, reverse=True) == calls
        assert [j for j, _ in calls] == list(reversed(range(len(TIMES))))
        calls.clear()


# The compiled engine.


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@kinds
def test_compiled(stepsize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All schedules with the programs of one f, in chunks of two steps."""
    in_chunks_of(2, monkeypatch)
    problem = Problem()
    with using_backend("interpreter"):
        for gradient in GRADIENTS[1::2]:
            found, sol = problem.gradients(True, gradient, odegrad.Bosh3(), stepsize, compile=True)
            expected, _ = problem.gradients(False, Tape(), odegrad.Bosh3(), sol.grid)
            assert relative(found, expected) <= 1e-12, gradient


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_with_a_running_cost_and_second_derivatives() -> None:
    net, y0, target = mlp(4, 2), leaf(3, 2), torch.ones(2, dtype=torch.float64)
    f = lambda t, y: net(y) * (1 + t)  # noqa: E731
    loss_at = lambda j, y: (y - target).square().mean() * (j + 1)  # noqa: E731
    cost = lambda t, y: y.square().sum()  # noqa: E731
    results = []
    with using_backend("interpreter"):
        for options in ({"compile": True}, {"gradient": Tape()}):
            given = {"stepsize": Steps(2), "loss_at": loss_at, "running": cost, **options}
            sol = odegrad.solve(f, y0, TIMES, **given)
            assert sol.running is not None
            inputs = [y0, *net.parameters()]
            value = sol.loss + sol.running
            first = torch.autograd.grad(value, inputs, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
            results.append([value.detach(), *(g.detach() for g in first), *second])
    assert relative(*results) <= 1e-12


# What goes wrong.


def solve(loss_at: Any, f: Any = lambda t, y: -y, **options: Any) -> odegrad.Solution:
    return odegrad.solve(f, leaf(3), TIMES, stepsize=Steps(2), loss_at=loss_at, **options)


@pytest.mark.parametrize(
    ("loss_at", "message"),
    [
        (lambda j, y: y, r"float64 of shape \[3\]"),
        (lambda j, y: 1, "returned int"),
        (lambda j, y: 1.0, "returned float"),
        (lambda j, y: None, "returned NoneType"),
        (lambda j, y: (y.sum(),), "returned tuple"),
        (lambda j, y: y.sum() > 0, "torch.bool"),
        (lambda j, y: y.sum() * 1j, "complex"),
    ],
)
@pytest.mark.parametrize("gradient", [Tape(), Discrete()])
def test_results_that_are_no_real_number(loss_at: Any, message: str, gradient: Any) -> None:
    with pytest.raises(InvalidTypeError, match=message):
        solve(loss_at, gradient=gradient)
    with torch.no_grad(), pytest.raises(InvalidTypeError, match=message):
        solve(loss_at, gradient=gradient)


def test_results_of_one_entry() -> None:
    sol = solve(lambda j, y: y.sum().reshape(1, 1))
    assert sol.loss is not None
    assert sol.loss.shape == ()


@pytest.mark.parametrize("value", [3, "mse", nn.Linear])
def test_what_is_no_loss(value: Any) -> None:
    if isinstance(value, type):
        with pytest.raises(TypeError):
            solve(value)
        return
    with pytest.raises(InvalidTypeError, match="loss_at must be callable"):
        solve(value)


def test_gradients_that_do_not_go_with_it() -> None:
    with pytest.raises(InvalidValueError, match="Backsolve"):
        solve(lambda j, y: y.sum(), gradient=odegrad.Backsolve())


@pytest.mark.parametrize("gradient", [Tape(), Discrete(), Discrete(StoreAll(Keep.GRAPH))])
def test_losses_that_change_y(gradient: Any) -> None:
    with pytest.raises(FieldOutputError, match="changed its argument y in place"):
        solve(lambda j, y: y.mul_(2).sum() if j else y.sum(), gradient=gradient)


def test_losses_that_draw_random_numbers() -> None:
    state = torch.get_rng_state()
    with pytest.raises(RandomFieldError, match="loss_at draws random numbers"):
        solve(lambda j, y: (y * torch.rand(3, dtype=torch.float64)).sum())
    assert torch.equal(state, torch.get_rng_state())
    norm = nn.BatchNorm1d(3).double()
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    with pytest.raises(RandomFieldError, match="changes buffers"):
        odegrad.solve(
            lambda t, y: -y, leaf(4, 3), TIMES, loss_at=lambda j, y: norm(y).square().sum()
        )
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


@pytest.mark.parametrize(
    ("gradient", "compile"),
    [
        *((x, False) for x in GRADIENTS if isinstance(x, Discrete)),
        (Discrete(), True),
        (Discrete(StoreAll(Keep.GRAPH)), True),
        (Discrete(Binomial(2)), True),
    ],
    ids=str,
)
def test_targets_that_change_in_between(gradient: Any, compile: bool) -> None:
    target = torch.ones(3, dtype=torch.float64)
    loss_at = lambda j, y: (y - target).square().sum()  # noqa: E731
    with using_backend("interpreter"):
        sol = solve(loss_at, gradient=gradient, compile=compile)
        target.add_(1.0)
        assert sol.loss is not None
        with pytest.raises(ChangedTensorError, match="loss_at reads"):
            sol.loss.backward()


def test_losses_that_are_not_finite() -> None:
    loss_at = lambda j, y: (y.abs().sum() * (0.0 if j else 1.0)).log()  # noqa: E731
    with pytest.raises(NonFiniteStateError, match="loss_at"):
        solve(loss_at)
    sol = solve(loss_at, check_finite=False)
    assert sol.loss is not None
    assert sol.loss.isinf()


@each
@pytest.mark.parametrize("sweep", ["forward", "backward"])
def test_exceptions_of_the_loss(gradient: Any, sweep: str) -> None:
    """They reach the user, and leave nothing of the solve behind."""
    armed = sweep == "forward"

    def loss_at(j: int, y: Tensor) -> Tensor:
        if armed and j == 2:
            raise ValueError("mine")
        return y.square().sum()

    if armed:
        with pytest.raises(ValueError, match="mine"):
            solve(loss_at, gradient=gradient)
    elif isinstance(gradient, Discrete):
        sol = solve(loss_at, gradient=gradient)
        armed = True
        with pytest.raises(ValueError, match="mine"):
            sol.loss.backward()
    assert torch.is_grad_enabled()


# Memory.


def labels(n: int, gradient: Any) -> tuple[int, odegrad.Stats]:
    """The peak of a solve with n labels in 400 steps and of its gradient."""
    net, found = mlp(), list[odegrad.Stats]()
    y0, times = leaf(8, 3), torch.linspace(0, 1, n + 1, dtype=torch.float64)

    def both() -> None:
        sol = odegrad.solve(
            lambda t, y: net(y),
            y0,
            times,
            scheme=odegrad.Euler(),
            stepsize=Steps(400 // n),
            gradient=gradient,
            loss_at=lambda j, y: y.square().mean(),
        )
        assert sol.loss is not None
        sol.loss.backward()
        found.append(sol.stats)

    both()
    return peak_bytes(both, torch.device("cpu")), found[-1]


@pytest.mark.parametrize(
    "gradient", [Discrete(Binomial(8)), Discrete(Every(20)), Discrete(memory="40KiB")], ids=str
)
def test_memory_does_not_grow_with_the_number_of_labels(gradient: Any) -> None:
    (few, a), (many, b) = labels(20, gradient), labels(400, gradient)
    assert a.accepted == b.accepted == 400
    assert b.kept_bytes <= 1.1 * a.kept_bytes
    assert many <= few + 1024  # ys would take 73 KB more


def test_nothing_of_the_loss_outlives_the_solve() -> None:
    gc.collect()
    gc.disable()
    try:
        for gradient in GRADIENTS:
            target, decoder = torch.ones(2, dtype=torch.float64), nn.Linear(3, 2).double()
            loss_at: Callable[..., Tensor] | None = _loss(decoder, target)
            watched = [weakref.ref(x) for x in (target, decoder, loss_at)]
            sol: Any = solve(loss_at, gradient=gradient)
            del target, decoder, loss_at
            sol.loss.backward()
            del sol
            assert [r() for r in watched] == [None] * 3, gradient
    finally:
        gc.enable()


def _loss(decoder: nn.Module, target: Tensor) -> Callable[..., Tensor]:
    return lambda j, y: (decoder(y) - target).square().mean()
