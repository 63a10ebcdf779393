"""The fields of the workloads in JAX, with the weights of their torch modules.

Matrices are stored as [in, out], as in most JAX code: with torch's [out, in], XLA's gradient of an MLP
takes 1.6 times as long. Convolutions keep torch's layout, which is the faster one for their gradient on
a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from odegrad.bench.workloads import ContinuousFlow, ConvBlock, Mlp, VanDerPol

__all__ = ["cotangents", "parameters", "twin"]

Arrays = dict[str, jax.Array]
Field = Callable[[Arrays, Any], Any]
"""(parameters by name, y) ↦ dy; no field of the workloads reads the time."""

ACTIVATIONS: dict[Any, Callable[[jax.Array], jax.Array]] = {
    torch.tanh: jnp.tanh,
    nn.functional.softplus: jax.nn.softplus,
}


def parameters(field: nn.Module) -> Arrays:
    """The parameters of a module by name, as JAX code stores them."""
    return {name: jnp.asarray(_turned(x.detach().numpy())) for name, x in field.named_parameters()}


def cotangents(field: nn.Module, grads: Arrays) -> list[Tensor]:
    """Cotangents of `parameters(field)` as those of the module's parameters, in their order."""
    return [torch.tensor(_turned(np.asarray(grads[name]))) for name, _ in field.named_parameters()]


def _turned(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(x.T) if x.ndim == 2 else x


@singledispatch
def twin(field: nn.Module) -> Field:
    """The JAX function that computes what a torch module does."""
    raise NotImplementedError(f"{type(field).__name__} has no twin in JAX")


@twin.register
def _(field: Mlp) -> Field:
    return partial(_mlp, "", len(field.layers), ACTIVATIONS[field.activation])


@twin.register
def _(field: ConvBlock) -> Field:
    del field

    def conv(p: Arrays, name: str, y: jax.Array) -> jax.Array:
        layout = ("NCHW", "OIHW", "NCHW")
        y = jax.lax.conv_general_dilated(
            y, p[f"{name}.weight"], (1, 1), "SAME", dimension_numbers=layout
        )
        return y + p[f"{name}.bias"][:, None, None]

    return lambda p, y: conv(p, "second", jnp.tanh(conv(p, "first", y)))


@twin.register
def _(field: ContinuousFlow) -> Field:
    noise = jnp.asarray(field.noise.numpy())
    net = partial(_mlp, "net.", len(field.net.layers), ACTIVATIONS[field.net.activation])

    def flow(p: Arrays, y: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dz, pull = jax.vjp(partial(net, p), y[0])
        (row,) = pull(noise)
        return dz, -(row * noise).sum(axis=1)

    return flow


@twin.register
def _(field: VanDerPol) -> Field:
    del field

    def oscillator(p: Arrays, y: jax.Array) -> jax.Array:
        x, v = y[:, 0], y[:, 1]
        return jnp.stack((v, p["mu"] * (1 - x * x) * v - x), axis=1)

    return oscillator


def _mlp(
    prefix: str,
    depth: int,
    activation: Callable[[jax.Array], jax.Array],
    p: Arrays,
    y: jax.Array,
) -> jax.Array:
    for i in range(depth):
        y = y @ p[f"{prefix}layers.{i}.weight"] + p[f"{prefix}layers.{i}.bias"]
        y = activation(y) if i + 1 < depth else y
    return y
