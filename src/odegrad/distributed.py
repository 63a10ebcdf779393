"""What f must not call on several processes: modules that communicate, each in its own way.

Ranks may take different numbers of adaptive steps, and the backward sweep evaluates f in an order of its
own. A module inside f that waits for the other ranks then waits for ever; one that gathers gradients by
hooks on its parameters gathers none, since the node of a solve is what its parameters' gradients come
from. Around the solve the same modules are exact: their hooks see one gradient per parameter.

A module counts only if the traced call of f calls it: f may well reach others, such as the model that it
belongs to. Collectives that f calls by itself are not seen; all ranks have to take the same steps then,
which fixed steps do.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from odegrad.errors import DistributedError, OdegradError

__all__ = ["alone"]

_OUTSIDE = "Wrap the module that contains the solve instead, such as {}(odegrad.NeuralODE(net))"


@contextmanager
def alone() -> Generator[None]:
    """Refuses modules that communicate with other processes, before they do.

    Raises:
        DistributedError: If one is called in this thread, or sharded parameters are read as they are.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    differentiated, thread = torch.is_grad_enabled(), threading.get_ident()

    def check(module: nn.Module, inputs: Any) -> None:
        del inputs
        if threading.get_ident() == thread:
            reason = _reason(module, differentiated)
            if reason is not None:
                raise DistributedError(reason)

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    except RuntimeError as error:
        if "DTensor" not in str(error) or isinstance(error, OdegradError):
            raise
        raise DistributedError(
            "f reads parameters that are sharded over processes, and not gathered while it runs: "
            f"{error}. fully_shard gathers them while the forward of the module runs that it was applied "
            "to; solve inside that forward, and call the module itself"
        ) from error
    finally:
        handle.remove()


def _reason(module: nn.Module, differentiated: bool) -> str | None:
    """Why f must not call the module, or None if it may."""
    if isinstance(module, nn.SyncBatchNorm) and _synchronises(module):
        return (
            "f calls SyncBatchNorm in training mode, which waits for all ranks at every evaluation, and "
            "ranks may take different numbers of steps: they would wait for each other for ever. Use a "
            "norm that looks at one rank (LayerNorm, GroupNorm), module.eval(), or the norm outside f"
        )
    if isinstance(module, DistributedDataParallel) and (differentiated or any(module.buffers())):
        return (
            "f calls a DistributedDataParallel module, which synchronises once per call of its forward: "
            "the gradients of a solve around it would not be averaged over the ranks. "
            + _OUTSIDE.format("DistributedDataParallel")
        )
    if isinstance(module, _of("FSDPModule")):
        return (
            "f calls a module that fully_shard was applied to, which gathers its parameters at every "
            "evaluation and waits for all ranks, which may take different numbers of steps. "
            + _OUTSIDE.format("fully_shard")
        )
    if isinstance(module, _of("FullyShardedDataParallel")):
        return (
            "f calls a FullyShardedDataParallel module, which gathers its parameters at every evaluation "
            "and waits for all ranks, which may take different numbers of steps. "
            + _OUTSIDE.format("FullyShardedDataParallel")
        )
    return None


def _synchronises(module: nn.SyncBatchNorm) -> bool:
    """Whether a call communicates: torch's own condition."""
    group = module.process_group or torch.distributed.group.WORLD
    return module.training and torch.distributed.get_world_size(group) > 1


def _of(name: str) -> tuple[type, ...]:
    """A class of torch.distributed.fsdp, which takes its time to import; nothing if nobody did."""
    found = getattr(sys.modules.get("torch.distributed.fsdp"), name, None)
    return () if found is None else (found,)
