"""The benchmarks folder: targets, errors, tables; its JAX twins where JAX is installed."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from click.testing import CliRunner

import odegrad
from benchmarks import results
from benchmarks.__main__ import main
from benchmarks.accuracy import References, relative_error
from benchmarks.limit import limit_ratio
from benchmarks.memory import budget, complexity, labels, million, online, prediction
from benchmarks.memory.parts import MIB, Check, Effort, check_table
from benchmarks.memory.process import Job, in_fresh_process
from benchmarks.memory.profiled import profiled_peak
from benchmarks.memory.run import PARTS
from benchmarks.memory.run import run as run_memory
from benchmarks.peers import measured_before
from benchmarks.plots import draw_peers, draw_scaling
from benchmarks.scaling import SCALING, slope
from benchmarks.systems import SYSTEMS
from benchmarks.tables import aligned
from benchmarks.targets import TARGETS, Target, targets_table
from odegrad.bench import STATES, TORCHDIFFEQ, WORKLOADS
from odegrad.checkpoints import Advance, Online, advances

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("diffrax") is None, reason="needs the extra bench"
)


# Targets.


def test_a_target_compares_the_best_of_ours_with_the_fastest_of_theirs():
    target = Target("w", ("a", "b"), 0.5, ("x", "y"))
    assert target.value({"w": {"a": 3.0, "b": 2.0, "x": 8.0, "y": 4.0}}) == 0.5
    assert target.verdict({"w": {"a": 3.0, "b": 2.0, "x": 8.0, "y": 4.0}}) == "met"
    assert target.verdict({"w": {"a": 3.0, "x": 4.0}}) == "missed"


@pytest.mark.parametrize("measured", [{}, {"w": {"a": 1.0}}, {"w": {"x": 1.0}}, {"v": {"a": 1.0}}])
def test_what_was_not_measured_is_neither_met_nor_missed(measured):
    target = Target("w", ("a",), 0.5, ("x",))
    assert target.value(measured) is None
    assert target.verdict(measured) == "not measured"


def test_a_target_without_peers_bounds_the_number_itself():
    assert Target("w", ("a", "b"), 0.1).value({"w": {"a": 0.3, "b": 0.2}}) == 0.2
    assert Target("w", ("a", "b"), 0.1, pick=max).value({"w": {"a": 0.3, "b": 0.2}}) == 0.3


def test_targets_speak_of_what_exists():
    for target in TARGETS:
        assert {*target.ours, *target.theirs} <= set(SYSTEMS)
        assert target.theirs == () or target.quantity in WORKLOADS


def test_the_table_of_targets():
    text = targets_table({"w": {"a": 1.0, "x": 4.0}}, [Target("w", ("a",), 0.5, ("x",))])
    assert text.splitlines()[1].split() == ["w", "a", "x", "≤", "0.50", "0.250", "met"]


def test_targets_read_what_earlier_commands_left(tmp_path):
    assert measured_before(tmp_path) == {}
    systems = {"a": {"median_s": 0.1234567}}
    results.write(tmp_path, "peers", {}, {"workloads": {"w": {"systems": systems}}})
    results.write(tmp_path, "limit", {}, {"targets": {"time ÷ limit, w": {"a": 1.1}}})
    assert measured_before(tmp_path) == {"w": {"a": 0.1235}, "time ÷ limit, w": {"a": 1.1}}
    written = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert written["machine"]["versions"]["torch"] == torch.__version__


# Errors.


def test_the_error_is_relative_to_the_largest_entry_of_all():
    reference = (torch.tensor([1.0, -4.0]), torch.tensor([[0.5]]))
    gradient = (torch.tensor([1.0, -4.0]), torch.tensor([[1.5]]))
    assert relative_error(gradient, reference) == 0.25
    assert relative_error(reference, reference) == 0.0


@pytest.mark.parametrize("name", ["tiny-rk4-100", "tiny-dopri5"])
def test_exact_systems_are_exact_to_rounding(name):
    workload = WORKLOADS[name]
    references = References(workload)
    error = relative_error(STATES.prepare(workload).gradient(), references.of(STATES))
    assert 0.0 < error < 1e-4  # float32


@pytest.mark.skipif(importlib.util.find_spec("torchdiffeq") is None, reason="needs torchdiffeq")
def test_rk4_of_torchdiffeq_is_compared_with_the_three_eighths_rule():
    workload = WORKLOADS["tiny-rk4-100"]
    references, gradient = References(workload), TORCHDIFFEQ.prepare(workload).gradient()
    assert relative_error(gradient, references.of(TORCHDIFFEQ)) < 1e-5
    assert TORCHDIFFEQ.prepare(workload).count().f_evaluations == 400


# The twins.


@needs_jax
@pytest.mark.filterwarnings("default")  # those of other packages at import
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_twins_compute_the_same(workload):
    import jax
    import numpy as np

    from benchmarks.jax_fields import cotangents, parameters, twin

    problem = workload.build()
    ours = problem.field(torch.zeros(()), problem.y0)
    with jax.enable_x64(workload.dtype is torch.float64):
        y0 = jax.tree.map(lambda x: jax.numpy.asarray(x.detach().numpy()), problem.y0)
        p = parameters(problem.field)
        theirs = twin(problem.field)(p, y0)
        for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(ours), strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-4, atol=1e-4)
        back = cotangents(problem.field, p)
    assert all(map(torch.equal, back, problem.field.parameters()))


# Memory.


QUICK = Effort(quick=True, repeats=1)


def quiet(_: str) -> None:
    pass


def test_a_bound_is_met_or_missed():
    assert Check("a", 1.0, 1.0).verdict == "met"
    assert Check("a", 1.1, 1.0).verdict == "missed"
    table = check_table([Check("a", 1.1, 1.0).as_record()])
    assert table.splitlines()[1].split() == ["a", "1", "1.1", "missed"]


def test_the_profiler_sees_the_peak_and_not_the_sum():
    def work() -> None:
        for _ in range(3):
            x = torch.empty(MIB, dtype=torch.uint8)
            del x
        torch.empty(3 * MIB, dtype=torch.uint8)

    assert profiled_peak(work) == 3 * MIB


@pytest.mark.parametrize("name", ["StoreAll state", 'memory="16MiB"', "Rewind(25), ALF"])
def test_peaks_are_predicted(name):
    cases = tuple(case for case in prediction.CASES if case.name == name)
    record = prediction.measure(QUICK, quiet, cases)
    assert record["missing"] == {}
    assert [x["met"] for x in record["checks"]] == [True]
    assert prediction.table(record).split()[-1] == "met"


def test_a_case_that_fails_says_why():
    case = prediction.Case("none", odegrad.Discrete(memory=1))
    record = prediction.measure(QUICK, quiet, (case,))
    assert "MemoryBudgetError" in record["missing"]["none"]
    assert "MemoryBudgetError" in prediction.table(record)


def test_a_budget_holds():
    record = budget.measure(QUICK, quiet)
    (row,) = record["rows"]
    assert row["peak"] <= row["budget"]
    assert len(record["checks"]) == 2
    assert 'memory="12MiB"' in budget.table(record)


def test_growth_is_measured_in_a_process_of_its_own():
    record = million.measure(QUICK, quiet)
    (row,) = record["rows"]
    assert row["finite"]
    assert row["recompute_factor"] > 1.0
    assert 0 < row["over_warm"] < row["over_bare"] < 128 * MIB
    assert row["bare"] < row["imported"] < row["warm"]
    assert "Euler, eager" in million.table(record)


def test_a_process_that_fails_says_why():
    job = Job("Euler", 10, "1B", compiled=False, warm_up=2)
    assert "MemoryBudgetError" in in_fresh_process(job)


def test_labels_are_measured_with_a_budget_and_without():
    record = labels.measure(QUICK, quiet)
    assert [x["labels"] for x in record["rows"]] == [10, 300, 10, 300]
    assert all(x["finite"] and x["peak"] > x["bare"] for x in record["rows"])
    assert all(x["torch_peak"] <= 4 * MIB for x in record["rows"])
    assert [x["outputs"] for x in record["rows"]][:2] == [2 * 11 * 2000, 2 * 301 * 2000]
    assert "a state per step" in labels.table(record)
    assert "MemoryBudgetError" in labels.in_fresh_process(labels.Job(10, "1B"))


def test_times_are_compared_with_a_model():
    record = complexity.measure(QUICK, quiet)
    assert [x["advances"] for x in record["rows"]] == [380, 184, 125, 102, 86, 74]
    assert complexity.model(60, 8, 1.0, 0.0) == 125
    assert len(record["checks"]) == len(record["samples_s"]) - 2 == 6


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_ratios_of_online_are_those_of_its_actions(slots):
    for n, ratio in enumerate(online.ratios(slots, 40), start=2):
        again = [x for x in Online(slots).backward(n, known=False) if isinstance(x, Advance)]
        taken = n + sum(x.stop - x.start for x in again)
        assert ratio == taken / (advances(n, slots) + 1)


def test_parts_are_kept_from_earlier_calls(tmp_path, capsys):
    lines = []
    run_memory(["online"], QUICK, tmp_path, lines.append)
    run_memory(["complexity"], QUICK, tmp_path, lines.append)
    parts = results.read(tmp_path, "memory")["parts"]
    assert list(parts) == ["complexity", "online"]
    assert all("met" in x for part in parts.values() for x in part["checks"])
    assert (tmp_path / "memory.png").stat().st_size > 1000
    assert "states" in capsys.readouterr().out
    assert set(PARTS) == {"prediction", "budget", "million", "labels", "complexity", "online"}


# The rest.


def test_ratios_to_the_limit_and_slopes():
    assert limit_ratio(12.0, steps=5, stages=4, f_and_v=0.5) == pytest.approx(1.2)
    assert slope([(n, 0.3 * n) for n in (100, 1000, 10000)]) == pytest.approx(1.0)
    assert slope([(n, 5.0) for n in (100, 1000)]) == pytest.approx(0.0)


def test_columns_are_aligned():
    assert aligned(["a", "b"], [["ccc", "1"], ["", "12"]]).splitlines() == [
        "a     b",
        "ccc   1",
        "     12",
    ]


def test_pictures_are_drawn(tmp_path):
    systems = {
        name: {"median_s": 0.1 * (i + 1), "exact": i % 2 == 0} for i, name in enumerate("abc")
    }
    workloads = {f"w{i}": {"systems": systems} for i in range(3)}
    points = [
        {"steps": n, "median_s": 1e-4 * n, "peak_bytes": None if n > 100 else 1e6}
        for n in (100, 1000)
    ]
    for figure in (draw_peers(workloads), draw_scaling({"a": {"slope": 1.0, "points": points}})):
        assert results.save_figure(tmp_path, "picture", figure).stat().st_size > 1000


@pytest.mark.parametrize("command", ["peers", "limit", "scaling", "memory"])
def test_the_front_says_what_it_does(command):
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "--quick" in result.output


def test_scaling_adds_checkpoints():
    assert set(SCALING) - set(SYSTEMS) == {"odegrad-every-100"}
