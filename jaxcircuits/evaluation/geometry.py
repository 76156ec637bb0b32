"""Weights alone: norms of encoder and decoder, how far each feature reads what it writes, and its nearest neighbour."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.sae import SAE

CHUNK = 2048
"""Features compared with all others at a time."""


def geometry(sae: SAE) -> dict[str, np.ndarray]:
    """One number a feature.

    Returns:
        - `encoder_norm`, `decoder_norm`, `encoder_bias`
        - `encoder_decoder_cosine`: of its encoder column and decoder row; NaN for a transcoder, which reads and writes
          different things
        - `nearest`, `nearest_cosine`: the feature of most similar decoder row, and that cosine

    Source: SAELens 6.54, `get_featurewise_weight_based_metrics`, for norm, bias and cosine of the encoder.
    """
    weights = sae.weights
    encoder_norm, decoder_norm = jnp.linalg.norm(weights.W_enc, axis=0), jnp.linalg.norm(weights.W_dec, axis=1)
    cosine = jnp.full(sae.cfg.d_sae, jnp.nan)
    if not sae.cfg.transcodes:
        product = (weights.W_enc.T * weights.W_dec).sum(1)
        cosine = product / jnp.where(encoder_norm * decoder_norm > 0, encoder_norm * decoder_norm, 1)
    directions = unit_rows(weights.W_dec)
    found = [_nearest(directions, jnp.int32(start)) for start in range(0, sae.cfg.d_sae, CHUNK)]
    nearest, nearest_cosine = (
        np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*found, strict=True)
    )
    return {
        "encoder_norm": np.asarray(encoder_norm),
        "decoder_norm": np.asarray(decoder_norm),
        "encoder_bias": np.asarray(weights.b_enc),
        "encoder_decoder_cosine": np.asarray(cosine),
        "nearest": nearest[: sae.cfg.d_sae],
        "nearest_cosine": nearest_cosine[: sae.cfg.d_sae],
    }


def unit_rows(W: Float[Array, "n width"]) -> Float[Array, "n width"]:
    """Rows of length one; a row of zeros stays."""
    norm = jnp.linalg.norm(W, axis=-1, keepdims=True)
    return W / jnp.where(norm > 0, norm, 1)


@partial(jax.jit, static_argnames=())
def _nearest(
    directions: Float[Array, "d_sae d_out"], start: Int[Array, ""]
) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    rows = start + jnp.arange(min(CHUNK, len(directions)))
    cosines = directions[jnp.minimum(rows, len(directions) - 1)] @ directions.T
    cosines = jnp.where(rows[:, None] == jnp.arange(len(directions)), -jnp.inf, cosines)
    return cosines.argmax(1), cosines.max(1)


def neighbours(sae: SAE, feature: int, n: int) -> list[tuple[int, float]]:
    """The features of most similar decoder rows, most similar first, with their cosines."""
    directions = unit_rows(sae.weights.W_dec)
    cosines = np.asarray(directions @ directions[feature])
    order = [int(i) for i in np.argsort(-cosines, kind="stable") if i != feature][:n]
    return [(i, float(cosines[i])) for i in order]
