"""What a function reads and changes besides its inputs: random generators and module buffers.

Evaluating a vector field a second time is exact only if it draws the same random numbers and sees the
same buffers. A `Snapshot` holds both; taking and restoring one costs microseconds and happens only
for functions that were seen to use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odegrad.state import nbytes

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The state of the generators of the CPU and of one device, and copies of some buffers.

    Arguments:
        device: The device whose generator is meant.
        cpu: The state of the CPU's default generator.
        accelerator: The state of the device's generator, or None for the CPU.
        buffers: The buffers themselves.
        values: Copies of them.
    """

    device: torch.device
    cpu: Tensor
    accelerator: Tensor | None
    buffers: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @staticmethod
    def take(device: torch.device, buffers: Sequence[Tensor]) -> Snapshot:
        """The present state."""
        accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        values = tuple(b.detach().clone() for b in buffers)
        return Snapshot(device, torch.get_rng_state(), accelerator, tuple(buffers), values)

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return nbytes((self.cpu, self.accelerator, *self.values))

    def restore(self) -> None:
        """Puts the state back."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.cuda.set_rng_state(self.accelerator, self.device)
        with torch.no_grad():
            for buffer, value in zip(self.buffers, self.values, strict=True):
                # As torch's own batch normalization does, without telling autograd: graphs that saved
                # the buffer would refuse to go on, though they do not depend on its values.
                buffer.data.copy_(value)

    def same_generators(self, other: Snapshot) -> bool:
        """Whether no random number was drawn between the two."""
        mine, others = self.accelerator, other.accelerator
        same = mine is None or others is None or torch.equal(mine, others)
        return same and torch.equal(self.cpu, other.cpu)
