"""Random weights of some size, by default the original's, with about as many active features a position."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig, SAEConfig
from jaxcircuits.model import forward, process_weights
from jaxcircuits.sae import SAE, pre_activations
from jaxcircuits.types import AttentionWeights, BlockWeights, MLPWeights, ModelWeights, NormWeights, SAEWeights

ACTIVE = {"blocks.0.mlp.hook_post": 20.0, "blocks.1.mlp.hook_post": 2.0}
"""Features active at a position, on average, by hook."""


class OriginalShape(NamedTuple):
    """A bundle of processed weights, and the same model's weights before processing."""

    bundle: Bundle
    unprocessed: ModelWeights


def original_shape_config(d_vocab: int = 1000) -> ModelConfig:
    """TinyStories-2Layers-33M, but for the vocabulary (50,257), of which attribution uses only a prompt's rows."""
    return ModelConfig(
        n_layers=2,
        d_model=1024,
        n_heads=16,
        d_head=64,
        d_mlp=4096,
        d_vocab=d_vocab,
        n_ctx=512,
        attention=("global", "local"),
        window=256,
        bos_token_id=0,
    )


def original_shape_bundle(seed: int = 0, *, d_vocab: int = 1000, d_sae: int = 16384) -> OriginalShape:
    """Random float32 weights of the original's size with an SAE on both layers' `mlp.hook_post`."""
    return random_bundle(original_shape_config(d_vocab), d_sae, seed)


def random_bundle(cfg: ModelConfig, d_sae: int, seed: int = 0, active: Mapping[str, float] = ACTIVE) -> OriginalShape:
    """The same of another size; SAEs of `d_sae` features on the hooks of `active`, so many of them on at a position.

    The arrays are JAX's, as `load_bundle` gives them: numpy arrays would be copied at every jitted call.
    On a CPU `np.asarray` of one copies nothing.
    """
    rng = np.random.default_rng(seed)
    unprocessed = _random_params(cfg, rng)
    params = process_weights(unprocessed, cfg.processing)
    # The longest prompt there is, so that the biases fit every length.
    _, acts = forward(params, cfg, jnp.asarray(random_prompt(cfg, cfg.n_ctx, seed)), taps=tuple(active), logits_at=None)
    saes = {hook: _random_sae(hook, acts[hook], d_sae, on, rng) for hook, on in active.items()}
    return OriginalShape(Bundle(cfg, params, saes), unprocessed)


def random_prompt(cfg: ModelConfig, length: int, seed: int = 0) -> Int[np.ndarray, "pos"]:
    """BOS, then random tokens."""
    tokens = np.random.default_rng([seed, length]).integers(1, cfg.d_vocab, length).astype(np.int32)
    tokens[0] = cfg.bos_token_id
    return tokens


def _random_params(cfg: ModelConfig, rng: np.random.Generator) -> ModelWeights:
    def normal(*shape: int, std: float) -> jax.Array:
        return jnp.asarray(np.float32(std) * rng.standard_normal(shape, np.float32))

    def norm() -> NormWeights:
        return NormWeights(1 + normal(cfg.d_model, std=0.1), normal(cfg.d_model, std=0.1))

    def block() -> BlockWeights:
        head, d_model, d_head, d_mlp = cfg.n_heads, cfg.d_model, cfg.d_head, cfg.d_mlp
        # Scores of order 1, whether or not they are scaled.
        score = d_model**-0.5 * d_head**-0.25 * cfg.attention_scale**-0.5
        attn = AttentionWeights(
            W_Q=normal(head, d_model, d_head, std=score),
            W_K=normal(head, d_model, d_head, std=score),
            W_V=normal(head, d_model, d_head, std=d_model**-0.5),
            W_O=normal(head, d_head, d_model, std=(head * d_head) ** -0.5),
            b_Q=jnp.zeros((head, d_head)),  # GPT-Neo has none of these three
            b_K=jnp.zeros((head, d_head)),
            b_V=jnp.zeros((head, d_head)),
            b_O=normal(d_model, std=0.1),
        )
        mlp = MLPWeights(
            W_in=normal(d_model, d_mlp, std=d_model**-0.5),
            b_in=normal(d_mlp, std=0.1),
            W_out=normal(d_mlp, d_model, std=d_mlp**-0.5),
            b_out=normal(d_model, std=0.1),
        )
        return BlockWeights(norm(), attn, norm(), mlp)

    return ModelWeights(
        W_E=normal(cfg.d_vocab, cfg.d_model, std=1.0),
        W_pos=normal(cfg.n_ctx, cfg.d_model, std=0.5),
        blocks=tuple(block() for _ in range(cfg.n_layers)),
        ln_final=norm(),
        W_U=normal(cfg.d_model, cfg.d_vocab, std=cfg.d_model**-0.5),
        b_U=jnp.zeros(cfg.d_vocab),
    )


def _random_sae(
    hook: str, values: Float[jax.Array, "pos d_in"], d_sae: int, active: float, rng: np.random.Generator
) -> SAE:
    """An encoder that reads along the decoder's rows, and biases that leave `active` features on a position."""
    d_in = values.shape[-1]
    W_dec = rng.standard_normal((d_sae, d_in), np.float32)
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    weights = SAEWeights(
        W_enc=jnp.asarray(np.ascontiguousarray(W_dec.T)),
        b_enc=jnp.zeros(d_sae),
        W_dec=jnp.asarray(W_dec),
        b_dec=values[1:].mean(0),  # centred, so that no feature is on at every position
    )
    cfg = SAEConfig(d_in, d_sae, hook)
    arriving = np.asarray(pre_activations(SAE(weights, cfg), values[1:]))  # BOS is left out of attribution
    kept = round(active * len(arriving))
    threshold = np.partition(arriving, -kept, axis=None)[-kept]
    return SAE(weights._replace(b_enc=jnp.full(d_sae, -threshold)), cfg)
