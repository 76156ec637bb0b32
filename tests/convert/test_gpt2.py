"""Converted GPT-2s compute what Hugging Face and TransformerLens compute, and are attributed like any other model."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcircuits import attribute, sae_from_arrays
from jaxcircuits.bundle import Bundle, load_bundle
from jaxcircuits.convert import convert
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names
from tests.helpers import assert_close

torch = pytest.importorskip("torch")
from tests.convert.foreign import logits_and_posts, randomised  # noqa: E402

pytestmark = pytest.mark.torch

TOKENS = np.random.default_rng(0).integers(0, 31, (2, 16))
CONFIG: dict[str, Any] = {
    **{"vocab_size": 31, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3, "bos_token_id": 0},
    **{"eos_token_id": 0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}


def gpt2(**overrides: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**(CONFIG | overrides))))


def converted(model: Any, path: Path, **options: Any) -> Bundle:
    model.save_pretrained(path / "gpt2")
    convert(str(path / "gpt2"), [], path / "bundle")
    return load_bundle(path / "bundle", **options)


def assert_equal(bundle: Bundle, model: Any) -> None:
    taps = [f"blocks.{layer}.mlp.hook_post" for layer in range(bundle.cfg.n_layers)]
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS), taps=taps)
    their_logits, posts = logits_and_posts(model, TOKENS)
    assert_close(logits, their_logits, "oracle", "logits")
    for tap, post in zip(taps, posts, strict=True):
        assert_close(acts[tap], post, "oracle", tap)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"n_inner": 20, "layer_norm_epsilon": 1e-2, "n_layer": 3},
        {"scale_attn_weights": False, "n_head": 1},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_equal_to_hugging_face(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = gpt2(**overrides)
    bundle = converted(model, tmp_path, processed=False)
    assert bundle.cfg.family == "gpt2" and set(bundle.cfg.attention) == {"global"}
    assert_equal(bundle, model)


def test_the_first_checkpoints_without_a_head(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    mask = np.tril(np.ones((1, 1, 16, 16), np.float32))
    save_file(bare | {f"h.{layer}.attn.bias": mask for layer in range(2)}, file)
    convert(str(tmp_path / "gpt2"), [], tmp_path / "bundle")
    assert_equal(load_bundle(tmp_path / "bundle", processed=False), model)


def test_equal_to_transformer_lens_processed(tmp_path: Path) -> None:
    lens = pytest.importorskip("transformer_lens")
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    model = gpt2()
    bundle = converted(model, tmp_path)
    sizes = {"d_model": 12, "d_head": 4, "n_heads": 3, "d_mlp": 48, "n_layers": 2, "n_ctx": 16, "d_vocab": 31}
    cfg = lens.HookedTransformerConfig(
        **sizes,
        **{"eps": 1e-5, "act_fn": "gelu_new", "use_attn_scale": True, "normalization_type": "LN"},
        **{"init_weights": False, "device": "cpu", "original_architecture": "GPT2LMHeadModel"},
    )
    theirs = lens.HookedTransformer(cfg, tokenizer=None, move_to_device=False)
    theirs.load_and_process_state_dict(
        convert_gpt2_weights(model, cfg), fold_ln=True, center_writing_weights=True, center_unembed=True
    )
    theirs.set_use_attn_result(True)
    theirs.requires_grad_(False)
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS), taps=hook_names(bundle.cfg))
    their_logits, cache = theirs.run_with_cache(torch.tensor(TOKENS))
    assert_close(logits, their_logits.numpy(), "oracle", "logits")
    for name, value in acts.items():
        assert_close(value, cache[name].numpy(), "oracle", name)


@pytest.mark.parametrize(
    "hooks",
    [("mlp.hook_post", "mlp.hook_post"), pytest.param(("hook_resid_pre", "hook_resid_post"), marks=pytest.mark.slow)],
)
def test_attributed_as_by_the_definition(tmp_path: Path, hooks: tuple[str, str]) -> None:
    bundle = converted(gpt2(), tmp_path)
    rng = np.random.default_rng(1)
    for layer, hook in enumerate(hooks):
        width = 48 if hook.startswith("mlp") else 12
        W = rng.normal(size=(width, 40)).astype(np.float32) / np.sqrt(width)
        name = f"blocks.{layer}.{hook}"
        b_enc, b_dec = np.zeros(40, np.float32), np.zeros(width, np.float32)
        bundle.saes[name] = sae_from_arrays(W_enc=W, W_dec=W.T, b_enc=b_enc, b_dec=b_dec, hook_name=name)
    ends = {"source": f"blocks.0.{hooks[0]}", "target": f"blocks.1.{hooks[1]}", "positions": "all"}
    fast, slow = (attribute(bundle, [TOKENS[0]], **ends, method=m).to_pandas() for m in ("structured", "reference"))
    assert len(fast) == len(slow) > 1000
    assert_close(fast["gradient"].to_numpy(), slow["gradient"].to_numpy(), "methods", "gradient")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is not supported"),
        ({"activation_function": "tanh"}, "activation_function must be one of gelu, .*, got 'tanh'"),
        ({"n_head": 5}, r"n_embd \(12\) must be a multiple of n_head \(5\)"),
        ({"rotary_dim": 4}, "'rotary_dim'"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    gpt2().save_pretrained(tmp_path / "gpt2")
    config = tmp_path / "gpt2" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InputError, match=sentence):
        convert(str(tmp_path / "gpt2"), [], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
