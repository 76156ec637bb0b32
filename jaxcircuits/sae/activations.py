"""From pre-activations to feature activations: one entry an activation.

Whatever the activation, a feature that is on has its pre-activation as its value, so its slope is 1 where it is on
and 0 elsewhere: the exact derivative on the active set. What else an autoencoder may be is one of these:

- BatchTopK at inference keeps what exceeds one threshold: a JumpReLU.
- A gated one is on where `e + b_gate > 0` and then has the value `e exp(r_mag) + b_mag`. With `W_enc exp(r_mag)` for
  its encoder, that is a JumpReLU of threshold `b_mag - b_gate exp(r_mag)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.config import SAEConfig
from jaxcircuits.types import SAEWeights

PreActs = Float[Array, "... d_sae"]


def _relu(pre_acts: PreActs, weights: SAEWeights, cfg: SAEConfig) -> PreActs:
    return jax.nn.relu(pre_acts)


def _jumprelu(pre_acts: PreActs, weights: SAEWeights, cfg: SAEConfig) -> PreActs:
    """Positive and strictly above the feature's threshold."""
    assert weights.threshold is not None
    return jnp.where(pre_acts > weights.threshold, jax.nn.relu(pre_acts), 0)


def _topk(pre_acts: PreActs, weights: SAEWeights, cfg: SAEConfig) -> PreActs:
    """The `k` largest of a token, as far as they are positive; of equal ones the earlier."""
    assert cfg.k is not None
    values, index = jax.lax.top_k(pre_acts, cfg.k)
    return jnp.put_along_axis(jnp.zeros_like(pre_acts), index, jax.nn.relu(values), -1, inplace=False)


def _groupmax(pre_acts: PreActs, weights: SAEWeights, cfg: SAEConfig) -> PreActs:
    """The largest of each of `k` groups of neighbours, as far as it is positive."""
    assert cfg.k is not None
    groups = jax.nn.relu(pre_acts).reshape(*pre_acts.shape[:-1], cfg.k, -1)
    largest = jnp.arange(groups.shape[-1]) == groups.argmax(-1, keepdims=True)
    return jnp.where(largest, groups, 0).reshape(pre_acts.shape)


ACTIVATIONS: dict[str, Callable[[PreActs, SAEWeights, SAEConfig], PreActs]] = {
    "relu": _relu,
    "jumprelu": _jumprelu,
    "topk": _topk,
    "groupmax": _groupmax,
}
"""By the name in `SAEConfig.activation`."""

ELEMENTWISE = ("relu", "jumprelu")
"""Those that look at one feature alone."""
