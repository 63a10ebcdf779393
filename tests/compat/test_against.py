"""Against an installed torchdiffeq; skipped without one."""

from __future__ import annotations

import pytest

pytest.importorskip("torchdiffeq")


def test_numbers():
    from compat.against_torchdiffeq import rows

    more = [(name, found, bound) for name, found, bound in rows() if not found <= bound]
    assert not more


def test_the_benchmark(tmp_path):
    from click.testing import CliRunner

    from benchmarks.__main__ import main

    result = CliRunner().invoke(
        main, ["migrating", "--quick", "--repeats", "1", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "migrating.json").exists()
