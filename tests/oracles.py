"""What the tests compare with: a Runge–Kutta step that shares no code with the library.

It is a plain loop over plain tensors; derivatives come from torch's own forward or reverse mode.
"""

from __future__ import annotations

import warnings

import torch

with warnings.catch_warnings():  # torch's forward mode scripts some functions when first used
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._decomp.decompositions_for_jvp


def columns(c, leaf):
    """A step per sample, with trailing axes."""
    if not isinstance(c, torch.Tensor) or c.ndim == 0:
        return c
    return c.reshape(-1, *[1] * (leaf.ndim - 1))


def rk_step(tableau, f, t, dt, y, first=None):
    """(y⁺, slopes) of one explicit Runge–Kutta step.

    Arguments:
        tableau: (a, b, c) as nested sequences.
        f: Maps (t, list of leaves) to a list of leaves.
        t: A 0-dim tensor or one time per sample.
        dt: Likewise.
        y: List of leaves.
        first: The first slope, if it is known.
    """
    a, b, c = tableau
    slopes = []
    for i in range(len(b)):
        if i == 0 and first is not None:
            slopes.append(list(first))
            continue
        stage = [
            leaf + columns(dt, leaf) * sum((a[i][j] * slopes[j][m] for j in range(i)), 0 * leaf)
            for m, leaf in enumerate(y)
        ]
        slopes.append(list(f(t + c[i] * dt, stage)))
    new = [
        leaf + columns(dt, leaf) * sum(b[i] * slopes[i][m] for i in range(len(b)))
        for m, leaf in enumerate(y)
    ]
    return new, slopes


def real_inner(x, y):
    """Re⟨x, y⟩ over two sequences of tensors, where None is zero."""
    total = 0.0
    for a, b in zip(x, y, strict=True):
        if a is not None and b is not None:
            total += float((a.conj() * b).real.sum() if a.is_complex() else (a * b).sum())
    return total


def randn_like(tensors, seed):
    """Random tensors like `tensors`."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in tensors]
