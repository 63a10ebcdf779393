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


def adams_weights(nodes, h):
    """∫_0^h ℓ_i for the Lagrange basis on the nodes, by expansion in powers: a list of tensors.

    Arguments:
        nodes: A list of numbers or tensors.
        h: The end of the integral.
    """
    weights = []
    for i, node in enumerate(nodes):
        powers = [torch.ones_like(h)]  # of the product of the (τ − τ_j), the constant first
        scale = torch.ones_like(h)
        for j, other in enumerate(nodes):
            if j != i:
                up, down = [0 * h, *powers], [*(-other * c for c in powers), 0 * h]
                powers = [a + b for a, b in zip(up, down, strict=True)]
                scale = scale * (node - other)
        weights.append(sum(c * h ** (m + 1) / (m + 1) for m, c in enumerate(powers)) / scale)
    return weights


def adams_step(f, t, h, y, times, slopes, order, corrections=None):
    """(y⁺, slope at t) of one step of full order; `corrections` None is Adams–Bashforth.

    Arguments:
        f: Maps (t, list of leaves) to a list of leaves.
        t: A 0-dim tensor or one time per sample.
        h: Likewise.
        y: List of leaves.
        times: The times of the earlier slopes, the latest first.
        slopes: These slopes, lists of leaves.
        order: The order.
        corrections: How often to correct, by Adams–Moulton.
    """
    slope = list(f(t, y))
    known, nodes = [slope, *slopes], [0 * h, *(time - t for time in times)]

    def added(nodes, slopes):
        weights = adams_weights(nodes, h)
        return [
            leaf + sum(columns(w, leaf) * k[m] for w, k in zip(weights, slopes, strict=True))
            for m, leaf in enumerate(y)
        ]

    new = added(nodes, known)
    for _ in range(corrections or 0):
        new = added([h, *nodes[: order - 1]], [list(f(t + h, new)), *known[: order - 1]])
    return new, slope


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
