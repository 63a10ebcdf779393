"""Random calls of `odegrad.solve` and random CSV files: they work, or raise what is documented.

    python tests/fuzz.py [solve] [exact] [csv] [--seconds 60] [--seed 0]

Documented are the subclasses of `odegrad.errors.OdegradError`, and whatever f itself raises. What comes
back is finite and has the right shape, and its gradient by `Discrete` is that by `Tape`. A call that
breaks this is shrunk by hypothesis and printed.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import odegrad
from odegrad import Discrete, Keep, errors
from odegrad.fit.data import read_series

NAN, INF = float("nan"), float("inf")

SETTINGS = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)


class UserError(Exception):
    """What the fields of the fuzzer raise."""


# ------------------------------------------------------------------------------ odegrad.solve

odd_numbers = st.sampled_from(
    [
        0,
        0.0,
        -0.0,
        1,
        -1,
        0.5,
        1e-3,
        1e3,
        1e-300,
        1e300,
        NAN,
        INF,
        -INF,
        True,
        None,
        "x",
        1j,
        [],
        (),
    ]
)
numbers = st.one_of(odd_numbers, st.floats(), st.integers(-3, 3), st.just(torch.tensor(0.5)))
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex128,
    torch.complex64,
    torch.int64,
    torch.bool,
    torch.uint8,
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from([*DTYPES[:2] * 5, *DTYPES]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    x = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)
    x = (x * draw(st.sampled_from([1, 1, 1, 1e-30, 1e4, 1e200, NAN, INF]))).to(dtype)
    kind = draw(st.sampled_from(["plain"] * 6 + ["grad", "grad", "parameter", "view", "meta"]))
    if kind == "view" and x.ndim:
        x = x.expand(2, *x.shape)[0].transpose(0, -1)
    elif kind == "meta":
        x = x.to("meta")
    if kind in ("grad", "parameter") and (x.is_floating_point() or x.is_complex()):
        return nn.Parameter(x) if kind == "parameter" else x.requires_grad_()
    return x


states = st.one_of(
    tensors(),
    tensors(),
    st.recursive(
        st.one_of(tensors(), tensors(), tensors(), odd_numbers, st.just(np.ones(2))),
        lambda inner: st.one_of(
            st.lists(inner, max_size=2),
            st.tuples(inner),
            st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
        ),
        max_leaves=4,
    ),
)

good_times = st.builds(
    lambda start, gaps, sign: [start + sign * sum(gaps[:i]) for i in range(len(gaps) + 1)],
    st.sampled_from([0.0, -1.0, 1e6]),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=4),
    st.sampled_from([1.0, -1.0]),
)
times = st.one_of(
    good_times,
    st.tuples(good_times, good_times),
    good_times.map(lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True)),
    good_times.map(torch.tensor),
    st.lists(numbers, max_size=4),
    tensors(),
    odd_numbers,
)


def over(function: Callable[[Tensor], Any]) -> Callable[[Any, Any], Any]:
    """A field from a function of one leaf; what that raises is the user's."""

    def f(t: Any, y: Any, *args: Any) -> Any:
        del t, args
        try:
            return pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, y)
        except Exception as error:
            raise UserError from error

    return f


def raising(t: Any, y: Any, *args: Any) -> Any:
    raise UserError


WEIGHT = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
FIELDS: dict[str, Any] = {
    "decay": over(lambda x: -x),
    "weighted": over(lambda x: (-WEIGHT * x).to(x.dtype)),
    "growth": over(lambda x: x * x),
    "itself": over(lambda x: x),
    "zero": over(torch.zeros_like),
    "NaN": over(lambda x: x * NAN),
    "infinite": over(lambda x: x / 0.0),
    "root": over(torch.sqrt),
    "stiff": over(lambda x: -1e7 * x),
    "sum": over(lambda x: x.sum()),
    "row": over(lambda x: x[:1]),
    "in place": over(lambda x: x.mul_(2)),
    "double": over(lambda x: -x.double()),
    "half": over(lambda x: -x.half()),
    "complex": over(lambda x: x * 1j),
    "integer": over(lambda x: x.long()),
    "detached": over(lambda x: (-WEIGHT * x).detach().to(x.dtype)),
    "random": over(lambda x: -x * torch.rand(())),
    "jump": lambda t, y, *args: pytree.tree_map(lambda x: x if t > 0.3 else -x, y),
    "flat": lambda t, y, *args: y if isinstance(y, Tensor) else pytree.tree_leaves(y),
    "none": lambda t, y, *args: None,
    "float": lambda t, y, *args: 1.0,
    "tuple": lambda t, y, *args: (y, y),
    "raises": raising,
    "late": lambda t, y, *args: raising(t, y) if t > 0.4 else y,
    "number": 3,
}
USABLE = ["decay", "weighted", "growth", "zero", "jump"]
fields = st.sampled_from([*USABLE * 5, *FIELDS])

schemes = st.one_of(
    st.sampled_from(odegrad.schemes.SCHEMES).filter(lambda cls: cls is not odegrad.Reversible),
    st.sampled_from([odegrad.AdamsBashforth(3), odegrad.AdamsBashforthMoulton(2)]),
    st.sampled_from(["rk4", 3, None]),
)


def made(scheme: Any) -> Any:
    return scheme() if isinstance(scheme, type) else scheme


PID_OPTIONS = ("rtol", "atol", "p", "i", "d", "safety", "dt0", "dt_min", "dt_max")
stepsizes = st.one_of(
    st.tuples(st.just("Steps"), st.fixed_dictionaries({"n": st.integers(1, 4)})),
    st.tuples(st.just("PID"), st.just({"rtol": 1e-3, "atol": 1e-4})),
    st.tuples(st.just("Fixed"), st.fixed_dictionaries({"dt": numbers})),
    st.tuples(st.just("Steps"), st.fixed_dictionaries({"n": numbers})),
    st.tuples(
        st.just("PID"),
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(PID_OPTIONS, numbers),
        ),
    ),
    st.tuples(st.just("bad"), odd_numbers),
)

gradients = st.one_of(
    st.sampled_from(
        [
            Discrete(),
            Discrete(odegrad.Binomial(2)),
            Discrete(odegrad.StoreAll(Keep.GRAPH)),
            Discrete(odegrad.Every(2, Keep.STAGES)),
            Discrete(odegrad.Tiered(ram=1, disk=1)),
            Discrete(odegrad.Rewind()),
            odegrad.Tape(),
            odegrad.Backsolve(),
            odegrad.Quadrature(),
            odegrad.Tangent(),
        ]
    ),
    st.sampled_from([Discrete, "adjoint", None, 3]),
)


def total(t: Any, y: Any, *args: Any) -> Any:
    return sum(map(real_sum, pytree.tree_leaves(y)))


EVENTS = {
    "late": odegrad.Event(lambda t, y, *args: t - 0.7),
    "weighted": odegrad.Event(lambda t, y, *args: total(t, y) - WEIGHT, max_count=2),
    "noted": odegrad.Event(lambda t, y, *args: t * t - 0.2, terminal=False),
    "jumps": odegrad.Event(lambda t, y, *args: t - 0.4, jump=FIELDS["decay"]),
    "grows": odegrad.Event(lambda t, y, *args: t - 0.4, jump=FIELDS["double"]),
    "zero": odegrad.Event(lambda t, y, *args: 0.0 * t, direction=1),
    "touches": odegrad.Event(lambda t, y, *args: (t - 0.3) ** 2),
    "NaN": odegrad.Event(lambda t, y, *args: t * NAN),
    "float": odegrad.Event(lambda t, y, *args: 1.0),
    "state": odegrad.Event(lambda t, y, *args: y),
    "raises": odegrad.Event(raising),
    "number": 3,
}
events = st.one_of(
    st.lists(st.sampled_from([*EVENTS]).map(EVENTS.get), max_size=3), st.sampled_from([None, 3])
)

CALLS = {
    "f": fields,
    "y0": states,
    "ts": times,
    "scheme": schemes,
    "stepsize": stepsizes,
    "gradient": gradients,
    "args": st.one_of(st.just(()), st.just(()), st.tuples(tensors()), odd_numbers),
    "options": st.fixed_dictionaries(
        {"max_steps": st.one_of(st.just(60), st.just(60), numbers)},
        optional={
            "check_finite": st.sampled_from([True, False]),
            "breakpoints": st.one_of(
                st.lists(st.sampled_from([0.2, 0.3, 2.0]), max_size=2), odd_numbers
            ),
            "running": st.sampled_from([None, lambda t, y, *a: t, lambda t, y, *a: 1.0, 3]),
            "loss_at": st.sampled_from([None, lambda j, y, *a: WEIGHT, lambda j, y, *a: y, 3]),
            "callback": st.sampled_from([None, lambda info: None]),
            "land": st.sampled_from([None, True, False, 3]),
            "batch": st.sampled_from(
                [0, 0, None, odegrad.Samples(), odegrad.Samples((0,)), 1, "x"]
            ),
            "events": events,
            "on_failure": st.sampled_from(["raise", "nan", "return", "x"]),
        },
    ),
    "reads": st.one_of(st.none(), st.none(), times),
}


# Calls of which most work: what goes with what, against `Tape`.


def wavy(t: Any, y: Any, *args: Any) -> Any:
    """A field that reads the time, one number or one for each sample."""

    def slope(x: Tensor) -> Tensor:
        s = t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t
        return (WEIGHT * torch.cos(3.0 * s) * x - 0.3 * x * x).to(x.dtype)

    return pytree.tree_map(slope, y)


def cost(t: Any, y: Any, *args: Any) -> Tensor:
    """A running cost, one for each sample."""
    x = pytree.tree_leaves(y)[0].abs()
    return x.flatten(1).sum(1) if x.ndim > 1 else x


FIELDS["wavy"] = wavy
USABLE.append("wavy")


@st.composite
def good_states(draw: st.DrawFn) -> Any:
    dtype = draw(st.sampled_from([torch.float64] * 4 + [torch.float32, torch.complex128]))
    shapes = draw(st.sampled_from([[(2,)], [(3, 2)], [(2,), (2, 1, 2)], [(1,)], [(0,)], [()]]))
    leaves = [torch.linspace(0.2, 0.9, math.prod(x)).reshape(x).to(dtype) for x in shapes]
    for x in leaves:
        x.requires_grad_(draw(st.booleans()))
    return leaves[0] if len(leaves) == 1 else tuple(leaves)


@st.composite
def instants(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(["list", "tensor", "grad", "rows"]))
    found = [0.0, *draw(st.lists(st.sampled_from([0.0, 0.3, 0.31, 0.5, 0.8]), max_size=3)), 1.0]
    rows = torch.tensor([sorted(found)] * (1 + (kind == "rows")), dtype=torch.float64)
    if draw(st.booleans()):
        rows = 1.0 - rows
    if kind == "rows":
        rows = rows * torch.tensor([[1.0], [0.7]], dtype=torch.float64)
        return rows.requires_grad_(draw(st.booleans()))
    return rows[0].tolist() if kind == "list" else rows[0].clone().requires_grad_(kind == "grad")


GOOD = CALLS | {
    "f": st.sampled_from(["decay", "weighted", "growth", "zero", "wavy"]),
    "y0": good_states(),
    "ts": instants(),
    "scheme": st.sampled_from([*odegrad.schemes.SCHEMES, lambda: odegrad.AdamsBashforth(3)]).filter(
        lambda scheme: scheme is not odegrad.Reversible
    ),
    "stepsize": st.sampled_from(
        [
            ("Steps", {"n": 1}),
            ("Steps", {"n": 3}),
            ("Fixed", {"dt": 0.13}),
            ("PID", {"rtol": 1e-3, "atol": 1e-4}),
            ("PID", {"rtol": 1e-3, "atol": 1e-4, "dt0": 0.9}),
            ("PID", {"rtol": 1e-2, "atol": 1e-3, "dt_max": 0.2}),
        ]
    ),
    "gradient": gradients.filter(lambda x: isinstance(x, Discrete)),
    "args": st.just(()),
    "options": st.fixed_dictionaries(
        {"max_steps": st.just(60)},
        optional={
            "breakpoints": st.lists(st.sampled_from([0.2, 0.3]), max_size=2),
            "running": st.sampled_from([None, cost]),
            "loss_at": st.sampled_from([None, lambda j, y, *a: total(0.0, y) * (j + 1)]),
            "land": st.sampled_from([None, True, False]),
            "batch": st.sampled_from([0, None, odegrad.Samples()]),
            "events": st.lists(
                st.sampled_from(["late", "weighted", "noted", "jumps"]).map(EVENTS.get), max_size=2
            ),
            "on_failure": st.sampled_from(["raise", "nan", "return"]),
        },
    ),
    "reads": st.sampled_from([None, None, 0.4, [0.0, 0.31, 0.62]]),
}


def built(choice: tuple[str, Any]) -> Any:
    name, options = choice
    return options if name == "bad" else getattr(odegrad, name)(**options)


def solved(
    f: str, y0: Any, ts: Any, scheme: Any, stepsize: Any, gradient: Any, args: Any, options: Any
) -> Any:
    """What `odegrad.solve` returns."""
    scheme, stepsize = made(scheme), built(stepsize)
    return odegrad.solve(
        FIELDS[f], y0, ts, args, scheme=scheme, stepsize=stepsize, gradient=gradient, **options
    )


def gradients_of(sol: Any, reads: Any, inputs: list[Tensor]) -> list[Tensor | None]:
    """The derivatives of all numbers of a solution together, and None where there are none."""
    numbers = [sol.loss, sol.ys, None if reads is None else sol(reads)]
    numbers += [(e.times, e.states, e.after) for e in sol.events or ()]
    terms = (real_sum(x) for x in pytree.tree_leaves(numbers) if isinstance(x, Tensor))
    value = sum(terms, torch.zeros((), dtype=torch.float64))
    if not inputs or not value.requires_grad:
        return [None] * len(inputs)
    return list(torch.autograd.grad(value, inputs, allow_unused=True))


def call_solve(
    f: str,
    y0: Any,
    ts: Any,
    scheme: Any,
    stepsize: Any,
    gradient: Any,
    args: Any,
    options: dict[str, Any],
    reads: Any,
) -> None:
    """One call, with its backward pass; raises what is not documented."""
    # Unlimited steps, as far as the fuzzer goes, are those of a grid of a few.
    if options["max_steps"] is None or options["max_steps"] in (1e3, 1e300):
        options = options | {"max_steps": 60}
    call = (f, y0, ts, scheme, stepsize)
    leaves = pytree.tree_leaves((y0, ts, args, WEIGHT))
    inputs = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    try:
        sol = solved(*call, gradient, args, options)
        grads = gradients_of(sol, reads, inputs)
    except (errors.OdegradError, UserError):
        return
    eps = max((epsilon(x) for x in leaves if isinstance(x, Tensor)), default=0.0)
    if isinstance(gradient, Discrete) and f in USABLE and eps < 1e-6:
        oracle = gradients_of(solved(*call, odegrad.Tape(), args, options), reads, inputs)
        for a, b in zip(grads, oracle, strict=True):
            check_close(a, b, eps)
    if sol.ys is None or sol.events:
        return
    n = torch.as_tensor(ts).shape[-1]
    for row, leaf in zip(pytree.tree_leaves(sol.ys), pytree.tree_leaves(y0), strict=True):
        assert row.shape == (n, *leaf.shape)
        assert row.dtype == leaf.dtype
        if options.get("check_finite", True) and options.get("on_failure", "raise") == "raise":
            assert bool(row.isfinite().all()), row


def epsilon(x: Tensor) -> float:
    """The relative distance between numbers of the dtype of x, 0 of integers."""
    return torch.finfo(x.dtype).eps if x.is_floating_point() or x.is_complex() else 0.0


def check_close(a: Tensor | None, b: Tensor | None, eps: float) -> None:
    """Whether a gradient is that of the oracle."""
    if a is None and b is None:
        return
    a, b = (torch.zeros(()) if g is None else g for g in (a, b))
    size = b.abs().max() if b.numel() else 0.0
    same = ((a - b).abs() <= 1e4 * eps * (1.0 + size)) | (a == b) | (a.isnan() & b.isnan())
    assert bool(same.all()), (a, b)


def real_sum(x: Tensor) -> Tensor:
    return (x.abs() if x.is_complex() else x).double().sum()


# ---------------------------------------------------------------------- the reader of odegrad fit

cells = st.one_of(
    st.integers(-5, 5).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", " ", "x", "nan", "1_0", "1,5", '"', '"a"', "'", "1e999", "٣", "\x00", "#", "²"]
    ),
    st.text(max_size=4),
)
rows = st.lists(cells, min_size=1, max_size=4)


@st.composite
def good_files(draw: st.DrawFn) -> str:
    """A table that can be read, before it is damaged."""
    n = draw(st.integers(1, 6))
    lines = ["t,a,b"] + [f"{i},{i * i},{draw(st.integers(-9, 9))}" for i in range(n)]
    return "\n".join(lines) + "\n"


@st.composite
def damaged_files(draw: st.DrawFn) -> str:
    text = draw(good_files())
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 3))
        text = text[:place] + draw(cells) + text[place + cut :]
    return text


files = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda table, separator, end: end.join(separator.join(row) for row in table).encode(
            "utf-8", "surrogatepass"
        ),
        st.lists(rows, max_size=6),
        st.sampled_from([",", ";", "\t", "|"]),
        st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    ),
    damaged_files().map(lambda text: text.encode("utf-8", "surrogatepass")),
    good_files().map(str.encode),
)
names = st.one_of(
    st.none(), st.none(), st.sampled_from(["t", "a", "b", "c", ""]), st.text(max_size=3)
)
FILES = {
    "data": files,
    "time": names,
    "states": st.one_of(st.none(), st.none(), st.lists(names.filter(lambda x: x is not None))),
}


def call_reader(data: bytes, time: str | None, states: list[str] | None) -> None:
    """Reads one file."""
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        path = Path(file.name)
        path.write_bytes(data)
        series, message = None, ""
        try:
            series = read_series(path, time, states)
        except errors.OdegradError as error:
            message = str(error)
    if series is None:
        assert message.strip()
        assert len(message.splitlines()) == 1, message
        return
    assert series.values.shape == (len(series.times), len(series.states))
    assert len(series.times) >= 3
    assert bool(series.values.isfinite().all())
    assert bool((series.times.diff() > 0).all())


# ------------------------------------------------------------------------------------ running

TARGETS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "solve": (call_solve, CALLS),
    "exact": (call_solve, GOOD),
    "csv": (call_reader, FILES),
}


def fuzz(target: str, seconds: float, first: int = 0) -> int:
    """Calls a target with ever new inputs for so long; returns how many calls were made.

    Raises:
        Exception: What a call raised that is not documented, with the smallest such call in its notes.
    """
    call, inputs = TARGETS[target]
    calls, end = 0, time.monotonic() + seconds

    def one(**drawn: Any) -> None:
        nonlocal calls
        if time.monotonic() > end and not failed:
            return
        calls += 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", errors.OdegradWarning)
            try:
                call(**drawn)
            except Exception:
                failed.append(True)
                raise

    failed: list[bool] = []
    while time.monotonic() < end:
        seed(first)(SETTINGS(given(**inputs)(one)))()
        first += 1
    return calls


def main() -> None:
    """Fuzzes what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; none is all")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not TARGETS.keys() >= set(options.targets):
        parser.error(f"targets are {', '.join(TARGETS)}")
    targets = options.targets or list(TARGETS)
    for target in targets:
        calls = fuzz(target, options.seconds / len(targets), options.seed)
        print(f"{target}: {calls} calls, nothing undocumented")


if __name__ == "__main__":
    main()
