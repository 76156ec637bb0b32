"""Converted GPT-Neos compute what Hugging Face and TransformerLens compute; what is not understood is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcircuits.bundle import load_bundle
from jaxcircuits.config import PROCESSING_STEPS
from jaxcircuits.convert import convert
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_safetensors
from jaxcircuits.model import forward
from tests.helpers import assert_close

torch = pytest.importorskip("torch")
from tests.convert.foreign import hugging_face, logits_and_posts, save_old  # noqa: E402

pytestmark = pytest.mark.torch

TOKENS = np.random.default_rng(0).integers(0, 31, (2, 16))
Change = Callable[[Any], None]


def _save(model: Any, path: Path) -> None:
    model.save_pretrained(path)


def _save_sharded(model: Any, path: Path) -> None:
    model.save_pretrained(path, max_shard_size="3KB")
    assert len(list(path.glob("model-*.safetensors"))) > 2


def _save_sharded_pickles(model: Any, path: Path) -> None:
    save_old(model, path)
    state = torch.load(path / "pytorch_model.bin", weights_only=True)
    (path / "pytorch_model.bin").unlink()
    names, placed = list(state), {}
    for i in range(2):
        shard = f"pytorch_model-0000{i + 1}-of-00002.bin"
        torch.save({name: state[name] for name in names[i::2]}, path / shard)
        placed |= dict.fromkeys(names[i::2], shard)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


@pytest.mark.parametrize("save", [_save, _save_sharded, save_old, _save_sharded_pickles])
def test_equal_to_hugging_face_however_it_is_stored(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    model = hugging_face()
    save(model, tmp_path / "neo")
    convert(str(tmp_path / "neo"), [], tmp_path / "bundle")
    _assert_equal(tmp_path / "bundle", model)


@pytest.mark.parametrize(
    "overrides",
    [
        {"intermediate_size": None},
        {"attention_types": [[["local"], 1], [["global"], 2]], "num_layers": 3, "window_size": 7},
        {"layer_norm_epsilon": 1e-2, "num_heads": 1},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_equal_to_hugging_face_whatever_its_config(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = hugging_face(**overrides)
    model.save_pretrained(tmp_path / "neo")
    convert(str(tmp_path / "neo"), [], tmp_path / "bundle")
    bundle = _assert_equal(tmp_path / "bundle", model)
    assert bundle.cfg.tied_unembedding == overrides.get("tie_word_embeddings", True)
    assert bundle.cfg.attention == tuple(model.config.attention_layers)


def _assert_equal(path: Path, model: Any) -> Any:
    bundle = load_bundle(path, processed=False)
    assert bundle.cfg.processing == PROCESSING_STEPS
    assert bundle.cfg.n_ctx == 16
    assert bundle.cfg.bos_token_id == 0
    taps = [f"blocks.{layer}.mlp.hook_post" for layer in range(bundle.cfg.n_layers)]
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS), taps=taps)
    their_logits, posts = logits_and_posts(model, TOKENS)
    assert_close(logits, their_logits, "oracle", "logits")
    for tap, post in zip(taps, posts, strict=True):
        assert_close(acts[tap], post, "oracle", tap)
    return bundle


def test_equal_to_transformer_lens_processed(tmp_path: Path) -> None:
    """TransformerLens converts and processes by itself; weights, logits and activations agree."""
    lens = pytest.importorskip("transformer_lens")
    from transformer_lens.pretrained.weight_conversions import convert_neo_weights

    model = hugging_face(intermediate_size=None)
    save_old(model, tmp_path / "neo")
    convert(str(tmp_path / "neo"), [], tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    cfg = lens.HookedTransformerConfig(
        **{
            "d_model": 12,
            "d_head": 4,
            "n_heads": 3,
            "d_mlp": 48,
            "n_layers": 2,
            "n_ctx": 16,
            "eps": 1e-5,
            "d_vocab": 31,
        },
        **{"attn_types": ["global", "local"], "window_size": 4, "act_fn": "gelu_new", "use_attn_scale": False},
        **{"use_local_attn": True, "normalization_type": "LN", "init_weights": False, "device": "cpu"},
        original_architecture="GPTNeoForCausalLM",
    )
    theirs = lens.HookedTransformer(cfg, tokenizer=None, move_to_device=False)
    theirs.load_and_process_state_dict(
        convert_neo_weights(model, cfg), fold_ln=True, center_writing_weights=True, center_unembed=True
    )
    state = theirs.state_dict()
    for layer, block in enumerate(bundle.params.blocks):
        for part in ("attn", "mlp"):
            for name, weights in getattr(block, part)._asdict().items():
                if weights is None:  # a gate
                    continue
                assert_close(weights, state[f"blocks.{layer}.{part}.{name}"], "oracle", f"{layer} {part} {name}")
    assert_close(bundle.params.W_U, state["unembed.W_U"], "oracle", "W_U")
    taps = [f"blocks.{layer}.mlp.hook_post" for layer in range(2)]
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS), taps=taps)
    their_logits, cache = theirs.run_with_cache(torch.tensor(TOKENS))
    assert_close(logits, their_logits, "oracle", "logits")
    for tap in taps:
        assert_close(acts[tap], cache[tap], "oracle", tap)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("save", [_save, save_old])
def test_weights_keep_their_dtype_and_bits(tmp_path: Path, stored: str, save: Callable[[Any, Path], None]) -> None:
    model = hugging_face().to(getattr(torch, stored))
    save(model, tmp_path / "neo")
    convert(str(tmp_path / "neo"), [], tmp_path / "bundle")
    tensors = read_safetensors(tmp_path / "bundle" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {stored}
    expected = model.transformer.wte.weight.detach().to(torch.float64).numpy()
    assert np.array_equal(tensors["W_E"].astype(np.float64), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_is_converted_on_request(tmp_path: Path, dtype: str) -> None:
    model = hugging_face()
    model.save_pretrained(tmp_path / "neo")
    convert(str(tmp_path / "neo"), [], tmp_path / "bundle", dtype=dtype)
    tensors = read_safetensors(tmp_path / "bundle" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {dtype}
    expected = model.transformer.h[1].mlp.c_fc.weight.T.to(getattr(torch, dtype)).to(torch.float64).numpy()
    assert np.array_equal(tensors["blocks.1.mlp.W_in"].astype(np.float64), expected)


def test_an_overflow_of_the_dtype_is_refused(neo: Path, tmp_path: Path) -> None:
    _change_weights(neo, lambda t: t["transformer.wpe.weight"].__setitem__((0, 0), 70000.0))
    with pytest.raises(InputError, match=r"float16 cannot hold transformer\.wpe\.weight \(up to 70000\)"):
        convert(str(neo), [], tmp_path / "bundle", dtype="float16")
    convert(str(neo), [], tmp_path / "bundle", dtype="bfloat16")
    with pytest.raises(InputError, match="--dtype must be one of float32, float16, bfloat16, got 'int8'"):
        convert(str(neo), [], tmp_path / "other", dtype="int8")


def test_a_head_that_differs_from_the_embedding_is_kept(neo: Path, tmp_path: Path) -> None:
    head = np.random.default_rng(1).standard_normal((31, 12)).astype(np.float32)
    _change_weights(neo, lambda t: t.update({"lm_head.weight": head}))
    convert(str(neo), [], tmp_path / "untied")
    bundle = load_bundle(tmp_path / "untied", processed=False)
    assert not bundle.cfg.tied_unembedding
    assert np.array_equal(bundle.params.W_U, head.T)
    _change_weights(neo, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"]}))
    convert(str(neo), [], tmp_path / "tied")
    assert load_bundle(tmp_path / "tied").cfg.tied_unembedding


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "neo"
    hugging_face().save_pretrained(path)
    return path


@pytest.fixture
def neo(saved: Path, tmp_path: Path) -> Path:
    """A GPT-Neo on disk that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "neo"))


def _change_weights(path: Path, change: Change) -> None:
    tensors = {name: np.array(tensor) for name, tensor in load_file(path / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def _change_config(path: Path, change: Change) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


def _refused(path: Path, sentence: str, **options: Any) -> None:
    out = path.parent / "bundle"
    with pytest.raises(InputError, match=sentence) as error:
        convert(str(path), [], out, **options)
    assert "\n" not in str(error.value)
    assert [file.name for file in path.parent.iterdir() if "bundle" in file.name] == []


KEY = "transformer.h.1.mlp.c_fc.weight"
WEIGHTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: t.pop(KEY), rf"the tensor {KEY} is missing"),
    "unknown": (lambda t: t.update(score=np.ones(3)), r"unknown tensor score of shape \[3\]"),
    "wrong shape": (lambda t: t.update({KEY: t[KEY].T.copy()}), rf"{KEY} must have shape \[20, 12\], got \[12, 20\]"),
    "NaN": (lambda t: t[KEY].__setitem__((3, 4), np.nan), rf"{KEY} holds NaN or Inf"),
    "Inf": (lambda t: t[KEY].__setitem__((3, 4), -np.inf), rf"{KEY} holds NaN or Inf"),
    "integers": (lambda t: t.update({KEY: t[KEY].astype(np.int32)}), rf"{KEY} must be of .*, got int32"),
    "a dtype that numpy lacks": (lambda t: t.update({KEY: t[KEY].astype(ml_dtypes.float8_e5m2)}), "numpy"),
    "a layer too many": (lambda t: t.update({KEY.replace("1", "2"): t[KEY]}), r"unknown tensor transformer\.h\.2"),
    "a mask of a layer too many": (
        lambda t: t.update({"transformer.h.2.attn.attention.masked_bias": np.array(-1e9, np.float32)}),
        r"unknown tensor transformer\.h\.2\.attn\.attention\.masked_bias",
    ),
    "almost a mask": (
        lambda t: t.update({"transformer.h.0.attn.attention.q_proj.bias": np.ones(12, np.float32)}),
        r"unknown tensor transformer\.h\.0\.attn\.attention\.q_proj\.bias",
    ),
    "a head of another shape": (
        lambda t: t.update({"lm_head.weight": np.ones((30, 12), np.float32)}),
        r"lm_head\.weight must have shape \[31, 12\], got \[30, 12\]",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_are_refused(neo: Path, case: str) -> None:
    change, sentence = WEIGHTS[case]
    _change_weights(neo, change)
    _refused(neo, sentence)


CONFIGS: dict[str, tuple[Change, str]] = {
    "unknown field": (lambda c: c.update(rope_theta=1e4), r"the field 'rope_theta' \('10000.0'\) is not understood"),
    "another activation": (lambda c: c.update(activation_function="tanh"), "must be one of gelu, .*, got 'tanh'"),
    "another family": (
        lambda c: c.update(model_type="opt"),
        "model_type must be one of gpt_neo, gpt2, gpt_neox, gemma2, got 'opt'",
    ),
    "no family": (lambda c: c.pop("model_type"), "model_type must be one of gpt_neo, gpt2, gpt_neox, gemma2, got None"),
    "cross attention": (lambda c: c.update(add_cross_attention=True), "'add_cross_attention' .* not understood"),
    "missing size": (lambda c: c.pop("hidden_size"), "the field 'hidden_size' is missing"),
    "text for a number": (lambda c: c.update(num_layers="2"), "num_layers must be a positive integer, got '2'"),
    "heads that do not divide": (lambda c: c.update(num_heads=5), r"hidden_size \(12\) .* multiple of num_heads \(5\)"),
    "another MLP width": (lambda c: c.update(intermediate_size=24), r"c_fc\.bias must have shape \[24\], got \[20\]"),
    "another context": (lambda c: c.update(max_position_embeddings=8), r"wpe\.weight must have shape \[8, 12\]"),
    "another vocabulary": (lambda c: c.update(vocab_size=30), r"wte\.weight must have shape \[30, 12\]"),
    "window zero": (lambda c: c.update(window_size=0), "window_size must be a positive integer, got 0"),
    "negative epsilon": (lambda c: c.update(layer_norm_epsilon=-0.1), "eps must be a positive number, got -0.1"),
    "epsilon as text": (lambda c: c.update(layer_norm_epsilon="1e-5"), "layer_norm_epsilon must be a number"),
    "BOS as a list": (lambda c: c.update(bos_token_id=[0]), r"bos_token_id must be a token id or null, got \[0\]"),
    "unknown attention": (
        lambda c: c.update(attention_types=[[["sparse"], 2]], attention_layers=["sparse"] * 2),
        "'global' or 'local', got 'sparse'",
    ),
    "contradicting attention": (
        lambda c: c.update(attention_layers=["local", "global"]),
        "attention_layers is .* but attention_types says",
    ),
    "too few attention layers": (
        lambda c: c.update(attention_types=[[["global"], 1]], attention_layers=["global"]),
        "attention must name 2 layers, got 1",
    ),
    "no attention": (
        lambda c: [c.pop(n) for n in ("attention_types", "attention_layers")],
        "'attention_layers' is missing",
    ),
    "odd attention": (lambda c: c.update(attention_types=3), r"attention_types must look like .* got 3"),
    "BOS outside": (lambda c: c.update(bos_token_id=31), r"bos_token_id must lie in 0\.\.30, got 31"),
    "untied without a head": (lambda c: c.update(tie_word_embeddings=False), r"the tensor lm_head\.weight is missing"),
    "odd tie": (lambda c: c.update(tie_word_embeddings="yes"), "tie_word_embeddings must be true or false"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_are_refused(neo: Path, case: str) -> None:
    change, sentence = CONFIGS[case]
    _change_config(neo, change)
    _refused(neo, sentence)


def test_an_unknown_field_can_be_ignored(neo: Path, tmp_path: Path) -> None:
    _change_config(neo, lambda c: c.update(rope_theta=1e4, quirk=True))
    _refused(neo, "'rope_theta' .* not understood", ignore_config_fields=["quirk"])
    convert(str(neo), [], tmp_path / "bundle", ignore_config_fields=["quirk", "rope_theta"])
    assert load_bundle(tmp_path / "bundle").cfg.n_layers == 2


def test_one_way_to_give_the_attention_is_enough(neo: Path, tmp_path: Path) -> None:
    _change_config(neo, lambda c: c.pop("attention_layers"))
    convert(str(neo), [], tmp_path / "one")
    _change_config(neo, lambda c: (c.pop("attention_types"), c.update(attention_layers=["global", "local"])))
    convert(str(neo), [], tmp_path / "two")
    one, two = load_bundle(tmp_path / "one"), load_bundle(tmp_path / "two")
    assert one.cfg == two.cfg
    assert one.cfg.attention == ("global", "local")


def test_the_default_bos_of_a_larger_vocabulary_is_none(neo: Path, tmp_path: Path) -> None:
    _change_config(neo, lambda c: c.update(bos_token_id=50256))
    convert(str(neo), [], tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").cfg.bos_token_id is None


def test_damaged_and_missing_files_are_refused(neo: Path, tmp_path: Path) -> None:
    weights = neo / "model.safetensors"
    content = weights.read_bytes()
    for cut in (0, 5, 200, len(content) - 1):
        weights.write_bytes(content[:cut])
        _refused(neo, r"model\.safetensors is damaged")
    weights.unlink()
    _refused(neo, "has no weights; expected model.safetensors")
    (neo / "config.json").write_text("[1]")
    _refused(neo, "must hold a JSON object")
    (neo / "config.json").unlink()
    _refused(neo, r"there is no file .*config\.json")
    _refused(tmp_path / "no such place", "there is no path")


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "neo"
    _save_sharded(hugging_face(), path)
    index = path / "model.safetensors.index.json"
    content = index.read_text()

    def change(edit: Change) -> None:
        parsed = json.loads(content)
        edit(parsed["weight_map"])
        index.write_text(json.dumps(parsed))

    shards = sorted(set(json.loads(content)["weight_map"].values()))
    change(lambda placed: placed.update(extra=shards[0]))
    _refused(path, f"extra is missing from {shards[0]}")
    change(lambda placed: placed.pop("transformer.wpe.weight"))
    _refused(path, "holds transformer.wpe.weight, which the index does not place there")
    change(lambda placed: placed.update(extra="../model-1.safetensors"))
    _refused(path, r"the shard '\.\./model-1\.safetensors' must be")
    index.write_text("{}")
    _refused(path, "must have a weight_map")
    index.write_text(content)
    (path / shards[1]).unlink()
    _refused(path, f"there is no file .*{shards[1]}")
