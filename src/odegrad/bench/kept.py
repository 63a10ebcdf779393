"""How many bytes an autograd graph holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["kept_bytes"]


def kept_bytes(outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> int:
    """The bytes of the storages that the graph behind `outputs` saved, beside those of `inputs`.

    Each storage counts once, and in full where only a part of it was saved, since all of it is held.

    Example:
        >>> import torch
        >>> x = torch.ones(100, requires_grad=True)
        >>> kept_bytes([x.exp().sin()], [x])  # exp saves its result, which is what sin saves
        400
    """
    given = {x.untyped_storage().data_ptr() for x in inputs}
    saved: dict[int, int] = {}
    for node in _nodes(outputs):
        for x in _saved_by(node):
            storage = x.untyped_storage()
            if storage.data_ptr() not in given:
                saved[storage.data_ptr()] = storage.nbytes()
    return sum(saved.values())


def _nodes(outputs: Iterable[Tensor]) -> Iterator[Any]:
    seen: set[Any] = set()
    waiting: list[Any] = [x.grad_fn for x in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        yield node


_SAVED: dict[type, list[str]] = {}  # names of the saved tensors, by the type of the node


def _saved_by(node: Any) -> Iterator[Tensor]:
    if type(node) not in _SAVED:
        names = [name for name in dir(node) if name.startswith("_saved_")]
        _SAVED[type(node)] = names + (["saved_tensors"] if hasattr(node, "saved_tensors") else [])
    for name in _SAVED[type(node)]:
        value: Any = getattr(node, name)
        for x in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(x, Tensor):
                yield x
