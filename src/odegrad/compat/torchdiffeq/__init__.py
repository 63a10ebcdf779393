"""A stand-in for torchdiffeq: its functions, with the exact gradient of the solve that they return.

    from odegrad.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event, odeint_dense

replaces ``from torchdiffeq import …``; nothing else has to change. Signatures, defaults, names of
methods, options, callbacks and return values are those of torchdiffeq 0.2.5, as are the built-in types
of the exceptions. The gradient is another one: that of the numbers returned, by the transposed steps,
also from `odeint_adjoint`. docs/migrating.md lists every option, and every number that may differ.
"""

from odegrad.compat.torchdiffeq.dense import odeint_dense
from odegrad.compat.torchdiffeq.events import odeint_event
from odegrad.compat.torchdiffeq.interface import odeint, odeint_adjoint

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
