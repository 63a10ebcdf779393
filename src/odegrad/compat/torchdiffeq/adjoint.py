"""What `odeint_adjoint` is told about a backward solve that does not exist here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from odegrad.errors import InvalidTypeError, InvalidValueError, warn

__all__ = ["check_adjoint"]

_warned: list[bool] = []


def check_adjoint(
    func: Callable[..., Any],
    forward: tuple[Any, Any, str | None, dict[str, Any] | None],
    given: tuple[Any, Any, str | None, dict[str, Any] | None],
    params: Iterable[Tensor] | None,
) -> tuple[Tensor, ...]:
    """The tensors to differentiate beside those that func is found to read.

    Arguments:
        func: The user's function.
        forward: rtol, atol, method and options of the forward solve.
        given: Those of the backward solve, None if not given; what differs draws one warning.
        params: As given, or None.

    Raises:
        InvalidValueError: Where torchdiffeq raises ValueError.
        InvalidTypeError: If `params` holds something else than tensors.
    """
    if params is None and not isinstance(func, nn.Module):
        raise InvalidValueError(
            "func must be an instance of nn.Module to specify the adjoint parameters; alternatively they "
            "can be specified explicitly via the `adjoint_params` argument. If there are no parameters "
            "then it is allowable to set `adjoint_params=()`. (`odeint` needs neither.)"
        )
    method, options = forward[2], forward[3]
    other = given[2] if given[2] is not None else method
    if other != method and options is not None and given[3] is None:
        raise InvalidValueError(
            "If `adjoint_method != method` then we cannot infer `adjoint_options` from `options`. So as "
            "`options` has been passed then `adjoint_options` must be passed as well."
        )
    _warn_once(forward, given)
    if isinstance(params, Tensor):
        raise InvalidTypeError(
            "adjoint_params must be a tuple of tensors, received a tensor of shape "
            f"{list(params.shape)}; write (tensor,)"
        )
    tensors = () if params is None else tuple(params)
    for x in tensors:
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(
                f"adjoint_params must be tensors, received {type(x).__name__} among them"
            )
    return tuple(x for x in tensors if x.requires_grad)


def _warn_once(forward: tuple[Any, ...], given: tuple[Any, ...]) -> None:
    names = ("adjoint_rtol", "adjoint_atol", "adjoint_method")
    differing = [
        name
        for name, x, y in zip(names, given, forward, strict=False)
        if x is not None and not _same(x, y)
    ]
    if given[3] is not None:
        own = {k: v for k, v in given[3].items() if not (k == "norm" and v == "seminorm")}
        before = {k: v for k, v in (forward[3] or {}).items() if k != "norm"}
        if own and not _same(own, before):
            differing.append("adjoint_options")
    if differing and not _warned:
        _warned.append(True)
        warn(
            f"{', '.join(differing)} have no meaning here and are ignored: the gradient is that of the "
            "forward solve, by its own steps, and nothing is solved backwards (said once)"
        )


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(_same(x[key], y[key]) for key in x)
    if isinstance(x, (tuple, list)) and isinstance(y, (tuple, list)):
        return len(x) == len(y) and all(map(_same, x, y))
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        if callable(x) or callable(y):
            return x is y
        a, b = torch.as_tensor(x), torch.as_tensor(y)
        return a.shape == b.shape and bool((a == b).all())
    return bool(x == y)
