"""Does every tensor that f reads get a gradient?

A tensor whose gradient is zero is perturbed, by substitution. If the loss changes by more than rounding,
f reads the tensor where differentiation does not follow: through ``detach``, ``.data``, ``no_grad`` or
NumPy.
"""

from __future__ import annotations

import torch

from odegrad.audit.check import Check, Status
from odegrad.audit.subject import Subject

__all__ = ["coverage"]

_SIZE = 1e-2
"""Of a perturbation, relative to the tensor."""
_ROUNDING = 1000.0
"""A change of the loss by so many ε, relative to it, may be rounding."""


def coverage(subject: Subject, generator: torch.Generator) -> Check:
    """Names the tensors without a gradient."""
    pairs = list(zip(subject.groups, subject.first.grads, strict=True))
    broken = [name for name, g in pairs if not bool(torch.isfinite(g).all())]
    silent = [
        k for k, (_, g) in enumerate(pairs) if pairs[k][0] != "times" and not bool((g != 0).any())
    ]
    hidden, unread = _told_apart(subject, silent, generator)
    frozen = subject.names.frozen
    texts: list[str] = []
    status: Status = "passed"
    if unread or frozen:
        status = "information"
    if broken:
        texts.append(f"the gradient is not finite: {_listed(broken)}")
    if hidden:
        reads = "f reads it" if len(hidden) == 1 else "f reads them"
        texts.append(
            f"no gradient although the loss depends on it: {_listed(hidden)} ({reads} through detach, "
            ".data, no_grad or numpy; if that is meant, say requires_grad_(False))"
        )
    if broken or hidden:
        status = "flagged"
    if unread:
        texts.append(f"no gradient, and no influence on the loss: {_listed(unread)}")
    if frozen:
        texts.append(f"frozen (requires no grad): {_listed(frozen)}")
    if not texts:
        texts = [f"all {len(pairs)} inputs get a gradient: {_listed(subject.groups)}"]
    numbers = {"not_finite": broken, "hidden": hidden, "unread": unread, "frozen": frozen}
    return Check("coverage", status, "; ".join(texts), numbers, texts[0].split(" (")[0])


def _told_apart(
    subject: Subject, silent: list[int], generator: torch.Generator
) -> tuple[list[str], list[str]]:
    """Of the groups without a gradient: those that the loss depends on, and the others."""
    hidden: list[str] = []
    unread: list[str] = []
    if not silent:
        return hidden, unread
    directions = subject.directions(generator)
    base, _ = subject.evaluate(directions, 0.0)
    for k in silent:
        alone = tuple(v if i == k else torch.zeros_like(v) for i, v in enumerate(directions))
        changed, _ = subject.evaluate(alone, _SIZE)
        name = subject.groups[k]
        if not abs(changed - base) <= _ROUNDING * subject.eps * abs(base):
            hidden.append(name)
        elif subject.starts(name):
            unread.append(f"{name} (the initial state, whose gradient is that of y0)")
        else:
            unread.append(name)
    return hidden, unread


def _listed(names: list[str]) -> str:
    """Names on one line.

    Example:
        >>> _listed(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])
        'a, b, c, d, e, f, g, h and 2 more'
    """
    most = 8
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
