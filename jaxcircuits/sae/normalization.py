"""What some autoencoders do to their input first, and undo in their output.

Source: SAELens 6.54 (`normalize_activations`). Its other two kinds, `expected_average_only_in` and
`covariance_whitening`, do nothing when an autoencoder runs: their factor is folded into the weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.config import SAEConfig

EPS = 1e-5
"""Added to the standard deviation of the input, not to that of the output."""


class Norm(NamedTuple):
    """How one value was normalised: `(x - shift) / scale` goes in, `y * out_scale + shift` comes out."""

    shift: Float[Array, "... 1"]
    scale: Float[Array, "... 1"]
    out_scale: Float[Array, "... 1"]


def norm_of(cfg: SAEConfig, x: Float[Array, "... d_in"], *, hold_scale: bool = False) -> Norm | None:
    """How an autoencoder normalises a value; `None` where it does not.

    - `constant_norm_rescale`: to the norm `sqrt(d_in)`.
    - `layer_norm`: to mean 0 and standard deviation 1, Bessel-corrected.

    Args:
        cfg: The autoencoder.
        x: The hook's value.
        hold_scale: Whether derivatives take the scale as given, as the frozen derivative takes a layer norm's.
    """
    if cfg.normalization == "none":
        return None
    zero = jnp.zeros_like(x[..., :1])
    if cfg.normalization == "constant_norm_rescale":
        shift, scale, eps = zero, jnp.linalg.norm(x, axis=-1, keepdims=True) / jnp.sqrt(x.shape[-1]).astype(x.dtype), 0
    else:
        shift, scale, eps = x.mean(-1, keepdims=True), x.std(-1, keepdims=True, ddof=1), EPS
    if hold_scale:
        scale = jax.lax.stop_gradient(scale)
    return Norm(shift, scale + eps, scale)


def normalized(cfg: SAEConfig, x: Float[Array, "... d_in"], *, hold_scale: bool = False) -> Float[Array, "... d_in"]:
    """A value as the encoder takes it; arguments as of `norm_of`."""
    norm = norm_of(cfg, x, hold_scale=hold_scale)
    return x if norm is None else (x - norm.shift) / norm.scale
