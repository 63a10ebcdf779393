"""Functions that are not the same from call to call: what is captured anew, and what is compiled anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odegrad
from compiling import close, forget_graphs, warnings_of
from odegrad.compiled import Programs, using_backend

y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The programs that are made."""
    forget_graphs(monkeypatch)
    found: list[Any] = []
    original = Programs.__init__

    def spy(self: Programs, *args: Any) -> None:
        found.append(self)
        original(self, *args)

    monkeypatch.setattr(Programs, "__init__", spy)
    with using_backend("interpreter"):
        yield found


def solve(f: Any, compiled: bool = True) -> Tensor:
    options = {"scheme": odegrad.RK4(), "stepsize": odegrad.Steps(2), "compile": compiled}
    return odegrad.solve(f, y0, [0.0, 1.0], **options).ys


def test_a_counter_that_f_does_not_read_compiles_once(made: list[Any]) -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return -y

    f = Counting()
    expected = solve(lambda t, y: -y, compiled=False)
    for _ in range(40):  # more than Dynamo keeps
        close(solve(f), expected)
    assert len(made) == 1


def test_a_log_that_grows_compiles_once(made: list[Any]) -> None:
    class Logging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log: list[Tensor] = []

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.log.append(y.sum())
            return -y

    f = Logging()
    for _ in range(5):
        solve(f)
    assert len(made) == 1
    assert all(float(x.detach()) == 3.0 for x in f.log)


def test_a_number_that_f_reads_gives_up_after_a_few(made: list[Any]) -> None:
    for i in range(12):
        rate = 1.0 + i
        ys, told = warnings_of(lambda rate=rate: solve(lambda t, y: -rate * y))
        close(ys, solve(lambda t, y, rate=rate: -rate * y, compiled=False))
        assert len(told) == (i >= 8)
        assert all("changes from call to call" in message for message in told)
    assert len(made) == 8


def test_numbers_that_return_find_what_was_made(made: list[Any]) -> None:
    for rate in [1.0, 2.0] * 6:
        found = solve(lambda t, y, rate=rate: -rate * y)
        close(found, solve(lambda t, y, rate=rate: -rate * y, compiled=False))
    assert len(made) == 2
