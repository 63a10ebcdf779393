"""Schedules by a symbolic interpreter: no tensors, only which states are where."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from math import comb
from pathlib import Path

import checkpoint_schedules as peer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odegrad.checkpoints import (
    Action,
    Advance,
    Binomial,
    Blockwise,
    Checkpoints,
    Drop,
    Every,
    Hold,
    Keep,
    Online,
    Restore,
    Rewind,
    Store,
    StoreAll,
    Tier,
    Tiered,
    Transpose,
    Unstep,
    advances,
)
from odegrad.checkpoints.reversal import split
from odegrad.checkpoints.tiered import accesses
from odegrad.errors import InvalidTypeError, InvalidValueError


@dataclass
class Machine:
    """What an engine has, with the rules of the action language; `left` steps are to be transposed."""

    n: int
    left: int
    current: int | None = 0
    stored: dict[int, Tier] = field(default_factory=dict)
    tape: tuple[int, int, Keep] | None = None
    taken: Counter[int] = field(default_factory=Counter)
    again: int = 0
    held: int = 0
    most: Counter[Tier] = field(default_factory=Counter)
    longest_tape: int = 0
    accesses: Counter[Tier] = field(default_factory=Counter)
    by_level: Counter[int] = field(default_factory=Counter)

    def forward(self, schedule: Checkpoints, known: bool) -> None:
        began = 0
        for action in schedule.forward(self.n if known else None):
            assert self.current != self.n, f"{action} after the end"
            if isinstance(action, Advance):
                began = action.start
                if action.stop is None or not known:
                    action = action._replace(stop=min(action.stop or self.n, self.n))
            assert isinstance(action, Advance | Store | Drop)
            self.do(action)
            if not known and self.current == self.n:
                break
        assert self.current == self.n
        assert all(self.taken[i] == 1 for i in range(self.n))
        self.again = 0
        self.current = {Hold.LAST: began, Hold.END: self.n, None: None}[schedule.holds]
        self.held = int(self.current is not None and self.current not in self.stored)

    def backward(self, schedule: Checkpoints, known: bool) -> None:
        for action in schedule.backward(self.n, known):
            self.do(action)
            if isinstance(action, Advance) and action.keep is not None:
                self.current = None
                self.again -= 1  # for the state behind the last taped step nothing is evaluated
        assert self.left == 0
        assert not self.stored
        assert self.tape is None

    def do(self, action: Action) -> None:
        match action:
            case Advance(start, stop, every, keep):
                assert self.current == start
                assert stop is not None
                assert start < stop <= self.left
                for i in range(start, stop, every or self.n):
                    if every is not None:
                        self.store(i, Tier.DEVICE)
                self.taken.update(range(start, stop))
                self.again += stop - start
                self.current = stop
                if keep is not None:
                    assert self.tape is None
                    self.tape = (start, stop, keep)
                    self.longest_tape = max(self.longest_tape, stop - start)
            case Store(i, tier):
                assert self.current == i
                self.store(i, tier)
            case Restore(i):
                self.accesses[self.stored[i]] += 1
                self.by_level[sorted(self.stored).index(i)] += 1
                self.current = i
            case Drop(i):
                del self.stored[i]
            case Unstep(start, stop):
                assert self.current == start > stop
                self.current = stop
            case Transpose(start, stop):
                assert self.left == stop > start
                if self.tape is not None:
                    assert self.tape[:2] == (start, stop)
                    self.tape = None
                else:
                    assert self.current == start == stop - 1
                self.left = start

    def store(self, i: int, tier: Tier) -> None:
        assert i not in self.stored
        self.stored[i] = tier
        self.accesses[tier] += 1
        self.by_level[len(self.stored) - 1] += 1
        count = sum(other is tier for other in self.stored.values())
        self.most[tier] = max(self.most[tier], count)


def interpret(schedule: Checkpoints, n: int, known: bool = True) -> Machine:
    """Runs a schedule on n steps, and holds it to its bounds."""
    machine = Machine(n, left=n)
    machine.forward(schedule, known)
    machine.backward(schedule, known)
    bounds, most = schedule.bounds(n, known), machine.most
    assert (most[Tier.DEVICE], most[Tier.RAM], most[Tier.DISK]) == bounds[:3]
    assert machine.longest_tape == bounds.tape
    assert machine.held <= bounds.held <= 1
    if known:
        assert machine.held == bounds.held
    return machine


STEPS, SLOTS = st.integers(1, 300), st.integers(1, 40)
KEEPS = st.sampled_from(Keep)
TIERED = st.builds(Tiered, ram=st.integers(0, 6), disk=st.integers(1, 6), device=st.integers(0, 6))
UNITS = st.builds(Binomial, SLOTS) | st.builds(Online, SLOTS) | TIERED
BLOCKWISE = st.builds(Blockwise, UNITS | st.just(StoreAll()), st.integers(1, 40), KEEPS)
OTHERS = (
    st.builds(StoreAll, KEEPS)
    | st.builds(Every, st.integers(1, 320), KEEPS)
    | st.builds(Rewind, st.none() | st.integers(1, 320))
)


@settings(max_examples=400)
@given(UNITS | BLOCKWISE | OTHERS, STEPS, st.booleans())
def test_every_schedule_keeps_the_law(schedule: Checkpoints, n: int, known: bool) -> None:
    assert isinstance(schedule, Checkpoints)
    interpret(schedule, n, known)


@given(STEPS, st.booleans(), KEEPS, st.integers(1, 320))
def test_steps_taken_again(n: int, known: bool, keep: Keep, k: int) -> None:
    assert interpret(StoreAll(keep), n, known).again == 0
    assert interpret(Rewind(k), n, known).again == 0
    blocks = [min(k, n - i) for i in range(0, n, k)]
    taken_again = sum(block - 1 for block in blocks[known:])  # a full block is on the tape
    assert interpret(Every(k, keep), n, known).again == taken_again


# ------------------------------------------------------------------------------------ binomial


@lru_cache(maxsize=1)
def optimum() -> list[list[int]]:
    """t(n, c) by its definition, for n ≤ 300 and c ≤ 40: index c, then n."""
    t = [[0, 0] + [10**9] * 299]
    for _ in range(40):
        t.append([0, 0])
        for n in range(2, 301):
            t[-1].append(min(m + t[-1][m] + t[-2][n - m] for m in range(1, n)))
    return t


def repetitions(n: int, slots: int) -> int:
    return next(r for r in itertools.count() if comb(slots + r, slots) >= n)


def test_the_closed_forms_give_the_optimum() -> None:
    t = optimum()
    for c, n in itertools.product(range(1, 41), range(1, 301)):
        assert advances(n, c) == t[c][n]
        if n > 1:
            m = split(n, c)
            assert m + t[c][m] + t[c - 1][n - m] == t[c][n]


@given(STEPS, SLOTS)
def test_binomial_takes_as_few_steps_as_possible(n: int, slots: int) -> None:
    for schedule in (Binomial(slots), Online(slots)):
        machine = interpret(schedule, n)
        assert machine.again == optimum()[slots][n] - (n - 1)
        assert max(machine.taken.values()) <= max(1, repetitions(n, slots))


@pytest.mark.exhaustive
def test_binomial_takes_as_few_steps_as_possible_everywhere() -> None:
    for c, n in itertools.product(range(1, 41), range(1, 301)):
        assert interpret(Binomial(c), n).again == optimum()[c][n] - (n - 1)


@pytest.mark.parametrize(
    ("slots", "fewest"),
    [(2, 28820), (4, 7998), (8, 4285), (16, 2860), (32, 2405), (44, 1954)],
)
def test_a_thousand_steps(slots: int, fewest: int) -> None:
    assert advances(1000, slots) == fewest
    assert interpret(Binomial(slots), 1000).again == fewest - 999


def test_large_numbers() -> None:
    n = 10**7
    assert advances(n, 1) == n * (n - 1) // 2
    assert advances(n, n) == n - 1
    assert advances(comb(26, 6), 6) == 20 * comb(26, 6) - comb(26, 7)
    # Deeper than Python's recursion goes.
    actions = Binomial(20_000).backward(30_000, known=True)
    assert sum(a.stop - a.start for a in actions if isinstance(a, Advance) and a.stop) == 9_999
    for slots in (1, 2, 3, 8, 1000):
        assert len(accesses(10**6, slots)) == slots


@given(st.integers(1, 120), st.integers(1, 20))
def test_against_multistage_of_checkpoint_schedules(n: int, slots: int) -> None:
    schedule = peer.MultistageCheckpointSchedule(n, slots, 0)
    steps = sum(len(action) for action in peer_actions(schedule) if type(action) is peer.Forward)
    assert advances(n, slots) == steps - n  # each transposed step is counted there, too


@given(st.integers(2, 60), st.integers(2, 12))
def test_against_revolve_of_checkpoint_schedules(n: int, slots: int) -> None:
    schedule = peer.Revolve(n, slots)
    steps = sum(len(action) for action in peer_actions(schedule) if type(action) is peer.Forward)
    assert advances(n, slots) == steps - n


def peer_actions(schedule: peer.CheckpointSchedule) -> list[peer.CheckpointAction]:
    ends = (peer.EndReverse,)
    return list(itertools.takewhile(lambda action: not isinstance(action, ends), schedule))


# -------------------------------------------------------------------------------------- online


def total(stored: list[int], n: int, slots: int) -> int:
    """The steps taken to transpose n, if these states are stored and state n − 1 is held."""
    ends = [*stored[1:], n - 1]
    again = (
        advances(end - start, slots - level)
        for level, (start, end) in enumerate(zip(stored, ends, strict=True))
        if end > start
    )
    return n - 1 + sum(again)


@given(STEPS, SLOTS)
def test_what_online_costs(n: int, slots: int) -> None:
    machine = interpret(Online(slots), n, known=False)
    assert machine.again == total(Online(slots).stored(n), n, slots) - (n - 1)
    assert machine.again >= optimum()[slots][n] - (n - 1)
    assert max(machine.taken.values()) <= max(1, repetitions(n, slots))
    assert machine.taken == interpret(Binomial(slots), n, known=False).taken


def test_what_online_stores() -> None:
    stored = [Online(4).stored(n) for n in (5, 6, 7, 8, 10, 13)]
    assert stored[:3] == [[0, 1, 2, 3], [0, 1, 2, 5], [0, 1, 5, 6]]  # the latest is dropped first
    assert stored[3:] == [[0, 5, 6, 7], [0, 5, 6, 9], [0, 5, 9, 12]]


@pytest.mark.parametrize(
    ("slots", "reach", "most"),
    [(range(1, 41), 1, 1.2), (range(1, 11), 10, 1.32), (range(40, 41), 2, 1.44)],
)
def test_online_is_near_the_optimum(slots: range, reach: int, most: float) -> None:
    worst = 0.0
    for c in slots:
        stored: dict[int, None] = {}
        for action in Online(c).forward(None):
            match action:
                case Store(i):
                    stored[i] = None
                case Drop(i):
                    del stored[i]
                case Advance(_, n):
                    assert n is not None
                    if n > reach * (c + 1) * (c + 2) // 2:
                        break
                    ratio = (total(list(stored), n, c) + 1) / (advances(n, c) + 1)
                    worst = max(worst, ratio)
                case _:
                    raise AssertionError(action)
    assert most - 0.02 < worst <= most


# -------------------------------------------------------------------------------------- tiered


@given(TIERED, STEPS, st.booleans())
def test_tiers_change_nothing_but_the_place(schedule: Tiered, n: int, known: bool) -> None:
    machine = interpret(schedule, n, known)
    whole = interpret(Binomial(schedule.slots), n, known)
    assert machine.taken == whole.taken
    assert machine.by_level == whole.by_level
    if known:
        assert accesses(n, schedule.slots) == [whole.by_level[k] for k in sorted(whole.by_level)]
        disk = machine.most[Tier.DISK]
        assert machine.accesses[Tier.DISK] == sum(sorted(whole.by_level.values())[:disk])


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(0, 2), st.integers(0, 2), st.integers(1, 3))
def test_no_assignment_of_levels_uses_the_disk_less(
    n: int, device: int, ram: int, disk: int
) -> None:
    machine = interpret(Tiered(ram=ram, disk=disk, device=device), n)
    levels = sorted(machine.by_level)
    sizes = {Tier.DEVICE: device, Tier.RAM: ram, Tier.DISK: disk}
    fewest = min(
        tuple(
            sum(machine.by_level[k] for k in levels if tiers[k] is tier)
            for tier in (Tier.DISK, Tier.RAM)
        )
        for tiers in itertools.product(Tier, repeat=len(levels))
        if all(tiers.count(tier) <= size for tier, size in sizes.items())
    )
    assert (machine.accesses[Tier.DISK], machine.accesses[Tier.RAM]) == fewest


@given(st.integers(2, 120), st.integers(0, 8), st.integers(1, 8))
def test_disk_accesses_of_checkpoint_schedules(n: int, ram: int, disk: int) -> None:
    schedule = peer.MultistageCheckpointSchedule(n, ram, disk, trajectory="revolve")
    theirs = sum(
        storage is peer.StorageType.DISK
        for action in peer_actions(schedule)
        for storage in (getattr(action, "storage", None), getattr(action, "from_storage", None))
    )
    assert interpret(Tiered(ram=ram, disk=disk), n).accesses[Tier.DISK] == theirs


# -------------------------------------------------------------------------------------- errors


def test_bad_schedules() -> None:
    with pytest.raises(InvalidValueError, match="Every: k must be at least 1, received 0"):
        Every(0)
    with pytest.raises(InvalidTypeError, match=r"Keep\.STAGES or Keep\.GRAPH, received 'graph'"):
        StoreAll(keep="graph")  # type: ignore[arg-type]
    for kind in (Binomial, Online):
        with pytest.raises(InvalidValueError, match=f"{kind.__name__}: slots must be at least 1"):
            kind(0)
        with pytest.raises(InvalidTypeError, match="slots must be a whole number, received True"):
            kind(True)
    with pytest.raises(InvalidTypeError, match="advances: n must be a whole number"):
        advances(8.0, 2)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="advances: slots must be at least 1, received 0"):
        advances(8, 0)
    with pytest.raises(InvalidValueError, match="Rewind: anchor_every must be at least 1"):
        Rewind(0)
    with pytest.raises(InvalidTypeError, match="anchor_every must be a whole number"):
        Rewind(anchor_every=2.5)  # type: ignore[arg-type]


def test_bad_tiers_and_blocks() -> None:
    with pytest.raises(InvalidValueError, match="Tiered: disk must be at least 0, received -1"):
        Tiered(ram=2, disk=-1)
    with pytest.raises(InvalidValueError, match="ram, disk and device must not all be 0"):
        Tiered(ram=0, disk=0)
    with pytest.raises(InvalidTypeError, match="directory must be a path or None, received 3"):
        Tiered(ram=1, disk=1, directory=3)  # type: ignore[arg-type]
    assert Tiered(ram=1, disk=1, directory=Path("here")) == Tiered(1, 1, 0, Path("here"))
    with pytest.raises(InvalidValueError, match="Blockwise: length must be at least 1"):
        Blockwise(Binomial(3), length=0)
    with pytest.raises(InvalidValueError, match="must be StoreAll, Binomial, Online or Tiered"):
        Blockwise(Rewind(), length=4)
    with pytest.raises(InvalidTypeError, match="must be a schedule such as"):
        Blockwise(Binomial, length=4)  # type: ignore[arg-type]
