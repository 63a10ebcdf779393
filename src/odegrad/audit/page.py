"""The report of an audit as one HTML file. jinja2 is imported when it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from odegrad.audit.plots import convergence_picture, costate_picture, taylor_picture
from odegrad.errors import MissingDependencyError

if TYPE_CHECKING:
    from odegrad.audit.report import Audit

__all__ = ["page"]


def page(report: Audit) -> str:
    """The report with its pictures; nothing in it is loaded from elsewhere.

    Raises:
        MissingDependencyError: If jinja2 or matplotlib is not installed.
    """
    from odegrad.audit.report import described, table

    try:
        from jinja2 import Environment
    except ImportError as error:
        raise MissingDependencyError(
            "the report in HTML needs the package jinja2; pip install 'odegrad[cli]'"
        ) from error
    pictures = [
        (picture, caption)
        for picture, caption in (
            (taylor_picture(report.check("taylor")), _TAYLOR),
            (convergence_picture(report.check("convergence")), _CONVERGENCE),
            (costate_picture(report.check("costate")), _COSTATE),
        )
        if picture is not None
    ]
    head, *rows = table(report.modes)
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
        .render(
            report=report,
            solve=described(report.subject),
            head=head,
            rows=list(zip(rows, report.modes, strict=True)),
            pictures=pictures,
        )
    )


_TAYLOR = (
    "The remainder of the loss along a random direction, on the accepted grid. If the gradient is that "
    "of the computed loss, it falls with slope 2 until round-off."
)
_CONVERGENCE = (
    "Relative distances of the gradients at several step sizes. The traditional adjoint is inconsistent "
    "with the computed loss, though it is sometimes nearer to the continuous gradient."
)
_COSTATE = (
    "Left: the costate, which amplifies errors on its way back. Right: where in time the parameter "
    "gradient comes from."
)
