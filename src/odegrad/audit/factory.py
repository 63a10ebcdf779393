"""From MODULE:FACTORY to the arguments of an audit."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from odegrad.audit.check import short
from odegrad.errors import InvalidValueError

__all__ = ["arguments"]


def arguments(factory: str) -> dict[str, Any]:
    """What the function `factory` returns, as keyword arguments of `odegrad.audit`.

    Arguments:
        factory: ``module:function``; the module may lie in the current directory.

    Raises:
        InvalidValueError: If there is no such function, it fails, or it returns something else.

    Example:
        >>> sorted(arguments("odegrad.fit:hare_lynx"))
        ['f', 'loss', 'stepsize', 'ts', 'y0']
    """
    module, _, name = factory.partition(":")
    if not (module and name):
        raise InvalidValueError(
            f"{factory!r} is not like MODULE:FACTORY, such as odegrad.fit:hare_lynx"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        made: Any = getattr(importlib.import_module(module), name)()
    except Exception as error:
        raise InvalidValueError(f"{factory}: {short(error)}") from error
    if not isinstance(made, Mapping):
        raise InvalidValueError(
            f"{factory} must return a mapping of arguments such as f, y0, ts and loss, received "
            f"{type(made).__name__}"
        )
    return {str(key): value for key, value in made.items()}
