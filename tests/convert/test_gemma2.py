"""Converted Gemma 2s compute what Hugging Face and TransformerLens compute, and carry Gemma Scope's autoencoders."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcircuits import attribute
from jaxcircuits.attribution.edges import REMAINDER_COLUMNS
from jaxcircuits.bundle import Bundle, load_bundle
from jaxcircuits.convert import SAESource, convert
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names
from tests.helpers import assert_close

torch = pytest.importorskip("torch")
from tests.convert.foreign import randomised  # noqa: E402

pytestmark = pytest.mark.torch

TOKENS = np.random.default_rng(0).integers(0, 31, (2, 16))
CONFIG: dict[str, Any] = {
    **{"vocab_size": 31, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "head_dim": 6},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16, "sliding_window": 4},
    **{"query_pre_attn_scalar": 9, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "attn_implementation": "eager"},
}
"""Caps that change much, heads that are not as wide as they leave of `hidden_size`."""
REAL: dict[str, Any] = {
    **{"hidden_size": 2304, "intermediate_size": 9216, "head_dim": 256, "num_attention_heads": 8},
    **{"num_key_value_heads": 4, "max_position_embeddings": 8192, "sliding_window": 128},
    **{"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
}
"""The 2B model's, but for its layers, its vocabulary and a window that the prompt is longer than."""

VARIANTS: dict[str, dict[str, Any]] = {
    "as Gemma 2": {},
    "three layers, other kinds": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "no caps, another base": {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 37.0},
        "rms_norm_eps": 1e-2,
    },
    "a key for every head, biases": {"num_key_value_heads": 4, "attention_bias": True},
    "one key for all heads, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "SiLU, all global": {
        "hidden_activation": "silu",
        "layer_types": ["full_attention"] * 2,
        "bos_token_id": None,
    },
}


def gemma(**overrides: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return randomised(transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**(CONFIG | overrides))))


def converted(model: Any, path: Path, *saes: SAESource, **options: Any) -> Bundle:
    model.save_pretrained(path / "gemma")
    convert(str(path / "gemma"), saes, path / "bundle")
    return load_bundle(path / "bundle", **options)


def seen_by(model: Any) -> dict[str, Any]:
    """Values of Hugging Face's modules by the hook points that they are, filled by the next run."""
    seen: dict[str, Any] = {}

    def keep(module: Any, name: str, given: bool = True) -> None:
        def hook(m: Any, x: Any, y: Any) -> None:
            value = y if given else x[0]
            seen[name] = (value[0] if isinstance(value, tuple) else value).numpy()

        module.register_forward_hook(hook)

    for layer, block in enumerate(model.model.layers):
        name = f"blocks.{layer}"
        keep(block.post_attention_layernorm, f"{name}.hook_attn_out")
        keep(block.pre_feedforward_layernorm, f"{name}.hook_resid_mid", given=False)
        keep(block.mlp.gate_proj, f"{name}.mlp.hook_pre")
        keep(block.mlp.up_proj, f"{name}.mlp.hook_pre_linear")
        keep(block.mlp.down_proj, f"{name}.mlp.hook_post", given=False)
        keep(block.post_feedforward_layernorm, f"{name}.hook_mlp_out")
        keep(block, f"{name}.hook_resid_post")
    return seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_hugging_face(tmp_path: Path, variant: str) -> None:
    model = gemma(**VARIANTS[variant])
    bundle = converted(model, tmp_path, processed=False)
    assert bundle.cfg.family == "gemma2" and bundle.params.W_pos is None and bundle.params.blocks[0].ln1.b is None
    assert bundle.cfg.tied_unembedding == model.config.tie_word_embeddings
    seen = seen_by(model)
    their_logits = model(torch.tensor(TOKENS)).logits.numpy()
    assert len(seen) == 7 * bundle.cfg.n_layers
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS), taps=list(seen))
    assert_close(logits, their_logits, "oracle", "logits")
    for name, value in seen.items():
        assert_close(acts[name], value, "oracle", name)
    processed = load_bundle(tmp_path / "bundle")
    assert processed.params.ln_final is None and processed.params.blocks[0].ln1_post is not None
    assert_close(forward(processed.params, processed.cfg, jnp.asarray(TOKENS))[0], their_logits, "oracle", "processed")


def transformer_lens(model: Any, processed: bool) -> Any:
    """The model as TransformerLens converts it."""
    lens = pytest.importorskip("transformer_lens")
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights

    their = model.config
    kinds = {"sliding_attention": "local", "full_attention": "global"}
    cfg = lens.HookedTransformerConfig(
        **{"d_model": their.hidden_size, "d_head": their.head_dim, "n_heads": their.num_attention_heads},
        **{"d_mlp": their.intermediate_size, "n_layers": their.num_hidden_layers, "d_vocab": their.vocab_size},
        **{"n_ctx": their.max_position_embeddings, "eps": their.rms_norm_eps, "act_fn": "gelu_pytorch_tanh"},
        **{"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False, "rotary_dim": their.head_dim},
        **{"rotary_base": their.rope_parameters["rope_theta"], "n_key_value_heads": their.num_key_value_heads},
        **{"use_attn_scale": True, "attn_scale": their.query_pre_attn_scalar**0.5, "gated_mlp": True},
        **{"attn_types": [kinds[kind] for kind in their.layer_types], "use_local_attn": True},
        **{"window_size": their.sliding_window, "normalization_type": "RMS", "final_rms": True},
        **{"attn_scores_soft_cap": their.attn_logit_softcapping, "use_normalization_before_and_after": True},
        output_logits_soft_cap=their.final_logit_softcapping,
        **{"init_weights": False, "device": "cpu", "original_architecture": "Gemma2ForCausalLM"},
    )
    theirs = lens.HookedTransformer(cfg, tokenizer=None, move_to_device=False)
    steps = {"fold_ln": processed, "fold_value_biases": processed, "center_unembed": False}
    theirs.load_and_process_state_dict(convert_gemma_weights(model, cfg), center_writing_weights=processed, **steps)
    theirs.set_use_attn_result(True)
    return theirs.requires_grad_(False)


@pytest.mark.parametrize("processed", [False, True], ids=["as trained", "processed"])
@pytest.mark.parametrize("variant", ["as Gemma 2", "three layers, other kinds"])
def test_equal_to_transformer_lens(tmp_path: Path, variant: str, processed: bool) -> None:
    """Logits and every hook activation."""
    model = gemma(**VARIANTS[variant])
    _assert_logits_and_hooks(
        converted(model, tmp_path, processed=processed), transformer_lens(model, processed), TOKENS
    )


def _assert_logits_and_hooks(bundle: Bundle, theirs: Any, tokens: np.ndarray) -> None:
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=hook_names(bundle.cfg))
    their_logits, cache = theirs.run_with_cache(torch.tensor(tokens))
    assert set(acts) == {name for name in cache if not name.startswith("unembed.")}
    assert_close(logits, their_logits.numpy(), "oracle", "logits")
    for name, value in acts.items():
        assert_close(value, cache[name].numpy(), "oracle", name)


@pytest.mark.slow
def test_the_size_of_gemma_2_2b(tmp_path: Path) -> None:
    """Two layers of it, random weights: logits of both libraries, raw and processed, and every hook activation."""
    model = gemma(**REAL, vocab_size=1000)
    bundle = converted(model, tmp_path, processed=False)
    assert (bundle.cfg.kv_heads, bundle.cfg.d_head, bundle.cfg.attention_scale) == (4, 256, 1 / 16)
    tokens = np.random.default_rng(1).integers(0, 1000, (1, 200))
    logits, _ = forward(bundle.params, bundle.cfg, jnp.asarray(tokens))
    assert_close(logits, model(torch.tensor(tokens)).logits.numpy(), "oracle", "logits")
    _assert_logits_and_hooks(bundle, transformer_lens(model, processed=False), tokens)
    _assert_logits_and_hooks(load_bundle(tmp_path / "bundle"), transformer_lens(model, processed=True), tokens)


def change_config(path: Path, *gone: str, **changed: Any) -> None:
    config = path / "config.json"
    fields = {name: value for name, value in json.loads(config.read_text()).items() if name not in gone}
    config.write_text(json.dumps(fields | changed))


def test_a_checkpoint_as_it_was_published(tmp_path: Path) -> None:
    """In bfloat16, with the first version's words in its config; a norm's scale is stored less one."""
    model = gemma().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "gemma")
    stored = load_file(tmp_path / "gemma" / "model.safetensors")
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    save_file(stored, tmp_path / "gemma" / "model.safetensors")
    gone = ("rope_parameters", "layer_types", "dtype", "use_bidirectional_attention", "rms_norm_eps", "bos_token_id")
    more = {"torch_dtype": "bfloat16", "rope_theta": 10000.0, "cache_implementation": "hybrid", "bos_token_id": 2}
    change_config(tmp_path / "gemma", *gone, hidden_act="gelu_pytorch_tanh", sliding_window_size=4, **more)
    convert(str(tmp_path / "gemma"), [], tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle", processed=False)
    exact = gemma()  # whose factor of the embeddings is not rounded as its weights are
    exact.load_state_dict(model.state_dict())
    expected = exact(torch.tensor(TOKENS)).logits.numpy()
    assert_close(forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS))[0], expected, "oracle", "logits")
    assert (bundle.cfg.attention, bundle.cfg.eps, bundle.cfg.bos_token_id) == (("local", "global"), 1e-6, 2)


# --- Gemma Scope ----------------------------------------------------------------------------------------

LAST = ("gemma-scope-2b-pt-res/layer_1", "blocks.1.hook_resid_post", 12, 12)
PLACES = {
    "res": ("gemma-scope-2b-pt-res/layer_0", "blocks.0.hook_resid_post", 12, 12),
    "mlp": ("gemma-scope-2b-pt-mlp/layer_0", "blocks.0.hook_mlp_out", 12, 12),
    "att": ("gemma-scope-2b-pt-att/layer_1", "blocks.1.attn.hook_z", 24, 24),
    "transcoder": ("gemma-scope-2b-pt-transcoders/layer_0", "blocks.0.ln2.hook_normalized", 12, 12),
    "embedding": ("gemma-scope-2b-pt-res/embedding", "hook_embed", 12, 12),
}


def scope(path: Path, place: tuple[str, str, int, int], seed: int) -> SAESource:
    """An autoencoder as Gemma Scope publishes it: arrays alone, what they belong to in the path."""
    folder, _, d_in, d_out = place
    rng = np.random.default_rng(seed)
    arrays = {
        "W_enc": rng.normal(size=(d_in, 40)) / np.sqrt(d_in),
        "W_dec": rng.normal(size=(40, d_out)) / np.sqrt(d_out),
        "b_enc": 0.1 * rng.normal(size=40),
        "b_dec": 0.1 * rng.normal(size=d_out),
        "threshold": 0.05 + 0.1 * rng.random(40),
    }
    file = path / folder / "width_16k" / "average_l0_71" / "params.npz"
    file.parent.mkdir(parents=True)
    np.savez(file, **{name: array.astype(np.float32) for name, array in arrays.items()})
    return SAESource(str(file))


@pytest.mark.parametrize("kind", PLACES)
def test_gemma_scope_is_spliced_and_attributed(tmp_path: Path, kind: str) -> None:
    """From what each autoencoder writes to one at the end: frozen edges and what they leave out add up to targets."""
    bundle = converted(gemma(), tmp_path, scope(tmp_path, PLACES[kind], 0), scope(tmp_path / "last", LAST, 1))
    source, target = bundle.saes
    assert bundle.saes[source].cfg.hook_name == PLACES[kind][1]
    result = attribute(
        bundle, [TOKENS[0]], source=source, target=target, positions="all", derivative="frozen", splice="source"
    )
    # What the heads give passes a norm before it is added to the stream.
    assert result.settings["method"] == ("reference" if kind == "att" else "structured")
    targets = result.targets.to_pandas()
    assert len(result.edges) > 1000 and len(targets) > 100
    kinds = ["attribution_sum", "attribution_cut", *REMAINDER_COLUMNS[:-1]]
    explained = np.nan_to_num(targets[kinds].to_numpy(np.float64)).sum(1)
    activation = targets["activation"].to_numpy()
    assert np.abs(explained - activation).max() <= 2e-5 * activation.max()
    assert np.abs(targets["attribution_sum"]).max() > 1e-2


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("model.layers.0.mlp", "after the norm behind"),
        ("model.embed_tokens", "after its factor"),
        ("model.layers.0", None),
    ],
)
def test_what_a_module_gives_may_be_no_hook_point(tmp_path: Path, module: str, sentence: str | None) -> None:
    """Gemma's MLP passes a norm before it is added, so an autoencoder of the module itself has no place."""
    place = tmp_path / module
    place.mkdir()
    rng = np.random.default_rng(0)
    save_file(
        {
            "encoder.weight": rng.normal(size=(20, 12)).astype(np.float32),
            "encoder.bias": np.zeros(20, np.float32),
            "W_dec": rng.normal(size=(20, 12)).astype(np.float32),
            "b_dec": np.zeros(12, np.float32),
        },
        place / "sae.safetensors",
    )
    (place / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 4, "num_latents": 20, "d_in": 12}))
    if sentence is None:
        assert converted(gemma(), tmp_path, SAESource(str(place))).saes
        return
    with pytest.raises(InputError, match=sentence):
        converted(gemma(), tmp_path, SAESource(str(place)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_activation": "quick_gelu"}, "hidden_activation must be one of gelu, .*, got 'quick_gelu'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported; expected false"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters may hold rope_type, rope_theta"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type must be 'default', got 'yarn'"),
        ({"rope_theta": 500.0}, "rope_theta is 500.0, but rope_parameters.rope_theta is 10000.0; correct one"),
        ({"layer_types": ["full_attention"]}, "layer_types must be 2 of sliding_attention and full_attention"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types must be 2 of sliding_attention and"),
        ({"sliding_window": 0}, "sliding_window must be a positive integer, got 0"),
        ({"sliding_window_size": 8}, "sliding_window_size is not sliding_window, which is 4; correct one"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a positive number, got 0"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping must be a positive number or null, got -1.0"),
        ({"attn_logit_softcapping": "50"}, "attn_logit_softcapping must be a positive number or null, got '50'"),
        ({"num_key_value_heads": 3}, "n_kv_heads must divide the 4 heads, got 3"),
        ({"attention_bias": True}, "the tensor model.layers.0.self_attn.q_proj.bias is missing"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number such as 1e-05, got 'small'"),
        ({"head_dim": 8}, r"k_proj.weight must have shape \[16, 12\], got \[12, 12\]"),
        ({"model_type": "gemma"}, "model_type must be one of .*gemma2, got 'gemma'"),
        ({"query_scale": 4}, "'query_scale'"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    gemma().save_pretrained(tmp_path / "gemma")
    change_config(tmp_path / "gemma", **change)
    with pytest.raises(InputError, match=sentence):
        convert(str(tmp_path / "gemma"), [], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
