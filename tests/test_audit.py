"""The audit against closed forms, planted bugs, and fields with known faults."""

import dataclasses
import itertools
import json
import math
import random
import re
import sys
import time
import warnings

import pytest
import torch
from torch import nn

import odegrad
from odegrad.audit import audit, tangents
from odegrad.audit.convergence import refined
from odegrad.audit.culprits import culprit, same, watched
from odegrad.audit.modes import candidates, vector
from odegrad.audit.names import Names
from odegrad.audit.steps import step_term
from odegrad.audit.subject import Subject
from odegrad.audit.taylor import slope_along
from odegrad.audit.vectors import difference, flat
from odegrad.audit.world import World
from odegrad.schemes import ExplicitRungeKutta

F64 = torch.float64
CHEAP = {"scheme": odegrad.RK4(), "stepsize": odegrad.Steps(4)}
FEW = 1  # evaluation: the comparisons are left out
SOME = 3000


def total(ys):
    return sum(
        y.abs().square().sum() + y.real.sin().sum() for y in torch.utils._pytree.tree_leaves(ys)
    )


def start(*shape, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def mlp(*inside, dtype=F64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), *inside, nn.Linear(8, 2)).to(dtype)


def subject(f, y0, ts, loss=total, gradient=None, **choices):
    names = Names([f, loss])
    world = World(names.modules.values(), torch.device("cpu"))
    given = {"scheme": odegrad.Tsit5(), "stepsize": odegrad.PID(), "running": None, **choices}
    gradient = gradient or odegrad.Discrete()
    return Subject(f, y0, ts, loss, (), gradient=gradient, names=names, world=world, **given)


# A linear system, whose gradient is known in closed form.


@pytest.fixture(scope="module")
def linear():
    """y' = y A on [0, 1] by RK4, audited; and the gradient of its loss in closed form."""
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=F64, requires_grad=True)
    weights = torch.tensor([1.0, -2.0], dtype=F64)

    def f(t, y):
        return y @ matrix

    def loss(ys):
        return (ys[-1] * weights).sum()

    exact = loss((y0 @ torch.matrix_exp(matrix))[None])
    closed = torch.cat([g.reshape(-1) for g in torch.autograd.grad(exact, [y0, matrix])])
    return f, y0, loss, closed


def test_all_modes_converge_to_the_closed_form(linear):
    f, y0, loss, closed = linear
    solve = subject(f, y0, [0.0, 1.0], loss, scheme=odegrad.RK4(), stepsize=odegrad.Steps(8))
    for name, mode in candidates(solve).items():
        errors = [
            difference(vector(solve, solve.pull(mode, refined(solve.grid, k))), closed)
            for k in (1, 2, 4)
        ]
        orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
        assert all(3.7 < order < 4.4 for order in orders), (name, errors)


def test_the_distances_of_a_report_are_those_to_the_closed_form(linear):
    f, y0, loss, closed = linear
    report = audit(f, y0, [0.0, 1.0], loss, scheme=odegrad.RK4(), stepsize=odegrad.Steps(8))
    assert report.passed
    assert report.verdict.startswith("exact: the gradient of the computed loss, to ")
    numbers = report.check("convergence").numbers
    solve = subject(f, y0, [0.0, 1.0], loss, scheme=odegrad.RK4(), stepsize=odegrad.Steps(8))
    for level in numbers["levels"]:
        gradient = vector(solve, solve.pull(odegrad.Discrete(), odegrad.Steps(level["steps"])))
        distance = level["continuous"]["Discrete()"]
        assert distance == pytest.approx(difference(gradient, closed), rel=1e-2)
        off = vector(solve, solve.pull(odegrad.Backsolve(), odegrad.Steps(level["steps"])))
        assert level["computed"]["Backsolve()"] == pytest.approx(
            difference(off, gradient), rel=1e-6
        )
    assert all(3.7 < numbers["orders"][name] < 4.4 for name in ("Backsolve()", "Quadrature()"))
    # On a linear system all RK schemes of order 4 with four stages have the same transpose.
    assert numbers["orders"]["Mismatched(scheme=RK38())"] is None


# A spiral that is unstable backwards.


@pytest.fixture(scope="module")
def spiral():
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64, requires_grad=True)
    y0 = torch.tensor([2.0, 0.0], dtype=F64)
    return audit(
        lambda t, y: (y**3) @ matrix, y0, [0.0, 16.0], total,
        stepsize=odegrad.PID(1e-4, 1e-6), budget=50_000,
    )  # fmt: skip


def test_the_spiral_flags_backsolve_and_passes_discrete(spiral):
    assert spiral.passed
    assert spiral.check("duality").numbers["relative"] < 1e-13
    assert spiral.check("taylor").numbers["rate"] > 1.95
    assert spiral.check("modes").status == "flagged"
    assert "Backsolve() is inconsistent with the computed loss" in spiral.check("modes").summary
    assert spiral.check("costate").status == "flagged"
    assert "Backsolve cannot reconstruct y0" in spiral.check("costate").summary
    rows = {row.name: row for row in spiral.modes}
    assert rows["Discrete()"].difference < 1e-12
    assert rows["Tangent()"].difference < 1e-12
    assert rows["Backsolve()"].difference > 1e-2
    assert rows["Backsolve()"].angle > 0.1
    assert rows["Discrete()"].transposes > 0
    assert rows["Discrete()"].seconds > 0
    assert rows["Tape()"].peak_bytes > rows["Discrete()"].peak_bytes
    assert re.fullmatch(
        r"exact: the gradient of the computed loss, to \de-1\d; "
        r"Backsolve is inconsistent with the computed loss by \de-\d+",
        spiral.verdict,
    )


def test_the_costate_ends_with_the_gradient_of_the_initial_state(spiral):
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64)
    y0 = torch.tensor([2.0, 0.0], dtype=F64, requires_grad=True)
    sol = odegrad.solve(
        lambda t, y: (y**3) @ matrix, y0, [0.0, 16.0],
        stepsize=odegrad.PID(1e-4, 1e-6), gradient=odegrad.Tape(),
    )  # fmt: skip
    (g,) = torch.autograd.grad(total(sol.ys), [y0])
    numbers = spiral.check("costate").numbers
    direct = 2 * y0.detach() + y0.detach().cos()  # the loss sees y0 itself, too
    assert numbers["costate"][0] == pytest.approx(float((g - direct).norm()), rel=1e-10)
    assert len(numbers["costate"]) == len(numbers["times"]) == len(numbers["shares"]) + 1


# Fields with faults, each with a name.


def test_dropout_is_named_and_replayed():
    net = mlp(nn.Dropout(0.3))
    report = audit(lambda t, y: net(y), start(4, 2), [0.0, 1.0], total, budget=SOME, **CHEAP)
    replay = report.check("replay")
    assert replay.status == "information"
    assert "net.1 (Dropout) draws random numbers: they are replayed" in replay.summary
    assert replay.summary.count("draws") == 1  # and not the module around it
    assert report.passed
    assert report.check("convergence").status == "unknown"


def test_batch_norm_is_named_and_replayed():
    net = mlp(nn.Tanh(), nn.BatchNorm1d(8))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    report = audit(lambda t, y: net(y), start(4, 2), [0.0, 1.0], total, budget=FEW, **CHEAP)
    replay = report.check("replay")
    assert replay.status == "information"
    assert "net.2 (BatchNorm1d, training) changes its buffers running_mean" in replay.summary
    assert report.passed
    assert report.check("duality").status == "passed"
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_warning_of_noise_with_adaptive_steps_is_a_note():
    net = mlp(nn.Dropout(0.3))
    report = audit(
        lambda t, y: net(y), start(4, 2), [0.0, 1.0], total,
        stepsize=odegrad.PID(1e-2, 1e-2), budget=FEW,
    )  # fmt: skip
    assert "draws random numbers" in report.notes[0]
    assert "note: f draws random numbers" in str(report)


class Clocked(nn.Module):
    def forward(self, x):
        return x + 1e-3 * (time.perf_counter() % 1)


class Diced(nn.Module):
    def forward(self, x):
        return x * (1 + 1e-3 * random.random())


@pytest.mark.parametrize(
    ("f", "named"),
    [
        (lambda net: lambda t, y: net(y) + time.perf_counter() % 1, "reads a clock, a counter"),
        (lambda net: nn.Sequential(*net, Clocked()), "net.3 (Clocked) gives other outputs"),
        (lambda net: nn.Sequential(*net, Diced()), "it draws from Python's module random"),
    ],
)
def test_a_field_that_is_no_function_is_named(f, named):
    field = f(mlp(nn.Tanh()))
    if isinstance(field, nn.Module):
        net = field
        field = lambda t, y: net(y)  # noqa: E731
    report = audit(field, start(4, 2), [0.0, 1.0], total, budget=FEW, **CHEAP)
    assert not report.passed
    assert report.verdict.startswith("NOT exact: ")
    assert report.check("replay").status == "flagged"
    assert named in report.check("replay").summary
    assert report.check("replay").headline in report.verdict


def test_the_whole_solve_is_taken_twice(monkeypatch):
    module = sys.modules["odegrad.audit.replays"]
    monkeypatch.setattr(module, "_again", lambda subject, taken: module._after(taken.step))
    report = audit(
        lambda t, y: -y * (1 + 1e-3 * (time.perf_counter() % 1)), start(2), [0.0, 1.0], total,
        budget=FEW, **CHEAP,
    )  # fmt: skip
    assert report.check("replay").status == "flagged"


def test_backpropagation_does_not_need_the_field_again():
    report = audit(
        lambda t, y: -y * (1 + 1e-3 * (time.perf_counter() % 1)), start(2), [0.0, 1.0], total,
        gradient=odegrad.Tape(), budget=FEW, **CHEAP,
    )  # fmt: skip
    assert report.check("duality").status == report.check("taylor").status == "unknown"
    assert not report.passed


def test_a_detached_tensor_is_named():
    net = mlp(nn.Tanh())
    w = torch.ones(2, dtype=F64, requires_grad=True)
    silent = torch.ones(3, dtype=F64, requires_grad=True)
    net[0].bias.requires_grad_(False)

    def f(t, y):
        return net(y) * w.detach() + 0.0 * silent.sum()

    report = audit(f, start(2), [0.0, 1.0], total, budget=FEW, **CHEAP)
    coverage = report.check("coverage")
    assert coverage.status == "flagged"
    assert coverage.numbers["hidden"] == ["captured variable 'w'"]
    assert coverage.numbers["unread"] == ["captured variable 'silent'"]
    assert coverage.numbers["frozen"] == ["net.0.bias"]
    assert report.verdict.startswith(
        "NOT exact: no gradient although the loss depends on it: captured variable 'w'"
    )
    assert report.check("duality").status == report.check("taylor").status == "passed"


@pytest.mark.parametrize("read", ["data", "numpy", "no_grad"])
def test_other_ways_around_differentiation_are_found(read):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(nn.Tanh())

        def forward(self, t, y):
            bias = self.net[2].bias
            if read == "data":
                around = bias.data
            elif read == "numpy":
                around = torch.from_numpy(bias.detach().numpy())
            else:
                with torch.no_grad():
                    around = bias * 1.0
            hidden = torch.tanh(self.net[0](y))
            return hidden @ self.net[2].weight.T + around

    report = audit(Field(), start(3, 2), [0.0, 1.0], total, budget=FEW, **CHEAP)
    assert report.check("coverage").numbers["hidden"] == ["net.2.bias"]
    assert not report.passed


def test_a_tensor_read_half_around_differentiation_fails_the_taylor_test_by_name():
    w = torch.ones(2, dtype=F64, requires_grad=True)
    report = audit(
        lambda t, y: y * w.sin() - y * w.detach(), start(2), [0.0, 1.0], total, budget=FEW, **CHEAP
    )
    assert report.check("duality").status == "passed"
    assert report.check("taylor").status == "flagged"
    assert list(report.check("taylor").numbers["groups"]) == ["captured variable 'w'"]
    assert not report.passed


def test_a_leaf_without_influence_is_told_from_one_that_is_detached():
    y0 = {"seen": start(2), "hidden": start(2), "idle": start(2)}

    def f(t, y):
        return {"seen": y["hidden"].detach(), "hidden": -y["hidden"], "idle": y["seen"] + t}

    report = audit(f, y0, [0.0, 1.0], lambda ys: total(ys["seen"][-1]), budget=FEW, **CHEAP)
    numbers = report.check("coverage").numbers
    assert numbers["hidden"] == ["y0['hidden']"]
    assert numbers["unread"] == ["y0['idle']"]


def test_rounding_is_no_influence():
    w = torch.tensor([1025.0, 1023.0], dtype=F64, requires_grad=True)  # where the ulp changes
    report = audit(lambda t, y: (w - y) - w, start(2), [0.0, 1.0], total, budget=FEW, **CHEAP)
    assert report.check("coverage").numbers["unread"] == ["captured variable 'w'"]
    assert report.passed


def test_a_loss_that_is_no_function_is_found():
    report = audit(
        lambda t, y: -y, start(2), [0.0, 1.0],
        lambda ys: ys.sum() * (1 + time.perf_counter() % 1), budget=FEW, **CHEAP,
    )  # fmt: skip
    assert "the loss itself" in report.check("replay").summary
    assert not report.passed


# Planted bugs.


def plant(monkeypatch, change):
    right = ExplicitRungeKutta.step_vjp

    def wrong(self, *args, **kwargs):
        return change(right(self, *args, **kwargs))

    monkeypatch.setattr(ExplicitRungeKutta, "step_vjp", wrong)


def test_a_slightly_wrong_transpose_is_not_exact(monkeypatch):
    plant(monkeypatch, lambda g: g._replace(y=tuple(x * (1 + 1e-5) for x in g.y)))
    net = mlp(nn.Tanh())
    report = audit(lambda t, y: net(y), start(3, 2), [0.0, 1.0], total, budget=SOME, **CHEAP)
    assert not report.passed
    assert report.verdict.startswith("NOT exact: the gradient is not the transpose of the accepted")
    assert report.check("duality").status == "flagged"
    assert report.check("taylor").status == "flagged"
    assert report.check("taylor").numbers["rate"] < 1.5
    assert report.check("replay").status == "passed"
    summary = report.check("modes").summary
    assert "Discrete() is inconsistent with the computed loss by 2e-05" in summary
    assert "Tangent() equals Tape" in summary


def test_a_bug_in_one_parameter_is_laid_at_its_door(monkeypatch):
    plant(
        monkeypatch, lambda g: g._replace(p=tuple(x if i else 1.1 * x for i, x in enumerate(g.p)))
    )
    net = mlp(nn.Tanh())
    report = audit(lambda t, y: net(y), start(3, 2), [0.0, 1.0], total, budget=FEW, **CHEAP)
    assert list(report.check("duality").numbers["groups"]) == ["net.0.weight"]
    assert list(report.check("taylor").numbers["groups"]) == ["net.0.weight"]


def test_a_bug_far_below_taylor_remainders_breaks_duality(monkeypatch):
    plant(monkeypatch, lambda g: g._replace(y=tuple(x * (1 + 1e-11) for x in g.y)))
    report = audit(lambda t, y: -y.sin(), start(3), [0.0, 1.0], total, budget=FEW, **CHEAP)
    assert report.check("duality").status == "flagged"
    assert report.check("taylor").status == "passed"
    assert not report.passed


def test_the_traditional_adjoint_is_not_exact():
    report = audit(
        lambda t, y: -y.sin(), start(3), [0.0, 1.0], total, gradient=odegrad.Backsolve(),
        scheme=odegrad.Heun(), stepsize=odegrad.Steps(4), budget=FEW,
    )  # fmt: skip
    assert report.check("duality").status == report.check("taylor").status == "flagged"
    assert report.verdict.startswith("NOT exact")


# The neglected step-size term.


def test_the_neglected_term_is_what_the_total_derivative_has_more():
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64, requires_grad=True)
    y0 = torch.tensor([2.0, 0.0], dtype=F64)
    control = odegrad.PID(1e-4, 1e-6)
    solve = subject(lambda t, y: (y**3) @ matrix, y0, [0.0, 3.0], stepsize=control)
    found = step_term(solve, torch.Generator().manual_seed(0)).numbers["relative"]
    # The same direction, and the derivative of the adaptive solve as a whole.
    v = [*solve.directions(torch.Generator().manual_seed(0))]
    v[-1] = torch.zeros_like(v[-1])
    e, slope = 1e-6, slope_along(solve, tuple(v))
    ahead, behind = (solve.evaluate(tuple(v), s * e, control)[0] for s in (1, -1))
    whole = (ahead - behind) / (2 * e)
    assert found > 1e-4
    assert abs(whole - slope) / abs(slope) == pytest.approx(found, rel=1e-2)


def test_a_single_step_has_no_time_inside():
    solve = subject(lambda t, y: -y, start(2), [0.0, 1e-3])
    assert solve.n_steps == 1
    numbers = step_term(solve, torch.Generator().manual_seed(0)).numbers
    assert numbers["interior"] == numbers["bound"] == numbers["relative"] == 0


def test_fixed_steps_neglect_nothing():
    solve = subject(lambda t, y: -y, start(2), [0.0, 1.0], **CHEAP)
    check = step_term(solve, torch.Generator().manual_seed(0))
    assert check.numbers == {"relative": 0.0}
    assert "exactly zero" in check.summary


# What it goes through.


def complex_case():
    w = torch.tensor([0.7, 0.3], dtype=F64, requires_grad=True)
    y0 = torch.randn(2, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))
    return audit(lambda t, y: 1j * w * y - y * y.conj() * y * t, y0, [0.0, 1.0], total, budget=SOME)


def pytree_case():
    net, ts = mlp(nn.Tanh()), torch.tensor([0.0, 0.3, 1.0], dtype=F64, requires_grad=True)
    y0 = {"q": start(3, 2), "s": (torch.ones(3, dtype=F64),)}

    def f(t, y, k):
        return {"q": net(y["q"]) * k, "s": (y["q"].sum(-1) - t * y["s"][0],)}

    k = torch.tensor(0.5, dtype=F64, requires_grad=True)
    report = audit(f, y0, ts, total, (k,), budget=SOME)
    assert "args[0]" in report.check("coverage").summary
    assert "y0['s'][0]" in report.check("coverage").summary
    return report


def single_case():
    net = mlp(nn.Tanh(), dtype=torch.float32)
    y0 = start(3, 2, dtype=torch.float32)
    report = audit(lambda t, y: net(y), y0, [0.0, 1.0], total, budget=FEW, **CHEAP)
    assert 1e-9 < report.check("duality").numbers["relative"] < 1e-5
    return report


def running_case():
    net, y0 = mlp(nn.Tanh()), start(2)

    def cost(t, y):
        return y.square().sum()

    sol = odegrad.solve(lambda t, y: net(y), y0, [0.0, 1.0], running=cost)
    report = audit(
        lambda t, y: net(y), y0, [0.0, 1.0], lambda ys, cost: total(ys) + cost[-1],
        running=cost, budget=FEW,
    )  # fmt: skip
    assert report.subject["loss"] == (total(sol.ys) + sol.running[-1]).item()
    return report


def rewound_case():
    net = mlp(nn.Tanh())
    return audit(
        lambda t, y: net(y), start(2), [0.0, 1.0], total, scheme=odegrad.ALF(),
        stepsize=odegrad.Steps(20), gradient=odegrad.Discrete(odegrad.Rewind()), budget=SOME,
    )  # fmt: skip


def reversible_case():
    scheme = odegrad.Reversible(odegrad.RK4())
    w = torch.tensor(0.5, dtype=F64, requires_grad=True)
    return audit(
        lambda t, y: -w * y.sin() * t, start(2), [1.0, 0.0], total, scheme=scheme,
        stepsize=odegrad.Fixed(0.2), budget=FEW,
    )  # fmt: skip


def backwards_history_case():
    code = torch.tensor(0.3, dtype=F64, requires_grad=True)
    encoded = code.exp()  # a captured tensor with a history, and hooks
    encoded.register_hook(lambda g: 100 * g)
    return audit(lambda t, y: -encoded * y, start(2), [0.0, 1.0], total, budget=FEW)


CASES = [
    complex_case, pytree_case, single_case, running_case, rewound_case, reversible_case,
    backwards_history_case,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__.removesuffix("_case"))
def test_it_goes_through_all_kinds_of_solves(case):
    report = case()
    assert report.passed, str(report)
    assert report.check("duality").status == "passed"
    assert report.check("replay").status == "passed"
    # In float32 rounding may leave no room for a rate.
    assert report.check("taylor").status in ("passed", "unknown")


def test_the_same_seed_gives_the_same_numbers():
    def once(seed):
        report = audit(
            lambda t, y: -y.sin(), start(3), [0.0, 1.0], total, seed=seed, budget=FEW, **CHEAP
        )
        return report.check("taylor").numbers

    assert once(3) == once(3)
    assert once(3) != once(4)


class Sine(torch.autograd.Function):
    """A function without a forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_without_a_forward_mode_backpropagation_is_transposed(dtype):
    w = torch.tensor([0.7, 0.3], dtype=dtype, requires_grad=True)
    y0 = torch.randn(2, dtype=dtype, generator=torch.Generator().manual_seed(3))
    f = {
        F64: Sine.apply,
        torch.complex128: lambda y: torch.view_as_complex(Sine.apply(torch.view_as_real(y))),
    }
    report = audit(lambda t, y: f[dtype](w * y) * t, y0, [0.0, 1.0], total, budget=FEW, **CHEAP)
    check = report.check("duality")
    assert check.status == "passed"
    assert check.numbers["by"] == "transposing twice"
    assert report.passed
    solve = subject(lambda t, y: w * y.sin() * t, y0, [0.0, 1.0], **CHEAP)
    v = solve.directions(torch.Generator().manual_seed(0))
    one, two = (
        tangents._dual(solve, solve.active, v),
        tangents._transposed_twice(solve, solve.active, v),
    )
    assert difference(flat(two), flat(one)) < 1e-14


def test_what_is_too_much_is_skipped_and_said():
    net = mlp(nn.Tanh())
    report = audit(
        lambda t, y: net(y), start(2), [0.0, 1.0], total, stepsize=odegrad.Steps(50), budget=100
    )
    assert report.passed
    for name in ("step sizes", "costate", "modes", "convergence"):
        if name != "step sizes":  # fixed steps cost nothing
            assert report.check(name).status == "unknown"
            assert "of the budget of 100 are left" in report.check(name).summary
    assert report.modes == ()
    assert "audit" in str(report)


# What it leaves alone.


def world(net, y0):
    modules = list(net.modules())
    return (
        [(k, v.clone(), v._version) for k, v in net.state_dict(keep_vars=True).items()],
        [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        [m.training for m in modules],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        torch.get_rng_state(),
        random.getstate(),
        torch.is_grad_enabled(),
        y0.clone(),
        y0.grad,
        y0.requires_grad,
        [p.requires_grad for p in net.parameters()],
    )


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("fails", [None, "in f", "in the loss"])
def test_nothing_of_the_users_is_changed(fails):
    net = mlp(nn.Tanh(), nn.BatchNorm1d(8), nn.Dropout(0.2))
    net[0].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    y0 = start(4, 2).requires_grad_()
    calls = 0

    def f(t, y):
        nonlocal calls
        calls += 1
        if fails == "in f" and calls > 30:
            raise KeyboardInterrupt
        random.random()
        net[2].eval()
        return net(y)

    def loss(ys):
        if fails == "in the loss":
            raise KeyError("a bug of the user's")
        return total(ys)

    before = world(net, y0)
    versions = [p._version for p in net.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if fails is None:
            audit(f, y0, [0.0, 1.0], loss, budget=FEW, **CHEAP)
        else:
            with pytest.raises((KeyboardInterrupt, KeyError)):
                audit(f, y0, [0.0, 1.0], loss, budget=FEW, **CHEAP)
    parts = zip(before[1:], world(net, y0)[1:], strict=True)
    assert all(equal(a, b) for a, b in parts)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(before[0], world(net, y0)[0], strict=True))
    assert [p._version for p in net.parameters()] == versions


def test_hooks_of_the_users_do_not_run():
    net, seen = mlp(nn.Tanh()), []
    for p in net.parameters():
        p.register_hook(lambda g: seen.append(g) or 2 * g)
    report = audit(lambda t, y: net(y), start(2), [0.0, 1.0], total, budget=FEW, **CHEAP)
    assert report.passed
    assert not seen


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode):
    net = mlp(nn.Tanh())
    with mode():
        report = audit(lambda t, y: net(y), start(2), [0.0, 1.0], total, budget=FEW, **CHEAP)
        assert not torch.is_grad_enabled()
    assert report.passed


# Errors.


def test_a_loss_that_is_no_number_is_refused():
    with pytest.raises(odegrad.errors.InvalidTypeError, match="0-dim"):
        audit(lambda t, y: -y, start(2), [0.0, 1.0], lambda ys: ys[-1], **CHEAP)
    with pytest.raises(odegrad.errors.InvalidValueError, match="does not depend"):
        audit(lambda t, y: -y, start(2), [0.0, 1.0], lambda ys: ys.detach().sum(), **CHEAP)


def test_errors_of_the_solve_come_through():
    with pytest.raises(odegrad.errors.InvalidTypeError, match="scheme"):
        audit(lambda t, y: -y, start(2), [0.0, 1.0], total, scheme="rk4")


# The report.


def test_the_report_is_text_data_and_a_page(spiral, tmp_path):
    text = str(spiral)
    assert max(map(len, text.splitlines())) <= 110
    for check in spiral.checks:
        assert check.name in text
    data = json.loads(json.dumps(spiral.as_dict(), allow_nan=False))
    assert data["passed"] is True
    assert [c["name"] for c in data["checks"]] == [c.name for c in spiral.checks]
    spiral.html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 3
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert "<link" not in page and "<script" not in page and "@import" not in page  # noqa: PT018
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert spiral.verdict in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_text_is_escaped(spiral, tmp_path):
    noted = dataclasses.replace(spiral, notes=("<script>",))
    noted.html(tmp_path / "report.html")
    assert "&lt;script&gt;" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(spiral, tmp_path, monkeypatch, package):
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(odegrad.errors.MissingDependencyError, match=rf"{package}; pip install"):
        spiral.html(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_function_is_what_the_package_gives():
    assert odegrad.audit is audit
    assert odegrad.Audit is sys.modules["odegrad.audit"].Audit


# Parts.


def test_the_innermost_module_that_differs_is_the_culprit():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Diced(), nn.Tanh()))

    def f(t, y):
        return net(y)

    names, y, cpu = Names([f]), torch.ones(2), torch.device("cpu")
    runs = [watched(names, cpu, lambda: f(0.0, y))[1] for _ in range(2)]
    assert [call.name for call in runs[0]] == ["net.0", "net.1.0", "net.1.1", "net.1", "net"]
    assert culprit(*runs) == "net.1.0"
    assert culprit(runs[0], runs[0]) is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_equality_is_to_the_last_bit():
    x = torch.tensor([1.0, math.nan])
    assert same([x], [x.clone()])
    assert not same([x], [torch.tensor([1.0 + 2e-7, math.nan])])
    assert not same([x], [])


def test_backsolve_that_is_as_good_is_said_to_be():
    report = audit(
        lambda t, y: -y.sin(), start(3), [0.0, 0.1], total,
        scheme=odegrad.RK4(), stepsize=odegrad.Steps(100), budget=20_000,
    )  # fmt: skip
    assert "Backsolve agrees with it up to rounding" in report.verdict
    assert "inconsistent" not in report.check("modes").summary
