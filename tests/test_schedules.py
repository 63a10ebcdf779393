"""Schedules by a symbolic interpreter: no tensors, only which states are where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odegrad import Every, Keep, StoreAll
from odegrad.checkpoints import Advance, Checkpoints, Drop, Restore, Store, Transpose
from odegrad.errors import InvalidTypeError, InvalidValueError


def interpret(schedule: Checkpoints, n: int) -> tuple[int, int]:
    """Runs a schedule on n steps; returns the most states stored and the steps taken again."""
    stored: set[int] = set()
    graphs = set(range(n)) if schedule.keep is Keep.GRAPH else set[int]()
    current, most = 0, 0
    for action in schedule.forward():
        assert isinstance(action, Advance)
        assert action.start == current
        stop = n if action.stop is None else min(action.stop, n)
        if action.every is not None:
            stored |= set(range(current, stop, action.every))
        current = stop
    assert current == n
    assert len(stored) == schedule.slots(n)
    most, again, left = len(stored), 0, n
    where: int | None = None
    for action in schedule.backward(n):
        match action:
            case Restore(i):
                assert i in stored
                where = i
            case Advance(start, stop, every):
                assert where == start
                assert stop is not None
                stored |= set() if every is None else set(range(start, stop, every))
                again += stop - start
                where = stop
            case Store(i):
                assert where == i
                stored.add(i)
            case Drop(i):
                stored.remove(i)
            case Transpose(start, stop):
                assert left == stop > start
                assert set(range(start, stop)) <= stored | graphs
                left = start
            case _:
                raise AssertionError(action)
        most = max(most, len(stored))
    assert left == 0
    return most, again


@given(st.integers(1, 300))
def test_store_all(n: int) -> None:
    assert interpret(StoreAll(), n) == (n, 0)
    assert interpret(StoreAll(keep=Keep.GRAPH), n) == (0, 0)


@given(st.integers(1, 300), st.integers(1, 320))
def test_every(n: int, k: int) -> None:
    most, again = interpret(Every(k), n)
    assert most <= -(-n // k) + min(k, n) - 1
    assert again == sum(min(k, n - i) - 1 for i in range(0, n, k))


def test_bad_schedules() -> None:
    from odegrad import Discrete

    with pytest.raises(InvalidValueError, match="at least 1"):
        Every(0)
    with pytest.raises(InvalidTypeError, match=r"Keep\.STATE or Keep\.GRAPH, received 'graph'"):
        StoreAll(keep="graph")  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="schedule such as"):
        Discrete(checkpoints=StoreAll)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="schedule such as"):
        Discrete(checkpoints=8)  # type: ignore[arg-type]
