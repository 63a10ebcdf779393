"""`odegrad fit`: what it reads, refuses, finds, writes and prints."""

import json
import math
import re
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

import odegrad.fit
from odegrad.cli import main
from odegrad.data import hare_lynx
from odegrad.fit.check import check_gradients, peak_bytes
from odegrad.fit.config import Config
from odegrad.fit.data import Series, read_series
from odegrad.fit.fitted import Fitted
from odegrad.fit.metrics import ErrorRow, error_rows, forecast_verdict
from odegrad.fit.models import LotkaVolterra, Transform
from odegrad.fit.training import Epoch, train

TINY = ["--epochs", "3", "--hidden", "4", "--scheme", "rk4", "--steps", "1", "--no-progress"]
FILES = ["fit.png", "loss.png", "metrics.json", "model.pt"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def csv(tmp_path):
    def write(text: str, name: str = "d.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def fit(*args: object) -> Result:
    return CliRunner().invoke(main, ["fit", *map(str, args)])


def refused(result: Result) -> str:
    """The one line of a refusal."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("odegrad fit: error: ")
    return line


# ---------------------------------------------------------------- what is refused

GOOD = "year,hare,lynx\n1900,30,4\n1901,47,6\n1902,70,10\n1903,77,35\n"

BAD_FILES = {
    "empty file": ("", [], ["d.csv: is empty", "write a header"]),
    "missing column": (GOOD, ["--state", "hare,lnyx"], ["d.csv:1 column 'lnyx'", "mean 'lynx'?"]),
    "missing time": (GOOD, ["--time", "month"], ["d.csv:1 column 'month'", "choose --time"]),
    "text cell": (GOOD.replace("47", "many"), [], ["d.csv:3 column 'hare': 'many'", "12.5"]),
    "date": (
        GOOD.replace("1901", "1901-05"),
        [],
        ["d.csv:3 column 'year'", "write times as numbers"],
    ),
    "empty cell": (GOOD.replace("47", ""), [], ["d.csv:3 column 'hare': empty cell", "fill it in"]),
    "nan": (GOOD.replace("47", "NaN"), [], ["d.csv:3 column 'hare': 'NaN' is not finite", "leave"]),
    "infinity": (GOOD.replace("47", "inf"), [], ["d.csv:3 column 'hare'", "not finite"]),
    "blank lines count": (GOOD.replace("1901", "\n\n1901").replace("47", "x"), [], ["d.csv:5"]),
    "unsorted": (
        GOOD.replace("1902", "1899"),
        [],
        ["d.csv:4 column 'year': 1899", "sort the rows"],
    ),
    "repeated": (GOOD.replace("1902", "1901"), [], ["d.csv:4 column 'year'", "repeats line 3"]),
    "two rows": ("t,x\n0,1\n1,2\n", [], ["d.csv: 2 data rows, at least 3", "add rows"]),
    "no rows": ("t,x\n", [], ["d.csv: 0 data rows"]),
    "short row": (GOOD.replace(",47,6", ",47"), [], ["d.csv:3: 2 cells", "3 columns"]),
    "no header": ("0,1\n1,2\n2,3\n", [], ["d.csv:1: the header holds numbers"]),
    "double name": ("t,x,x\n0,1,2\n", [], ["d.csv:1 column 'x'", "own name"]),
    "open quote": ('t,x\n0,"1\n1,2\n', [], ["d.csv:", "repair the quotes"]),
    "name over two lines": (
        '"a\nb",x\n0,1\n1,2\n2,3\n',
        ["--time", "t"],
        ["column 't': no such column", r"the header has 'a\nb', x"],
    ),
    "one column": ("t\n0\n1\n2\n", [], ["d.csv:1: has no column beside 't'"]),
    "not positive": (
        GOOD.replace("47", "0"),
        ["--transform", "log"],
        ["d.csv:3 column 'hare': 0 is not positive", "standardise"],
    ),
    "not positive prey": (
        GOOD.replace("47", "-1"),
        ["--model", "lotka-volterra"],
        ["d.csv:3 column 'hare': -1 is not positive", "--model mlp"],
    ),
    "three states": (
        "t,a,b,c\n0,1,1,1\n1,2,2,2\n2,3,3,3\n",
        ["--model", "lotka-volterra"],
        ["needs two states, received 3 (a, b, c)", "--state"],
    ),
    "holds out too much": (GOOD, ["--holdout", "0.6"], ["leaves 2 of 4 rows", "hold out less"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_on_one_line(case, csv, tmp_path):
    text, options, parts = BAD_FILES[case]
    line = refused(fit(csv(text), "--out", tmp_path / "out", *options))
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()


BAD_OPTIONS = {
    "two rules": (
        ["--steps", "4", "--rtol", "1e-3"],
        "--steps and --rtol/--atol exclude each other",
    ),
    "two more": (["--steps", "4", "--dt", "1"], "--steps and --dt exclude each other"),
    "fixed scheme": (
        ["--scheme", "RK4"],
        "RK4 has no error estimate to adapt its steps; add --steps",
    ),
    "unknown scheme": (["--scheme", "tist5"], "no scheme is called 'tist5'; did you mean Tsit5"),
    "strange scheme": (["--scheme", "xyz"], "choose from Euler, Midpoint"),
    "holdout": (["--holdout", "1"], "--holdout must be in [0, 1), received 1.0"),
    "epochs": (["--epochs", "0"], "--epochs must be at least 1, received 0"),
    "dt": (["--dt", "-1"], "--dt must be positive, received -1.0"),
    "lr": (["--lr", "0"], "--lr must be positive"),
    "rtol": (["--rtol", "0"], "--rtol/--atol must be positive"),
    "hidden": (["--hidden", "32,x"], "'32,x' is not like 32,32"),
    "hidden zero": (["--hidden", "0"], "--hidden must be positive widths"),
    "number": (["--epochs", "many"], "'many' is not a valid integer"),
    "choice": (["--model", "mpl"], "'mpl' is not one of"),
    "option": (["--epoch", "3"], "No such option"),
    "device": (["--device", "abacus"], "--device abacus: "),
    "state is time": (["--state", "year"], "--state names the time column 'year'"),
    "state twice": (["--state", "hare,hare"], "names a column twice"),
    "foreign option": (["--model", "lotka-volterra", "--lr", "1"], "--lr belongs to --model mlp"),
    "foreign transform": (
        ["--model", "lotka-volterra", "--transform", "standardise"],
        "does not take --transform standardise",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_wrong_options_are_refused_on_one_line(case, tmp_path):
    options, part = BAD_OPTIONS[case]
    assert part in refused(fit(hare_lynx(), "--out", tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_files_and_directories_that_are_not_what_they_should_be(tmp_path, csv):
    assert "nope.csv: no such file; check" in refused(fit(tmp_path / "nope.csv"))
    assert "is a directory; name the CSV" in refused(fit(tmp_path))
    latin = tmp_path / "latin.csv"
    latin.write_bytes("t,é\n0,1\n".encode("latin-1"))
    assert "is not UTF-8 text" in refused(fit(latin))
    assert "exists; choose another --out or add --overwrite" in refused(
        fit(hare_lynx(), "--out", tmp_path)
    )
    assert "is a file, not a directory" in refused(fit(hare_lynx(), "--out", latin, "--overwrite"))
    assert "latin.csv" in refused(fit(hare_lynx(), "--out", latin / "below"))
    assert "Missing argument" in refused(fit())


# ---------------------------------------------------------------- what is read


def test_forgiving_reading(csv):
    text = "\ufeff t ; x \n\n 0 ; 1 \n 0.5; 2e0\n2 ;-3\n\n  \n"
    series = read_series(csv(text))
    assert (series.time, series.states, series.lines) == ("t", ("x",), (3, 4, 5))
    assert series.times.tolist() == [0.0, 0.5, 2.0]
    assert series.values.tolist() == [[1.0], [2.0], [-3.0]]
    assert not series.positive


def test_columns_can_be_chosen(csv):
    series = read_series(csv("a,b,c\n1,0,x\n2,1,x\n3,2,x\n"), "b", ["a"])
    assert series.times.tolist() == [0.0, 1.0, 2.0]
    assert series.values.tolist() == [[1.0], [2.0], [3.0]]


@pytest.mark.parametrize("name", ["log", "standardise", "log-standardise", "none"])
def test_transforms_invert(name):
    x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [7.0, 5.0]], dtype=torch.float64)
    transform = Transform.of(name, x)
    z = transform(x)
    torch.testing.assert_close(transform.invert(z), x)
    if "standardise" in name:
        assert z[:, 0].mean().abs() < 1e-12
        assert abs(float(z[:, 0].std()) - 1) < 1e-12


# ---------------------------------------------------------------- what is found


def scipy_fit(series: Series) -> tuple[np.ndarray, float]:
    """The independent oracle: α, β, γ, δ and the RMS log error by SciPy alone."""
    ts, logs = series.times.numpy(), series.values.log().numpy()

    def residuals(p: np.ndarray) -> np.ndarray:
        alpha, beta, gamma, delta = np.exp(p[:4])

        def f(t: float, z: np.ndarray) -> list[float]:
            return [alpha - beta * math.exp(z[1]), delta * math.exp(z[0]) - gamma]

        sol = solve_ivp(f, (ts[0], ts[-1]), p[4:], t_eval=ts, method="LSODA", rtol=1e-9, atol=1e-9)
        return (sol.y.T - logs).ravel()

    start = np.concatenate((np.log([0.6, 0.03, 0.7, 0.02]), logs[0]))
    found = least_squares(residuals, start, xtol=1e-10, ftol=1e-10)
    return np.exp(found.x[:4]), float(np.sqrt(np.mean(found.fun**2)))


def test_lotka_volterra_agrees_with_scipy_and_the_published_values(tmp_path):
    out = tmp_path / "out"
    result = fit(
        hare_lynx(), "--model", "lotka-volterra", "--holdout", 0, "--out", out, "--no-progress"
    )
    assert result.exit_code == 0, result.output
    numbers = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    rates = [q["value"] for q in numbers["quantities"][:4]]
    rms = numbers["errors"][-1]["rms_log"]
    oracle, oracle_rms = scipy_fit(read_series(hare_lynx()))
    np.testing.assert_allclose(rates, oracle, rtol=1e-4)
    np.testing.assert_allclose(rates, [0.540, 0.0272, 0.796, 0.0237], rtol=0.05)
    assert rms == pytest.approx(oracle_rms, rel=1e-6)
    assert rms == pytest.approx(0.219, abs=5e-4)
    assert [q["unit"] for q in numbers["quantities"][:4]] == [
        "1/year",
        "1/year per lynx",
        "1/year",
        "1/year per hare",
    ]
    assert numbers["training"]["converged"]
    for part in (*(f"{rate:.4g}" for rate in oracle), "1/year per lynx", "lynx₀", "year 1900"):
        assert part in result.stdout
    assert "persistence" not in result.stdout.lower()


def test_the_guess_finds_the_rates_of_clean_data():
    rates = torch.tensor([0.5, 0.03, 0.8, 0.02], dtype=torch.float64)
    z0 = torch.tensor([3.0, 2.0], dtype=torch.float64)
    model = LotkaVolterra(z0, rates, log=True)
    ts = torch.linspace(0, 10, 101, dtype=torch.float64)
    with torch.no_grad():
        zs = odegrad.solve(model, z0, ts).ys
    torch.testing.assert_close(LotkaVolterra.guess(ts, zs.exp()), rates, rtol=0.02, atol=0)


def test_the_guess_is_positive_for_any_data():
    ts = torch.arange(3, dtype=torch.float64)
    for rows in ([[1, 1], [1, 1], [1, 1]], [[1, 2], [3, 4], [9, 7]], [[9, 1], [3, 2], [1, 9]]):
        guess = LotkaVolterra.guess(ts, torch.tensor(rows, dtype=torch.float64))
        assert bool(torch.isfinite(guess).all())
        assert bool((guess > 0).all())


def test_both_forms_of_lotka_volterra_have_the_same_trajectory():
    rates = torch.tensor([0.5, 0.03, 0.8, 0.02], dtype=torch.float64)
    y0 = torch.tensor([30.0, 4.0], dtype=torch.float64)
    ts = torch.linspace(0, 5, 6, dtype=torch.float64)
    tight = odegrad.PID(rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        plain = odegrad.solve(LotkaVolterra(y0, rates, log=False), y0, ts, stepsize=tight).ys
        logs = odegrad.solve(LotkaVolterra(y0, rates, log=True), y0.log(), ts, stepsize=tight).ys
    torch.testing.assert_close(logs.exp(), plain, rtol=1e-8, atol=0)


def test_mlp_learns_a_clean_decaying_oscillation(csv):
    """A short training already explains most of a signal that an autonomous field can follow."""
    rows = "\n".join(
        f"{0.5 * k},{math.exp(-0.05 * k) * math.cos(0.4 * k)},{math.exp(-0.05 * k) * math.sin(0.4 * k)}"
        for k in range(16)
    )
    series = read_series(csv("t,x,y\n" + rows))
    config = Config(epochs=90, hidden=(16,), scheme="RK4", steps=1, holdout=0).completed(False)
    fitted = Fitted.start(series, 16, config)
    outcome = train(fitted, series.times, series.values, lambda epoch: None)
    assert outcome.best is not None
    assert outcome.best.rows == 16
    assert outcome.best.loss < 0.02  # standardised values have mean square one


# ---------------------------------------------------------------- what is written


def test_files_table_and_reload(tmp_path):
    out = tmp_path / "deep" / "out"
    result = fit(hare_lynx(), "--out", out, *TINY)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == FILES
    numbers = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    check = {cost["name"]: cost for cost in numbers["gradient_check"]["costs"]}
    assert check["Discrete"]["difference"] < 1e-12
    assert check["Backsolve"]["difference"] > 1e-12
    assert all(cost["peak_bytes"] > 0 and cost["seconds"] > 0 for cost in check.values())
    for part in (
        "persistence",
        "Discrete",
        "Tape",
        "Backsolve",
        "f evaluations",
        "steps",
        "hold-out",
    ):
        assert part in result.stdout
    assert "inconsistent with the computed loss" in result.stdout
    assert "wrong" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= max(80, len(str(out)) + 60)
    for picture in ("fit.png", "loss.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")

    model = odegrad.fit.load(out / "model.pt")
    series = read_series(hare_lynx())
    ys = model.predict(series.times)
    assert ys.shape == (21, 2)
    rows = error_rows(model, series, 17)
    assert rows[2].rms_log == numbers["errors"][2]["rms_log"]


def test_prediction_takes_times_in_any_order_and_refuses_the_past(tmp_path):
    series = read_series(hare_lynx())
    fitted = Fitted.start(series, 17, Config(hidden=(4,), scheme="RK4", steps=1).completed(True))
    fitted.save(tmp_path / "model.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    again = odegrad.fit.load(tmp_path / "model.pt")
    times = [1905.0, 1900.0, 1910.0, 1905.0]
    ys = again.predict(times)
    assert torch.equal(ys, fitted.predict(times))
    assert torch.equal(ys[0], ys[3])
    torch.testing.assert_close(ys[1], series.values[0])
    assert again.predict([]).shape == (0, 2)
    with pytest.raises(odegrad.errors.InvalidValueError, match="starts at year = 1900"):
        again.predict([1899.0])


def test_loading_another_file_is_refused(tmp_path):
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(odegrad.errors.InvalidValueError, match="is not a model of this version"):
        odegrad.fit.load(tmp_path / "other.pt")


def test_same_seed_same_numbers(tmp_path):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert fit(hare_lynx(), "--out", tmp_path / name, "--seed", seed, *TINY).exit_code == 0
        numbers = json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))
        found.append((numbers["training"]["loss"], numbers["errors"], numbers["quantities"]))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Fitted.start(read_series(hare_lynx()), 17, Config().completed(True))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gradient", ["discrete", "tape", "backsolve"])
def test_gradients_and_dtypes(dtype, gradient, tmp_path):
    options = ["--dtype", dtype, "--gradient", gradient, "--state", "lynx", "--overwrite"]
    result = fit(hare_lynx(), "--out", tmp_path, *TINY, *options)
    assert result.exit_code == 0, result.output
    model = odegrad.fit.load(tmp_path / "model.pt")
    assert str(model.model.z0.dtype) == f"torch.{dtype}"
    assert model.states == ("lynx",)


def test_data_of_any_sign_and_a_constant_column(csv, tmp_path):
    text = "t,x,y\n" + "\n".join(f"{k},{(-1) ** k},5" for k in range(6))
    result = fit(csv(text), "--out", tmp_path / "out", *TINY)
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert numbers["config"]["transform"] == "standardise"
    assert numbers["errors"][0]["rms_log"] is None


# ---------------------------------------------------------------- Ctrl-C


class Interrupting:
    """Raises KeyboardInterrupt as the n-th epoch is reported."""

    def __init__(self, n: int) -> None:
        self.n, self.losses = n, []

    def __call__(self, epoch: Epoch) -> None:
        self.losses.append(epoch.loss)
        if epoch.n == self.n:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_the_best_model():
    series = read_series(hare_lynx())
    # So large a rate that the loss does not fall from epoch to epoch.
    config = Config(epochs=40, hidden=(4,), scheme="RK4", steps=1, lr=0.3).completed(True)
    fitted = Fitted.start(series, 17, config)
    report = Interrupting(37)
    outcome = train(fitted, series.times[:17], series.values[:17], report)
    assert outcome.interrupted
    assert len(outcome.epochs) == 37
    best = outcome.best
    assert best is not None
    assert best.rows == 17
    assert best.loss == min(e.loss for e in outcome.epochs if e.rows == 17)
    zs = fitted.transform(series.values[:17])
    with torch.no_grad():
        loss = float((fitted.solve(series.times[:17]).ys - zs).square().mean())
    assert loss == pytest.approx(best.loss, rel=1e-12)


@pytest.mark.parametrize("model", ["mlp", "lotka-volterra"])
def test_ctrl_c_on_the_command_line(model, tmp_path, monkeypatch):
    plain, calls = Fitted.solve, []

    def solve(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Fitted, "solve", solve)
    out = tmp_path / "out"
    result = fit(hare_lynx(), "--out", out, "--model", model, "--no-progress", "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "Interrupted after" in result.stdout
    assert "saved the best model so far" in result.stdout
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert odegrad.fit.load(out / "model.pt").predict([1900.0]).shape == (1, 2)


def test_ctrl_c_while_reporting_leaves_the_model(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("odegrad.fit.job.metrics", interrupted)
    result = fit(hare_lynx(), "--out", tmp_path / "out", *TINY)
    assert result.exit_code == 130
    assert result.stderr.startswith("odegrad fit: error: interrupted")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.pt"]


# ---------------------------------------------------------------- the check and the verdict


def test_the_check_notices_a_gradient_that_is_off(monkeypatch):
    series = read_series(hare_lynx())
    fitted = Fitted.start(series, 17, Config(hidden=(4,), scheme="RK4", steps=1).completed(True))
    good = check_gradients(fitted, series.times[:17], runs=1)
    assert good.costs[0].difference < 1e-13
    monkeypatch.setattr("odegrad.fit.check.Discrete", odegrad.Backsolve)
    bad = check_gradients(fitted, series.times[:17], runs=1)
    assert bad.costs[0].difference == bad.costs[2].difference > 1e-6


def test_peak_bytes_counts_what_is_alive_together():
    def work():
        a = torch.zeros(1000, dtype=torch.float64)
        del a
        b = torch.zeros(3000, dtype=torch.float64)
        return b + 1.0

    assert 48_000 <= peak_bytes(work, torch.device("cpu")) < 50_000


def test_the_verdict_is_honest():
    def rows(model: float, still: float) -> list[ErrorRow]:
        return [
            ErrorRow("fit", None, 9, 0.1, 1.0),
            ErrorRow("forecast", "a", 2, 0.5, 1.0, 0.4, 1.0),
            ErrorRow("forecast", None, 2, model, 1.0, still, 1.0),
        ]

    assert forecast_verdict(rows(0.3, 0.2)) == (
        "Persistence beats the model on the hold-out (RMS log error on the 2 held-out rows: "
        "model 0.3, persistence 0.2)."
    )
    better = forecast_verdict(rows(0.2, 0.3))
    assert better is not None
    assert better.startswith("The model beats persistence")
    assert better.endswith("for a alone, persistence wins.")
    assert forecast_verdict(rows(0.2, 0.3)[:1]) is None


def test_an_untrained_model_loses_to_persistence_and_says_so(tmp_path, csv):
    text = "t,x\n" + "\n".join(f"{k},{1 + k if k < 8 else 8}" for k in range(12))
    result = fit(csv(text), "--out", tmp_path / "out", "--holdout", 0.33, *TINY)
    assert result.exit_code == 0, result.output
    assert "Persistence beats the model on the hold-out" in " ".join(result.stdout.split())


def test_version_and_help():
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"odegrad, version \S+\n", result.output)
    text = fit("--help").output
    assert isinstance(main.commands["fit"], click.Command)
    for parameter in main.commands["fit"].params:
        assert any(name in text for name in (*parameter.opts, (parameter.name or "").upper()))
