"""How a state is laid out as bytes: a header, then the leaves.

    magic | CRC-32 of the leaves' bytes | length of the description | number of the state |
    description: dtype and shape of each leaf | leaf | leaf | …

Header and leaves begin at multiples of 64 bytes. What is between them means nothing.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import accumulate

import torch
from torch import Tensor

from odegrad.state import Leaves

__all__ = ["Buffer", "Layout"]

_ALIGNMENT = 64
_MAGIC = b"odegrad1"
_FIELDS = struct.Struct("<8sIIq")


def _aligned(n: int) -> int:
    return -(-n // _ALIGNMENT) * _ALIGNMENT


def _bytes_of(x: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, which has to outlive the view."""
    n = x.numel() * x.element_size()
    if n == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * n).from_address(x.data_ptr())).cast("B")


def _crc(parts: Iterable[memoryview]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


class Layout:
    """The layout of the states that look like `like`.

    Arguments:
        like: A state: shapes, dtypes and devices.

    Attributes:
        nbytes: The bytes of a state with its header.
        header_nbytes: Those of the header.
        offsets: Where each leaf begins.
        on_cpu: Whether all leaves are in CPU memory.
        pinned: Whether what is copied to them is best in pinned memory.
    """

    def __init__(self, like: Leaves) -> None:
        self._like = tuple((x.shape, x.dtype, x.device) for x in like)
        self._description = " ".join(
            f"{dtype}{list(shape)}" for shape, dtype, _ in self._like
        ).encode()
        self.header_nbytes = _aligned(_FIELDS.size + len(self._description))
        sizes = [_aligned(x.numel() * x.element_size()) for x in like]
        *self.offsets, self.nbytes = accumulate(sizes, initial=self.header_nbytes)
        self.on_cpu = all(x.device.type == "cpu" for x in like)
        self.pinned = any(x.device.type == "cuda" for x in like)

    def fits(self, state: Leaves) -> bool:
        """Whether `state` looks as the states have to."""
        return tuple((x.shape, x.dtype, x.device) for x in state) == self._like

    def empty(self) -> Leaves:
        """A state in CPU memory, yet to be filled."""
        return tuple(
            torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
            for shape, dtype, device in self._like
        )

    def on_device(self, state: Leaves) -> Leaves:
        """What `empty` gave, where the states belong."""
        return tuple(x.to(device) for x, (_, _, device) in zip(state, self._like, strict=True))

    def parts(self, state: Leaves) -> list[memoryview]:
        """The memory of what `empty` gave; it has to outlive the views."""
        return [_bytes_of(x) for x in state]

    def header(self, i: int, parts: Iterable[memoryview]) -> bytes:
        """The header of state i, whose bytes `parts` are."""
        fields = _FIELDS.pack(_MAGIC, _crc(parts), len(self._description), i)
        return fields + self._description

    def fault(self, header: memoryview, i: int, parts: Iterable[memoryview]) -> str | None:
        """What is wrong with a header and the bytes that were read with it, or None."""
        magic, crc, length, number = _FIELDS.unpack_from(header)
        description = header[_FIELDS.size : _FIELDS.size + len(self._description)]
        if (magic, length, number, description) != (
            _MAGIC,
            len(self._description),
            i,
            self._description,
        ):
            return "its header is that of something else"
        return None if crc == _crc(parts) else "its checksum is wrong"

    def views(self, flat: Tensor) -> Iterator[Tensor]:
        """The leaves inside a buffer of `nbytes` bytes."""
        for offset, (shape, dtype, _) in zip(self.offsets, self._like, strict=True):
            n = shape.numel() * dtype.itemsize
            if n:
                yield flat[offset : offset + n].view(dtype).view(shape)
            else:
                yield torch.empty(shape, dtype=dtype, device="cpu")


class Buffer:
    """One state with its header, in CPU memory.

    Arguments:
        layout: The layout.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        flat = torch.empty(layout.nbytes, dtype=torch.uint8, device="cpu", pin_memory=layout.pinned)
        self._leaves = tuple(layout.views(flat))
        self._parts = layout.parts(self._leaves)
        self._flat, self._bytes = flat, _bytes_of(flat)

    def fill(self, state: Leaves) -> None:
        """Copies a state into the buffer."""
        for view, x in zip(self._leaves, state, strict=True):
            view.copy_(x.detach())

    def copy(self) -> Leaves:
        """The state, in fresh tensors in CPU memory."""
        state = self._layout.empty()
        for x, view in zip(state, self._leaves, strict=True):
            x.copy_(view)
        return state

    def sealed(self, i: int) -> memoryview:
        """All bytes, with the header of state i."""
        header = self._layout.header(i, self._parts)
        self._bytes[: len(header)] = header
        return self._bytes
