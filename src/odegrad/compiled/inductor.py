"""Graphs as programs: what is asked of Inductor, and what happens where it cannot."""

from __future__ import annotations

import contextlib
import sysconfig
import warnings
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.fx import GraphModule

from odegrad.compiled.tracing import NotCompilable, first_line

__all__ = [
    "Backend",
    "compile_graph",
    "compiler_obstacle",
    "current_backend",
    "inductor_program",
    "using_backend",
]

Backend: TypeAlias = Literal["inductor", "steps", "interpreter", "recorded"]
"""How programs run: compiled with their loops, compiled step by step, as the graphs they are, or as those
on buffers that stay in place, as on CUDA.
"""

_backend: ContextVar[Backend] = ContextVar("backend", default="inductor")


@contextlib.contextmanager
def using_backend(backend: Backend) -> Generator[None]:
    """Within it, programs are made for another backend (the tests compare them)."""
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)


def current_backend() -> Backend:
    """The backend for which programs are made now."""
    return _backend.get()


def compile_graph(
    module: GraphModule, examples: Sequence[Tensor], tell: Callable[[str], object]
) -> Callable[..., Any]:
    """A graph as a fast callable for tensors like `examples`; itself if it cannot be compiled.

    Arguments:
        module: The graph.
        examples: Stand-ins for its inputs.
        tell: Is told why it cannot.
    """
    if current_backend() in ("interpreter", "recorded"):
        return module
    try:
        return inductor_program(module, examples)
    except NotCompilable as reason:
        tell(f"a step cannot be compiled: {reason}")
        return module


def inductor_program(module: GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
    """A graph compiled by Inductor.

    Raises:
        NotCompilable: If it cannot be.
    """
    import torch._inductor as inductor
    from torch._inductor import exc

    options: dict[str, Any] = {}
    if all(x.device.type == "cpu" for x in examples):
        options["cpp_wrapper"] = True  # no Python between the kernels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch, even where they are errors
            program: Any = inductor.compile(module, list(examples), options=options)
    except exc.CppCompileError as error:
        raise NotCompilable("the C++ compiler failed; see the error above this one") from error
    except Exception as error:
        raise NotCompilable(f"Inductor failed: {first_line(error)}") from error
    return program


def compiler_obstacle() -> str | None:
    """Why nothing can be compiled for the CPU on this machine, or None, which is remembered."""
    if _found:
        return None
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler was found; install g++ or clang, or set CXX"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers (Python.h) are missing; install python3-dev or its like"
    _found.append("a compiler and headers")
    return None


_found: list[str] = []
