"""Each file of tests starts with a small heap."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def forgotten() -> Iterator[None]:
    """What the tests of a file have compiled is forgotten after them.

    Millions of objects by the end of the suite, all of them visited whenever garbage is collected:
    seconds, hundreds of times.
    """
    yield
    if "odegrad.compiled.dynamo" in sys.modules:
        import torch

        sys.modules["odegrad.compiled.dynamo"]._entries.clear()
        torch.compiler.reset()
    gc.collect()
    gc.freeze()
