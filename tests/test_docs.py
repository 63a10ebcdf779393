"""The Python in README.md and in docs/ runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import odegrad

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    )
    if ">>>" not in block  # doctests run elsewhere
]
ELSEWHERE = {
    "gradient=…": "gradient=odegrad.Discrete()",
    "from torchdiffeq": "from odegrad.compat.torchdiffeq",  # which need not be installed
    '"cuda"': '"cpu"',
    "compile=True": "compile=False",  # seconds each, and tested at length
}


@pytest.mark.parametrize("block", BLOCKS)
def test_python_in_the_pages_runs(block, capsys):
    for a, b in ELSEWHERE.items():
        block = block.replace(a, b)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    labels = torch.ones(5, 4, 2)
    names = {
        "torch": torch,
        "odegrad": odegrad,
        "net": net,
        "f": lambda t, y, *args: net(y) * (args[0] if args else 1.0),
        "y0": torch.linspace(-1.0, 1.0, 8).reshape(4, 2),
        "ts": torch.linspace(0.0, 1.0, 5),
        "model": odegrad.NeuralODE(net),
        "decoder": torch.nn.Linear(2, 2),
        "labels": labels,
        "loss": lambda y, label=labels: (y - label).square().mean(),
        "v": [torch.ones_like(x) for x in net.parameters()],
        "rate": torch.ones(4, 1),
        "weights": torch.ones(2),
    }
    exec(compile(block, "page", "exec"), names)
