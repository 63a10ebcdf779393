"""What one check of an audit found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["Check", "ModeRow", "Status", "plain", "short"]

Status: TypeAlias = Literal["passed", "flagged", "information", "unknown"]
"""How a check ended; unknown: it could not be made, and the summary says why."""


@dataclass(frozen=True)
class Check:
    """One question to a solve, and the answer.

    Attributes:
        name: Of the check.
        status: How it ended.
        summary: The answer in words.
        numbers: What was measured.
        headline: The answer in a few words, for the verdict.
    """

    name: str
    status: Status
    summary: str
    numbers: dict[str, Any] = field(default_factory=dict[str, Any])
    headline: str = ""


@dataclass(frozen=True)
class ModeRow:
    """One way to differentiate the audited solve, on the same grid as the others.

    Attributes:
        name: The gradient mode.
        difference: ‖g − g_Tape‖ / ‖g_Tape‖ over the initial state and all parameters.
        angle: The angle between both, in degrees.
        seconds: The median time of a forward and a backward sweep; None if it was not timed.
        peak_bytes: The most bytes that both allocated at once.
        evaluations: Evaluations of f.
        transposes: Transposed evaluations of f.
        failure: Why there are no numbers, or None.
    """

    name: str
    difference: float | None = None
    angle: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    evaluations: int | None = None
    transposes: int | None = None
    failure: str | None = None


def short(error: BaseException) -> str:
    """An exception on one line.

    Example:
        >>> short(ValueError("two", "words"))
        "ValueError: ('two', 'words')"
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:200]}…"


def plain(value: Any) -> Any:
    """`value` for JSON, which has neither tuples nor infinities.

    Example:
        >>> plain({"x": (1.0, float("nan"))})
        {'x': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
