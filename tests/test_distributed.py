"""Several processes: the gradients are those of one process, and what would hang or be wrong is refused.

Two ranks (`ranks.py`) run all scenarios once, against `Tape` in one process; the tests look at what they
found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import nn

import odegrad

ROOT = Path(__file__).parent.parent
PATIENCE = 100  # seconds, on a busy machine

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs torch.distributed with gloo",
)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run_ranks(folder: Path) -> str:
    """What the ranks found, as JSON."""
    out = folder / "found.json"
    script = str(ROOT / "tests" / "ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(folder / "store"), str(out)],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [x.communicate(timeout=PATIENCE)[1] for x in ranks]
    finally:
        for x in ranks:
            x.kill()
    assert out.exists(), "\n".join(said)
    return out.read_text()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the ranks found; the workers of pytest-xdist share one run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return json.loads(run_ranks(tmp_path_factory.mktemp("ranks")))
    shared = tmp_path_factory.getbasetemp().parent / f"ranks-{run}.json"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            shared.write_text(run_ranks(tmp_path_factory.mktemp("ranks")))
    return json.loads(shared.read_text())


@pytest.mark.parametrize(
    "scenario",
    [
        "ddp",
        "ddp_joint_batch",
        "ddp_unused",
        "ddp_accumulation",
        "ddp_offloaded",
        "fsdp",
        "fsdp_in_parts",
        "fsdp_accumulation",
        "fsdp_offloaded",
        "tensor_parallel",
    ],
)
def test_gradients_are_those_of_one_process(found: dict[str, Any], scenario: str) -> None:
    assert found[scenario]
    assert all(x <= 1e-12 for x in found[scenario].values()), found[scenario]


def test_ranks_took_different_numbers_of_steps(found: dict[str, Any]) -> None:
    one, other = found["step_counts"]
    assert one != other


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("ddp", "DistributedDataParallel(odegrad.NeuralODE(net))"),
        ("fsdp", "fully_shard(odegrad.NeuralODE(net))"),
        ("fsdp_layer", "fully_shard(odegrad.NeuralODE(net))"),
        ("sharded", "sharded over processes"),
        ("sync_batch_norm", "SyncBatchNorm in training mode"),
        ("sync_batch_norm_adaptive", "SyncBatchNorm in training mode"),
    ],
)
def test_refused_by_name_before_it_communicates(
    found: dict[str, Any], scenario: str, said: str
) -> None:
    """One rank alone gets the error: nothing waited for the other."""
    raised = found[f"refused_{scenario}"]
    assert raised.startswith("DistributedError: ")
    assert said in raised


def test_sync_batch_norm_that_does_not_communicate(found: dict[str, Any]) -> None:
    assert found["allowed_sync_batch_norm"] == [True, True]


def test_one_process_needs_no_distributed() -> None:
    """Without a process group nothing is refused: these modules are as any other."""
    y0 = torch.arange(12.0, dtype=torch.float64).sin().reshape(4, 3).requires_grad_()
    norm = nn.SyncBatchNorm(3).double()
    parallel = nn.Sequential(nn.DataParallel(nn.Linear(3, 3).double()))  # calls its module on CPUs
    for f in (norm, parallel):
        results = []
        for gradient in (odegrad.Tape(), odegrad.Discrete()):
            model = odegrad.NeuralODE(f, stepsize=odegrad.Steps(3), gradient=gradient)
            value = model(y0, [0.0, 1.0]).pow(3).sum()
            results.append(torch.autograd.grad(value, [y0, *f.parameters()]))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_example_runs_under_torchrun() -> None:
    """As its head says; it exits with an error unless ranks agree and the gradient is exact."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(ROOT / "examples" / "ddp.py")]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ranks agree: True" in done.stdout
    assert done.stdout.count("ranks agree") == 1
