"""One thread of one core, for torch, XLA and their helpers alike."""

from __future__ import annotations

import os

__all__ = ["ENVIRONMENT", "single_thread"]

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "KMP_AFFINITY": "disabled",  # the affinity below holds
    "KINETO_LOG_LEVEL": "9",  # torch's profiler says nothing
}


def single_thread(core: int | None = None) -> None:
    """Confines this process, and those that it starts, to one thread of one core.

    Has to be called before torch and JAX are imported, which read the environment once.

    Arguments:
        core: Which core; None is the last one that is allowed, where less else tends to run.
    """
    os.environ.update(ENVIRONMENT)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if core is None else core})
    import torch

    torch.set_num_threads(1)
