"""What stands between an MLP's two matrices: its value, and the gate that it is a multiple of."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Elementwise = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class Activation(NamedTuple):
    """An activation function and its ratio `value(u) / u`, which has a value at zero too."""

    value: Elementwise
    ratio: Elementwise


def _tanh_gate(u: Float[Array, "..."]) -> Float[Array, "..."]:
    return 0.5 * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi).astype(u.dtype) * (u + 0.044715 * u**3)))


def _erf_gate(u: Float[Array, "..."]) -> Float[Array, "..."]:
    return 0.5 * (1 + jax.lax.erf(u / jnp.sqrt(2.0).astype(u.dtype)))


ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": Activation(partial(jax.nn.gelu, approximate=True), _tanh_gate),
    "gelu": Activation(partial(jax.nn.gelu, approximate=False), _erf_gate),
    "relu": Activation(jax.nn.relu, lambda u: (u > 0).astype(u.dtype)),
    "silu": Activation(jax.nn.silu, jax.nn.sigmoid),
}
"""By the names of `config.ACTIVATIONS`."""
