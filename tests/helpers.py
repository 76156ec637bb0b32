"""Tiny random models, autoencoders and bundles, and the one table of tolerances."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxcircuits.bundle import Bundle, save_bundle
from jaxcircuits.config import ModelConfig, SAEConfig
from jaxcircuits.model import hook_width, process_weights
from jaxcircuits.sae import SAE
from jaxcircuits.types import AttentionWeights, BlockWeights, MLPWeights, ModelWeights, NormWeights, SAEWeights

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    # Against PyTorch / TransformerLens run live; in float64 an unprocessed one.
    "oracle": {"float32": 2e-5, "float64": 1e-9},
    # Two ways of this package to one number: structured against reference, batched against single.
    "methods": {"float32": 1e-5, "float64": 1e-10},
    # SAE encode, decode and error against a plain PyTorch autoencoder.
    "sae": {"float32": 1e-5, "float64": 1e-12},
    # Derivatives against central differences; in float32 the differences themselves are worth nothing.
    "finite_difference": {"float64": 1e-7},
    # Statistics of edges against a recomputation from every edge; the unit is the mean absolute value.
    "statistics": {"float64": 1e-12},
    # The same arithmetic: not one bit may differ.
    "exact": {"float32": 0.0, "float64": 0.0},
}
"""Largest allowed max |a - b| / max |b|, by what is compared and in which dtype. A test may tighten, never loosen."""


def assert_close(actual: Any, expected: Any, kind: str, what: str = "") -> None:
    """Asserts that two arrays have one shape, agree where they are not finite, and elsewhere within the tolerance.

    Args:
        actual: What the package computed; its dtype picks the tolerance.
        expected: What it is compared with; its largest finite magnitude is the unit.
        kind: A row of `TOLERANCES`.
        what: A name for the message.
    """
    actual = np.asarray(actual)
    expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if actual.size == 0:
        return
    tolerance = 0.0 if kind == "exact" else TOLERANCES[kind][str(actual.dtype)]
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    assert not np.isnan(a).any() and not np.isnan(b).any(), f"{what}: NaN"
    infinite = np.isinf(a) | np.isinf(b)
    assert np.array_equal(a[infinite], b[infinite]), f"{what}: infinite in different places"
    a, b = np.where(infinite, 0.0, a), np.where(infinite, 0.0, b)
    difference, scale = np.abs(a - b).max(), np.abs(b).max()
    assert difference <= tolerance * scale, (
        f"{what}: off by {difference:.3g} where the largest is {scale:.3g}: "
        f"{difference / scale if scale else np.inf:.2g} relative, allowed {tolerance:.2g} ({kind}, {actual.dtype})"
    )


def tiny_config(**overrides: Any) -> ModelConfig:
    """Two layers, global then local with a window of 4; odd widths, so that a mixed-up axis cannot go unnoticed.

    Layers beyond the pattern continue it; `attention` overrides it.
    """
    n_layers = overrides.get("n_layers", len(overrides["attention"]) if "attention" in overrides else 2)
    fields: dict[str, Any] = {
        "n_layers": n_layers,
        "d_model": 12,
        "n_heads": 3,
        "d_head": 4,
        "d_mlp": 20,
        "d_vocab": 31,
        "n_ctx": 16,
        "attention": tuple(("global", "local")[layer % 2] for layer in range(n_layers)),
        "window": 4,
        "bos_token_id": 0,
    }
    return ModelConfig(**(fields | overrides))


def neox_config(**overrides: Any) -> ModelConfig:
    """A model as GPT-NeoX is: rotary positions on half of each head, parallel residuals, GELU by erf."""
    n_layers = overrides.get("n_layers", 2)
    fields: dict[str, Any] = {
        **{"positions": "rotary", "rotary_dim": 2, "parallel_residual": True, "activation": "gelu"},
        **{"attention_scale": 0.5, "attention": ("global",) * n_layers, "family": "gpt_neox"},
    }
    return tiny_config(**(fields | overrides))


def gemma_config(**overrides: Any) -> ModelConfig:
    """A model as Gemma 2 is: RMS norms before and behind, gated MLPs, shared keys and values, scores and logits capped.

    The caps are small, so that they change much.
    """
    n_layers = overrides.get("n_layers", 2)
    fields: dict[str, Any] = {
        **{"n_heads": 4, "n_kv_heads": 2, "positions": "rotary", "rotary_dim": 4, "attention_scale": 0.4},
        **{"norm": "rms", "norms_behind": True, "gated": True, "score_cap": 1.5, "logit_cap": 2.0},
        **{"attention": tuple(("local", "global")[layer % 2] for layer in range(n_layers)), "family": "gemma2"},
        **{"embedding_scale": 1.7, "processing": ("fold_layer_norm", "fold_value_biases")},
    }
    return tiny_config(**(fields | overrides))


def random_params(cfg: ModelConfig, seed: int = 0, dtype: Any = jnp.float32) -> ModelWeights:
    """Unprocessed weights, every one of them random (norms around 1, biases not zero), activations of order 1.

    They are drawn in float64 and rounded, so that one seed gives one model in either precision.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, std: float) -> np.ndarray:
        return std * rng.standard_normal(shape)

    def norm() -> NormWeights:
        w = 1 + normal(cfg.d_model, std=0.3)
        return NormWeights(w, normal(cfg.d_model, std=0.3) if cfg.norm == "layer" else None)  # pyright: ignore

    def block() -> BlockWeights:
        head, kv_head, d_model, d_head, d_mlp = cfg.n_heads, cfg.kv_heads, cfg.d_model, cfg.d_head, cfg.d_mlp
        score = d_model**-0.5 * d_head**-0.25 * cfg.attention_scale**-0.5  # scores of order 1, whatever the width
        attn = AttentionWeights(
            W_Q=normal(head, d_model, d_head, std=score),  # pyright: ignore
            W_K=normal(kv_head, d_model, d_head, std=score),  # pyright: ignore
            W_V=normal(kv_head, d_model, d_head, std=d_model**-0.5),  # pyright: ignore
            W_O=normal(head, d_head, d_model, std=(head * d_head) ** -0.5),  # pyright: ignore
            b_Q=normal(head, d_head, std=0.2),  # pyright: ignore
            b_K=normal(kv_head, d_head, std=0.2),  # pyright: ignore
            b_V=normal(kv_head, d_head, std=0.2),  # pyright: ignore
            b_O=normal(d_model, std=0.2),  # pyright: ignore
        )
        weights = MLPWeights(
            W_in=normal(d_model, d_mlp, std=d_model**-0.5),  # pyright: ignore
            # Of a gated one, no model has it: TransformerLens adds it behind the product.
            b_in=normal(d_mlp, std=0.0 if cfg.gated else 0.2),  # pyright: ignore
            W_out=normal(d_mlp, d_model, std=d_mlp**-0.5),  # pyright: ignore
            b_out=normal(d_model, std=0.2),  # pyright: ignore
            W_gate=normal(d_model, d_mlp, std=d_model**-0.5) if cfg.gated else None,  # pyright: ignore
        )
        behind = (norm(), norm()) if cfg.norms_behind else ()
        return BlockWeights(norm(), attn, norm(), weights, *behind)

    W_E = normal(cfg.d_vocab, cfg.d_model, std=1.0)
    params = ModelWeights(
        W_E=W_E,  # pyright: ignore
        W_pos=None if cfg.rotary else normal(cfg.n_ctx, cfg.d_model, std=0.5),  # pyright: ignore
        blocks=tuple(block() for _ in range(cfg.n_layers)),
        ln_final=norm(),
        W_U=W_E.T if cfg.tied_unembedding else normal(cfg.d_model, cfg.d_vocab, std=cfg.d_model**-0.5),  # pyright: ignore
        b_U=normal(cfg.d_vocab, std=0.2),  # pyright: ignore
    )
    return jax.tree.map(lambda w: _cast(w, dtype), params)


def random_tokens(cfg: ModelConfig, *shape: int, seed: int = 0) -> jax.Array:
    """Token ids, BOS first where the model has one; the last axis is the position."""
    tokens = np.random.default_rng(seed).integers(0, cfg.d_vocab, shape)
    if cfg.bos_token_id is not None:
        tokens[..., 0] = cfg.bos_token_id
    return jnp.asarray(tokens, jnp.int32)


def tiny_sae(
    cfg: ModelConfig,
    hook: str = "blocks.0.mlp.hook_post",
    d_sae: int = 24,
    seed: int = 0,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> SAE:
    """An SAE with every weight random, on a hook of the model; about half of a ReLU's features are on.

    `overrides` are fields of its config; `hook_out` makes it a transcoder.
    """
    rng = np.random.default_rng([seed, d_sae, sum(hook.encode())])
    d_in = hook_width(cfg, hook)
    if "hook_out" in overrides:
        overrides = {"subtract_b_dec": False, "d_out": hook_width(cfg, overrides["hook_out"])} | overrides
    sae_cfg = SAEConfig(d_in, d_sae, hook, **overrides)
    d_out = sae_cfg.width_written
    W_dec = rng.standard_normal((d_sae, d_out))
    weights = SAEWeights(
        W_enc=rng.standard_normal((d_in, d_sae)) * d_in**-0.5,  # pyright: ignore
        b_enc=0.2 * rng.standard_normal(d_sae),  # pyright: ignore
        W_dec=W_dec / np.linalg.norm(W_dec, axis=-1, keepdims=True),  # pyright: ignore
        b_dec=0.3 * rng.standard_normal(d_out),  # pyright: ignore
        threshold=rng.uniform(-0.1, 0.6, d_sae) if sae_cfg.activation == "jumprelu" else None,  # pyright: ignore
        W_skip=0.3 * rng.standard_normal((d_in, d_out)) if sae_cfg.skip else None,  # pyright: ignore
    )
    return SAE(jax.tree.map(lambda w: _cast(w, dtype), weights), sae_cfg)


def tiny_saes(cfg: ModelConfig, dtype: Any = jnp.float32, seed: int = 0, d_sae: int = 24) -> dict[str, SAE]:
    """One SAE on every layer's `mlp.hook_post`, named after its hook; each of another width."""
    hooks = [f"blocks.{layer}.mlp.hook_post" for layer in range(cfg.n_layers)]
    return {hook: tiny_sae(cfg, hook, d_sae + 2 * layer, seed, dtype) for layer, hook in enumerate(hooks)}


def loud_saes(cfg: ModelConfig) -> dict[str, SAE]:
    """Wider ones, with activations on both sides of the original notebook's thresholds."""
    saes = {}
    for name, sae in tiny_saes(cfg, d_sae=60).items():
        weights = sae.weights._replace(W_enc=3 * sae.weights.W_enc, W_dec=0.4 * sae.weights.W_dec)
        saes[name] = SAE(weights, sae.cfg)
    return saes


def tiny_tokenizer(cfg: ModelConfig) -> Tokenizer:
    """One token a word: `w1 w2 …` are the ids 1, 2, …; id 0 is `<|endoftext|>`."""
    vocab = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, cfg.d_vocab)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    return tokenizer


def tiny_bundle(
    cfg: ModelConfig | None = None,
    seed: int = 0,
    dtype: Any = jnp.float32,
    *,
    d_sae: int = 24,
    processed: bool = True,
    saes: Mapping[str, SAE] | None = None,
    tokenizer: bool = True,
) -> Bundle:
    """A random bundle in memory; its unprocessed weights are `random_params(cfg, seed, dtype)`."""
    cfg = cfg or tiny_config()
    params = random_params(cfg, seed, dtype)
    return Bundle(
        cfg,
        process_weights(params, cfg.processing) if processed else params,
        tiny_saes(cfg, dtype, seed, d_sae) if saes is None else saes,
        tiny_tokenizer(cfg) if tokenizer else None,
    )


def _cast(array: np.ndarray, dtype: Any) -> jax.Array:
    if jnp.dtype(dtype) == jnp.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise RuntimeError("float64 asked for outside JAX's 64-bit mode; use the fixture x64.")
    return jnp.asarray(array, dtype)


def saved_bundle(path: Any, cfg: ModelConfig | None = None, *, tokenizer: bool = True, d_sae: int = 24) -> Bundle:
    """Writes a random bundle to a directory and returns it as it was before."""
    bundle = tiny_bundle(cfg, processed=False, tokenizer=tokenizer, d_sae=d_sae)
    save_bundle(path, bundle.cfg, bundle.params, bundle.saes, bundle.tokenizer, source={"source": "random numbers"})
    return bundle
