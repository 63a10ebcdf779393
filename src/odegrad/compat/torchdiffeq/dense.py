"""`odeint_dense`: the solution as a function of time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odegrad.assemble import assemble
from odegrad.compat.torchdiffeq.errors import AssertedTypeError, AssertedValueError, as_upstream
from odegrad.compat.torchdiffeq.field import Landing, field
from odegrad.compat.torchdiffeq.grids import Through
from odegrad.compat.torchdiffeq.inputs import Call, checked
from odegrad.compat.torchdiffeq.options import AdaptiveOptions
from odegrad.gradients import Tape
from odegrad.grid import Clock
from odegrad.solve import solve
from odegrad.state import Leaves
from odegrad.sweeps import Run
from odegrad.sweeps.steps import Accepted, fixed_grid, number, read, steps

__all__ = ["odeint_dense"]


def odeint_dense(
    func: Callable[..., Any],
    y0: Tensor,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Any], Tensor]:
    """The solution from t0 to t1 as a function of time, differentiable in everything but t0 and t1.

    Every step is kept, with its slopes, so that a state costs no step; that is the memory of
    backpropagation. (A call of `odegrad.solve`'s solution keeps nothing, and takes the steps again.)

    Arguments:
        func: As for `odeint`.
        y0: The state at t0, a tensor.
        t0: The start: a number or a tensor with one entry.
        t1: The end.
        rtol: As for `odeint`.
        atol: As for `odeint`.
        method: ``"dopri5"`` or None.
        options: As for `odeint`.

    Returns:
        A function of one time between t0 and t1, a number or a 0-dim tensor (which may require grad),
        whose value has the shape of y0.

    Raises:
        AssertionError: As `odeint`; if y0 is no tensor or the method another one; from the function,
            if its time lies outside.

    Example:
        >>> import torch
        >>> from odegrad.compat.torchdiffeq import odeint_dense
        >>> y = odeint_dense(lambda t, y: -y, torch.ones(1, dtype=torch.float64), 0.0, 1.0)
        >>> f"{y(0.5).item():.6f}"
        '0.606531'
    """
    if not isinstance(y0, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise AssertedTypeError(f"y0 must be a tensor, received {type(y0).__name__}")
    if method not in (None, "dopri5"):
        raise AssertedValueError(
            f"odeint_dense knows method='dopri5' alone, received {method!r}; odegrad.solve has dense "
            "output for every scheme"
        )
    ends = [float(torch.as_tensor(x, device="cpu")) for x in (t0, t1)]
    ends = torch.tensor(ends, dtype=torch.float64, device="cpu")
    records = torch.is_grad_enabled()
    call = checked(
        func, y0, ends.to(y0.device), rtol, atol, method, options, Tape(), records=records
    )
    with as_upstream():
        return _solved(call)


def _solved(call: Call) -> _Dense:
    options = AdaptiveOptions.read(
        call.options, call.method, call.rtol, call.atol, call.packed, call.t
    )
    landing = Landing(options.step_t) if options.step_t else None
    given: dict[str, Any] = {"scheme": call.method.make(), "breakpoints": options.jump_t}
    f = field(call.reading, call.func, landing, call.params)
    limit = options.max_num_steps
    with torch.no_grad():
        found = solve(f, call.y0, call.t, stepsize=options.control, max_steps=limit, **given)
    nodes = tuple(found.grid.times(found.landings))
    problem = assemble(
        f, call.y0, call.t, (), stepsize=Through(nodes), gradient=Tape(), compile=False, **given
    )
    run, p = problem.run, problem.p
    run.grid = fixed_grid(run, Through(nodes))

    def taken() -> list[Accepted]:
        carry = run.scheme.init(run.field, run.times[0], problem.y, p)
        clock = Clock(found.grid, run.times)
        return list(steps(run, clock, 0, clock.n_steps, problem.y, carry, p))

    return _Dense(run, p, run.field.bound(p, taken))


@dataclass(frozen=True)
class _Dense:
    """The solution, step by step."""

    run: Run
    p: Leaves
    taken: list[Accepted]

    def __call__(self, t: Any) -> Tensor:
        """The state at a time between the ends."""
        time = torch.as_tensor(t, dtype=torch.float64, device="cpu").reshape(())
        first, last = self.taken[0], self.taken[-1]
        start, end = number(first.t), number(last.t) + number(last.dt)
        if not min(start, end) <= number(time) <= max(start, end):
            raise AssertedValueError(f"the solution runs from {start} to {end}, received {time}")
        sign = 1.0 if end > start else -1.0
        place = bisect_right(self.taken, sign * number(time), key=lambda x: sign * number(x.t))
        inside = self.taken[max(0, place - 1)]._replace(reads=((0, time),))
        (_, y) = read(self.run, inside, self.p)[0]
        return y[0]
