"""Bad inputs, one row each: odegrad refuses them by name, warns, or does what is right.

`ROWS` is what the README counts. A row is a name, a call, and what has to come of it: an exception with a
part of its message, a warning with a part of its message, or a right answer, for which the call returns
what was found and an independent reference (a closed form, or the same without the oddity).
"""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import odegrad
from odegrad import (
    PID,
    Binomial,
    Discrete,
    Event,
    Fixed,
    Keep,
    Steps,
    StoreAll,
    Tape,
    Tiered,
    errors,
)

F64 = torch.float64
NAN, INF = float("nan"), float("inf")
TINY = 1e-300


@dataclass(frozen=True)
class Raises:
    """The call raises an exception of this kind, whose message contains a part."""

    kind: type[BaseException]
    part: str


@dataclass(frozen=True)
class Warns:
    """The call warns once with a message that contains a part, and is right."""

    part: str


class Right:
    """The call returns what was found and what is right."""


RIGHT = Right()


class Row(NamedTuple):
    name: str
    call: Callable[[], Any]
    expected: Raises | Warns | Right


ROWS: list[Row] = []


def row(name: str, expected: Raises | Warns | Right) -> Callable[[Callable[[], Any]], None]:
    """Adds a function as a row."""

    def add(call: Callable[[], Any]) -> None:
        ROWS.append(Row(name, call, expected))

    return add


def check(row: Row) -> None:
    """Whether a row comes out as expected; without assertions, to hold under python -O."""
    expected, error, result = row.expected, None, None
    y0 = ONE.clone()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            result = row.call()
        except BaseException as caught:
            error = caught
    said = [str(w.message) for w in seen]
    if not torch.equal(y0, ONE):
        raise AssertionError(f"{row.name}: the caller's state was changed")
    if isinstance(expected, Raises):
        if type(error) is not expected.kind or expected.part not in str(error):
            raise AssertionError(f"{row.name}: expected {expected}, found {error!r}") from error
        return
    if error is not None:
        raise AssertionError(f"{row.name}: {error!r}") from error
    wanted = [expected.part] if isinstance(expected, Warns) else []
    if len(said) != len(wanted) or any(p not in s for p, s in zip(wanted, said, strict=True)):
        raise AssertionError(f"{row.name}: expected warnings {wanted}, found {said}")
    if any(w.category is not errors.OdegradWarning or w.filename != __file__ for w in seen):
        raise AssertionError(f"{row.name}: {seen} do not point to the caller")
    found, right, *tolerance = result
    close = {"rtol": tolerance[0], "atol": tolerance[0]} if tolerance else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, right, **close, check_dtype=True)


# What the rows use.

ONE = torch.ones(2, dtype=F64)


def decay(t: Tensor, y: Any) -> Any:
    return -y


def solve(f: Any = decay, y0: Any = ONE, ts: Any = (0.0, 1.0), **more: Any) -> odegrad.Solution:
    return odegrad.solve(f, y0, ts, **more)


RK4: dict[str, Any] = {"scheme": odegrad.RK4(), "stepsize": Steps(8)}
EULER: dict[str, Any] = {"scheme": odegrad.Euler(), "stepsize": Steps(2)}


def refuse(name: str, kind: type[BaseException], part: str, **call: Any) -> None:
    ROWS.append(Row(name, lambda: solve(**call), Raises(kind, part)))


def same(name: str, odd: dict[str, Any], plain: dict[str, Any]) -> None:
    """An oddity that changes nothing."""
    ROWS.append(Row(name, lambda: (solve(**odd).ys, solve(**plain).ys), RIGHT))


def weight(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64, requires_grad=True)


TYPE, VALUE = errors.InvalidTypeError, errors.InvalidValueError
OUTPUT, OUTPUT_TYPE = errors.FieldOutputError, errors.FieldOutputTypeError
NON_FINITE = errors.NonFiniteInputError

# ------------------------------------------------------------------------ the initial state

refuse(
    "y0 NaN",
    NON_FINITE,
    "1 values that are NaN or infinite, the first at index [1]",
    y0=torch.tensor([1.0, NAN]),
)
refuse("y0 NaN, fixed steps", NON_FINITE, "NaN or infinite", y0=torch.tensor([1.0, NAN]), **RK4)
refuse(
    "y0 infinite in a leaf",
    NON_FINITE,
    "y0['q'] has 1 values",
    y0={"p": ONE, "q": torch.tensor([INF])},
    f=lambda t, y: y,
)
refuse("y0 complex NaN", NON_FINITE, "at index [0]", y0=torch.tensor([complex(0, NAN)]))
refuse(
    "y0 integer",
    TYPE,
    "y0 is torch.int64; a state is floating-point or complex: pass y0.float()",
    y0=torch.tensor([1, 2]),
)
refuse("y0 integer, Euler", TYPE, "pass y0.float()", y0=torch.tensor([1, 2]), **EULER)
refuse("y0 boolean", TYPE, "y0 is torch.bool", y0=torch.tensor([True]))
refuse(
    "y0 integer leaf of a dict",
    TYPE,
    "y0['n'] is torch.int32",
    y0={"n": torch.ones(1, dtype=torch.int32)},
)
refuse(
    "y0 a list of floats",
    TYPE,
    "y0[0] must be a tensor, received float; wrap numbers in torch.tensor",
    y0=[1.0, 2.0],
)
refuse("y0 a float", TYPE, "y0 must be a tensor, received float", y0=1.0)
refuse("y0 an array", TYPE, "y0 must be a tensor, received ndarray", y0=np.ones(2))
refuse("y0 None", TYPE, "y0 must be a tensor, received NoneType", y0=None)
refuse("y0 without a leaf", VALUE, "y0 holds no tensor", y0={})
refuse(
    "y0 on the meta device", VALUE, "which holds no numbers", y0=ONE.to("meta"), f=lambda t, y: y
)
refuse(
    "y0 on two devices",
    VALUE,
    "y0['b'] is on meta, y0['a'] on cpu; put the whole state on one device",
    y0={"a": ONE, "b": ONE.to("meta")},
    f=lambda t, y: y,
)


refuse(
    "a time beyond the state's precision",
    VALUE,
    "ts[1] = 100000 is beyond torch.float16, the precision of the state",
    y0=ONE.half(),
    ts=[0.0, 1e5],
)


@row("y0 a dict and a tuple", RIGHT)
def _() -> Any:
    ys = solve(lambda t, y: {"a": (-y["a"][0],)}, {"a": (ONE,)}, **RK4).ys
    return ys["a"][0], solve(**RK4).ys


@row("y0 of two precisions keeps them", RIGHT)
def _() -> Any:
    y0 = (torch.ones(2), torch.ones(2, dtype=F64))
    a, b = solve(lambda t, y: (-y[0], -y[1]), y0, **RK4).ys
    return (a, b), (solve(y0=torch.ones(2), **RK4).ys, solve(**RK4).ys), 2e-7


@row("y0 without an element, adaptive", RIGHT)
def _() -> Any:
    sol = solve(y0=torch.zeros(0, 3))
    return (sol.ys, sol.stats.rejected), (torch.zeros(2, 0, 3), 0)


@row("y0 without an element, fixed steps", RIGHT)
def _() -> Any:
    y0 = torch.zeros(3, 0, dtype=F64, requires_grad=True)
    ys = solve(y0=y0, **RK4).ys
    (grad,) = torch.autograd.grad(ys.sum(), y0)
    return (ys, grad), (torch.zeros(2, 3, 0, dtype=F64), torch.zeros(3, 0, dtype=F64))


@row("y0 without a dimension", RIGHT)
def _() -> Any:
    return solve(y0=torch.tensor(1.0, dtype=F64), **RK4).ys, solve(**RK4).ys[:, 0]


@row("y0 an expanded view", RIGHT)
def _() -> Any:
    return solve(y0=torch.ones(1, dtype=F64).expand(2), **RK4).ys, solve(**RK4).ys


@row("y0 not contiguous", RIGHT)
def _() -> Any:
    y0 = torch.arange(6, dtype=F64).reshape(2, 3).T
    return solve(y0=y0, **RK4).ys, solve(y0=y0.contiguous(), **RK4).ys


# -------------------------------------------------------------------------------- the times

refuse(
    "ts turns", VALUE, "ts must not change direction: ts[1] = 2.0, ts[2] = 1.0", ts=[0.0, 2.0, 1.0]
)
refuse("ts turns back to its start", VALUE, "ts must not change direction", ts=[0.0, 1.0, 0.0])
refuse("ts empty", VALUE, "shape [T] with T ≥ 1, received shape [0]", ts=[])
refuse("ts 2-D", VALUE, "received shape [2, 2]", ts=torch.zeros(2, 2))
refuse("ts a scalar", VALUE, "received shape []", ts=torch.tensor(1.0))
refuse("ts a float", TYPE, "1-D tensor or a sequence of floats, received float", ts=1.0)
refuse("ts None", TYPE, "received NoneType", ts=None)
refuse("ts text", TYPE, "received str", ts="now")
refuse("ts ragged", TYPE, "1-D tensor or a sequence of floats", ts=[[0.0], [1.0, 2.0]])
refuse("ts NaN", NON_FINITE, "ts[1] is nan; times must be finite", ts=[0.0, NAN])
refuse("ts infinite", NON_FINITE, "ts[1] is inf", ts=torch.tensor([0.0, INF]))
refuse("ts complex", TYPE, "ts must be real", ts=torch.zeros(2, dtype=torch.complex64))
refuse("ts boolean", TYPE, "ts must be real, received torch.bool", ts=torch.tensor([False, True]))
same("ts a list", {"ts": [0.0, 1.0], **RK4}, RK4)
same("ts a range", {"ts": range(2), **RK4}, RK4)
same("ts an array", {"ts": np.linspace(0, 1, 2), **RK4}, RK4)
same("ts integers", {"ts": torch.tensor([0, 1]), **RK4}, RK4)
same("ts half precision", {"ts": torch.tensor([0.0, 1.0], dtype=torch.float16), **RK4}, RK4)


@row("ts of one time", RIGHT)
def _() -> Any:
    calls = []
    ys = solve(lambda t, y: calls.append(1) or -y, ts=[3.0], **RK4).ys
    return ys, ONE[None]


@row("ts repeated: the same state, gradients add", RIGHT)
def _() -> Any:
    y0 = weight(1.0)
    ts = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0], dtype=F64, requires_grad=True)
    ys = solve(lambda t, y: -2 * y, y0, ts).ys
    grads = torch.autograd.grad(ys.sum(), [y0, ts])
    e = math.exp(-2.0)
    total = grads[1].sum()  # along (1, …, 1) nothing changes: f does not depend on t
    return (
        (ys[:, 0], grads[0][0], total),
        (
            torch.tensor([1.0, 1.0, e, e, e], dtype=F64),
            torch.tensor(2 + 3 * e, dtype=F64),
            torch.zeros((), dtype=F64),
        ),
        1e-6,
    )


@row("ts half precision whose neighbours collide", RIGHT)
def _() -> Any:
    ts = torch.linspace(1000, 1001, 9, dtype=F64).half()  # steps of 1/2 in float16
    return solve(ts=ts, **RK4).ys[-1], ONE * math.exp(-1.0), 1e-6


@row("ts descending", RIGHT)
def _() -> Any:
    return solve(ts=[1.0, 0.0]).ys[-1], ONE * math.e, 1e-5


@row("ts far from zero in float64, a float32 state", RIGHT)
def _() -> Any:
    ts = torch.tensor([1e6, 1e6 + 1e-2], dtype=F64)
    return solve(y0=torch.ones(1), ts=ts, **RK4).ys[-1], torch.ones(1) * math.exp(-1e-2), 1e-6


# ---------------------------------------------------------------------- what f returns and does

refuse("f not callable", TYPE, "f must be callable as f(t, y), received int", f=3)
refuse(
    "f returns [1] for [2]",
    OUTPUT,
    "f returned shape [1] where the state is [2]",
    f=lambda t, y: y[:1],
)
refuse(
    "f returns [1] for [2], fixed steps",
    OUTPUT,
    "f returned shape [1] where the state is [2]",
    f=lambda t, y: y[:1],
    **RK4,
)
refuse(
    "f returns a 0-dim tensor", OUTPUT, "f returned shape [] where", f=lambda t, y: y.sum(), **RK4
)
refuse("f returns [3] for [2]", OUTPUT, "f returned shape [3]", f=lambda t, y: y.new_ones(3), **RK4)
refuse(
    "f returns the transpose",
    OUTPUT,
    "f returned shape [1, 2]",
    f=lambda t, y: y.T,
    y0=torch.ones(2, 1),
    **RK4,
)
refuse("f returns None", OUTPUT_TYPE, "f must return", f=lambda t, y: None)
refuse(
    "f returns a float", OUTPUT_TYPE, "f must return tensors; leaf 0 is a float", f=lambda t, y: 1.0
)
refuse("f returns a tuple", OUTPUT_TYPE, "it returned tuple: (*, *)", f=lambda t, y: (y, y))
refuse("f returns an array", OUTPUT_TYPE, "leaf 0 is a ndarray", f=lambda t, y: np.ones(2))
refuse(
    "f returns another tree",
    OUTPUT_TYPE,
    "f must return the structure of the state, {'a': *}",
    f=lambda t, y: {"b": y["a"]},
    y0={"a": ONE},
)
refuse("f returns integers", OUTPUT, "return a floating-point derivative", f=lambda t, y: y.long())
refuse("f returns complex numbers", OUTPUT, "make the initial state complex", f=lambda t, y: 1j * y)
refuse(
    "f returns another device",
    OUTPUT,
    "f returned a tensor on meta where the state is on cpu",
    f=lambda t, y: y.to("meta"),
)
refuse(
    "f changes y in place",
    OUTPUT,
    "f changed its argument y in place",
    f=lambda t, y: y.mul_(-1),
    **EULER,
)
refuse(
    "f changes y in place, adaptive",
    OUTPUT,
    "f changed its argument y in place",
    f=lambda t, y: y.mul_(-1),
)
refuse("f takes another number of arguments", TypeError, "positional argument", f=lambda t: t)
refuse(
    "running returns a float", TYPE, "running must return one real tensor", running=lambda t, y: 1.0
)
refuse("loss_at returns a vector", TYPE, "loss_at must return", loss_at=lambda j, y: y, **RK4)
refuse("loss_at not callable", TYPE, "loss_at must be callable", loss_at=3)
refuse("running not callable", TYPE, "running must be callable as running(t, y)", running=3)
refuse("callback not callable", TYPE, "callback must be callable as callback(info)", callback=3)
refuse("callback raises", ZeroDivisionError, "division", callback=lambda info: 1 / 0)


@row("f returns y itself", RIGHT)
def _() -> Any:
    return solve(lambda t, y: y, **EULER).ys[-1], ONE * 2.25


@row("f returns a view of y", RIGHT)
def _() -> Any:
    y0 = torch.ones(2, 2, dtype=F64)
    found = [solve(lambda t, y: y.T, y0, gradient=g, **EULER).ys[-1] for g in (Discrete(), Tape())]
    return found, [y0 * 2.25] * 2


@row("f returns a captured tensor", RIGHT)
def _() -> Any:
    constant = torch.ones(2, dtype=F64)
    ys = solve(lambda t, y: constant, **EULER).ys
    return (ys[-1], constant), (ONE * 2, ONE)


@row("f returns one buffer each time", Raises(OUTPUT, "it writes its results into one buffer"))
def _() -> Any:
    buffer = torch.zeros(2, dtype=F64)
    return solve(lambda t, y: torch.mul(y, -1, out=buffer), **RK4)


@row("f returns a wider dtype", Warns("f returned torch.float64 for a torch.float32 state"))
def _() -> Any:
    y0 = torch.ones(2)
    return solve(lambda t, y: -y.double(), y0, **EULER).ys, solve(y0=y0, **EULER).ys


@row("f returns a narrower dtype", RIGHT)
def _() -> Any:
    y0 = torch.ones(2)
    return solve(lambda t, y: -y.bfloat16(), y0, **EULER).ys[-1], y0 / 4, 1e-2


@row("f asks for the gradient of its argument", RIGHT)
def _() -> Any:
    def hamiltonian(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.requires_grad_()
            return -torch.autograd.grad(y.square().sum() / 2, y, create_graph=True)[0]

    found = []
    for gradient in (Discrete(), Discrete(StoreAll(Keep.GRAPH)), Tape()):
        y0 = weight(1.0, 1.0)
        ys = solve(hamiltonian, y0, gradient=gradient, **EULER).ys
        found += [ys[-1].detach(), torch.autograd.grad(ys[-1].sum(), y0)[0]]
    return found, [ONE / 4] * 6


@row("f changes a counter", RIGHT)
def _() -> Any:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return -y

    f, y0 = Counting(), weight(1.0, 1.0)
    solve(f, y0, **RK4).ys.sum().backward()
    return f.calls, torch.tensor(32)


@row("dropout and batch norm in f", RIGHT)
def _() -> Any:
    found = []
    for gradient in (Discrete(Binomial(2)), Tape()):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
        ys = solve(lambda t, y, net=net: net(y), torch.ones(4, 2), gradient=gradient, **RK4).ys
        grads = torch.autograd.grad(ys.square().sum(), list(net.parameters()))
        found.append([*grads, *net.buffers()])
    return (*found, 1e-5)


@row("random f with adaptive steps", Warns("f draws random numbers"))
def _() -> Any:
    f = lambda t, y: -y + 0 * torch.rand(2, dtype=F64)  # noqa: E731
    return solve(f).ys[-1], ONE * math.exp(-1.0), 1e-5


@row("f draws random numbers late", Raises(errors.RandomFieldError, "did not at its first call"))
def _() -> Any:
    f = lambda t, y: -y * (torch.rand(2, dtype=F64) if t > 0.3 else 1.0)  # noqa: E731
    return solve(f, weight(1.0, 1.0), **RK4)


@row("f under inference mode", RIGHT)
def _() -> Any:
    with torch.inference_mode():
        ys = solve(y0=torch.ones(2, dtype=F64), **EULER).ys
        return ys.clone()[-1].tolist(), [0.25, 0.25]


@row("y0 made under inference mode, with gradients", RIGHT)
def _() -> Any:
    with torch.inference_mode():
        y0 = torch.ones(2, dtype=F64)
    rate = weight(1.0)
    found = []
    for gradient in (Discrete(), Discrete(StoreAll(Keep.GRAPH)), Tape()):
        ys = solve(lambda t, y: -rate * y, y0, gradient=gradient, **EULER).ys
        found.append(torch.autograd.grad(ys[-1].sum(), rate)[0])
    return found, [torch.tensor([-1.0], dtype=F64)] * 3


@row("args and ts made under inference mode, with gradients", RIGHT)
def _() -> Any:
    with torch.inference_mode():
        rate, ts = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    y0 = weight(1.0, 1.0)
    ys = solve(lambda t, y, a: -a * y, y0, ts, args=(rate,), **EULER).ys
    return torch.autograd.grad(ys[-1].sum(), y0)[0], ONE / 4


# f raises: its own exception, with a note.


class MineError(Exception):
    """An exception of the user's."""


class Failing:
    """Decays, and raises once t is past a time, while it is armed."""

    def __init__(self, after: float, armed: bool = True) -> None:
        self.after, self.armed, self.rate = after, armed, weight(1.0)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if self.armed and t > self.after:
            raise MineError("mine")
        return -self.rate * y


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def annotated(name: str, part: str, call: Callable[[], Any]) -> None:
    def run() -> Any:
        try:
            call()
        except MineError as error:
            told = sys.version_info < (3, 11) or any(part in note for note in notes(error))
            return [told, str(error) == "mine"], [True, True]

    ROWS.append(Row(name, run, RIGHT))


annotated(
    "f raises, fixed steps",
    "at t = 0.5, step 4",
    lambda: solve(Failing(0.45), scheme=odegrad.Euler(), stepsize=Steps(8)),
)
annotated("f raises, adaptive", "at t = ", lambda: solve(Failing(0.4)))
annotated("f raises at once", "at t = 0", lambda: solve(Failing(-1.0)))


def fail_in_backward(**options: Any) -> None:
    f = Failing(0.45, armed=False)
    sol = solve(f, scheme=odegrad.Euler(), stepsize=Steps(8), **options)
    f.armed = True
    sol.ys.sum().backward()


annotated("f raises in the backward pass", "while evaluating f again", fail_in_backward)
annotated(
    "f raises in the backward pass, recomputing",
    "while evaluating f again",
    lambda: fail_in_backward(gradient=Discrete(Binomial(1))),
)
annotated(
    "f raises in the traditional adjoint",
    "at t = ",
    lambda: fail_in_backward(gradient=odegrad.Backsolve()),
)
refuse(
    "f runs out of memory",
    torch.OutOfMemoryError,
    "mine",
    f=lambda t, y: raise_(torch.OutOfMemoryError("mine")),
)
refuse(
    "f is interrupted", KeyboardInterrupt, "mine", f=lambda t, y: raise_(KeyboardInterrupt("mine"))
)


def raise_(error: BaseException) -> Any:
    raise error


# ------------------------------------------------------------------------- solves that fail

refuse("f NaN everywhere", errors.NonFiniteDerivativeError, "at t = 0", f=lambda t, y: y * NAN)
refuse(
    "f NaN in a leaf",
    errors.NonFiniteDerivativeError,
    "leaf 1['b']",
    f=lambda t, y: {"a": -y["a"], "b": y["b"] * NAN},
    y0={"a": ONE, "b": ONE},
)
refuse(
    "f NaN past a time",
    errors.NonFiniteDerivativeError,
    "at t = 0.5",
    f=lambda t, y: -y if t < 0.5 else y * NAN,
)
refuse(
    "f infinite past a time",
    errors.NonFiniteDerivativeError,
    "at t = 0.5",
    f=lambda t, y: -y if t < 0.5 else y * INF,
)
refuse(
    "f NaN, fixed steps",
    errors.NonFiniteStateError,
    "the solution is NaN or infinite at ts[1] = 1",
    f=lambda t, y: y * NAN,
    **RK4,
)
refuse(
    "f NaN in a leaf, fixed steps",
    errors.NonFiniteStateError,
    "leaf 1['b']",
    f=lambda t, y: {"a": -y["a"], "b": y["b"] * NAN},
    y0={"a": ONE, "b": ONE},
    **RK4,
)
refuse(
    "f leaves its domain",
    errors.NonFiniteDerivativeError,
    "leave the domain of f",
    f=lambda t, y: -torch.sqrt(y) - 1,
    y0=ONE,
)
refuse(
    "blow-up",
    errors.StepTooSmallError,
    "the solution may be singular near t = 1",
    f=lambda t, y: y * y,
    ts=[0.0, 2.0],
)
refuse(
    "blow-up backwards in time",
    errors.StepTooSmallError,
    "the solution may be singular near t = -1",
    f=lambda t, y: -y * y,
    ts=[0.0, -2.0],
)
refuse(
    "blow-up of the derivative",
    errors.StepTooSmallError,
    "the solution may be singular near t = 1",
    f=lambda t, y: 1 / (1 - t) + 0 * y,
    ts=[0.0, 2.0],
)
refuse(
    "a time scale below the resolution of time",
    errors.StepTooSmallError,
    "f may be stiff here",
    f=lambda t, y: -1e17 * y,
)
refuse(
    "blow-up, fixed steps",
    errors.NonFiniteStateError,
    "may blow up",
    f=lambda t, y: y**3,
    ts=[0.0, 9.0],
    **RK4,
)
refuse(
    "unstable fixed steps",
    errors.NonFiniteStateError,
    "too large for stability",
    f=lambda t, y: -1e9 * y,
    ts=[0.0, 1.0],
    scheme=odegrad.RK4(),
    stepsize=Steps(100),
)
refuse(
    "f jumps in time under dt_min",
    errors.StepTooSmallError,
    "below 0.01",
    f=lambda t, y: torch.tanh(1e6 * (t - 0.5)) - y,
    stepsize=PID(1e-9, 1e-9, dt_min=0.01, dt0=0.1),
)
refuse(
    "max_steps reached",
    errors.MaxStepsError,
    "7 steps attempted",
    f=lambda t, y: torch.cos(50 * t) * y,
    ts=[0.0, 10.0],
    max_steps=7,
)
refuse(
    "max_steps below the grid",
    errors.MaxStepsError,
    "the grid has 8 steps, max_steps is 7",
    max_steps=7,
    **RK4,
)
refuse(
    "the loss is NaN",
    errors.NonFiniteStateError,
    "the sum of loss_at",
    loss_at=lambda j, y: (y - 2).log().sum(),
    **RK4,
)


@row("f NaN for a moment: steps are rejected, and it is right", RIGHT)
def _() -> Any:
    """Beyond the end of a stage that overshoots, the root of y has no value."""
    sol = solve(lambda t, y: -torch.sqrt(y), ONE, [0.0, 1.999], stepsize=PID(1e-6, 1e-9, dt0=1.999))
    return (sol.ys[-1], sol.stats.rejected > 0), (ONE * (1 - 1.999 / 2) ** 2, True), 1e-6


@row("check_finite=False lets NaN through", RIGHT)
def _() -> Any:
    y0 = torch.tensor([1.0, NAN], dtype=F64)
    ys = solve(y0=y0, check_finite=False, **EULER).ys
    return ys[-1].isnan(), torch.tensor([False, True])


@row("a NaN cotangent goes on as NaN", RIGHT)
def _() -> Any:
    found = []
    for gradient in (Discrete(), Tape()):
        y0 = weight(1.0, 1.0)
        ys = solve(y0=y0, gradient=gradient, **EULER).ys
        found.append(torch.autograd.grad((ys[-1] * torch.tensor([1.0, NAN])).sum(), y0)[0])
    return [x.nan_to_num(7.0) for x in found], [torch.tensor([0.25, 7.0], dtype=F64)] * 2


# ------------------------------------------------------------------- tolerances and step sizes


def refuse_object(name: str, kind: type[BaseException], part: str, make: Callable[[], Any]) -> None:
    ROWS.append(Row(name, make, Raises(kind, part)))


refuse_object(
    "ts under vmap",
    VALUE,
    "under torch.func.vmap all samples share the times",
    lambda: torch.func.vmap(lambda ts: solve(ts=ts).ys)(torch.tensor([[0.0, 1.0], [0.0, 2.0]])),
)
refuse_object("tolerances zero", VALUE, "not both zero, received rtol=0, atol=0", lambda: PID(0, 0))
refuse_object("rtol negative", VALUE, "tolerances must be ≥ 0", lambda: PID(-1e-6))
refuse_object("atol negative", VALUE, "tolerances must be ≥ 0", lambda: PID(1e-6, -1e-6))
refuse_object("rtol NaN", VALUE, "received rtol=nan", lambda: PID(NAN))
refuse_object(
    "atol infinite", VALUE, "PID: atol must be finite, received inf", lambda: PID(1e-6, INF)
)
refuse_object(
    "rtol a tensor",
    TYPE,
    "no gradient flows to a tolerance; pass rtol.item()",
    lambda: PID(weight(1.0)[0]),
)
refuse_object("rtol text", TYPE, "PID: rtol must be a number, received '1e-6'", lambda: PID("1e-6"))
refuse_object("dt0 zero", VALUE, "PID: dt0 must be positive", lambda: PID(dt0=0.0))
refuse_object("dt0 negative", VALUE, "PID: dt0 must be positive", lambda: PID(dt0=-0.1))
refuse_object("dt0 text", TYPE, "dt0", lambda: PID(dt0="0.1"))
refuse_object(
    "dt_min above dt_max", VALUE, "dt_max must be above dt_min", lambda: PID(dt_min=1.0, dt_max=0.5)
)
refuse_object("safety above 1", VALUE, "safety must be in (0, 1]", lambda: PID(safety=1.5))
refuse_object("gains NaN", VALUE, "PID: i must be finite", lambda: PID(i=NAN))
refuse_object("norm not callable", TYPE, "norm must be callable", lambda: PID(norm=2))
refuse_object(
    "an unknown option",
    TypeError,
    "unexpected keyword argument 'first_step'",
    lambda: PID(first_step=0.1),
)
refuse_object(
    "an unknown argument of solve",
    TypeError,
    "unexpected keyword argument 'method'",
    lambda: solve(method="rk4"),
)
refuse_object(
    "dt zero",
    VALUE,
    "Fixed needs a positive step in units of time, received dt=0.0",
    lambda: Fixed(0.0),
)
refuse_object("dt negative", VALUE, "for descending times dt stays positive", lambda: Fixed(-0.1))
refuse_object("dt NaN", VALUE, "received dt=nan", lambda: Fixed(NAN))
refuse_object(
    "dt a tensor", TYPE, "no gradient flows to a step size", lambda: Fixed(torch.tensor(0.1))
)
refuse_object("no steps", VALUE, "Steps needs at least one step, received 0", lambda: Steps(0))
refuse_object(
    "half a step", TYPE, "for a step size in units of time use Fixed(dt)", lambda: Steps(0.5)
)
refuse(
    "a step so small that the grid is huge",
    errors.MaxStepsError,
    "max_steps is 1000",
    stepsize=Fixed(1e-12),
    max_steps=1000,
    scheme=odegrad.RK4(),
)
refuse("a grid of another length", VALUE, "0 segments but ts has 1", stepsize=odegrad.Grid(()))


@row("rtol of 1 and more", Warns("rtol=1000000.0"))
def _() -> Any:
    sol = solve(stepsize=PID(1e6))
    return sol.ys.isfinite().all(), torch.tensor(True)


@row("rtol below round-off", Warns("below the round-off of torch.float64"))
def _() -> Any:
    return solve(stepsize=PID(TINY, TINY)).ys[-1], ONE * math.exp(-1.0), 1e-13


@row("rtol below round-off in float32", Warns("below the round-off of torch.float32"))
def _() -> Any:
    y0 = torch.ones(2)
    return solve(y0=y0, stepsize=PID(1e-10, 1e-12)).ys[-1], y0 * math.exp(-1.0), 2e-6


@row("rtol below round-off in one leaf", Warns("below the round-off of torch.float32"))
def _() -> Any:
    y0 = (ONE, torch.ones(2))
    pid = PID(1e-10, 1e-12)
    a, b = solve(lambda t, y: (-y[0], -y[1]), y0, stepsize=pid).ys
    return (a[-1], b[-1]), (ONE * math.exp(-1.0), torch.ones(2) * math.exp(-1.0)), 2e-6


@row("rtol zero beside a sound atol", RIGHT)
def _() -> Any:
    return solve(stepsize=PID(0.0, 1e-9)).ys[-1], ONE * math.exp(-1.0), 1e-8


@row("float16 with the default tolerances", Warns("below the round-off of torch.float16"))
def _() -> Any:
    y0 = torch.ones(2, dtype=torch.float16)
    sol = solve(y0=y0)
    return (sol.ys[-1], sol.stats.accepted < 50), (y0 * math.exp(-1.0), True), 3e-3


@row("bfloat16 with the default tolerances", Warns("below the round-off of torch.bfloat16"))
def _() -> Any:
    y0 = torch.ones(2, dtype=torch.bfloat16)
    sol = solve(y0=y0)
    return (sol.ys[-1], sol.stats.accepted < 50), (y0 * math.exp(-1.0), True), 2e-2


@row("float16 with tolerances of its own", RIGHT)
def _() -> Any:
    y0 = torch.tensor([1.0, 1e-3], dtype=torch.float16)  # squares of 1e-3 · 1e-3 vanish in float16
    sol = solve(y0=y0, stepsize=PID(1e-2, 1e-6))
    return (sol.ys[-1], sol.stats.accepted < 50), (y0 * math.exp(-1.0), True), 2e-3


@row("a step longer than the solve", Warns("Fixed(dt=5.0) is longer than the whole solve"))
def _() -> Any:
    call: dict[str, Any] = {"scheme": odegrad.Euler(), "stepsize": Fixed(5.0)}
    return solve(**call).ys[-1], ONE * 0.0


@row("a step as long as the solve", RIGHT)
def _() -> Any:
    ts = torch.linspace(0, 0.3, 2)
    return solve(ts=ts, scheme=odegrad.Euler(), stepsize=Fixed(0.3)).ys[-1], ONE * 0.7, 1e-7


@row("dt0 longer than the solve", RIGHT)
def _() -> Any:
    return solve(stepsize=PID(dt0=100.0)).ys[-1], ONE * math.exp(-1.0), 1e-5


# ------------------------------------------------------------------------------------- events

CROSSED = odegrad.Event(lambda t, y: y[0] - 0.5)

refuse_object(
    "an event without a function", TYPE, "fn must be callable as fn(t, y)", lambda: Event(2)
)
refuse_object(
    "a jump that is no function",
    TYPE,
    "jump must be callable as jump(t, y), received 0.5",
    lambda: Event(decay, jump=0.5),
)
refuse_object(
    "an event in direction 2", VALUE, "direction must be 1", lambda: Event(decay, direction=2)
)
refuse_object(
    "an event in direction up", VALUE, "received 'up'", lambda: Event(decay, direction="up")
)
refuse_object(
    "an event that is perhaps terminal",
    TYPE,
    "terminal must be True, False or None, received 1",
    lambda: Event(decay, terminal=1),
)
refuse_object(
    "an event counted no times",
    VALUE,
    "max_count must be at least 1, received 0",
    lambda: Event(decay, max_count=0),
)
refuse_object(
    "an event counted half a time",
    TYPE,
    "max_count must be an int or None",
    lambda: Event(decay, max_count=0.5),
)
refuse("one event, not in a sequence", TYPE, "write events=(event,)", events=CROSSED)
refuse("events that are a function", TYPE, "must be a sequence of odegrad.Event", events=decay)
refuse(
    "a function among the events",
    TYPE,
    "events[1] must be an odegrad.Event",
    events=[CROSSED, decay],
)
refuse("an event of two functions", TYPE, "Events of several functions", events=(Event(decay),))
refuse("an event that is a float", TYPE, "it returned 0.5", events=(Event(lambda t, y: 0.5),))
refuse(
    "an event that is a bool",
    TYPE,
    "torch.bool of shape []",
    events=(Event(lambda t, y: y[0] > 0.5),),
)
refuse(
    "an event that is complex",
    TYPE,
    "must return one real number",
    events=(Event(lambda t, y: y[0] * 1j),),
)
refuse(
    "an event that is NaN",
    errors.EventError,
    "events[0].fn is NaN at t = 0",
    events=(Event(lambda t, y: y[0] * NAN),),
)
refuse(
    "an event that changes y in place",
    VALUE,
    "events[0].fn changed its argument y in place",
    events=(Event(lambda t, y: y.mul_(2)[0]),),
)
refuse(
    "a jump to another structure",
    TYPE,
    "events[0].jump must return the structure of the state",
    events=(Event(CROSSED.fn, jump=lambda t, y: (y, y)),),
)
refuse(
    "a jump to another shape",
    VALUE,
    "events[0].jump returned torch.float64 of shape [1]",
    events=(Event(CROSSED.fn, jump=lambda t, y: y[:1]),),
)
refuse(
    "a jump to another dtype",
    VALUE,
    "events[0].jump returned torch.float32",
    events=(Event(CROSSED.fn, jump=lambda t, y: y.float()),),
)
refuse(
    "a jump to NaN",
    errors.NonFiniteStateError,
    "events[0].jump made the state",
    events=(Event(CROSSED.fn, jump=lambda t, y: y * NAN),),
)
refuse("events with batch", VALUE, "events do not go with batch", events=(CROSSED,), batch=0)
refuse(
    "events with loss_at",
    VALUE,
    "events do not go with loss_at",
    events=(CROSSED,),
    loss_at=lambda j, y: y.sum(),
)
refuse(
    "events with the traditional adjoint",
    VALUE,
    "starts anew at every time, and does not go with events",
    events=(CROSSED,),
    gradient=odegrad.Backsolve(),
)
refuse_object(
    "events under vmap",
    errors.GradientUnavailableError,
    "events do not go with torch.func.vmap",
    lambda: torch.func.vmap(lambda y: solve(y0=y, events=(CROSSED,)).ys)(torch.ones(3, 2)),
)
refuse_object(
    "events under torch.func.grad",
    errors.GradientUnavailableError,
    "events do not go with a transform of torch.func",
    lambda: torch.func.grad(lambda y: solve(y0=y, events=(CROSSED,)).ys.sum())(torch.ones(2)),
)
refuse_object(
    "the grid of a solve with events, without them",
    VALUE,
    "replay it with the same events",
    lambda: solve(stepsize=solve(events=(CROSSED,)).grid),
)


@row("compile with events", Warns("compile=True has no effect on this solve: it has events"))
def _() -> Any:
    sol = solve(events=(CROSSED,), compile=True, **RK4)
    return sol.events[0].times, torch.tensor([0.6931], dtype=F64), 1e-3


@row("no events", RIGHT)
def _() -> Any:
    return solve(events=[], **RK4).ys, solve(**RK4).ys


# ------------------------------------------------------------------ schemes and gradients

refuse("scheme a string", TYPE, "write scheme=odegrad.Dopri5()", scheme="dopri5")
refuse("scheme misspelled", TYPE, "write scheme=odegrad.Tsit5()", scheme="tist5")
refuse("scheme a class", TYPE, "received the class RK4; write scheme=RK4(…)", scheme=odegrad.RK4)
refuse("scheme a number", TYPE, "scheme must be an object such as Tsit5(), received 4", scheme=4)
refuse("scheme without error estimate", VALUE, "RK4 has no error estimate", scheme=odegrad.RK4())
refuse(
    "stepsize a number",
    TYPE,
    "stepsize must be an object such as PID(rtol=1e-6) or Fixed(0.1)",
    stepsize=0.1,
)
refuse("stepsize a class", TYPE, "received the class Steps", stepsize=Steps)
refuse(
    "gradient a string", TYPE, "gradient must be an object such as Discrete()", gradient="adjoint"
)
refuse("gradient a class", TYPE, "received the class Discrete", gradient=Discrete)
refuse("args not a tuple", TYPE, "write args=(x,)", args=ONE)
refuse("max_steps zero", VALUE, "max_steps must be a positive int or None, received 0", max_steps=0)
refuse(
    "max_steps a float",
    VALUE,
    "max_steps must be a positive int or None, received 1e3"[:50],
    max_steps=1e3,
)
refuse("max_steps True", VALUE, "max_steps must be a positive int", max_steps=True)
refuse(
    "rewinding a scheme that cannot",
    VALUE,
    "Rewind",
    gradient=Discrete(odegrad.Rewind()),
    y0=weight(1.0),
    **RK4,
)
refuse(
    "loss_at with the traditional adjoint",
    VALUE,
    "loss_at goes with gradient=Discrete() or Tape()",
    loss_at=lambda j, y: y.sum(),
    gradient=odegrad.Backsolve(),
)
refuse(
    "compile with Tape",
    VALUE,
    "compile=True goes with gradient=Discrete()",
    compile=True,
    gradient=Tape(),
)
refuse("a breakpoint NaN", VALUE, "breakpoints", breakpoints=[NAN])
refuse_object("a memory of nonsense", VALUE, "memory", lambda: Discrete(memory="much"))
refuse_object("a negative memory", VALUE, "memory", lambda: Discrete(memory=-1))
refuse_object("no slots", VALUE, "Binomial: slots", lambda: Discrete(Binomial(0)))


@row("a memory too small", Raises(errors.MemoryBudgetError, "memory=1 B is too little"))
def _() -> Any:
    return solve(y0=weight(1.0, 1.0), gradient=Discrete(memory=1), **RK4)


# ------------------------------------------------------------------------- the backward pass


@row(
    "a parameter changed between the sweeps",
    Raises(RuntimeError, "modified by an inplace operation"),
)
def _() -> Any:
    rate = weight(1.0)
    ys = solve(lambda t, y: -rate * y, **RK4).ys
    with torch.no_grad():
        rate.add_(1.0)
    ys.sum().backward()


@row(
    "a captured constant changed between the sweeps",
    Raises(errors.ChangedTensorError, "changed in place between"),
)
def _() -> Any:
    rate, constant = weight(1.0), ONE.clone()
    ys = solve(lambda t, y: -rate * y * constant, **RK4).ys
    constant.mul_(2)
    ys.sum().backward()


@row("the output changed before the backward pass", RIGHT)
def _() -> Any:
    y0 = weight(1.0, 1.0)
    ys = solve(y0=y0, **EULER).ys
    ys.detach().zero_()
    with torch.no_grad():
        ys.mul_(3.0)
    return torch.autograd.grad(ys[-1].sum(), y0)[0], ONE / 4


@row(
    "y0 changed after the solve, before the backward pass",
    Raises(RuntimeError, "modified by an inplace operation"),
)
def _() -> Any:
    rate, y0 = weight(1.0), ONE.clone()
    ys = solve(lambda t, y: -rate * y, y0, **RK4).ys
    y0.mul_(2)
    ys.sum().backward()


@row("outputs are not the inner states", RIGHT)
def _() -> Any:
    """Writing into what was returned does not reach the next solve or the grid."""
    sol = solve(**RK4)
    before = sol.ys.clone()
    sol.ys.zero_()
    return solve(stepsize=sol.grid, scheme=odegrad.RK4()).ys, before


@row("backward twice", Raises(RuntimeError, "second time"))
def _() -> Any:
    value = solve(y0=weight(1.0, 1.0), **RK4).ys.sum()
    value.backward()
    value.backward()


@row("backward twice, retained", RIGHT)
def _() -> Any:
    y0 = weight(1.0, 1.0)
    value = solve(y0=y0, **EULER).ys[-1].sum()
    value.backward(retain_graph=True)
    value.backward()
    return y0.grad, ONE / 2


@row("second derivative", RIGHT)
def _() -> Any:
    y0 = weight(1.0)
    ys = solve(lambda t, y: y * y, y0, scheme=odegrad.Euler(), stepsize=Steps(1)).ys
    (first,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
    return torch.autograd.grad(first.sum(), y0)[0], torch.tensor([2.0], dtype=F64)


@row(
    "second derivative of the traditional adjoint",
    Raises(errors.GradientUnavailableError, "Backsolve has no second derivative"),
)
def _() -> Any:
    y0 = weight(1.0)
    ys = solve(lambda t, y: -y * y, y0, gradient=odegrad.Backsolve()).ys
    (first,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    torch.autograd.grad(first.sum(), y0)


@row(
    "f reads a tensor that nobody can find", Raises(errors.UnreachableTensorError, "requires grad")
)
def _() -> Any:
    found: list[Tensor] = []

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, w = ctx.saved_tensors
            return grad * w, (grad * x).sum()

    class Slotted:
        __slots__ = ("w",)

    hidden = Slotted()
    f = lambda t, y: Hidden.apply(y, hidden.w) if found else -y  # noqa: E731
    ys = solve(f, weight(1.0, 1.0), **RK4).ys
    hidden.w = torch.tensor(0.5, dtype=F64, requires_grad=True)
    found.append(hidden.w)
    ys.sum().backward()


@row("f hides its result from autograd", Warns("f returned nothing that depends on"))
def _() -> Any:
    rate, y0 = weight(1.0), weight(1.0, 1.0)
    ys = solve(lambda t, y: (-rate * y).detach(), y0, **EULER).ys
    grads = torch.autograd.grad(ys[-1].sum(), [rate, y0])
    return grads, (torch.zeros(1, dtype=F64), ONE)


# --------------------------------------------------------------------------- states on disk

# Two states at most are on their way to the disk when a solve returns: with six, four are written.
DISK = {"scheme": odegrad.Euler(), "stepsize": Steps(60), "y0": weight(1.0, 1.0)}


@row(
    "a directory that does not exist",
    Raises(errors.CheckpointStorageError, "checkpoints cannot be stored in"),
)
def _() -> Any:
    gradient = Discrete(Tiered(ram=1, disk=2, directory="/does/not/exist"))
    return solve(gradient=gradient, **DISK)


@row("a directory that is a file", Raises(errors.CheckpointStorageError, "Not a directory"))
def _() -> Any:
    with tempfile.NamedTemporaryFile() as file:
        return solve(gradient=Discrete(Tiered(ram=1, disk=2, directory=file.name)), **DISK)


@contextmanager
def replaced(name: str, by: Any) -> Iterator[None]:
    """os.name is another function meanwhile."""
    honest = getattr(os, name)
    setattr(os, name, by)
    try:
        yield
    finally:
        setattr(os, name, honest)


def full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@row("a full disk", Raises(errors.CheckpointStorageError, "No space left on device"))
def _() -> Any:
    with tempfile.TemporaryDirectory() as place, replaced("posix_fallocate", full):
        return solve(gradient=Discrete(Tiered(ram=0, disk=6, directory=place)), **DISK)


@row(
    "a disk that fills up while writing",
    Raises(errors.CheckpointStorageError, "No space left on device"),
)
def _() -> Any:
    with tempfile.TemporaryDirectory() as place, replaced("pwrite", full):
        return solve(gradient=Discrete(Tiered(ram=0, disk=6, directory=place)), **DISK)


def damaged(change: Callable[[int], None]) -> Any:
    """A solve whose file is changed before the backward pass."""
    with tempfile.TemporaryDirectory() as place:
        sol = solve(gradient=Discrete(Tiered(ram=0, disk=6, directory=place)), **DISK)
        for entry in Path("/proc/self/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith(os.path.realpath(place)):
                change(int(entry.name))
        sol.ys.sum().backward()


@row("a checkpoint altered", Raises(errors.CheckpointStorageError, "The file was changed"))
def _() -> Any:
    def change(fd: int) -> None:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        os.pwrite(fd, bytes(x ^ 1 for x in data), 0)

    return damaged(change)


@row("a checkpoint cut short", Raises(errors.CheckpointStorageError, "the file ends before it"))
def _() -> Any:
    return damaged(lambda fd: os.ftruncate(fd, 0))


# ---------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("row", ROWS, ids=[r.name for r in ROWS])
def test_bad_input(row: Row) -> None:
    state = torch.get_rng_state()
    check(row)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    if "random" not in row.name and "dropout" not in row.name:
        assert torch.equal(state, torch.get_rng_state())


def test_names_are_unique() -> None:
    assert len({r.name for r in ROWS}) == len(ROWS)


def test_python_O_keeps_every_check() -> None:
    """All rows again, in an interpreter that drops assertions."""
    code = (
        "import gc, test_bad_inputs as rows\n"
        "assert False, 'assertions are on'\n"
        "gc.freeze()\n"
        "for row in rows.ROWS:\n"
        "    rows.check(row)\n"
        "    gc.collect()\n"  # or torch warns of what is freed while it measures memory
        "print(len(rows.ROWS))\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    # torch's profiler, which counts allocations, may note what it did not see the beginning of.
    lines = [x for x in done.stderr.splitlines() if "CPUAllocator" not in x]
    assert lines == []
    assert int(done.stdout) == len(ROWS)
