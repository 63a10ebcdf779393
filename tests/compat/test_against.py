"""Against an installed torchdiffeq; skipped without one."""

from __future__ import annotations

import pytest

pytest.importorskip("torchdiffeq")


def test_numbers():
    from compat.against_torchdiffeq import rows

    more = [(name, found, bound) for name, found, bound in rows() if not found <= bound]
    assert not more
