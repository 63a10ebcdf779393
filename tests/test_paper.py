"""The paper's page: it says what was measured, and what it says holds on small problems, too."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from benchmarks import results
from benchmarks.__main__ import main
from benchmarks.paper import integral, transpose
from benchmarks.paper.figures import FIGURES, save
from benchmarks.paper.numbers import markdown
from benchmarks.paper.page import PAGE, render
from benchmarks.paper.problems import distance, linear, linear_gradient, mlp, worst
from benchmarks.paper.run import DOCS, PARTS, run

SMALL = 60_000
"""Bytes of a picture."""

needs_docs = pytest.mark.skipif(not (DOCS / PAGE).exists(), reason="an sdist has no docs")


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def committed():
    return results.read(results.RESULTS, "paper")


# What is committed.


@needs_docs
def test_the_page_is_what_the_template_makes_of_the_results(committed):
    assert render(committed) == (DOCS / PAGE).read_text("utf-8")


@needs_docs
def test_the_page_shows_all_pictures(committed):
    page = (DOCS / PAGE).read_text("utf-8")
    for name in FIGURES:
        assert f"](paper/{name}.png)" in page
        assert (DOCS / "paper" / f"{name}.png").stat().st_size < SMALL


def test_what_was_measured_is_complete_and_meets_its_bounds(committed):
    assert list(committed["parts"]) == list(PARTS)
    for part in committed["parts"].values():
        assert not part["quick"]
        assert [x["what"] for x in part["checks"] if not x["met"]] == []


# The parts, on small problems.


@pytest.mark.parametrize("name", PARTS)
def test_the_statements_hold(name, tmp_path):
    record = PARTS[name].measure(True, quiet)
    assert record["checks"]
    assert [x for x in record["checks"] if not x["met"]] == []
    FACTS[name](json.loads(json.dumps(record)))
    for picture, (part, _) in FIGURES.items():
        if part == name:
            assert 1000 < save(tmp_path, picture, record).stat().st_size < SMALL


def inconsistency_facts(record):
    """Off by the order of the scheme; Van der Pol does not come back; `Discrete` is exact anyhow."""
    for x in record["smooth"]:
        assert x["exactness"] <= 1e-12
        assert abs(x["orders"]["inconsistency"] - x["order"]) <= 0.35
        assert min(x["inconsistency"]) > 1e-8
    mild, stiff = record["van_der_pol"]
    assert mild["failure"] is None
    assert stiff["failure"] == "StepTooSmallError"
    assert max(mild["exactness"], stiff["exactness"]) <= 1e-12
    (spiral,) = record["spiral"]
    assert spiral["reconstruction"] > 1.0
    assert spiral["exactness"] <= 1e-12


def transpose_facts(record):
    """If, and only if."""
    assert len(record["exact"]) == len(transpose.SCHEMES)
    for x in record["exact"]:
        assert x["fixed"] <= 1e-12
        assert x["adaptive"] is None or x["adaptive"] <= 1e-12
    assert {x["scheme"] for x in record["partners"]} == {
        type(x).__name__ for x in transpose.TABLEAUS if 0.0 not in x.tableau.b
    }
    assert max(max(x["costate"], x["parameters"]) for x in record["partners"]) <= 1e-13
    pairs = record["pairs"]
    assert pairs["diagonal"] <= 1e-12
    assert pairs["least"] > 1e-6
    assert pairs["same"] == [["Heun", "AdaptiveHeun"]]
    assert all(abs(x["order"] - x["lower"]) <= 0.35 for x in record["orders"])


def integral_facts(record):
    """Evaluations that do not depend on the number of parameters."""
    few, many = record["rows"]
    assert few["parameters"] < many["parameters"]
    spread = dict(record["spread"])
    assert spread.pop("Backsolve") > 0
    assert set(spread.values()) == {0}


def labels_facts(record):
    """One sweep in place of K."""
    for x in record["rows"]:
        assert x["vjps_single"] == x["labels"] * x["vjps"]
        assert max(x["single"], x["inside"], x["tape"]) <= 1e-12


def lagrange_facts(record):
    """The identity holds with the gradient of the computed cost, and with no other."""
    exact, inconsistent = record["remainders"]
    assert exact["inconsistency"] <= 1e-12
    assert abs(exact["order"] - 2.0) <= 0.05
    assert abs(inconsistent["order"] - 1.0) <= 0.05


def density_facts(record):
    """Densities of the order of the scheme, which sum to the gradient."""
    for x in record["orders"]:
        assert abs(x["orders"]["u"] - x["order"]) <= 0.35
        assert abs(x["orders"]["A"] - x["order"]) <= 0.35
    assert max(max(x["pieces"], x["whole"]) for x in record["pieces"]) <= 1e-12
    assert max(x["iterations"] for x in record["optima"]) < 20


def tangent_facts(record):
    """⟨λ, ẏ⟩ is conserved by the discrete costate alone."""
    assert record["most"]["duality"] <= 1e-12
    assert record["most"]["tangent"] <= 1e-12
    exact, *others = record["along"]
    assert exact["drift"] <= 1e-12
    assert min(x["drift"] for x in others) > 1e-6


FACTS = {
    "inconsistency": inconsistency_facts,
    "transpose": transpose_facts,
    "integral": integral_facts,
    "labels": labels_facts,
    "lagrange": lagrange_facts,
    "density": density_facts,
    "tangent": tangent_facts,
}


# What they are made of.


def test_the_closed_form_is_that_of_an_accurate_solve():
    problem = linear()
    assert worst(linear_gradient(problem), problem.exact()) <= 1e-11


def test_more_parameters_are_the_same_function():
    narrow = mlp(4)
    wide = integral.widened(narrow, 8)
    assert sum(p.numel() for p in wide.parameters) > 7 * sum(p.numel() for p in narrow.parameters)
    assert distance([wide.f(0.0, narrow.y0)], [narrow.f(0.0, narrow.y0)]) <= 1e-14


def test_columns_of_markdown_are_aligned():
    table = markdown(["a", "b"], [["long one", "1"], ["", "1000"]]).splitlines()
    assert len({len(line) for line in table}) == 1
    assert table[1] == "|:---------|-----:|"


def test_parts_are_kept_from_earlier_calls(tmp_path, capsys):
    lines = []
    run(["lagrange"], True, tmp_path, tmp_path, lines.append)
    written = results.read(tmp_path, "paper")
    assert list(written["parts"]) == ["lagrange"]
    assert (tmp_path / "paper" / "lagrange.png").exists()
    assert not (tmp_path / PAGE).exists()  # not before all is there
    assert "bound" in capsys.readouterr().out


def test_quick_results_replace_no_others():
    result = CliRunner().invoke(main, ["paper", "--quick"])
    assert result.exit_code == 2
    assert "--out" in result.output
