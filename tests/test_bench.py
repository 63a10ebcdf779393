"""`odegrad bench`, and what its tables are computed from. No assertion is about speed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from click.testing import CliRunner, Result

from odegrad.bench import (
    ENGINES,
    TAPE,
    WORKLOADS,
    BenchError,
    Counts,
    Prepared,
    Timing,
    chosen,
    describe_machine,
    measure,
    ratio,
    time_in_turn,
)
from odegrad.bench.kept import kept_bytes
from odegrad.bench.report import digits, steps
from odegrad.budget import size
from odegrad.cli import main
from odegrad.schemes import RK4

TINY, ADAPTIVE = WORKLOADS["tiny-rk4-100"], WORKLOADS["tiny-dopri5"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bench(*args: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, args)])


# Timing.


def test_the_median_of_samples():
    assert Timing(1, (3.0, 1.0, 2.0)).median == 2.0
    assert Timing(1, (1.0, 2.0)).median == 1.5


def test_systems_take_turns_and_fast_work_is_repeated():
    calls: list[str] = []
    now = 0.0

    def work(name: str, seconds: float):
        def run():
            nonlocal now
            calls.append(name)
            now += seconds

        return run

    works = {"slow": work("slow", 5.0), "fast": work("fast", 1.0)}
    timings = time_in_turn(works, repeats=2, shortest=3.0, clock=lambda: now)
    warm_up, a_round = 2 * ["slow", "fast"], ["slow", "fast", "fast", "fast"]
    assert calls == warm_up + a_round + a_round
    assert timings == {"slow": Timing(1, (5.0, 5.0)), "fast": Timing(3, (1.0, 1.0))}


def test_ratios():
    assert ratio(1.0, 2.0) == 0.5
    assert ratio(0.0, 2.0) == 0.0
    assert ratio(None, 2.0) is None
    assert ratio(1.0, None) is None


# Choosing.


def test_a_beginning_chooses_all_and_a_whole_name_itself():
    offered = {"a": 1, "a-b": 2, "a-b-c": 3, "ab": 4, "d-e": 5}
    assert chosen("thing", offered, ["a"]) == [1]
    assert chosen("thing", offered, ["d"]) == [5]
    assert chosen("thing", offered, ["ab", "a-b", "a-b"]) == [2, 4]
    assert chosen("workload", WORKLOADS, ["tiny"]) == [
        workload for name, workload in WORKLOADS.items() if name.startswith("tiny-")
    ]


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(BenchError, match=r"no thing is called 'c'; choose from a, b"):
        chosen("thing", {"a": 1, "b": 2}, ["a", "c"])


# Workloads.


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_a_workload_is_the_same_at_every_build(workload):
    first, second = workload.build(), workload.build()
    assert all(torch.equal(a, b) for a, b in zip(first.inputs, second.inputs, strict=True))
    assert {x.dtype for x in first.inputs} == {workload.dtype}
    assert all(x.requires_grad and x.is_leaf for x in first.inputs)


def test_building_leaves_the_generator_alone():
    before = torch.get_rng_state()
    TINY.build()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_the_engines_differentiate_the_same_numbers(workload):
    short = dataclasses.replace(workload.short(), dtype=torch.float64)
    reference = TAPE.prepare(short).gradient()
    for engine in ENGINES:
        if engine.compiles:  # takes long, and has tests of its own
            continue
        found = engine.prepare(short).gradient()
        for g, r in zip(found, reference, strict=True):
            assert float((g - r).norm()) <= 1e-12 * float(r.norm())


# What is kept.


def test_kept_bytes_counts_each_storage_once_and_no_input():
    x = torch.ones(10, dtype=torch.float64, requires_grad=True)
    w = torch.ones(10, dtype=torch.float64, requires_grad=True)
    assert kept_bytes([x * w], [x, w]) == 0
    assert kept_bytes([x * w], [x]) == 80
    y = (x * w).exp()  # saves its result
    assert kept_bytes([y.sin(), y.cos()], [x, w]) == 80
    assert kept_bytes([y[:1].sin()], [x, w]) == 80  # a part holds the whole
    assert kept_bytes([torch.ones(3)], []) == 0


def test_states_keep_one_state_per_step():
    counts = {e.name: e.prepare(TINY).count() for e in ENGINES if not e.compiles}
    assert {x.accepted for x in counts.values()} == {100}
    assert {x.f_evaluations for x in counts.values()} == {400}
    state = 20 * 2 * 4
    assert 100 * state <= counts["odegrad-states"].kept_bytes <= 101 * state
    hidden = 2 * 20 * 50 * 4  # the two activations that one evaluation saves
    assert counts["odegrad-tape"].kept_bytes >= 400 * hidden


# Measuring.


class Broken:
    name, exact, compiles = "broken", True, False

    def scheme(self, workload):
        return RK4()

    def obstacle(self, workload):
        return None

    def prepare(self, workload):
        frames = 'Traceback (most recent call last):\n  File "/a/b.py", line 9, in c\n    d()\n'
        raise RuntimeError(f"{frames}line one\nline two {200 * 'x'}")


class Absent(Broken):
    name = "absent"

    def obstacle(self, workload):
        return "not here"


class Counter(Broken):
    name = "counter"

    def prepare(self, workload):
        numbers = itertools.count(1.0)
        counts = Counts(accepted=3, rejected=1)
        return Prepared(lambda: (next(numbers),), lambda: counts, lambda x: (torch.tensor(x),))


def test_a_system_that_fails_does_not_spoil_the_others():
    said: list[str] = []
    found = measure(TINY, [Broken(), Absent(), Counter()], 2, 0.0, said.append)
    assert list(found.found) == ["counter"]
    assert found.missing["absent"] == "not here"
    assert found.missing["broken"].startswith("RuntimeError: line one line two xxx")
    assert len(found.missing["broken"]) < 130
    result = found.found["counter"]
    assert result.gradient == (torch.tensor([1.0]),)  # of the first call
    assert result.counts == Counts(3, 1)
    assert len(result.timing.samples) == 2
    assert result.preparation >= 0.0
    assert found.median("broken") is None
    assert said[-1].endswith("1 systems in turn, 2 samples each")


def test_the_machine_is_described():
    machine = describe_machine(("torch", "no-such-package"))
    assert machine.threads == 1
    assert machine.versions["torch"] == torch.__version__
    assert "no-such-package" not in machine.versions
    assert "1 thread on" in str(machine)


# The report.


def test_numbers_for_people():
    assert [size(x) for x in (0, 1023, 1024, 1.5 * 2**20)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
    ]
    assert [digits(x) for x in (0.0012345, 12.345, 999.4, 1234.5)] == [
        "0.00123", "12.3", "999", "1234",
    ]  # fmt: skip
    assert steps(TINY, Counts(100, 0)) == "100"
    assert steps(ADAPTIVE, Counts(26, 8)) == "26 + 8"
    assert steps(ADAPTIVE, Counts(14.1, 1.95)) == "14.1 + 1.9"


# The command.


def test_bench_prints_the_machine_and_a_table():
    result = bench(
        "--workload", "tiny-dopri5", "--system", "odegrad-tape,odegrad-states", "--repeat", 1
    )
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    assert "1 thread on" in first
    assert f"torch {torch.__version__}" in first
    rows = {line.split()[0]: line.split() for line in lines if line.strip().startswith("odegrad-")}
    assert list(rows) == ["odegrad-tape", "odegrad-states"]
    assert rows["odegrad-tape"][2] == "1.00"
    assert float(rows["odegrad-states"][1]) > 0.0
    assert "tiny-dopri5: odegrad-states warms up" in result.stderr


def test_threads_are_set():
    result = bench(
        "--workload", "tiny-dopri5", "--system", "odegrad-tape", "--repeat", 1, "--threads", 2
    )
    assert "2 threads on" in result.stdout


def test_bench_lists_what_can_be_chosen():
    text = bench("--list").stdout
    assert all(name in text for name in (*WORKLOADS, *(engine.name for engine in ENGINES)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "huge"], "no workload is called 'huge'; choose from tiny-rk4-100, "),
        (["--system", "odeint"], "no system is called 'odeint'; choose from odegrad-tape, "),
        (["--repeat", "0"], "Invalid value for '--repeat': 0 is not in the range x>=1."),
    ],
)
def test_wrong_options_are_refused_on_one_line(arguments, message):
    result = bench(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"odegrad bench: error: {message}")
