"""How much an audit may cost, in evaluations of f and transposes."""

from __future__ import annotations

from odegrad.audit.subject import Subject

__all__ = ["Budget"]


class Budget:
    """Evaluations of f, transposes included, that an audit may take besides those of its first checks.

    Arguments:
        subject: The audited solve, which counts.
        total: How many.
    """

    def __init__(self, subject: Subject, total: int) -> None:
        self._subject, self.total, self._before = subject, total, 0

    def begin(self) -> None:
        """Counts from here on."""
        self._before = self._subject.evaluations

    @property
    def left(self) -> int:
        """How many are left."""
        return max(0, self.total + self._before - self._subject.evaluations)

    def allows(self, cost: float) -> bool:
        """Whether there are so many left."""
        return cost <= self.left

    def skipped(self, cost: float) -> str:
        """Why something of such a cost is left out."""
        return (
            f"skipped: it takes about {cost:.0f} evaluations, and {self.left} of the budget of "
            f"{self.total} are left"
        )
