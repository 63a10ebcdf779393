"""Choices are values: they pickle, copy, compare, and repr makes them again. Solves leave no state."""

from __future__ import annotations

import copy
import dataclasses
import enum
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from odegrad import Discrete, Keep, Steps, checkpoints, controls, grid, stepsize
from odegrad.schemes import SCHEMES
from odegrad.stepsize import History

NAMES = (
    {name: getattr(odegrad, name) for name in odegrad.__all__}
    | {name: getattr(checkpoints, name) for name in checkpoints.__all__}
    | {name: getattr(stepsize, name) for name in stepsize.__all__}
    | {"Uniform": grid.Uniform, "Nodes": grid.Nodes, "Leading": grid.Leading, "inf": float("inf")}
)

SCHEDULES = [
    odegrad.StoreAll(),
    odegrad.StoreAll(Keep.GRAPH),
    odegrad.Every(3, Keep.STAGES),
    odegrad.Binomial(4),
    odegrad.Online(5),
    odegrad.Blockwise(odegrad.Binomial(2), 7, Keep.GRAPH),
    odegrad.Tiered(ram=2, disk=3, device=1, directory="somewhere"),
    odegrad.Rewind(anchor_every=9),
]

VALUES = [
    *(cls() for cls in SCHEMES if cls is not odegrad.Reversible),
    odegrad.ALF(damping=0.75),
    odegrad.Reversible(odegrad.RK4(), coupling=0.9),
    Steps(3),
    odegrad.Fixed(0.125),
    odegrad.PID(),
    odegrad.PID(1e-3, 1e-5, p=0.3, i=0.4, d=0.1, dt0=0.25, dt_min=1e-9, dt_max=2.0),
    odegrad.Grid((grid.Uniform(2), grid.Nodes((0.0, 0.3, 1.0)))),
    odegrad.Grid((grid.Leading(grid.Uniform(3), 2),)),
    History((0.5, 0.25), rejected=True),
    odegrad.Share(0.5),
    odegrad.Samples(),
    odegrad.Samples(args=(0, None)),
    odegrad.GaussKronrod(rtol=1e-4),
    *SCHEDULES,
    *(Discrete(schedule) for schedule in SCHEDULES),
    Discrete(memory="256MiB"),
    Discrete(memory=odegrad.Share(0.25)),
    odegrad.Tape(),
    odegrad.Backsolve(),
    odegrad.Backsolve(scheme=odegrad.RK4(), stepsize=Steps(2)),
    odegrad.Quadrature(odegrad.GaussKronrod(), odegrad.Bosh3(), odegrad.PID(1e-4)),
    odegrad.Mismatched(odegrad.Euler()),
    odegrad.Tangent(),
    Keep.GRAPH,
    odegrad.Status.SUCCESS,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_round_trips(value: Any) -> None:
    again = [
        *(pickle.loads(pickle.dumps(value, protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)),
        copy.copy(value),
        copy.deepcopy(value),
    ]
    if not isinstance(value, enum.Enum):
        again.append(eval(repr(value), dict(NAMES)))
    for other in again:
        assert type(other) is type(value)
        assert other == value
        assert repr(other) == repr(value)
        assert hash(other) == hash(value)


def test_every_public_choice_is_among_them() -> None:
    """What is exported and is a frozen dataclass with values to choose."""
    results = (
        odegrad.Solution,
        odegrad.SampleSolution,
        odegrad.Plan,
        odegrad.GradientDensity,
        odegrad.StepInfo,
        odegrad.Occurrences,
        odegrad.Event,  # holds functions
    )
    public = {
        x
        for x in NAMES.values()
        if isinstance(x, type)
        and dataclasses.is_dataclass(x)
        and x.__dataclass_params__.frozen
        and x not in results
        and not issubclass(x, odegrad.Audit)
    }
    tried = {type(value) for value in VALUES} | {grid.Uniform, grid.Nodes, grid.Leading}
    left = {x.__name__ for x in public - tried}
    assert left <= {"Decision", "Advance", "Store", "Restore", "Drop", "Transpose", "Unstep"}
    assert len(public) > 30


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_they_cannot_be_changed(value: Any) -> None:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)


def test_choices_that_differ_are_not_equal() -> None:
    for i, a in enumerate(VALUES):
        equal = [b for b in VALUES[i + 1 :] if a == b]
        assert equal in ([], [a])
        assert all(repr(a) == repr(b) for b in equal)


def test_a_pickle_is_read_in_another_process() -> None:
    data = pickle.dumps(VALUES)
    code = (
        "import pickle, sys\n"
        "values = pickle.loads(sys.stdin.buffer.read())\n"
        "print(*map(repr, values), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [repr(value) for value in VALUES]


# Modules.


class Net(nn.Module):
    """Reads t and a control, normalizes, drops out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.control = controls.PiecewiseConstant([0.0, 0.5, 1.0], (2,), init=torch.ones(2, 2))
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y) + self.control(t) * t


MODELS = [
    {"scheme": odegrad.RK4(), "stepsize": Steps(2)},
    {"gradient": Discrete(odegrad.Binomial(2)), "stepsize": odegrad.PID(1e-2, 1e-2)},
    {"gradient": odegrad.Tape(), "stepsize": Steps(2)},
    {"gradient": Discrete(memory="1MiB"), "stepsize": Steps(2)},
    {"gradient": Discrete(odegrad.StoreAll(Keep.GRAPH)), "stepsize": Steps(2)},
]

Y0 = torch.linspace(-1, 1, 10).reshape(5, 2)


def trained(model: nn.Module) -> Tensor:
    ys = model(Y0, [0.0, 0.7, 1.0])
    model.zero_grad()
    ys.square().sum().backward()
    return ys.detach()


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("used", [False, True])
def test_copies_of_a_model(options: dict[str, Any], used: bool) -> None:
    """By pickle, deepcopy and torch.save, before and after a solve with its backward pass."""
    model = odegrad.NeuralODE(Net(), **options)
    if used:
        trained(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        torch.load(file, weights_only=False),
    ]
    right = trained(model)
    for other in copies:
        assert repr(other) == repr(model)
        assert torch.equal(trained(other), right)
        for p, q in zip(other.parameters(), model.parameters(), strict=True):
            assert p is not q
            assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_state_dict(options: dict[str, Any]) -> None:
    """It is that of the net, before and after a solve, and makes another model the same."""
    net = Net()
    model = odegrad.NeuralODE(net, **options)
    names = [f"net.{name}" for name in net.state_dict()]
    attributes = set(vars(model)), set(vars(net)), set(vars(net.layers[0]))
    assert list(model.state_dict()) == names
    trained(model)
    assert list(model.state_dict()) == names
    assert (set(vars(model)), set(vars(net)), set(vars(net.layers[0]))) == attributes
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    state.seek(0)
    other = odegrad.NeuralODE(Net(), **options)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert str(other.load_state_dict(torch.load(state, weights_only=True))) == str(
        model.load_state_dict(model.state_dict())
    )
    assert torch.equal(trained(other), trained(model))


def test_moves_and_dtypes() -> None:
    model = odegrad.NeuralODE(Net(), **MODELS[0]).double()
    assert model(Y0.double(), [0.0, 1.0]).dtype == torch.float64
    assert model.float()(Y0, [0.0, 1.0]).dtype == torch.float32


def test_solutions_pickle_once_detached() -> None:
    sol = odegrad.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0])
    other = pickle.loads(pickle.dumps(sol))
    assert torch.equal(other.ys, sol.ys)
    assert (other.grid, other.status, other.stats) == (sol.grid, sol.status, sol.stats)
    again = odegrad.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], stepsize=other.grid)
    assert torch.equal(again.ys, sol.ys)


def test_every_error_and_warning_pickles() -> None:
    """Workers of a data loader or a pool hand them on."""
    for name in odegrad.errors.__all__:
        x = getattr(odegrad.errors, name)
        if isinstance(x, type) and issubclass(x, Exception):
            other = pickle.loads(pickle.dumps(x("the message")))
            assert type(other) is x
            assert str(other) == "the message"


def test_the_package_is_all_there() -> None:
    assert (Path(odegrad.__file__).parent / "py.typed").exists()
    assert sorted(set(odegrad.__all__)) == sorted(odegrad.__all__)
    assert all(hasattr(odegrad, name) for name in odegrad.__all__)
