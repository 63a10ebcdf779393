"""The state of a solve as a flat tuple of tensors, and the few vector operations on it.

A user's state is any pytree of tensors. Inside the library it is always `Leaves`, a tuple of tensors,
so that every scheme is written once for all structures. Linear combinations of leaves go through
`axpy` alone: one rounding order for floats, 0-dim tensors and per-sample tensors. (``alpha=`` of
`torch.add` would fuse the multiply-add and differ in the last bit.) Of leaves in half precision the sum
is formed in single precision and rounded once: what is stored is what f is evaluated at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = [
    "Leaves",
    "OptionalLeaves",
    "Structure",
    "Time",
    "add",
    "align",
    "axpy",
    "choose",
    "column",
    "combine",
    "inner",
    "is_half",
    "is_legacy_batched",
    "is_stand_in",
    "nbytes",
    "number",
    "off_graph",
    "real_dtype",
    "rms_norm",
    "rounded",
    "scale",
    "wide",
    "widest_real_dtype",
]

Leaves: TypeAlias = tuple[Tensor, ...]
"""A state, slope, cotangent or list of parameters: one tensor per leaf."""

OptionalLeaves: TypeAlias = tuple[Tensor | None, ...]
"""Like `Leaves`; None stands for a leaf that is structurally zero."""

Time: TypeAlias = float | Tensor
"""A time or a step: a float, a 0-dim tensor, or a tensor of shape [B] with one entry per sample."""


class Structure:
    """The shape of a pytree: takes it apart and puts it together again.

    Arguments:
        tree: The pytree whose structure is meant.
    """

    def __init__(self, tree: Any) -> None:
        leaves, self._spec = pytree.tree_flatten(tree)
        self.n_leaves = len(leaves)
        self._is_tensor = isinstance(tree, Tensor)  # the usual case, which has to be quick

    def flatten(self, tree: Any) -> list[Any] | None:
        """The leaves of `tree`, or None if it has another structure than this one."""
        if self._is_tensor and isinstance(tree, Tensor):
            return [tree]
        leaves, spec = pytree.tree_flatten(tree)
        return leaves if spec == self._spec else None

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The pytree that holds `leaves`."""
        if self._is_tensor:
            return leaves[0]
        return pytree.tree_unflatten(list(leaves), self._spec)

    def leaf_names(self) -> list[str]:
        """A name for each leaf, such as ``y0['q']``, for messages."""
        tree = pytree.tree_unflatten(list(range(self.n_leaves)), self._spec)
        pairs, _ = pytree.tree_flatten_with_path(tree)
        return [pytree.keystr(path) for path, _ in pairs]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self._spec == other._spec

    def __hash__(self) -> int:
        return hash(repr(self._spec))

    def __repr__(self) -> str:
        return repr(self.unflatten(["*"] * self.n_leaves)).replace("'*'", "*")


def is_legacy_batched(x: Tensor) -> bool:
    """Whether x is a batch of `torch.autograd.grad(is_grads_batched=True)`, which few operations take."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(x))  # pyright: ignore


def is_stand_in(x: Tensor) -> bool:
    """Whether x stands for a tensor in a step that is being traced; it must not be remembered."""
    return type(x) is not Tensor and hasattr(x, "fake_device")


def off_graph(x: Tensor) -> Tensor:
    """x without its history: a view, where there are views."""
    if is_legacy_batched(x):
        with torch.no_grad():
            return x.clone()
    return x.detach()


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the real and imaginary parts of `dtype`."""
    return dtype.to_real() if dtype.is_complex else dtype


def widest_real_dtype(leaves: Sequence[Tensor]) -> torch.dtype:
    """The widest real dtype among `leaves` (float32 for no leaves)."""
    dtypes = [real_dtype(leaf.dtype) for leaf in leaves]
    return max(dtypes, key=lambda d: torch.finfo(d).bits) if dtypes else torch.float32


_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}


def wide(x: Tensor) -> Tensor:
    """x in at least single precision, in which sums are formed."""
    dtype = _WIDER.get(x.dtype)
    return x if dtype is None else x.to(dtype)


def is_half(x: Tensor) -> bool:
    """Whether x is in half precision."""
    return x.dtype in _WIDER


def rounded(x: Sequence[Tensor], like: Sequence[Tensor]) -> Leaves:
    """x in the dtypes of `like`, leaf by leaf."""
    return tuple(a if a.dtype == b.dtype else a.to(b.dtype) for a, b in zip(x, like, strict=True))


def align(c: Time, leaf: Tensor) -> Time:
    """The coefficient `c` in a form that broadcasts against `leaf` without changing its dtype.

    Floats pass; 0-dim tensors take the leaf's real dtype and device; tensors of shape [B] also gain
    trailing axes, so that entry b multiplies ``leaf[b]``.
    """
    if not isinstance(c, Tensor):
        return c
    c = c.to(device=leaf.device, dtype=real_dtype(leaf.dtype))
    return c.reshape(c.shape + (1,) * (leaf.ndim - 1)) if c.ndim else c


def scale(c: Time, x: Leaves) -> Leaves:
    """c · x, leaf by leaf."""
    return tuple(leaf * align(c, leaf) for leaf in x)


def choose(mask: Tensor, new: Leaves, old: Leaves) -> Leaves:
    """`new` where the mask is set, else `old`, leaf by leaf.

    Arguments:
        mask: bool, one for all (0-dim) or one for each sample, shape [B].
        new: Leaves, with one row per sample if the mask has one.
        old: Likewise.
    """
    found: list[Tensor] = []
    for a, b in zip(new, old, strict=True):
        own = mask.to(a.device)
        if own.ndim:
            own = own.reshape(-1, *[1] * (a.ndim - 1))
        found.append(torch.where(own, a, b))
    return tuple(found)


def add(x: OptionalLeaves | None, y: OptionalLeaves | None) -> OptionalLeaves | None:
    """x + y, where None (for all leaves or for one) is zero."""
    if x is None or y is None:
        return y if x is None else x
    return tuple(b if a is None else a if b is None else a + b for a, b in zip(x, y, strict=True))


def combine(h: Time, weights: Sequence[float], slopes: Sequence[Leaves]) -> Leaves | None:
    """h Σ_j w_j k_j over the non-zero weights, or None if there are none.

    The product h·w_j is formed first, in double precision for floats and float64 tensors.
    """
    if isinstance(h, Tensor) and h.ndim == 1 and not is_stand_in(h):
        return _combined(None, h, weights, slopes)
    total: list[Tensor] | None = None
    for weight, slope in zip(weights, slopes, strict=False):
        if weight == 0.0:
            continue
        terms = scale(h * weight, tuple(map(wide, slope)))
        total = list(terms) if total is None else list(map(torch.add, total, terms))
    return None if total is None else rounded(total, slopes[0])


def axpy(y: Leaves, h: Time, weights: Sequence[Time], slopes: Sequence[Leaves]) -> Leaves:
    """y + (h Σ_j w_j k_j), the sum from left to right, zero weights skipped.

    The increment is summed before it is added: it is small, and y is rounded once.

    Arguments:
        y: The state, leaves of any shape.
        h: The step.
        weights: w, one number (or 0-dim tensor) per slope; slopes beyond its length are ignored.
        slopes: k, each with the shapes of `y`.
    """
    if isinstance(h, Tensor) and h.ndim == 1 and _are_numbers(weights) and not is_stand_in(h):
        numbers = tuple(w for w in weights if not isinstance(w, Tensor))
        return _combined(y, h, numbers, slopes) or y
    total: list[Tensor] | None = None
    for weight, slope in zip(weights, slopes, strict=False):
        if isinstance(weight, Tensor) or weight != 0.0:
            terms = scale(h * weight, tuple(map(wide, slope)))
            total = list(terms) if total is None else list(map(torch.add, total, terms))
    if total is None:
        return y
    return rounded([wide(a) + b for a, b in zip(y, total, strict=True)], y)


def _are_numbers(weights: Sequence[Time]) -> bool:
    return not any(isinstance(w, Tensor) for w in weights)


def _combined(
    y: Leaves | None, h: Tensor, weights: Sequence[float], slopes: Sequence[Leaves]
) -> Leaves | None:
    """`axpy` (`combine` without y) for a step per sample: the same sums, in fewer operations."""
    pairs = [(w, k) for w, k in zip(weights, slopes, strict=False) if w != 0.0]
    if not pairs:
        return None
    table = column(tuple(w for w, _ in pairs), h.dtype, h.device) * h
    result: list[Tensor] = []
    for i, leaf in enumerate(pairs[0][1]):
        first = wide(leaf)
        steps = table.to(device=leaf.device, dtype=real_dtype(first.dtype))
        steps = steps.reshape(*table.shape, *[1] * (leaf.ndim - 1)).unbind()
        terms = [wide(k[i]) * c for (_, k), c in zip(pairs, steps, strict=True)]
        total = reduce(torch.add, terms)
        result.append(total if y is None else wide(y[i]) + total)
    return rounded(result, pairs[0][1] if y is None else y)


@lru_cache(maxsize=1 << 10)
def column(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers below each other."""
    with torch.inference_mode(False):  # or they would serve in no other mode
        return torch.tensor(numbers, dtype=dtype, device=device)[:, None]


@lru_cache(maxsize=1 << 8)
def number(x: float) -> Tensor:
    """A number as a 0-dim float64 tensor on the CPU: torch makes one of each float at each call."""
    with torch.inference_mode(False):  # or it would serve in no other mode
        return torch.tensor(x, dtype=torch.float64, device="cpu")


def inner(x: Leaves, y: OptionalLeaves, like: Tensor) -> Tensor:
    """Re⟨x, y⟩ over all leaves, with the shape and dtype of `like`.

    For `like` of shape [B] the sum runs over everything but the first axis of each leaf; a 0-dim
    `like` gives the sum over all. Missing leaves of `y` are zero.
    """
    total = torch.zeros_like(like)
    for a, b in zip(x, y, strict=True):
        if b is not None:
            product = (a.conj() * b).real if a.is_complex() else a * b
            dims = tuple(range(like.ndim, product.ndim))
            summed = product.sum(dim=dims) if dims else product
            total = total + summed.to(dtype=like.dtype, device=like.device)
    return total


def rms_norm(leaves: Leaves) -> Tensor:
    """The root mean square over all elements of all leaves, a 0-dim tensor in at least float32.

    Reference: Hairer, Nørsett & Wanner, *Solving Ordinary Differential Equations I*, eq. II.4.11.
    """
    squares: list[Tensor] = []
    count = 0
    for leaf in leaves:
        wide = leaf if torch.finfo(leaf.dtype).bits >= 32 else leaf.float()
        squares.append(wide.abs().square().sum() if wide.is_complex() else wide.square().sum())
        count += leaf.numel()
    if count == 0:
        return torch.zeros((), device="cpu")
    first, *rest = squares
    for square in rest:
        first = first + square.to(first.device)
    return (first / count).sqrt()


def nbytes(leaves: Sequence[Tensor | None]) -> int:
    """The bytes of data that `leaves` hold."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if leaf is not None)
