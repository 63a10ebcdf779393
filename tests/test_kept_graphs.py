"""Kept graphs: what they hold, for how long, and that nothing is evaluated again."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import GRAPHS, autonomous, leaf, loss, mlp, relative, time_dependent
from odegrad import Steps, Tape, errors

TS = [0.0, 0.5, 1.0]


class Token:
    """Lives as long as the node of the graph that it hangs on."""


tokens: list[weakref.ref[Token]] = []


class Marked(torch.autograd.Function):
    """y ↦ −y, whose node can be watched."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.token = Token()
        tokens.append(weakref.ref(ctx.token))
        return -y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def marked(t: Tensor, y: Tensor) -> Tensor:
    return Marked.apply(y)


def alive() -> int:
    return sum(token() is not None for token in tokens)


def solve(f: Any = marked, n: int = 50, **options: Any) -> odegrad.Solution:
    tokens.clear()
    return odegrad.solve(
        f, leaf(2), TS, scheme=odegrad.Midpoint(), stepsize=Steps(n), gradient=GRAPHS, **options
    )


def test_graphs_are_freed_stretch_by_stretch() -> None:
    left: list[int] = []
    sol = solve(callback=lambda info: left.append(alive()) if info.phase == "backward" else None)
    before = alive()
    assert before >= 200  # 100 steps of 2 stages; the field holds the last slope for a while
    sol.ys.sum().backward()
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == 4
    assert left[0] == before  # a stretch goes when it is through
    assert alive() == before - 200


@pytest.mark.parametrize("n", [1, 50])
def test_graphs_die_with_the_outer_graph(n: int) -> None:
    sol = solve(n=n)
    assert alive() >= 4 * n
    stats = sol.stats
    del sol
    gc.collect()
    assert alive() == 0
    assert stats.accepted == 2 * n


def test_graphs_are_freed_by_the_backward_pass() -> None:
    sol = solve(n=1)
    assert alive() >= 4
    sol.ys.sum().backward()
    assert alive() <= 1  # the field holds the last slope


def test_retained_graphs_serve_again() -> None:
    problem = time_dependent()
    first, sol = problem.gradient(GRAPHS, odegrad.Dopri5(), Steps(30))  # retains
    evaluations = sol.stats.f_evaluations
    second = torch.autograd.grad(
        loss(sol.ys), [*problem.y0_leaves, *problem.others], retain_graph=True
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=False))
    third = torch.autograd.grad(loss(sol.ys), problem.y0_leaves)
    assert torch.equal(first[0], third[0])
    assert sol.stats.f_evaluations == evaluations
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss(sol.ys), problem.y0_leaves)


def test_no_evaluation_again() -> None:
    sol = solve(lambda t, y: -y * y)
    assert sol.stats.f_evaluations == 200
    assert sol.stats.vjps == 0
    sol.ys.sum().backward()
    assert sol.stats.f_evaluations == sol.stats.vjps == 200
    assert sol.stats.recomputed == 0


def test_rejected_attempts_are_not_on_the_graph() -> None:
    rate, y0 = leaf(seed=1), leaf(2)
    pid = odegrad.PID(1e-10, 1e-10, dt0=0.2)
    results = []
    for gradient in (Tape(), GRAPHS):
        sol = odegrad.solve(
            lambda t, y: torch.tanh(200 * (t - 1)) - rate * y,
            y0,
            [0.0, 2.0],
            scheme=odegrad.Dopri5(),
            stepsize=pid,
            gradient=gradient,
        )
        assert sol.stats.rejected > 0
        results.append(list(torch.autograd.grad(loss(sol.ys), [rate, y0])))
    assert relative(results[1], results[0]) <= 1e-12
    assert sol.stats.accepted > 64  # several stretches
    assert sol.stats.vjps == 6 * sol.stats.accepted + 1
    assert sol.stats.f_evaluations == 6 * (sol.stats.accepted + sol.stats.rejected) + 1


@pytest.mark.parametrize("n", [1, 5, 40])
def test_bytes_held(n: int) -> None:
    """All saved tensors, seen by hooks while the graphs are made: each storage once, no parameter."""
    net, y0, constant = mlp(), leaf(4, 3), leaf(3, seed=1).detach()
    held: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.detach())  # so that no address is used again
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        odegrad.solve(
            lambda t, y: net(y) * constant,
            y0,
            [0.0, 1.0],
            scheme=odegrad.RK4(),
            stepsize=Steps(n),
            gradient=Tape(),
        )
    for x in (y0, *net.parameters()):  # y0 is what the check of its finiteness saved
        held.pop(x.untyped_storage().data_ptr(), None)
    sol = odegrad.solve(
        lambda t, y: net(y) * constant,
        y0,
        [0.0, 1.0],
        scheme=odegrad.RK4(),
        stepsize=Steps(n),
        gradient=GRAPHS,
    )
    assert sol.stats.kept_bytes == sum(held.values())
    # Per stage: the argument of f, 4 × 3, and the hidden layer, 4 × 8.
    assert sol.stats.kept_bytes == 8 * (n * 4 * (12 + 32) + 3)


def test_landings_of_every_stretch() -> None:
    """A stretch has at most 32 steps; here landings come before, inside and at the end of several."""
    times = torch.cat([torch.tensor([0.0, 0.1]), torch.linspace(0.2, 2.0, 7)]).double()
    for steps in (5, 16, 40):
        results = []
        for gradient in (GRAPHS, Tape()):
            case, ts = time_dependent(), times.clone().requires_grad_()
            ys = odegrad.solve(
                case.f, case.y0, ts, case.args, stepsize=Steps(steps), gradient=gradient
            ).ys
            inputs = [*case.y0_leaves, *case.others, ts]
            results.append(list(torch.autograd.grad(loss(ys), inputs)))
        assert relative(*results) <= 1e-12
        torch.testing.assert_close(results[0][-1], results[1][-1], rtol=1e-11, atol=1e-13)


def test_an_interrupted_backward_sweep_cannot_go_on() -> None:
    def interrupt(info: odegrad.StepInfo) -> None:
        if info.phase == "backward" and info.n == 50:
            raise KeyboardInterrupt

    ys = solve(callback=interrupt).ys
    with pytest.raises(KeyboardInterrupt):
        ys.sum().backward()
    with pytest.raises(errors.GradientUnavailableError, match="interrupted"):
        ys.sum().backward()
    ys = solve(callback=interrupt).ys
    for _ in range(2):  # retained graphs are all there
        with pytest.raises(KeyboardInterrupt):
            ys.sum().backward(retain_graph=True)


@pytest.mark.parametrize("checkpoints", [odegrad.Every(3), odegrad.Online(2), odegrad.Binomial(2)])
def test_what_an_interrupted_pass_used_up_is_told(checkpoints: Any) -> None:
    """Wherever a pass was interrupted, the next one is right, or says that this solve is spent."""
    w, y0, said = leaf(seed=1), leaf(3), set()
    for last in range(2, 14):
        calls = [-1000]

        def f(t: Tensor, y: Tensor, calls: list[int] = calls, last: int = last) -> Tensor:
            calls[0] += 1
            if calls[0] == last:
                raise KeyboardInterrupt
            return -w * y

        ys = odegrad.solve(
            f,
            y0,
            [0.0, 1.0],
            scheme=odegrad.Euler(),
            stepsize=Steps(9),
            gradient=odegrad.Discrete(checkpoints),
        ).ys
        right = torch.autograd.grad(ys.sum(), [w, y0], retain_graph=True)
        calls[0] = 0
        with pytest.raises(KeyboardInterrupt):
            ys.sum().backward()
        calls[0] = -1000
        try:
            found = torch.autograd.grad(ys.sum(), [w, y0])
        except errors.GradientUnavailableError as error:
            said.add("was interrupted" in str(error))
        else:
            said.add("right" if all(map(torch.equal, found, right)) else "wrong")
    assert said == {True, "right"}


def test_randomness_that_the_first_call_does_not_show() -> None:
    """Kept graphs need no repetition, second derivatives do."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y * (torch.rand(2, dtype=torch.float64) if t > 0.3 else 1.0)

    results, y0 = [], leaf(2)
    for gradient in (Tape(), GRAPHS):
        torch.manual_seed(0)
        ys = odegrad.solve(f, y0, TS, stepsize=Steps(3), gradient=gradient).ys
        results.append(list(torch.autograd.grad(ys.sin().sum(), y0, create_graph=True)))
    assert relative([results[1][0].detach()], [results[0][0].detach()]) <= 1e-12
    with pytest.raises(errors.RandomFieldError, match="random numbers"):
        torch.autograd.grad(results[1][0].sum(), y0)


def test_what_f_reads_may_change_if_no_derivative_needs_it() -> None:
    """A shift is added and not saved; second derivatives evaluate f again and notice."""
    shift, y0 = torch.ones(2, dtype=torch.float64), leaf(2)
    ys = odegrad.solve(lambda t, y: shift - y * y, y0, TS, stepsize=Steps(3), gradient=GRAPHS).ys
    expected = odegrad.solve(lambda t, y: 1.0 - y * y, y0, TS, stepsize=Steps(3), gradient=Tape())
    shift.add_(1.0)
    found = torch.autograd.grad(loss(ys), y0, create_graph=True)
    first = [found[0].detach()]
    assert relative(first, list(torch.autograd.grad(loss(expected.ys), y0))) <= 1e-12
    with pytest.raises(errors.ChangedTensorError):
        torch.autograd.grad(found[0].sum(), y0)


def test_a_constant_of_a_transform_that_needs_a_gradient_further_out() -> None:
    """Inside a transform, what is computed from outer tensors does not say that it needs one."""
    w0, y0 = leaf(seed=1), leaf(2)
    results = []
    for gradient in (Tape(), odegrad.Discrete(), GRAPHS):

        def value(y: Tensor, gradient: Any = gradient) -> Tensor:
            w = w0.exp()
            assert not w.requires_grad
            return odegrad.solve(
                lambda t, y, w: -w * y * y, y, TS, (w,), stepsize=Steps(2), gradient=gradient
            ).ys.sum()

        result, _ = torch.func.vjp(value, y0)
        results.append(list(torch.autograd.grad(result, [w0, y0])))
    assert max(relative(x, results[0]) for x in results[1:]) <= 1e-12


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    problem = autonomous()
    with torch.no_grad():
        sol = odegrad.solve(problem.f, problem.y0, TS, stepsize=Steps(4), gradient=GRAPHS)
    assert sol.stats.kept_bytes == 0
    assert not sol.ys.requires_grad


def test_deep_networks_and_long_solves_do_not_overflow_the_stack() -> None:
    """torch frees long graphs by recursion if Python has walked them."""
    layers = [torch.nn.Linear(2, 2, dtype=torch.float64) for _ in range(160)]
    net = torch.nn.Sequential(*(m for layer in layers for m in (layer, torch.nn.Tanh())))
    y0 = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    deep = {"scheme": odegrad.RK4(), "stepsize": odegrad.Steps(33)}
    graph = odegrad.Discrete(odegrad.StoreAll(keep=odegrad.Keep.GRAPH))
    sol = odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0], gradient=graph, **deep)
    sol.ys.sum().backward()
    long = {"scheme": odegrad.RK4(), "stepsize": odegrad.Steps(1500)}
    sol = odegrad.solve(lambda t, y: layers[0](y).tanh(), y0, [0.0, 1.0], **long)
    (g,) = torch.autograd.grad(sol.ys.square().sum(), y0, create_graph=True)
    torch.autograd.grad(g.square().sum(), y0)
