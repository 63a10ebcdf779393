"""Compares states and gradients with an installed torchdiffeq, number for number.

    PYTHONPATH=tests:src python tests/compat/against_torchdiffeq.py

prints one line per comparison: the difference, relative to the norm of torchdiffeq's numbers, and what
it may be (inf: for information). Adaptive solves end where torchdiffeq's own steps do, so that it does
not interpolate: then both take the same steps, up to rounding errors of the error estimate, which the
control passes on to the sizes. Three differences are meant:

- torchdiffeq goes beyond the last time and interpolates; here the last step ends there. Between, both
  interpolate: dopri5 by the same polynomial.
- With adaptive steps, moving an end time moves all times of steps between here, none there.
- The first step of torchdiffeq carries a derivative, unless it is given.

`odeint_adjoint` of torchdiffeq is compared for information; its gradient is another one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch

from compat.fields import DOUBLE, FIXED, Net, distance, start, times
from odegrad.compat import torchdiffeq as ours

ROUNDING = 1e-13
FIXED_BOUNDS = (ROUNDING, 10 * ROUNDING, 10 * ROUNDING)
METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
# The error estimate of dopri8 is near rounding.
BOUNDS = {"dopri5": (1e-13, 1e-6), "dopri8": (1e-10, 1e-6), "bosh3": (1e-13, 1e-6)}

Row = tuple[str, float, float]


def states(ys):
    return ys if isinstance(ys, tuple) else (ys,)


def compared(theirs, name, bounds, net, y0, t, **settings) -> Iterator[Row]:
    """Rows for the states, and for gradients: for the state and the parameters, and for the times.

    Arguments:
        theirs: torchdiffeq.
        name: What is compared.
        bounds: For these three.
        net: f.
        y0: The initial state.
        t: The times.
        settings: Of the solve.
    """
    results = []
    for library, interface in ((theirs, "odeint"), (ours, "odeint"), (ours, "odeint_adjoint")):
        t_ = t.detach().clone().requires_grad_()
        inputs = [t_, *(x for x in states(y0) if x.requires_grad), *net.inner.parameters()]
        more = {"adjoint_params": tuple(net.inner.parameters())} if interface != "odeint" else {}
        ys = states(getattr(library, interface)(net, y0, t_, **settings, **more))
        results.append((ys, torch.autograd.grad(loss_of(ys), inputs)))
    (a, da), (b, db), (_, dc) = results
    yield f"{name}: states", distance(b, a), bounds[0]
    yield f"{name}: gradient", distance(db[1:], da[1:]), bounds[1]
    yield f"{name}: gradient for times", distance(db[:1], da[:1]), bounds[2]
    yield f"{name}: our odeint_adjoint", distance(dc, db), 1e-12


def loss_of(ys):
    return sum((k + 1) * (y * y).sum() for k, y in enumerate(ys))


def fixed(theirs) -> Iterator[Row]:
    net, y0 = Net(), start()
    for method in FIXED:
        for t in (times(0.0, 0.2, 0.7, 1.0), times(1.0, 0.3, 0.0)):
            name = f"{method}, t from {t[0]:g}"
            yield from compared(theirs, name, FIXED_BOUNDS, net, y0, t, method=method)
        for interp in ("linear", "cubic"):
            options = {"step_size": 0.15, "interp": interp}
            settings = {"method": method, "options": options}
            t = times(0.0, 0.2, 0.7, 1.0)
            name = f"{method}, step_size, {interp}"
            yield from compared(theirs, name, FIXED_BOUNDS, net, y0, t, **settings)


class Pair(Net):
    """A tuple of two parts."""

    def forward(self, t, y):
        slope = super().forward(t, y[0])
        return slope, slope.square().sum(1)


def step_ends(theirs, y0, t1, net, **settings) -> list[float]:
    """Where the accepted steps of torchdiffeq end."""
    ends: list[float] = []
    net.callback_accept_step = lambda t0, y0, dt: ends.append(float(t0 + dt))
    with torch.no_grad():
        theirs.odeint(net, y0, times(0.0, t1), **settings)
    del net.callback_accept_step
    return ends


def adaptive(theirs) -> Iterator[Row]:
    for tuples in (False, True):
        net = Pair() if tuples else Net()
        y0 = (start(), torch.zeros(2, dtype=DOUBLE, requires_grad=True)) if tuples else start()
        for method in METHODS:
            settings = {"method": method, "rtol": 1e-5, "atol": 1e-7}
            name = f"{method}{', tuple' if tuples else ''}"
            # These two go on from the slope at their last stage.
            exact, near = BOUNDS.get(method, (1e-3, 1e-2))
            given = {**settings, "options": {"first_step": 0.01}}
            t = times(0.0, step_ends(theirs, y0, 2.0, net, **given)[-2])
            bounds = (exact, exact, math.inf)
            yield from compared(theirs, f"{name}, first_step", bounds, net, y0, t, **given)
            t = times(0.0, step_ends(theirs, y0, 2.0, net, **settings)[-2])
            yield from compared(theirs, name, (exact, near, math.inf), net, y0, t, **settings)
            if method == "dopri5":
                t = times(0.0, 0.31, 0.32, 1.1, step_ends(theirs, y0, 2.0, net, **given)[-2])
                yield from compared(theirs, f"{name}, inside", bounds, net, y0, t, **given)
            t = times(0.0, 0.31, 1.7)
            yield from compared(theirs, f"{name}, between", (math.inf,) * 3, net, y0, t, **settings)


def events(theirs) -> Iterator[Row]:
    gravity = torch.tensor(9.81, dtype=DOUBLE, requires_grad=True)
    y0 = torch.tensor([10.0, 1.0], dtype=DOUBLE, requires_grad=True)
    t0 = torch.tensor(0.0, dtype=DOUBLE, requires_grad=True)

    def fall(t, y):
        return torch.stack([y[1], -gravity + 0 * y[0]])

    for settings in (
        {"method": "dopri5", "atol": 1e-10},
        {"method": "rk4", "atol": 1e-10, "options": {"step_size": 0.01, "interp": "cubic"}},
    ):
        found = []
        for library in (theirs, ours):
            t, ys = library.odeint_event(fall, y0, t0, event_fn=lambda t, y: y[0], **settings)
            found.append((t, *torch.autograd.grad(t + ys[-1, 1], [gravity, y0, t0])))
        name = f"event, {settings['method']}"
        yield f"{name}: time", abs(float((found[0][0] - found[1][0]).detach())), 1e-9
        yield f"{name}: gradient", distance(found[1][1:], found[0][1:]), 1e-8


def dense(theirs) -> Iterator[Row]:
    net, y0 = Net(), start()
    ends = step_ends(theirs, y0, 2.0, net)
    interpolants = [
        library.odeint_dense(
            net, y0, torch.tensor(0.0, dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE)
        )
        for library in (theirs, ours)
    ]
    worst = 0.0
    for k in range(1, 50):
        t = torch.tensor(ends[-2] * k / 50, dtype=DOUBLE)
        a, b = (y(t) for y in interpolants)
        worst = max(worst, distance((b,), (a,)))
    yield "dense output, up to the last step: states", worst, ROUNDING


def adjoint(theirs) -> Iterator[Row]:
    """Their adjoint gradient against that of the numbers that they return: for information."""
    net, y0 = Net(), start()
    inputs = [y0, *net.inner.parameters()]
    for settings in (
        {"method": "euler", "options": {"step_size": 0.1}},
        {"method": "rk4", "options": {"step_size": 0.1}},
        {"method": "dopri5", "rtol": 1e-3, "atol": 1e-4},
    ):
        exact, found = (
            torch.autograd.grad(loss_of((interface(net, y0, times(0.0, 1.0), **settings),)), inputs)
            for interface in (theirs.odeint, theirs.odeint_adjoint)
        )
        yield (
            f"{settings['method']}: their odeint_adjoint from their odeint",
            distance(found, exact),
            math.inf,
        )


def rows() -> Iterator[Row]:
    """All comparisons."""
    import torchdiffeq

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for part in (fixed, adaptive, events, dense, adjoint):
            yield from part(torchdiffeq)


if __name__ == "__main__":
    for name, difference, bound in rows():
        print(
            f"{'ok  ' if difference <= bound else 'MORE'} {difference:8.1e}  ({bound:.0e})  {name}"
        )
