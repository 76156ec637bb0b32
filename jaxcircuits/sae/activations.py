"""From pre-activations to feature activations: one entry an activation."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from jaxcircuits.errors import InputError

ACTIVATIONS: dict[str, Callable[[Float[Array, "... d_sae"]], Float[Array, "... d_sae"]]] = {
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of that name.

    Raises:
        InputError: None has that name.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"unknown SAE activation {name!r}; this version has {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]
