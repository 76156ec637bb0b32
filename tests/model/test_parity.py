"""The forward pass and the weight processing against TransformerLens, run live, and once against Hugging Face."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.config import PROCESSING_STEPS, ModelConfig
from jaxcircuits.model import forward, hook_names, process_weights
from tests.helpers import assert_close, gemma_config, neox_config, random_params, random_tokens, tiny_config
from tests.oracle import STEP_FLAGS, assert_same_weights, hugging_face_model, oracle_cache, transformer_lens_model

pytestmark = pytest.mark.torch

NEOX = {
    name: getattr(neox_config(), name)
    for name in ("positions", "rotary_dim", "parallel_residual", "activation", "attention", "attention_scale", "family")
}
GEMMA = {
    name: getattr(gemma_config(), name)
    for name in (
        *("n_heads", "n_kv_heads", "positions", "rotary_dim", "attention_scale", "norm", "norms_behind", "gated"),
        *("score_cap", "logit_cap", "attention", "family", "embedding_scale", "processing"),
    )
}
SHAPES: dict[str, tuple[dict, tuple[int, ...]]] = {
    "past the window, up to n_ctx": ({}, (2, 16)),
    "within the window": ({}, (1, 4)),
    "one past the window": ({}, (1, 5)),
    "one token": ({}, (1, 1)),
    "one local layer, window 1": ({"attention": ("local",), "window": 1}, (2, 9)),
    "one global layer, one head": ({"attention": ("global",), "n_heads": 1, "d_head": 7}, (2, 9)),
    "three layers, window 2": ({"attention": ("local", "global", "local"), "window": 2}, (2, 11)),
    "window n_ctx, tied": ({"attention": ("local", "local"), "window": 16, "tied_unembedding": True}, (2, 16)),
    "window n_ctx - 1": ({"attention": ("global", "local"), "window": 15}, (1, 16)),
    "five heads, not d_model wide": ({"n_heads": 5, "d_head": 3, "d_model": 10, "eps": 1e-3}, (2, 13)),
    "no BOS, d_mlp below d_model": ({"bos_token_id": None, "d_mlp": 6}, (3, 7)),
    "rotary, parallel": (NEOX, (2, 16)),
    "rotary, one after the other, a local layer": (
        NEOX | {"parallel_residual": False, "rotary_dim": 4, "rotary_base": 37, "attention": ("local", "global")},
        (2, 13),
    ),
    "rotary, five heads": (
        NEOX | {"n_heads": 5, "d_head": 6, "d_model": 10, "rotary_dim": 4, "eps": 1e-2, "activation": "silu"},
        (2, 9),
    ),
    "parallel, learned positions": ({"parallel_residual": True, "activation": "relu"}, (2, 9)),
    "Gemma 2": (GEMMA, (2, 16)),
    "Gemma 2, keys of its own for every head, no caps": (
        GEMMA | {"n_kv_heads": None, "score_cap": None, "logit_cap": None, "activation": "silu"},
        (2, 9),
    ),
    "Gemma 2, six heads on two keys, three layers, tied": (
        GEMMA | {"n_heads": 6, "attention": ("global", "local", "local"), "tied_unembedding": True, "eps": 1e-2},
        (2, 13),
    ),
    "Gemma 2, keys of one head, layers all global": (
        GEMMA | {"n_kv_heads": 1, "attention": ("global", "global"), "embedding_scale": 1.0},
        (1, 16),
    ),
    "RMS norms alone": ({"norm": "rms", "processing": ("fold_layer_norm", "fold_value_biases")}, (2, 9)),
    "gated alone": ({"gated": True, "processing": PROCESSING_STEPS[1:]}, (2, 9)),
    "shared keys alone": ({"n_heads": 4, "n_kv_heads": 2}, (2, 9)),
}
LATER_CASES = [name for name in SHAPES if name.startswith(("rotary", "parallel", "Gemma", "RMS", "shared"))]
cases = pytest.mark.parametrize("name", list(SHAPES))


def _case(name: str) -> tuple[ModelConfig, jax.Array, int]:
    overrides, shape = SHAPES[name]
    cfg = tiny_config(**overrides)
    seed = list(SHAPES).index(name)
    return cfg, random_tokens(cfg, *shape, seed=seed), seed


def compare(params, cfg: ModelConfig, tokens: jax.Array, model) -> None:
    """Logits, log-probabilities and every hook activation."""
    compiled = jax.jit(forward, static_argnames=("cfg", "taps"))
    logits, acts = compiled(params, cfg, tokens, taps=hook_names(cfg))
    assert logits is not None
    their_logits, cache = oracle_cache(model, tokens)
    theirs = {name for name in cache if not name.startswith("unembed.")}  # the logits, which some versions name too
    assert theirs == set(acts) == set(hook_names(cfg))
    for hook, value in acts.items():
        assert_close(value, cache[hook], "oracle", hook)
    assert_close(logits, their_logits, "oracle", "logits")
    log_probs = jax.nn.log_softmax(jnp.asarray(their_logits, logits.dtype))
    assert_close(jax.nn.log_softmax(logits), log_probs, "oracle", "log-probabilities")


@cases
def test_unprocessed_float32(name: str) -> None:
    cfg, tokens, seed = _case(name)
    params = random_params(cfg, seed)
    compare(params, cfg, tokens, transformer_lens_model(cfg, params, steps=()))


@cases
def test_unprocessed_float64(name: str, x64: None) -> None:
    cfg, tokens, seed = _case(name)
    params = random_params(cfg, seed, jnp.float64)
    compare(params, cfg, tokens, transformer_lens_model(cfg, params, steps=(), dtype="float64"))


@cases
def test_processed_float32(name: str) -> None:
    cfg, tokens, seed = _case(name)
    params = random_params(cfg, seed)
    model = transformer_lens_model(cfg, params)
    compare(process_weights(params, cfg.processing), cfg, tokens, model)


@pytest.mark.parametrize("name", LATER_CASES)
def test_processed_float64(name: str, x64: None) -> None:
    cfg, tokens, seed = _case(name)
    params = random_params(cfg, seed, jnp.float64)
    model = transformer_lens_model(cfg, params, dtype="float64")
    compare(process_weights(params, cfg.processing), cfg, tokens, model)


@pytest.mark.parametrize("steps", [PROCESSING_STEPS[:n] for n in range(1, 5)], ids=lambda s: s[-1])
@pytest.mark.parametrize(
    "name", ["past the window, up to n_ctx", "three layers, window 2", "window n_ctx, tied", "rotary, parallel"]
)
def test_processed_weights_key_by_key(name: str, steps: tuple[str, ...]) -> None:
    cfg, _, seed = _case(name)
    params = random_params(cfg, seed)
    model = transformer_lens_model(cfg, params, steps=steps)
    assert_same_weights(process_weights(params, steps), model, params, cfg)
    assert set(STEP_FLAGS) == set(PROCESSING_STEPS)


def test_gemma_processed_weights_key_by_key() -> None:
    """TransformerLens leaves the writing weights as they are though it is asked to centre them."""
    cfg, _, seed = _case("Gemma 2")
    params = random_params(cfg, seed)
    model = transformer_lens_model(cfg, params, steps=(*cfg.processing, "center_writing_weights"))
    assert_same_weights(process_weights(params, cfg.processing), model, params, cfg)
    assert set(cfg.undefined_steps) == set(PROCESSING_STEPS) - set(cfg.processing)


def test_raw_logits_agree_with_hugging_face() -> None:
    cfg = tiny_config(attention=("global", "local", "local"), d_mlp=48, tied_unembedding=True)
    params = random_params(cfg, 5)
    zero = jax.tree.map(jnp.zeros_like, params)
    blocks = tuple(  # GPT-Neo has no biases here
        b._replace(attn=b.attn._replace(b_Q=z.attn.b_Q, b_K=z.attn.b_K, b_V=z.attn.b_V))
        for b, z in zip(params.blocks, zero.blocks, strict=True)
    )
    params = params._replace(blocks=blocks, b_U=zero.b_U)
    import torch

    tokens = random_tokens(cfg, 2, 16, seed=1)
    theirs = hugging_face_model(cfg, params)(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits
    logits, _ = forward(params, cfg, tokens)
    assert logits is not None
    assert_close(logits, theirs, "oracle", "logits")
    processed, _ = forward(process_weights(params, PROCESSING_STEPS), cfg, tokens)
    assert processed is not None
    assert_close(jax.nn.log_softmax(processed), theirs.log_softmax(-1), "oracle", "log-probabilities")
