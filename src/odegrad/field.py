"""The vector field: the user's f on flat leaves, and its transpose.

For a cotangent u of f(t, y, p) the transpose gives (f_tᵀu, f_yᵀu, f_pᵀu) by one call of
`torch.autograd.grad`. The law it obeys, for all directions v and cotangents w:

    ⟨w, Df·v⟩ = ⟨vjp(w), v⟩.

A field also answers for the world that f reads, so that a second evaluation sees what the first one
saw: parameters and autocast (`VectorField.bound`), random numbers and buffers (`VectorField.snapshot`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from odegrad.capture import Captures, capture, version
from odegrad.errors import (
    ChangedTensorError,
    FieldOutputError,
    RandomFieldError,
    annotate,
    warn,
)
from odegrad.linearization import Linearization
from odegrad.outputs import Outputs
from odegrad.replay import Snapshot
from odegrad.state import Leaves, OptionalLeaves, Structure, Time, widest_real_dtype

__all__ = ["VectorField"]

T = TypeVar("T")


class VectorField:
    """f(t, y, *args), and optionally a running cost ℓ(t, y, *args), on flat leaves.

    Arguments:
        f: Maps (t, y, *args) to a pytree like y.
        state: The structure of y.
        y0: Its initial leaves, which fix shapes, dtypes and devices.
        args: Further arguments, a tuple of pytrees; their tensors become differentiable inputs.
        running: Maps (t, y, *args) to one real tensor, integrated as a *quadrature leaf* behind
            the state: f never reads it and the error norm leaves it out.

    Attributes:
        n_state: How many leaves f reads; those behind are quadratures.
        arguments: The tensors in `args`: all of p until something is discovered.
        time_dtype: The dtype in which f receives t: the widest real dtype of the state.
        evaluations: Calls of f so far.
        transposes: Vector–Jacobian products so far.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        state: Structure,
        y0: Leaves,
        args: tuple[Any, ...] = (),
        running: Callable[..., Any] | None = None,
    ) -> None:
        self._functions = [f] if running is None else [f, running]
        self._state = state
        self.n_state = len(y0)
        self._args = Structure(args)
        self._arg_leaves: list[Any] = self._args.flatten(args) or []
        self.arguments: Leaves = tuple(x for x in self._arg_leaves if isinstance(x, Tensor))
        self._plain = len(self.arguments) == len(args)  # nothing but tensors
        self._plain = self._plain and all(isinstance(x, Tensor) for x in args)
        self._outputs = Outputs(state, y0)
        self.time_dtype = widest_real_dtype(y0)
        self.device = y0[0].device if y0 else torch.device("cpu")
        self._captures = Captures()
        self._versions: list[int] = []
        self._unseen_draws = False
        self._returned: list[tuple[Tensor, int]] = []
        kind = self.device.type
        self.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self.evaluations = 0
        self.transposes = 0
        self._detached: bool | None = None  # whether no evaluation had a graph so far

    @property
    def function(self) -> Callable[..., Any]:
        """f as given."""
        return self._functions[0]

    @property
    def key(self) -> Hashable:
        """What else than shapes the memory that f takes depends on: modes of modules, autocast."""
        found = self._captures
        modes = tuple(mode for _, mode in found.modes)
        return (self.n_state, found.extent, modes, self.autocast, self.stochastic)

    # What f reads.

    def discover(self, t: Time, y: Leaves) -> Leaves:
        """Finds the tensors that f reads, by a scan and one traced call that leaves no mark.

        Arguments:
            t: The time of the call.
            y: The state; quadrature leaves may be missing.

        Returns:
            p: the captured tensors that require grad, followed by the tensors in `args`.
        """
        y = tuple(leaf.detach().clone() for leaf in y)
        args = tuple(x.detach() for x in self.arguments)
        evaluations = self.evaluations
        functions = [*self._functions, *(x for x in self._arg_leaves if callable(x))]
        self._captures = capture(functions, lambda: self(t, y, args), [*y, *args], self.device)
        self.evaluations = evaluations
        self.mark()
        return (*self._captures.tensors(), *self.arguments)

    def leaf(self, i: int) -> str:
        """A name for leaf i of the state, for messages."""
        return self._outputs.leaf(i)

    def names(self) -> list[str]:
        """How a person would find each of the tensors that f reads: the captured ones, then `args`."""
        captured = [item.name for item in self._captures.items]
        return captured + [f"args, tensor {i}" for i in range(len(self.arguments))]

    def own(self, p: Leaves, wanted: Sequence[bool]) -> Leaves:
        """The leaves to differentiate when p is given, see `Captures.own`."""
        return self._captures.own(p, wanted)

    def bound(self, p: Leaves, thunk: Callable[[], T]) -> T:
        """thunk(), during which f reads `p`, under the autocast state of the solve's start."""
        kind, dtype, enabled = self.autocast
        captured = p[: len(self._captures.items)]
        if not enabled and not torch.is_autocast_enabled(kind):
            return self._captures.bind(captured, thunk)
        with torch.autocast(kind, dtype, enabled):
            return self._captures.bind(captured, thunk)

    def snapshot(self) -> Snapshot | None:
        """The state of the generators and buffers that f was seen to use, or None."""
        found = self._captures
        if not (found.stochastic or found.changing):
            return None
        return Snapshot.take(self.device, found.changing_buffers())

    def mark(self) -> None:
        """Remembers the versions of the tensors that f reads and that have no gradient."""
        self._versions = [version(c.tensor) for c in self._captures.read]

    def check_unchanged(self) -> None:
        """Refuses to go on if such a tensor was changed in place since `mark`.

        Raises:
            ChangedTensorError: Since evaluating f again would not give what it gave.
        """
        for c, v in zip(self._captures.read, self._versions, strict=True):
            if version(c.tensor) != v:
                raise ChangedTensorError(
                    f"{c.name}, of shape {list(c.tensor.shape)}, which f reads, was changed in place "
                    "between the solve and its backward pass, which has to evaluate f again. Call "
                    "backward first, or give f a copy; gradient=Tape() does not evaluate f again"
                )

    def forget(self) -> None:
        """Lets go of what f returned last."""
        self._returned = []

    def observed(self, thunk: Callable[[], T]) -> T:
        """thunk(), noting whether f drew random numbers that `discover` did not see."""
        if self.stochastic:
            return thunk()
        before = Snapshot.take(self.device, ())
        result = thunk()
        self._unseen_draws = not before.same_generators(Snapshot.take(self.device, ()))
        return result

    def check_draws(self) -> None:
        """Refuses to go on if an observed evaluation drew such random numbers.

        Raises:
            RandomFieldError: Since evaluating f again would draw others.
        """
        if self._unseen_draws:
            raise RandomFieldError(
                "f (or loss_at) draws random numbers at some times but did not at its first call, so the "
                "backward pass could not draw the same ones. Draw the noise once, outside f, or at every "
                "call; gradient=Tape() does not evaluate f again"
            )

    def check_connected(self, p: Leaves) -> None:
        """Warns if f reads tensors that require grad, and none of its results depended on anything."""
        if self._detached and any(x.requires_grad for x in p):
            warn(
                "f returned nothing that depends on y or on the tensors that it reads, so that their "
                "gradient is that of a constant f. If f detaches its result, or computes it under "
                "torch.no_grad(), take that out"
            )

    @property
    def changes_buffers(self) -> bool:
        """Whether f was seen to change buffers that it reads."""
        return bool(self._captures.changing)

    @property
    def stochastic(self) -> bool:
        """Whether f was seen to draw random numbers."""
        return self._captures.stochastic

    # f and its transpose.

    def __call__(self, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """f(t, y), leaf by leaf.

        Arguments:
            t: A float, a 0-dim tensor or one time per sample.
            y: State leaves, then quadrature leaves (not read).
            p: Captured tensors (which f reads by itself, see `bound`), then the tensors in `args`;
                more may follow.

        Raises:
            FieldOutputError: If the result is not shaped like the state, or y was changed in place.
        """
        self.evaluations += 1
        if isinstance(t, Tensor):
            time = t.to(self.time_dtype).to(self.device)
        else:
            time = torch.scalar_tensor(t, dtype=self.time_dtype, device=self.device)
        leaves = y[: self.n_state]
        versions = [version(leaf) for leaf in leaves]
        state = self._state.unflatten(leaves)
        args = self._arguments(p)
        try:
            slopes = self._outputs.slopes(self._functions[0](time, state, *args), leaves)
            cost = [self._outputs.cost(ell(time, state, *args)) for ell in self._functions[1:]]
        except Exception as error:
            annotate(error, f"f was evaluated at t = {t}")
            raise
        if [version(leaf) for leaf in leaves] != versions:
            raise FieldOutputError(
                "f changed its argument y in place, which would make the solve wrong; "
                "write y = y * 2 instead of y.mul_(2), or begin f with y = y.clone()"
            )
        if [version(old) for old, _ in self._returned] != [v for _, v in self._returned]:
            self._returned = []
            raise FieldOutputError(
                "f changed what it had returned before (it writes its results into one buffer), which "
                "would make the solve wrong; return a new tensor, or buffer.clone()"
            )
        self._returned = [(slope.detach(), version(slope)) for slope in slopes]
        return (*slopes, *cost)

    def linearize(self, t: Time, y: Leaves, p: Leaves) -> Linearization:
        """Evaluates f and keeps what its transpose needs.

        Arguments:
            t: As for a call; a tensor t gets a cotangent, a float does not.
            y: As for a call; the values are detached from any graph.
            p: The tensors that f reads (see `own` and `bound`).
        """
        with torch.enable_grad():
            leaves = tuple(leaf.detach().requires_grad_() for leaf in y)
            time = t.detach().requires_grad_() if isinstance(t, Tensor) else t
            slopes = self(time, leaves, p)
        self.note_graph((slopes,))
        return Linearization(self, time, leaves, p, slopes)

    def note_graph(self, slopes: Sequence[Leaves]) -> None:
        """Remembers whether any of what f returned, when it was to be differentiated, had a graph."""
        if self._detached is not False:
            self._detached = not any(x.requires_grad for slope in slopes for x in slope)

    def vjp(
        self, t: Time, y: Leaves, p: Leaves, grad: OptionalLeaves
    ) -> tuple[Tensor | None, Leaves, OptionalLeaves]:
        """(f_tᵀu, f_yᵀu, f_pᵀu) for the cotangent u = `grad`."""
        return self.linearize(t, y, p).vjp(grad)

    # Checks.

    def _arguments(self, p: Leaves) -> Any:
        if not self._arg_leaves:
            return ()
        n = len(self._captures.items)
        if self._plain:
            return p[n : n + len(self.arguments)]
        tensors = iter(p[n : n + len(self.arguments)])
        leaves = [next(tensors) if isinstance(x, Tensor) else x for x in self._arg_leaves]
        return self._args.unflatten(leaves)

    def cost_leaves(self, t: Time, y: Leaves, p: Leaves) -> Leaves:
        """Zeros shaped like the running cost at (t, y): the initial quadrature leaves."""
        if len(self._functions) == 1:
            return ()
        with torch.no_grad():
            time = torch.as_tensor(t, dtype=self.time_dtype, device=self.device)
            cost = self._functions[1](time, self._state.unflatten(y), *self._arguments(p))
            return (torch.zeros_like(self._outputs.cost(cost)),)
