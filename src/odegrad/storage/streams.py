"""The two streams of a device: the current one, which computes, and one aside, which copies.

What is queued on one stream is done in order. Between the streams only marks order anything: a stream
that waits for a mark does nothing more before the other has done all that was queued before the mark.
The host waits for nothing.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CudaStreams", "DirectStreams", "Streams", "streams_of"]


class Streams(Protocol):
    """The streams of one device."""

    pinned: bool
    """Whether CPU memory has to be pinned for copies to be asynchronous."""

    def copy(self, target: Tensor, source: Tensor, aside: bool = False) -> None:
        """Queues a copy on the current stream, or aside."""
        ...

    def mark(self, aside: bool = False) -> torch.Event | None:
        """A mark after all that is queued on the current stream, or aside."""
        ...

    def wait(self, mark: torch.Event | None, aside: bool = False) -> None:
        """Lets the current stream, or that aside, wait for a mark."""
        ...

    def share(self, x: Tensor) -> None:
        """Says that both streams use x: its memory is not given away before both are done with it."""
        ...


class CudaStreams:
    """Those of a CUDA device.

    Arguments:
        device: The device, with its index.

    Reference:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-streams
    """

    pinned = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._aside = torch.cuda.Stream(device)

    def copy(self, target: Tensor, source: Tensor, aside: bool = False) -> None:
        """Queues a copy on the current stream, or aside."""
        if aside:
            with torch.cuda.stream(self._aside):
                target.copy_(source, non_blocking=True)
        else:
            target.copy_(source, non_blocking=True)

    def mark(self, aside: bool = False) -> torch.Event | None:
        """A mark after all that is queued on the current stream, or aside."""
        return self._stream(aside).record_event()

    def wait(self, mark: torch.Event | None, aside: bool = False) -> None:
        """Lets the current stream, or that aside, wait for a mark."""
        if mark is not None:
            self._stream(aside).wait_event(mark)

    def share(self, x: Tensor) -> None:
        """Says that both streams use x: its memory is not given away before both are done with it."""
        x.record_stream(self._stream(aside=False))
        x.record_stream(self._aside)

    def _stream(self, aside: bool) -> torch.cuda.Stream:
        return self._aside if aside else torch.cuda.current_stream(self._device)


class DirectStreams:
    """For devices without streams that could be used here: each copy is done at once."""

    pinned = False

    def copy(self, target: Tensor, source: Tensor, aside: bool = False) -> None:
        """Copies."""
        target.copy_(source)

    def mark(self, aside: bool = False) -> torch.Event | None:
        """None: there is nothing to wait for."""
        return None

    def wait(self, mark: torch.Event | None, aside: bool = False) -> None:
        """Does nothing."""

    def share(self, x: Tensor) -> None:
        """Does nothing."""


def streams_of(device: torch.device) -> Streams:
    """The streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else DirectStreams()
