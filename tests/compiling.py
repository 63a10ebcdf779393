"""Solves with compile=True for the tests: gradients of a case, and how Dynamo's caches are kept apart."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import odegrad
from cases import TIMES, Case, loss
from odegrad.errors import OdegradWarning


def gradients(
    case: Case,
    gradient: Any,
    scheme: Any,
    stepsize: Any,
    times: Sequence[float] = TIMES,
    **more: Any,
) -> tuple[list[Tensor], odegrad.Solution]:
    """`Case.gradient` with compile=True, and with the options given; steps end at every time."""
    options = {
        "compile": True,
        "scheme": scheme,
        "stepsize": stepsize,
        "gradient": gradient,
        "land": True,
        **more,
    }
    ts = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    sol = odegrad.solve(case.f, case.y0, ts, case.args, **options)
    inputs = [*case.y0_leaves, *case.others, ts]
    return list(torch.autograd.grad(loss(sol.ys), inputs, retain_graph=True)), sol


def forget_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every f is captured anew."""
    monkeypatch.setattr("odegrad.compiled.dynamo._entries", weakref.WeakKeyDictionary())


def in_chunks_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on programs are made for chunks of so many steps."""
    forget_graphs(monkeypatch)
    monkeypatch.setattr("odegrad.compiled.shapes._MOST_ROWS", rows)


def warnings_of(thunk: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result of thunk() and the messages of the library's warnings; others stay what they are."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", OdegradWarning)
        result = thunk()
    return result, [str(w.message) for w in seen]


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a state."""
    return torch.utils._pytree.tree_leaves(tree)


def close(found: Any, expected: Any, tolerance: float = 1e-13) -> None:
    """Whether two states are equal up to rounding."""
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
