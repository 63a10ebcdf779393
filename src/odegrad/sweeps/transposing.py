"""The actions of a schedule, executed in a backward sweep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from odegrad.checkpoints import Action, Advance, Drop, Keep, Restore, Store, Tier, Transpose, Unstep
from odegrad.errors import annotate
from odegrad.state import Leaves
from odegrad.sweeps.cotangents import Cotangents
from odegrad.sweeps.kept import Kept
from odegrad.sweeps.run import Run

__all__ = ["Engine", "execute", "transposed"]


class Engine(Protocol):
    """Executes single actions; see `odegrad.checkpoints.actions` for what they mean."""

    def advance(self, start: int, stop: int, keep: Keep | None) -> None:
        """Takes steps again."""
        ...

    def store(self, i: int, tier: Tier) -> None:
        """Stores the current state."""
        ...

    def restore(self, i: int) -> None:
        """Makes a stored state the current one."""
        ...

    def unstep(self, start: int, stop: int) -> None:
        """Takes steps back."""
        ...

    def transpose(self, start: int, stop: int) -> None:
        """Transposes steps."""
        ...

    def finish(self) -> Cotangents:
        """What came of it."""
        ...


def execute(actions: Iterable[Action], kept: Kept, engine: Engine) -> None:
    """Executes the actions, in order.

    Arguments:
        actions: Of the backward sweep.
        kept: What the forward sweep kept.
        engine: Executes single ones.
    """
    for action in kept.store.ahead(actions):
        match action:
            case Advance(start, stop, None, keep) if stop is not None:
                engine.advance(start, stop, keep)
            case Store(i, tier):
                engine.store(i, tier)
            case Restore(i):
                engine.restore(i)
            case Drop(i):
                kept.store.drop(i)
            case Unstep(start, stop):
                engine.unstep(start, stop)
            case Transpose(start, stop):
                engine.transpose(start, stop)
            case _:
                raise AssertionError(f"{action} has no place in a backward sweep")


def transposed(
    run: Run, p: Leaves, kept: Kept, actions: Iterable[Action], engine: Engine
) -> Cotangents:
    """What the actions come to; f and its buffers are left as they were.

    Arguments:
        run: The solve.
        p: The tensors that f reads, bound.
        kept: What the forward sweep kept.
        actions: Of the backward sweep, in order.
        engine: Executes them.
    """
    if run.monitor is not None:
        run.monitor.start("backward")
    here = run.field.snapshot()
    try:
        execute(actions, kept, engine)
        found = engine.finish()
        run.field.check_connected(p)
        return found
    except Exception as error:
        annotate(error, "while evaluating f again, in the backward pass of odegrad.solve")
        raise
    finally:
        if here is not None:
            here.restore()
        run.count()
        if run.monitor is not None:
            run.monitor.stop()
