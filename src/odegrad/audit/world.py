"""The world that f reads and changes beside its inputs, and how to put it back.

An audit solves many times. Each solve has to begin in the same world, and after the last one, or after an
exception, everything has to be as it was: generators, buffers, the training modes of modules.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from odegrad.replay import Snapshot

__all__ = ["World"]


class World:
    """Generators of torch, Python and NumPy, and the buffers and modes of modules, as they are now.

    Arguments:
        modules: The modules whose buffers and modes are meant.
        device: The device whose generator is meant, beside the CPU's.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self._modules = list(modules)
        self._modes = [m.training for m in self._modules]
        self._device = device
        self._hung = [
            (m, name, x)
            for m in self._modules
            for name, x in m.named_buffers(recurse=False, remove_duplicate=False)
        ]
        self._torch = Snapshot.take(device, [x for _, _, x in self._hung])
        self._python, self._numpy = random.getstate(), _numpy_state()

    def restore(self) -> None:
        """Puts everything back."""
        for module, name, x in self._hung:
            if getattr(module, name, None) is not x:
                setattr(module, name, x)
        self._torch.restore()
        for module, mode in zip(self._modules, self._modes, strict=True):
            module.training = mode
        random.setstate(self._python)
        if self._numpy is not None:
            _numpy_random().set_state(self._numpy)

    def other_generators(self) -> list[str]:
        """Which generators that odegrad does not replay have moved on since."""
        moved: list[str] = []
        if random.getstate() != self._python:
            moved.append("Python's module random")
        if _marks(_numpy_state()) != _marks(self._numpy):
            moved.append("numpy.random")
        return moved


def _numpy_random() -> Any:
    """numpy.random, if somebody imported it."""
    numpy: Any = sys.modules.get("numpy")
    return None if numpy is None else getattr(numpy, "random", None)


def _numpy_state() -> Any:
    found = _numpy_random()
    return None if found is None else found.get_state()


def _marks(state: Any) -> Any:
    """The state of NumPy's generator in a form that can be compared."""
    return None if state is None else (state[1].tobytes(), *state[2:])
