"""A sparse autoencoder: encode, decode, reconstruct, and what the reconstruction leaves out."""

from dataclasses import dataclass, field
from typing import Any

import jax
from einops import einsum
from jaxtyping import Array, Float

from jaxcircuits.config import SAEConfig
from jaxcircuits.errors import InputError
from jaxcircuits.sae.activations import ACTIVATIONS
from jaxcircuits.sae.normalization import norm_of, normalized
from jaxcircuits.types import SAEWeights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SAE:
    """Weights (leaves of the pytree) and their description (static)."""

    weights: Any  # SAEWeights of arrays; of shapes, shardings or axes where JAX rebuilds the tree
    cfg: SAEConfig = field(metadata={"static": True})

    def astype(self, dtype) -> "SAE":
        """The same autoencoder in another dtype."""
        return SAE(jax.tree.map(lambda w: w.astype(dtype), self.weights), self.cfg)


def pre_activations(sae: SAE, x: Float[Array, "... d_in"], *, hold_scale: bool = False) -> Float[Array, "... d_sae"]:
    """What the activation function is applied to: `(x - b_dec) W_enc + b_enc`, normalised first where `cfg` says so.

    Args:
        sae: The autoencoder.
        x: The hook's value.
        hold_scale: Whether derivatives take the scale of a normalised input as given.
    """
    weights: SAEWeights = sae.weights
    x = normalized(sae.cfg, x, hold_scale=hold_scale)
    if sae.cfg.subtract_b_dec:
        x = x - weights.b_dec
    return einsum(x, weights.W_enc, "... d_in, d_in d_sae -> ... d_sae") + weights.b_enc


def activate(sae: SAE, pre_acts: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
    """Feature activations from pre-activations."""
    return ACTIVATIONS[sae.cfg.activation](pre_acts, sae.weights, sae.cfg)


def encode(sae: SAE, x: Float[Array, "... d_in"], *, hold_scale: bool = False) -> Float[Array, "... d_sae"]:
    """Feature activations of a hook's value.

    Args:
        sae: The autoencoder.
        x: The hook's value.
        hold_scale: Whether derivatives take the scale of a normalised input as given.

    Source: the original study's autoencoder, `relu((x - b_dec) W_enc + b_enc)`; others as in `sae.activations`.

    >>> import jax.numpy as jnp
    >>> from jaxcircuits import decode, encode, load_bundle
    >>> sae = load_bundle().saes["blocks.0.mlp.hook_post"]
    >>> feature_acts = encode(sae, jnp.ones(sae.cfg.d_in))
    >>> feature_acts.shape == (sae.cfg.d_sae,) and bool((feature_acts >= 0).all())
    True
    """
    return activate(sae, pre_activations(sae, x, hold_scale=hold_scale))


def decode(
    sae: SAE, features: Float[Array, "... d_sae"], x: Float[Array, "... d_in"] | None = None
) -> Float[Array, "... d_out"]:
    """Reconstruction from feature activations: `feature_acts W_dec + b_dec`.

    Args:
        sae: The autoencoder.
        features: Its feature activations.
        x: The value that was encoded: needed where it was normalised, which is undone here, or where a transcoder
            adds a linear map of it.

    Raises:
        InputError: `x` is needed and missing.
    """
    weights: SAEWeights = sae.weights
    out = einsum(features, weights.W_dec, "... d_sae, d_sae d_out -> ... d_out") + weights.b_dec
    if x is None:
        if sae.cfg.normalization != "none" or sae.cfg.skip:
            raise InputError("this SAE's output depends on its input besides the features; pass the input to decode.")
        return out
    norm = norm_of(sae.cfg, x)
    if norm is not None:
        out = out * norm.out_scale + norm.shift
    return out if weights.W_skip is None else out + einsum(x, weights.W_skip, "... d_in, d_in d_out -> ... d_out")


def reconstruct(sae: SAE, x: Float[Array, "... d_in"]) -> Float[Array, "... d_out"]:
    """`sae_out`: the value that splicing puts in the place of the hook's; of a transcoder, of the hook it writes."""
    return decode(sae, encode(sae, x), x)


def sae_error(sae: SAE, x: Float[Array, "... d_in"]) -> Float[Array, "... d_in"]:
    """`x - sae_out`: what the features do not express.

    Raises:
        InputError: It is a transcoder, whose output stands for another value than its input.
    """
    if sae.cfg.transcodes:
        raise InputError("a transcoder's error is against the value it writes, not the one it reads.")
    return x - reconstruct(sae, x)
