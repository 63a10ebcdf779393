"""Where results are written and read."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odegrad.bench import describe_machine

__all__ = ["RESULTS", "read", "save_figure", "write"]

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "odegrad", "torch", "torchdiffeq", "torchode", "diffrax", "equinox", "jax", "jaxlib", "numpy",
)  # fmt: skip


def write(out: Path, name: str, settings: Mapping[str, Any], results: Mapping[str, Any]) -> Path:
    """Writes a result with the machine, the versions and the date; returns the path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    content = {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "machine": describe_machine(PACKAGES).as_dict(),
        "settings": dict(settings),
        **results,
    }
    path.write_text(json.dumps(_rounded(content), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def read(out: Path, name: str) -> dict[str, Any]:
    """A result that was written before, or nothing."""
    path = out / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def save_figure(out: Path, name: str, figure: Any) -> Path:
    """Writes a picture; returns the path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    figure.savefig(path, format="png")
    return path


def _rounded(value: Any) -> Any:
    """Floats to 4 digits, which is more than repeats."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(x) for x in value]
    return value
