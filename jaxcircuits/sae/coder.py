"""A sparse autoencoder: encode, decode, reconstruct, and what the reconstruction leaves out."""

from dataclasses import dataclass, field
from typing import Any

import jax
from einops import einsum
from jaxtyping import Array, Float

from jaxcircuits.config import SAEConfig
from jaxcircuits.sae.activations import activation
from jaxcircuits.types import SAEWeights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SAE:
    """Weights (leaves of the pytree) and their description (static)."""

    weights: Any  # SAEWeights of arrays; of shapes, shardings or axes where JAX rebuilds the tree
    cfg: SAEConfig = field(metadata={"static": True})

    def astype(self, dtype) -> "SAE":
        """The same autoencoder in another dtype."""
        return SAE(SAEWeights(*(w.astype(dtype) for w in self.weights)), self.cfg)


def pre_activations(sae: SAE, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
    """What the activation function is applied to: `(x - b_dec) W_enc + b_enc`."""
    weights: SAEWeights = sae.weights
    if sae.cfg.subtract_b_dec:
        x = x - weights.b_dec
    return einsum(x, weights.W_enc, "... d_in, d_in d_sae -> ... d_sae") + weights.b_enc


def encode(sae: SAE, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
    """Feature activations of a hook's value.

    Source: the original study's autoencoder, `relu((x - b_dec) W_enc + b_enc)`.

    >>> import jax.numpy as jnp
    >>> from jaxcircuits import decode, encode, load_bundle
    >>> sae = load_bundle().saes["blocks.0.mlp.hook_post"]
    >>> feature_acts = encode(sae, jnp.ones(sae.cfg.d_in))
    >>> feature_acts.shape == (sae.cfg.d_sae,) and bool((feature_acts >= 0).all())
    True
    """
    return activation(sae.cfg.activation).apply(pre_activations(sae, x))


def decode(sae: SAE, features: Float[Array, "... d_sae"]) -> Float[Array, "... d_in"]:
    """Reconstruction from feature activations: `feature_acts W_dec + b_dec`."""
    weights: SAEWeights = sae.weights
    return einsum(features, weights.W_dec, "... d_sae, d_sae d_in -> ... d_in") + weights.b_dec


def reconstruct(sae: SAE, x: Float[Array, "... d_in"]) -> Float[Array, "... d_in"]:
    """`sae_out`: the value that splicing puts in the place of `x`."""
    return decode(sae, encode(sae, x))


def sae_error(sae: SAE, x: Float[Array, "... d_in"]) -> Float[Array, "... d_in"]:
    """`x - sae_out`: what the features do not express."""
    return x - reconstruct(sae, x)
