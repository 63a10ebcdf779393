"""A loop whose iteration is recorded once and replayed: on CUDA, one launch per step instead of dozens.

A CUDA graph replays the same kernels on the same addresses. So the iteration works in place on buffers
that stay: a call copies its tensors into them, replays, and copies the results out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from odegrad.state import Leaves

__all__ = ["Record", "Recorded", "again", "cuda_graph"]

Record: TypeAlias = Callable[[Callable[[], None], Callable[[], None]], Callable[[], object]]
"""Turns an iteration in place into something that repeats it; the second runs it from its start."""


def again(
    iteration: Callable[[], None], from_the_start: Callable[[], None]
) -> Callable[[], object]:
    """Records nothing: to repeat an iteration is to run it, once it has been run to warm up, too."""
    for _ in range(3):
        from_the_start()
    return iteration


def cuda_graph(
    iteration: Callable[[], None], from_the_start: Callable[[], None]
) -> Callable[[], object]:
    """Records an iteration as a CUDA graph, after three on a stream of their own to warm up.

    These start from the same numbers: one after the other they might go beyond the end of the loop,
    where the index is no row's.

    Reference: the section on CUDA graphs of PyTorch's notes on CUDA semantics.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            from_the_start()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        iteration()
    return graph.replay


class Recorded:
    """A loop, turned by Python, around a recorded iteration.

    Arguments:
        iterate: (*carried, *buffers and stable) ↦ carried after one iteration; writes into the buffers.
        goes_on: (*carried, *buffers and stable) ↦ whether to go on, a 0-dim bool.
        n_carried: How many tensors are carried; the first is an index.
        n_buffers: How many buffers follow.
        record: How to record.
    """

    def __init__(
        self,
        iterate: Callable[..., Sequence[Tensor]],
        goes_on: Callable[..., Tensor],
        n_carried: int,
        n_buffers: int,
        record: Record = cuda_graph,
    ) -> None:
        self._iterate, self._goes_on, self._record = iterate, goes_on, record
        self._n, self._n_buffers = n_carried, n_buffers
        self._static: Leaves = ()
        self._lock = threading.Lock()  # the buffers serve one call at a time
        self._replay: Callable[[], object] | None = None

    def __call__(self, *given: Tensor, count: int | None = None) -> Leaves:
        """Turns the loop, `count` times if that is known: then nothing waits for the device."""
        with self._lock:
            return self._turn(given, count)

    def _turn(self, given: Leaves, count: int | None) -> Leaves:
        if self._replay is None:
            self._static = tuple(torch.zeros_like(x) for x in given)

            def from_the_start() -> None:
                self._take(given)
                self._once()

            self._replay = self._record(self._once, from_the_start)
        self._take(given)
        if count is not None:
            for _ in range(count):
                self._replay()
        else:
            while bool(self._goes_on(*self._static)):
                self._replay()
        for mine, x in zip(
            self._static[self._n :], given[self._n :][: self._n_buffers], strict=False
        ):
            x.copy_(mine)
        return tuple(x.clone() for x in self._static[: self._n])

    def _take(self, given: Leaves) -> None:
        for mine, x in zip(self._static, given, strict=True):
            mine.copy_(x)

    def _once(self) -> None:
        found = self._iterate(*self._static)
        for mine, x in zip(self._static, found, strict=False):
            mine.copy_(x)
