"""`odegrad audit` as a user meets it."""

import json
import re
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from odegrad.cli import main

FACTORIES = """
import torch, odegrad

def good():
    return dict(f=lambda t, y: -y.sin(), y0=torch.ones(2, dtype=torch.float64), ts=[0.0, 1.0],
                loss=lambda ys: ys[-1].sum(), stepsize=odegrad.Steps(2), budget=1)

def bad():
    return good() | dict(gradient=odegrad.Backsolve(), scheme=odegrad.Euler())

def number():
    return 3

def unfit():
    return good() | dict(y0=[1.0])

def misspelt():
    return good() | dict(tolerance=1.0)

def broken():
    raise KeyError("nothing here")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command where `factories.py` lies."""
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "factories", raising=False)

    def invoke(*arguments):
        return CliRunner().invoke(main, ["audit", *arguments])

    return invoke


def test_an_exact_gradient_exits_with_zero(run):
    result = run("factories:good", "--no-progress")
    assert result.exit_code == 0
    assert result.stdout.startswith("odegrad audit: exact: the gradient of the computed loss, to ")
    assert result.stderr == ""


def test_an_inexact_gradient_exits_with_one(run):
    result = run("factories:bad")
    assert result.exit_code == 1
    assert result.stdout.startswith("odegrad audit: NOT exact: ")
    assert "audit" in result.stderr  # progress


def test_numbers_and_page_are_written(run, tmp_path):
    result = run("factories:good", "--json", "a.json", "--out", "a.html", "--seed", "3")
    assert result.exit_code == 0
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["passed"] is True
    assert data["verdict"] in (tmp_path / "a.html").read_text()
    again = run("factories:good", "--json", "b.json", "--seed", "4")
    assert again.exit_code == 0
    other = json.loads((tmp_path / "b.json").read_text())
    slopes = [
        next(c for c in d["checks"] if c["name"] == "taylor")["numbers"] for d in (data, other)
    ]
    assert slopes[0] != slopes[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["factories"], "is not like MODULE:FACTORY"),
        (["nowhere:f"], "No module named 'nowhere'"),
        (["factories:absent"], "no attribute 'absent'"),
        (["factories:number"], "must return a mapping"),
        (["factories:broken"], "nothing here"),
        (["factories:unfit"], "y0[0] must be a tensor"),
        (["factories:misspelt"], "unexpected keyword argument 'tolerance'"),
        (["factories:good", "--seed", "x"], "is not a valid integer"),
        (["factories:good", "--json", "no/where.json"], "cannot be written"),
        (["factories:good", "--out", "no/where.html"], "cannot be written"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_done_is_said_on_one_line(run, arguments, message):
    result = run(*arguments, *(["--no-progress"] if arguments else []))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("odegrad audit: error: ")
    assert result.stderr.count("\n") == 1


def test_the_shipped_example(tmp_path):
    begin = time.perf_counter()
    code = "import sys; from odegrad.cli import main; sys.argv = ['odegrad', *sys.argv[1:]]; main()"
    command = [sys.executable, "-W", "error", "-c", code, "audit", "odegrad.fit:hare_lynx"]
    done = subprocess.run(
        [*command, "--out", "report.html"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - begin < 60
    assert done.stdout.startswith("odegrad audit: exact: the gradient of the computed loss, to ")
    assert all(line.startswith("audit ") for line in done.stderr.splitlines()), done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert "<link" not in page
