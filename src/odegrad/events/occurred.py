"""The occurrences of all events, as they are collected."""

from __future__ import annotations

import torch
from torch import Tensor

from odegrad.assemble import Problem
from odegrad.events.functions import Functions
from odegrad.solution import Occurrences
from odegrad.state import Leaves

__all__ = ["Occurred"]


class Occurred:
    """Occurrences, event by event.

    Arguments:
        functions: The events.
        problem: The solve.
    """

    def __init__(self, functions: Functions, problem: Problem) -> None:
        self._events, self._problem = functions.events, problem
        self._found: list[list[tuple[Tensor, Leaves, Leaves | None]]]
        self.clear()

    def clear(self) -> None:
        """Forgets them."""
        self._found = [[] for _ in self._events]

    def add(self, i: int, time: Tensor, y: Leaves, after: Leaves | None) -> None:
        """Adds one of event i: its time, and the states before and after a jump."""
        self._found[i].append((time, y, after))

    def records(self, dtype: torch.dtype, device: torch.device) -> tuple[Occurrences, ...]:
        """What the user gets, with times of a dtype on a device."""
        problem = self._problem
        n, structure = problem.run.field.n_state, problem.structure
        records: list[Occurrences] = []
        for event, found in zip(self._events, self._found, strict=True):
            empty = tuple(x.new_empty((0, *x.shape)) for x in problem.y)
            times = torch.stack([t for t, _, _ in found]) if found else torch.empty(0, device="cpu")
            before = _stacked([y for _, y, _ in found]) or empty
            after = None
            if event.jump is not None:
                after = _stacked([y for _, _, y in found if y is not None]) or empty
            records.append(
                Occurrences(
                    times=times.to(device=device, dtype=dtype),
                    states=structure.unflatten(before[:n]),
                    after=None if after is None else structure.unflatten(after[:n]),
                    running=before[n] if len(before) > n else None,
                )
            )
        return tuple(records)


def _stacked(states: list[Leaves]) -> Leaves:
    return tuple(torch.stack(x) for x in zip(*states, strict=True))
