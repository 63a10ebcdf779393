"""How much memory a computation needs: the peak of what it allocates.

On the CPU torch reports each allocation to its profilers. `peak_bytes` listens through the older of them
(``torch.autograd.profiler_legacy``), which starts in microseconds and prints nothing; like all profilers
it is a private matter of torch's, so that `traced_peak_bytes`, which follows the storages of all tensors
through a dispatch mode, takes its place where it is missing, or where a profiler is running already. The
second does not see the scratch memory of single operations (convolutions have some), the first does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["peak_bytes", "traced_peak_bytes"]


def peak_bytes(thunk: Callable[[], object], device: torch.device, compiled: bool = False) -> int:
    """The most bytes on `device` that thunk() has allocated and not yet freed at any moment.

    Arguments:
        thunk: What to run; once.
        device: The CPU or a CUDA device.
        compiled: Whether it runs compiled code, whose allocations are not those of operations. Then it
            is run in a thread of its own if a profiler is active in this one.
    """
    if device.type == "cuda":
        return _cuda_peak_bytes(thunk, device)
    profiler = _profiler()
    if profiler is not None and compiled and torch.autograd._profiler_enabled():  # pyright: ignore
        with ThreadPoolExecutor(1) as other:
            return other.submit(peak_bytes, thunk, device).result()
    if profiler is None or torch.autograd._profiler_enabled():  # pyright: ignore
        return traced_peak_bytes(thunk, device)
    enable, disable, config = profiler
    enable(config)
    try:
        thunk()
    finally:
        records: Any = disable()
    held = most = 0
    for thread in records:  # on the CPU torch differentiates in the thread that asks for it
        for event in thread:
            if event.kind() == "memory_alloc":
                held += event.cpu_memory_usage()
                most = max(most, held)
    return most


def _cuda_peak_bytes(thunk: Callable[[], object], device: torch.device) -> int:
    """The same on a CUDA device, from the statistics of torch's allocator, whose peak starts anew."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    thunk()
    return torch.cuda.max_memory_allocated(device) - before


def traced_peak_bytes(thunk: Callable[[], object], device: torch.device) -> int:
    """The same, from the tensors that operations return."""
    storages = _Storages(device)
    with storages:
        thunk()
    return storages.most


def _profiler() -> tuple[Any, Any, Any] | None:
    """What starts a profiler, what stops it, and its settings."""
    try:
        autograd, profiler = torch._C._autograd, torch._C._profiler  # pyright: ignore
        nothing = profiler._ExperimentalConfig()  # pyright: ignore
        state = profiler.ProfilerState.CPU
        # Shapes, memory, stacks, operations' counts, modules.
        config = profiler.ProfilerConfig(state, False, True, False, False, False, nothing)
        return autograd._enable_profiler_legacy, autograd._disable_profiler_legacy, config  # pyright: ignore
    except (AttributeError, TypeError):
        return None


class _Storages(TorchDispatchMode):
    """Follows the storages that operations make.

    Attributes:
        most: The most bytes of them that were alive at once.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._sizes: dict[int, int] = {}
        self._held = self.most = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        for x in pytree.tree_leaves((args, given)):
            self._see(x, new=False)
        result = func(*args, **given)
        for x in pytree.tree_leaves(result):
            self._see(x, new=True)
        return result

    def _see(self, x: Any, new: bool) -> None:
        if not isinstance(x, Tensor) or x.layout is not torch.strided or x.device != self._device:
            return
        storage = x.untyped_storage()
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key not in self._sizes:
            self._sizes[key] = size = storage.nbytes() if new else 0
            self._held += size
            self.most = max(self.most, self._held)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._held -= self._sizes.pop(key)
