"""Against an installed torchdiffeq; skipped without one."""

from __future__ import annotations

import pytest

pytest.importorskip("torchdiffeq")


def test_numbers():
    from compat.against_torchdiffeq import rows

    more = [(name, found, bound) for name, found, bound in rows() if not found <= bound]
    assert not more


def test_the_benchmark(tmp_path):
    from benchmarks.migrating import run

    run(True, 1, 0.0, tmp_path, lambda line: None)
    assert (tmp_path / "migrating.json").exists()
