"""Nothing outlives the graph of the loss: no state, no graph, no file, no module of the user's."""

from __future__ import annotations

import contextlib
import gc
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from cases import leaf, mlp
from odegrad import PID, Binomial, Blockwise, Discrete, Every, Keep, Online, Steps, StoreAll, Tape
from odegrad.checkpoints import Rewind, Tiered
from odegrad.compiled import Blocks, using_backend
from odegrad.gradients import rehearsal
from odegrad.sweeps.kept import Kept

TIMES = [0.0, 0.4, 1.0]
EXACT: dict[str, Any] = {"scheme": odegrad.Bosh3(), "stepsize": Steps(8)}

GRADIENTS = [
    Tape(),
    Discrete(),
    Discrete(StoreAll(Keep.STAGES)),
    Discrete(StoreAll(Keep.GRAPH)),
    Discrete(Every(3)),
    Discrete(Every(3, Keep.GRAPH)),
    Discrete(Binomial(3)),
    Discrete(Online(3)),
    Discrete(Tiered(ram=1, disk=2)),
    Discrete(Blockwise(Binomial(2), 3, Keep.STAGES)),
    Discrete(Blockwise(Tiered(ram=1, disk=1), 3, Keep.GRAPH)),
    Discrete(Rewind(3)),
    Discrete(memory="1MiB"),
    Discrete(memory="24KiB"),
]
each = pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
kinds = pytest.mark.parametrize("stepsize", [Steps(8), PID(1e-4, 1e-6)], ids=["fixed", "adaptive"])


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """What is freed is freed by counting references: there are no cycles.

    What earlier tests left in cycles is collected first, and their files are closed: else they
    would be missed when they go away in the middle of a test.
    """
    gc.collect()
    settled(0)
    gc.disable()
    yield
    gc.enable()


class Token:
    """Lives as long as the node of the graph that it hangs on."""


class Marked(torch.autograd.Function):
    """The identity, whose nodes can be watched."""

    tokens: list[weakref.ref[Token]] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.token = Token()
        Marked.tokens.append(weakref.ref(ctx.token))
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Field(nn.Module):
    """A field whose graphs can be watched, and which can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.left = mlp(), -1

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise ValueError("mine")
        return self.net(Marked.apply(y))


class Watch:
    """What was kept since it was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[weakref.ref[Tensor]] = []
        Marked.tokens.clear()
        honest = Kept.tensors

        def watched(kept: Kept) -> Any:
            tensors = honest(kept)
            self.kept += [weakref.ref(x) for x in tensors]
            return tensors

        monkeypatch.setattr(Kept, "tensors", watched)

    @property
    def states(self) -> int:
        """How many tensors of states are alive."""
        return sum(r() is not None for r in self.kept)

    @property
    def nodes(self) -> int:
        """How many nodes of graphs of f are alive."""
        return sum(r() is not None for r in Marked.tokens)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def settled(before: int) -> int:
    """How many files without a name are open, after the thread that closes them had time for it."""
    for _ in range(200):
        if files() == before:
            break
        time.sleep(0.01)
    return files()


def files() -> int:
    """How many files without a name are open now."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        found += "odegrad-" in target
    return found


def options_for(gradient: Any, stepsize: Any = EXACT["stepsize"]) -> dict[str, Any]:
    rewinds = isinstance(gradient, Discrete) and gradient.rewinds
    scheme = odegrad.ALF() if rewinds else EXACT["scheme"]
    return {"scheme": scheme, "stepsize": stepsize, "gradient": gradient}


@each
@kinds
def test_what_is_kept_dies_with_the_solution(gradient: Any, stepsize: Any, watch: Watch) -> None:
    f, before = Field(), files()
    sol: Any = odegrad.solve(f, leaf(4, 3), TIMES, **options_for(gradient, stepsize))
    assert watch.states + watch.nodes + files() - before > 0
    grid, stats = sol.grid, sol.stats
    del sol
    assert (watch.states, watch.nodes, settled(before)) == (0, 0, before)
    assert grid.n_steps == stats.accepted


@each
@kinds
def test_what_is_kept_is_freed_by_the_backward_pass(
    gradient: Any, stepsize: Any, watch: Watch
) -> None:
    """While the solution and the loss are still there."""
    f, before, y0 = Field(), files(), leaf(4, 3)
    sol = odegrad.solve(f, y0, TIMES, **options_for(gradient, stepsize))
    value = sol.ys.square().sum()
    value.backward()
    # The field holds the last slope, with its graph; under a tape that is the whole.
    assert watch.states == 0
    assert watch.nodes <= 1 or isinstance(gradient, Tape)
    assert y0.grad is not None
    del sol, value
    assert (watch.states, watch.nodes, settled(before)) == (0, 0, before)


@each
def test_a_retained_graph_keeps_it_and_no_more(gradient: Any, watch: Watch) -> None:
    f, before = Field(), files()
    value = odegrad.solve(f, leaf(4, 3), TIMES, **options_for(gradient)).ys.square().sum()
    states, nodes, opened = watch.states, watch.nodes, files()
    for _ in range(3):
        value.backward(retain_graph=True)
        assert watch.states == states
        assert watch.nodes <= nodes + 1
        assert files() == opened
    value.backward()
    assert watch.states == 0
    del value
    assert (watch.states, watch.nodes, settled(before)) == (0, 0, before)


@each
def test_losses_at_labels(gradient: Any, watch: Watch) -> None:
    f, before = Field(), files()
    options = options_for(gradient)
    sol: Any = odegrad.solve(f, leaf(4, 3), TIMES, loss_at=lambda j, y: y.sum(), **options)
    sol.loss.backward()
    assert watch.states == 0
    del sol
    assert (watch.states, watch.nodes, settled(before)) == (0, 0, before)


@each
@pytest.mark.parametrize("left", [1, 17])
def test_an_exception_in_the_backward_sweep_leaves_nothing(
    gradient: Any, left: int, watch: Watch
) -> None:
    f, before = Field(), files()
    value: Any = odegrad.solve(f, leaf(4, 3), TIMES, **options_for(gradient)).ys.sum()
    f.left = left
    with contextlib.suppress(ValueError):  # kept graphs evaluate nothing
        value.backward()
    del value
    assert (watch.states, watch.nodes, settled(before)) == (0, 0, before)


@each
@pytest.mark.parametrize("left", [2, 11])
def test_an_exception_in_the_forward_sweep_leaves_nothing(
    gradient: Any, left: int, watch: Watch
) -> None:
    f, before = Field(), files()
    f.left = left
    with pytest.raises(ValueError, match="mine") as raised:
        odegrad.solve(f, leaf(4, 3), TIMES, **options_for(gradient))
    del raised
    assert (watch.states, watch.nodes, settled(before)) == (0, 0, before)


def test_second_derivatives_leave_nothing(watch: Watch) -> None:
    for gradient in GRADIENTS:
        f, y0, before = Field(), leaf(4, 3), files()
        value: Any = odegrad.solve(f, y0, TIMES, **options_for(gradient)).ys.square().sum()
        (first,) = torch.autograd.grad(value, y0, create_graph=True)
        first.square().sum().backward()
        del value, first
        # What backward accumulates under create_graph would refer to itself; here nothing does.
        assert (watch.states, watch.nodes, settled(before)) == (0, 0, before), gradient


def times_argument(f: Any) -> Any:
    return lambda t, y, a: f(t, y) * a


@each
def test_f_and_its_modules_are_let_go(gradient: Any) -> None:
    """Also by what the planner remembers."""
    f, y0, argument = Field(), leaf(4, 3), leaf(3, seed=1)
    field, loss_at = times_argument(f), lambda j, y, a: (a * y).sum()
    watched = [weakref.ref(x) for x in (f, f.net, y0, argument, loss_at, field)]
    options = options_for(gradient)
    for more in ({}, {"loss_at": loss_at}):
        sol: Any = odegrad.solve(field, y0, TIMES, (argument,), **options, **more)
        (sol.loss if more else sol.ys.sum()).backward()
        del sol
    more = {}
    del f, y0, argument, loss_at, field
    assert [r() for r in watched] == [None] * 6


def test_what_the_planner_remembers_goes_with_f() -> None:
    known = len(rehearsal._KNOWN)
    f = Field()
    odegrad.plan(f, leaf(4, 3), TIMES, gradient=Discrete(memory="1MiB"), **EXACT, show=False)
    assert len(rehearsal._KNOWN) == known + 1
    del f
    assert len(rehearsal._KNOWN) == known


def test_files_of_a_directory(tmp_path: Path) -> None:
    """They have no name at any time, and are closed when the graph goes."""
    gradient, before = Discrete(Tiered(ram=1, disk=3, directory=tmp_path)), files()
    sol: Any = odegrad.solve(Field(), leaf(4, 3), TIMES, **options_for(gradient))
    assert files() == before + 1
    assert list(tmp_path.iterdir()) == []
    del sol
    assert settled(before) == before
    f = Field()
    sol = odegrad.solve(f, leaf(4, 3), TIMES, **options_for(gradient))
    f.left = 9
    with pytest.raises(ValueError, match="mine"):
        sol.ys.sum().backward()
    del sol
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gradient", [GRADIENTS[i] for i in (1, 3, 6, 10)], ids=str)
def test_compiled_states_die_with_the_solution(
    gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[Tensor]] = []
    honest = Blocks.tensors

    def tensors(self: Blocks) -> Any:
        found = honest(self)
        kept.extend(weakref.ref(x) for x in found)
        return found

    monkeypatch.setattr(Blocks, "tensors", tensors)
    before, y0 = files(), leaf(4, 3)
    with using_backend("interpreter"):
        for backward in (False, True):
            sol: Any = odegrad.solve(net_field, y0, TIMES, compile=True, **options_for(gradient))
            if backward:
                sol.ys.sum().backward()
                assert all(r() is None for r in kept)
            del sol
            gc.collect()  # Dynamo makes cycles
            assert all(r() is None for r in kept)
            assert settled(before) == before


NET = mlp()


def net_field(t: Tensor, y: Tensor) -> Tensor:
    return NET(y)


# Many steps of training.


def resident() -> int:
    """The bytes of this process in memory."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "gradient",
    [
        Discrete(),
        Discrete(StoreAll(Keep.GRAPH)),
        Discrete(Binomial(2)),
        Discrete(Tiered(ram=1, disk=1)),
        Discrete(Blockwise(Binomial(1), 2)),
        Discrete(memory="1MiB"),
    ],
    ids=str,
)
def test_training_does_not_grow(gradient: Any) -> None:
    """A state of 64 KiB: leaking one in each of 200 steps would take 12 MiB."""
    rate = torch.zeros(1, requires_grad=True)
    y0 = torch.ones(16, 1024)
    optimizer = torch.optim.SGD([rate], 1e-3)
    options: dict[str, Any] = {"scheme": odegrad.Euler(), "stepsize": Steps(4)}
    sizes = []
    for i in range(300):
        shift = torch.zeros(1)  # a batch of data, as it were
        sol = odegrad.solve(
            lambda t, y, shift=shift: rate * y + shift, y0, [0.0, 1.0], gradient=gradient, **options
        )
        sol.ys[-1].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if i in (100, 299):
            sizes.append(resident())
    assert sizes[1] - sizes[0] < 3 << 20
