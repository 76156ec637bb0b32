"""From pre-activations to feature activations: one entry an activation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.errors import InputError


class Activation(NamedTuple):
    """An activation function and its slope, both from pre-activations."""

    apply: Callable[[Float[Array, "... d_sae"]], Float[Array, "... d_sae"]]
    slope: Callable[[Float[Array, "... d_sae"]], Float[Array, "... d_sae"]]


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(jax.nn.relu, lambda pre_acts: jnp.where(pre_acts > 0, 1.0, 0.0).astype(pre_acts.dtype)),
}


def activation(name: str) -> Activation:
    """The activation of that name.

    Raises:
        InputError: None has that name.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"unknown SAE activation {name!r}; this version has {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]
