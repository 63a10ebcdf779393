"""Solves under the transforms of torch.func and the derivatives of torch.autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import odegrad
from cases import GRAPHS, leaf, mlp
from odegrad import PID, Discrete, Steps, Tangent, Tape
from odegrad.errors import GradientUnavailableError, OdegradWarning

Run = Callable[[dict[str, Tensor], Tensor], Tensor]

NET = mlp(width=5)
PARAMS = {name: p.detach() for name, p in NET.named_parameters()}
Y0 = leaf(2, 3).detach()


STEPS, SCHEME = Steps(2), odegrad.Bosh3()


def solver(gradient: Any, stepsize: Any = STEPS, scheme: Any = SCHEME) -> Run:
    """(parameters, y0) ↦ the state at the end."""

    def run(p: dict[str, Tensor], y: Tensor) -> Tensor:
        return odegrad.solve(
            lambda t, y: functional_call(NET, p, (y,)) * torch.cos(t), y, [0.0, 0.5, 1.0],
            scheme=scheme, stepsize=stepsize, gradient=gradient,
        ).ys[-1]  # fmt: skip

    return run


def value(run: Run) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda p, y: run(p, y).sin().sum()


def slopes_of_slopes(run: Run) -> Tensor:
    """The inner level differentiates for the parameters, the outer one for y0, a constant inside."""

    def outer(y: Tensor) -> Tensor:
        return sum(g.square().sum() for g in grad(value(run))(PARAMS, y).values())  # type: ignore[return-value]

    return grad(outer)(Y0)


TRANSFORMS: dict[str, Callable[[Run], Any]] = {
    "grad": lambda r: grad(value(r))(PARAMS, Y0),
    "grad∘grad": slopes_of_slopes,
    "vjp": lambda r: vjp(lambda y: r(PARAMS, y), Y0)[1](Y0),
    "jvp for y0": lambda r: jvp(lambda y: r(PARAMS, y), (Y0,), (Y0,)),
    "jvp for parameters": lambda r: jvp(lambda p: r(p, Y0), (PARAMS,), (PARAMS,)),
    "jacrev": lambda r: jacrev(r)(PARAMS, Y0),
    "jacfwd": lambda r: jacfwd(r, argnums=1)(PARAMS, Y0),
    "hessian": lambda r: hessian(value(r), argnums=1)(PARAMS, Y0),
    "jacrev∘jacrev": lambda r: jacrev(jacrev(value(r), argnums=1), argnums=1)(PARAMS, Y0),
    "vmap over y0": lambda r: vmap(lambda y: r(PARAMS, y))(Y0),
    "vmap over parameters": lambda r: vmap(lambda s: r({k: s * p for k, p in PARAMS.items()}, Y0))(
        torch.tensor([1.0, 0.5], dtype=torch.float64)
    ),
    "vmap∘grad": lambda r: vmap(grad(value(r)), in_dims=(None, 0))(PARAMS, Y0),
    "grad∘vmap": lambda r: grad(lambda p: vmap(lambda y: r(p, y))(Y0).sin().sum())(PARAMS),
    "jacobian, vectorised": lambda r: torch.autograd.functional.jacobian(
        lambda y: r(PARAMS, y), Y0, vectorize=True
    ),
    "hessian, forward over reverse": lambda r: torch.autograd.functional.hessian(
        lambda y: value(r)(PARAMS, y), Y0, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
}


def flat(x: Any) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in torch.utils._pytree.tree_leaves(x)])


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(
    "gradient", [Discrete(), Discrete(odegrad.Binomial(2)), GRAPHS, Tangent()], ids=str
)
@pytest.mark.parametrize("stepsize", [Steps(2), PID(1e-4, 1e-6)], ids=lambda s: type(s).__name__)
@pytest.mark.filterwarnings("ignore:under torch.func.vmap", "ignore:under forward-mode")
def test_equal_to_tape(name: str, gradient: Any, stepsize: Any) -> None:
    transform = TRANSFORMS[name]
    if isinstance(gradient, Tangent) and name == "jacrev∘jacrev":
        with pytest.raises(GradientUnavailableError, match="nested transforms"):
            transform(solver(gradient, stepsize))
        return
    found, expected = (
        flat(transform(solver(gradient, stepsize))),
        flat(transform(solver(Tape(), stepsize))),
    )
    assert float((found - expected).norm()) < 1e-12 * float(expected.norm())


@pytest.mark.parametrize("name", ["grad∘grad", "jacrev", "hessian", "jvp for parameters"])
def test_against_finite_differences(name: str) -> None:
    """Tape and Discrete might share a mistake."""
    run, h = solver(Discrete(), Steps(3), odegrad.RK4()), 1e-5
    v = leaf(2, 3, seed=5).detach()
    if name == "grad∘grad":
        outer = lambda y: sum(g.square().sum() for g in grad(value(run))(PARAMS, y).values())  # noqa: E731
        found, about = (
            (slopes_of_slopes(run) * v).sum(),
            (outer(Y0 + h * v) - outer(Y0 - h * v)) / (2 * h),
        )
    elif name == "jacrev":
        found = torch.einsum("abcd,cd->ab", jacrev(run, argnums=1)(PARAMS, Y0), v)
        about = (run(PARAMS, Y0 + h * v) - run(PARAMS, Y0 - h * v)) / (2 * h)
    elif name == "hessian":
        found = torch.einsum("abcd,cd->ab", hessian(value(run), argnums=1)(PARAMS, Y0), v)
        slope = grad(value(run), argnums=1)
        about = (slope(PARAMS, Y0 + h * v) - slope(PARAMS, Y0 - h * v)) / (2 * h)
    else:
        w = {k: torch.full_like(p, 0.3) for k, p in PARAMS.items()}
        _, found = jvp(lambda p: run(p, Y0), (PARAMS,), (w,))
        shifted = [{k: p + s * w[k] for k, p in PARAMS.items()} for s in (h, -h)]
        about = (run(shifted[0], Y0) - run(shifted[1], Y0)) / (2 * h)
    found, about = found.detach(), about.detach()
    assert float((found - about).norm()) < 1e-7 * float(about.norm())


@pytest.mark.parametrize("gradient", [Discrete(), GRAPHS, Discrete(odegrad.Binomial(2))], ids=str)
def test_levels_over_parameters_that_require_grad_anyway(gradient: Any) -> None:
    """The module's own parameters, on which autograd looks, too."""
    parameters = dict(NET.named_parameters())

    def outer(p: dict[str, Tensor], y: Tensor, mode: Any) -> Tensor:
        slopes = grad(value(solver(mode)))(p, y)
        return sum(g.square().sum() for g in slopes.values())  # type: ignore[return-value]

    for argnums in (0, 1):
        found = flat(grad(outer, argnums=argnums)(parameters, Y0, gradient))
        expected = flat(grad(outer, argnums=argnums)(parameters, Y0, Tape()))
        assert float((found - expected).norm()) < 1e-12 * float(expected.norm())


def test_vmap_shares_the_steps_of_the_most_demanding_sample() -> None:
    rates = torch.tensor([0.1, 30.0], dtype=torch.float64)
    seen: list[odegrad.Solution] = []

    def run(rate: Tensor) -> Tensor:
        sol = odegrad.solve(lambda t, y: -rate * y, torch.ones(1, dtype=torch.float64), [0.0, 1.0])
        seen.append(sol)
        return sol.ys[-1]

    mapped = vmap(run)(rates)
    alone = [run(rate) for rate in rates]
    steps = [sol.stats.accepted for sol in seen]
    assert steps[0] >= steps[2] > steps[1]
    assert float((mapped - (-rates).exp()[:, None]).abs().max()) < 1e-6
    assert float((mapped[1] - alone[1]).abs().max()) < 1e-7


def test_gradcheck_in_forward_and_reverse() -> None:
    net, y0, ts = mlp(width=2, dim=2), leaf(2), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    parameters = tuple(p.detach().requires_grad_() for p in net.parameters())
    names = [name for name, _ in net.named_parameters()]

    def run(y0: Tensor, ts: Tensor, *p: Tensor) -> Tensor:
        weights = dict(zip(names, p, strict=True))
        return odegrad.solve(
            lambda t, y: functional_call(net, weights, (y,)) * (1 + t), y0, ts,
            scheme=odegrad.Heun(), stepsize=Steps(2),
        ).ys  # fmt: skip

    inputs = (y0, ts.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, inputs, check_batched_grad=True)


def test_gradcheck_of_complex_states() -> None:
    w = torch.tensor([0.4 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True)
    y0 = torch.tensor([1.0, 1.0j], dtype=torch.complex128, requires_grad=True)

    def run(y0: Tensor, w: Tensor) -> Tensor:
        return odegrad.solve(
            lambda t, y: w * y * y.conj(), y0, [0.0, 1.0], scheme=odegrad.Heun(), stepsize=Steps(2)
        ).ys

    assert torch.autograd.gradcheck(run, (y0, w), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, (y0, w), check_batched_grad=True)


@pytest.mark.parametrize(
    "gradient",
    [odegrad.Backsolve(), odegrad.Quadrature(), odegrad.Mismatched(odegrad.Heun())],
    ids=str,
)
def test_modes_that_are_no_derivatives_are_refused_where_their_transpose_is_not_asked_for(
    gradient: Any,
) -> None:
    run = solver(gradient)
    with pytest.raises(
        GradientUnavailableError, match=r"forward-mode differentiation does not go through"
    ):
        jvp(lambda y: run(PARAMS, y), (Y0,), (Y0,))
    with pytest.raises(
        GradientUnavailableError, match=r"torch\.func\.vmap does not go through.*Discrete"
    ):
        vmap(lambda y: run(PARAMS, y))(Y0)
    jacobian = jacrev(lambda y: run(PARAMS, y))(Y0)
    assert jacobian.shape == (2, 3, 2, 3)


def test_a_budget_under_vmap_is_warned_about() -> None:
    run = solver(Discrete(memory="1GiB"))
    with pytest.warns(OdegradWarning, match=r"under torch\.func\.vmap.*memory of Tape"):
        vmap(lambda y: run(PARAMS, y))(Y0)


def test_compile_under_forward_mode_is_warned_about() -> None:
    with pytest.warns(OdegradWarning, match="compile=True has no effect.*forward-mode"):
        jvp(lambda y: odegrad.solve(lambda t, y: -y, y, [0.0, 1.0], compile=True).ys, (Y0,), (Y0,))
