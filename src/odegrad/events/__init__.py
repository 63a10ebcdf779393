"""Events: a solve that notes, ends or jumps where g(t, y) = 0, differentiably.

Steps are taken as without events, and the signs of g are compared at their ends. Where they differ, the
root τ of G(s) = g(s, u(s)) is found, u being the dense output of the step. After a jump y⁺ = Δ(τ, y⁻) the
solve begins anew at τ: it consists of *stretches*, one more than there are jumps.

The gradient is that of these numbers. The step that an event lies in has its ends, as all have, at fixed
fractions of its segment, and the segment begins at the time of the jump before, if there is one. So G
depends on everything that the grid, y0 and the parameters of f and g depend on, and τ by the implicit
function theorem, dτ = −(∂G/∂s)⁻¹ dG, with the slope of the dense output and not f in ∂G/∂s.

`event` is what a user passes, `inputs` checks what it goes with, `functions` evaluates it, and `reads`
knows what it reads; `curve` is the dense output of one step as a polynomial; `watch` compares the signs,
`march` takes steps until a stretch is over, `placed` puts the stretch on the autograd graph, `implicit`
the time of an event, `following` is the next stretch; `solving` joins them, `occurred` collects what
occurs, and `reading` reads the stretches afterwards.

References:
    E. Hairer, S. P. Nørsett, G. Wanner, *Solving Ordinary Differential Equations I*, II.6.
    R. T. Q. Chen, B. Amos, M. Nickel, *Learning Neural Event Functions for Ordinary Differential
        Equations*, ICLR 2021.
"""

from odegrad.events.event import Event, checked_events
from odegrad.events.inputs import assemble_with_events
from odegrad.events.solving import solve_events

__all__ = ["Event", "assemble_with_events", "checked_events", "solve_events"]
