"""The audit of a gradient on the user's own model: `odegrad.audit` and `odegrad audit`."""

from odegrad.audit.auditing import audit
from odegrad.audit.check import Check, ModeRow
from odegrad.audit.report import Audit

__all__ = ["Audit", "Check", "ModeRow", "audit"]
