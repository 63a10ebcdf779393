"""What a user says of an event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from odegrad.errors import InvalidTypeError, InvalidValueError

__all__ = ["Event", "checked_events"]


@dataclass(frozen=True)
class Event:
    """What happens where g(t, y) = 0.

    It is seen by the sign of g at the ends of steps, and found as the root of g on the dense output of
    the step in between. **Two crossings within one step leave the sign as it was and are not seen**:
    ``PID(dt_max=…)``, or more `Steps`, keep steps shorter than the time between crossings.

    Where g is zero up to rounding at the start of the solve, or after the event's own jump, it does not
    occur; it does when g comes back to zero. An event that the jump of another one carries across its
    zero does not occur. Of events at the same time the one listed first comes first, and one that ends
    the solve leaves out those listed behind it.

    Arguments:
        fn: g(t, y, *args), one real number, a tensor of shape [] or [1]. Whatever it reads gets
            gradients.
        direction: 1 if only a g that rises through zero counts, −1 for one that falls, in the direction
            of the solve (also where times descend); 0 for both.
        terminal: Whether the event ends the solve. None: if it has no jump.
        max_count: A terminal event ends the solve when it occurs for the max_count-th time, the first if
            None. Another one is passed over, its jump too, once it has occurred that often; None is no
            limit.
        jump: Δ(t, y, *args), the state with which the solve goes on after the event, of the structure
            of y.

    Raises:
        InvalidTypeError: If an argument has an unusable type.
        InvalidValueError: If an argument has an unusable value.

    Example:
        >>> import torch, odegrad
        >>> fall = lambda t, y: torch.stack([y[1], -9.81 * torch.ones_like(y[1])])
        >>> y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> ground = odegrad.Event(lambda t, y: y[0], direction=-1)
        >>> sol = odegrad.solve(fall, y0, [0.0, 10.0], events=(ground,))
        >>> print(sol.status.name, f"{sol.events[0].times.item():.4f}")  # sqrt(2 / 9.81)
        EVENT 0.4515
    """

    fn: Callable[..., Any]
    direction: int = 0
    terminal: bool | None = None
    max_count: int | None = None
    jump: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for name, function in (("fn", self.fn), ("jump", self.jump)):
            if not callable(function) and (name == "fn" or function is not None):
                raise InvalidTypeError(
                    f"Event: {name} must be callable as {name}(t, y), received {function!r}"
                )
        direction: object = self.direction
        if isinstance(direction, bool) or direction not in (-1, 0, 1):
            raise InvalidValueError(
                "Event: direction must be 1 (g rises through zero), -1 (it falls) or 0 (both), received "
                f"{direction!r}"
            )
        terminal: Any = self.terminal
        if terminal is not None and not isinstance(terminal, bool):
            raise InvalidTypeError(
                f"Event: terminal must be True, False or None, received {terminal!r}"
            )
        most: Any = self.max_count
        if most is not None and (isinstance(most, bool) or not isinstance(most, int)):
            raise InvalidTypeError(f"Event: max_count must be an int or None, received {most!r}")
        if most is not None and most < 1:
            raise InvalidValueError(f"Event: max_count must be at least 1, received {most}")

    @property
    def ends(self) -> int | None:
        """The occurrence at which it ends the solve, counted from 1, or None."""
        terminal = self.jump is None if self.terminal is None else self.terminal
        return (self.max_count or 1) if terminal else None


def checked_events(events: object) -> tuple[Event, ...]:
    """The events that were passed.

    Raises:
        InvalidTypeError: If it is not a sequence of them.
    """
    if isinstance(events, Event):
        raise InvalidTypeError("events must be a sequence of events; write events=(event,)")
    if not isinstance(events, (tuple, list)):
        raise InvalidTypeError(
            f"events must be a sequence of odegrad.Event, received {type(events).__name__}"
        )
    found: list[Event] = []
    for i, event in enumerate(events):  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
        if not isinstance(event, Event):
            raise InvalidTypeError(
                f"events[{i}] must be an odegrad.Event, received {event!r}; write "
                "odegrad.Event(lambda t, y: …)"
            )
        found.append(event)
    return tuple(found)
