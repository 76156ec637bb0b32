"""Converted GPT-NeoXs compute what Hugging Face and TransformerLens compute, and are attributed by the definition."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxcircuits import attribute, sae_from_arrays
from jaxcircuits.attribution.edges import REMAINDER_COLUMNS
from jaxcircuits.bundle import Bundle, load_bundle
from jaxcircuits.convert import convert
from jaxcircuits.errors import InputError
from jaxcircuits.graph import build_graph
from jaxcircuits.model import forward, hook_names
from jaxcircuits.validation.torch_model import STEP_FLAGS, hook_gradients, transformer_lens_model
from tests.helpers import assert_close

torch = pytest.importorskip("torch")
from tests.convert.foreign import randomised  # noqa: E402

pytestmark = pytest.mark.torch

TOKENS = np.random.default_rng(0).integers(0, 31, (2, 16))
CONFIG: dict[str, Any] = {
    **{"vocab_size": 31, "max_position_embeddings": 16, "hidden_size": 12, "num_hidden_layers": 2},
    **{"num_attention_heads": 3, "intermediate_size": 20, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    **{"rotary_pct": 0.5, "bos_token_id": 0, "eos_token_id": 0},
}
PYTHIA: dict[str, Any] = {
    **{"vocab_size": 50304, "max_position_embeddings": 2048, "hidden_size": 512, "num_hidden_layers": 6},
    **{"num_attention_heads": 8, "intermediate_size": 2048, "rotary_pct": 0.25, "rotary_emb_base": 10000},
}
"""Pythia-70m."""

VARIANTS: dict[str, dict[str, Any]] = {
    "as Pythia": {},
    "one after the other": {"use_parallel_residual": False, "num_hidden_layers": 3},
    "every number turned, another base": {"rotary_pct": 1.0, "rotary_emb_base": 37, "layer_norm_eps": 1e-2},
    "rounded down, one head": {"rotary_pct": 0.375, "num_attention_heads": 1},  # 4.5 of 12
    "five heads": {"hidden_size": 20, "num_attention_heads": 5, "hidden_act": "silu"},
    "GELU's tanh form, no biases": {"hidden_act": "gelu_fast", "attention_bias": False},
    "tied": {"tie_word_embeddings": True, "hidden_act": "relu", "bos_token_id": None},
}


def neox(**overrides: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    model = randomised(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**(CONFIG | overrides))))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm.weight" in name:
                parameter.add_(1.0)
    return model


def converted(model: Any, path: Path, **options: Any) -> Bundle:
    model.save_pretrained(path / "neox")
    convert(str(path / "neox"), [], path / "bundle")
    return load_bundle(path / "bundle", **options)


def transformer_lens(model: Any, processed: bool) -> Any:
    """The model as TransformerLens converts it."""
    lens = pytest.importorskip("transformer_lens")
    from transformer_lens.pretrained.weight_conversions import convert_neox_weights

    their = model.config
    d_head = their.hidden_size // their.num_attention_heads
    cfg = lens.HookedTransformerConfig(
        **{"d_model": their.hidden_size, "d_head": d_head, "n_heads": their.num_attention_heads},
        **{"d_mlp": their.intermediate_size, "n_layers": their.num_hidden_layers, "d_vocab": their.vocab_size},
        **{"n_ctx": their.max_position_embeddings, "eps": their.layer_norm_eps, "act_fn": their.hidden_act},
        **{"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False},
        rotary_dim=int(their.rope_parameters["partial_rotary_factor"] * d_head),
        rotary_base=their.rope_parameters["rope_theta"],
        parallel_attn_mlp=their.use_parallel_residual,
        **{"use_attn_scale": True, "normalization_type": "LN", "init_weights": False, "device": "cpu"},
        original_architecture="GPTNeoXForCausalLM",
    )
    theirs = lens.HookedTransformer(cfg, tokenizer=None, move_to_device=False)
    steps = dict.fromkeys(STEP_FLAGS.values(), processed)
    theirs.load_and_process_state_dict(convert_neox_weights(model, cfg), **steps)
    theirs.set_use_attn_result(True)
    return theirs.requires_grad_(False)


def assert_logits_and_hooks(bundle: Bundle, theirs: Any, tokens: np.ndarray) -> None:
    """TransformerLens' logits and every hook activation."""
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=hook_names(bundle.cfg))
    their_logits, cache = theirs.run_with_cache(torch.tensor(tokens))
    assert set(acts) == {name for name in cache if not name.startswith("unembed.")}
    assert_close(logits, their_logits.numpy(), "oracle", "logits")
    for name, value in acts.items():
        assert_close(value, cache[name].numpy(), "oracle", name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_hugging_face(tmp_path: Path, variant: str) -> None:
    """Logits, and in each block what its MLP's activation gives, what attention writes, and what leaves it."""
    model = neox(**VARIANTS[variant])
    bundle = converted(model, tmp_path, processed=False)
    assert bundle.cfg.family == "gpt_neox" and bundle.params.W_pos is None
    assert bundle.cfg.tied_unembedding == model.config.tie_word_embeddings
    seen: dict[str, Any] = {}
    modules = {"mlp.act": "mlp.hook_post", "attention": "hook_attn_out", "mlp": "hook_mlp_out", "": "hook_resid_post"}
    for layer, block in enumerate(model.gpt_neox.layers):
        for path, hook in modules.items():
            module = block.get_submodule(path)

            def keep(m: Any, x: Any, y: Any, name: str = f"blocks.{layer}.{hook}") -> None:
                seen[name] = (y[0] if isinstance(y, tuple) else y).numpy()

            module.register_forward_hook(keep)
    their_logits = model(torch.tensor(TOKENS)).logits.numpy()
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS), taps=list(seen))
    assert len(seen) == 4 * bundle.cfg.n_layers
    assert_close(logits, their_logits, "oracle", "logits")
    for name, value in seen.items():
        assert_close(acts[name], value, "oracle", name)


class Angles(torch.nn.Module):
    """Hugging Face's rotary angles in double precision: its own are float32 even in a float64 model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim = int(config.hidden_size // config.num_attention_heads * config.rope_parameters["partial_rotary_factor"])
        powers = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        self.speeds = 1.0 / config.rope_parameters["rope_theta"] ** powers

    def forward(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
        angles = position_ids[..., None].double() * self.speeds
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()


@pytest.mark.parametrize("variant", ["one after the other", "every number turned, another base"])
def test_equal_to_hugging_face_in_float64(tmp_path: Path, variant: str, x64: None) -> None:
    model = neox(**VARIANTS[variant])
    bundle = converted(model, tmp_path, processed=False, dtype=jnp.float64)
    model = model.double()
    model.gpt_neox.rotary_emb = Angles(model.config)
    theirs = model(torch.tensor(TOKENS), output_hidden_states=True)
    taps = [f"blocks.{layer}.hook_resid_pre" for layer in range(bundle.cfg.n_layers)]
    logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS), taps=taps)
    assert_close(logits, theirs.logits.numpy(), "oracle", "logits")
    for tap, value in zip(taps, theirs.hidden_states, strict=False):
        assert_close(acts[tap], value.numpy(), "oracle", tap)


@pytest.mark.parametrize("variant", ["as Pythia", "one after the other", "every number turned, another base"])
def test_equal_to_transformer_lens_processed(tmp_path: Path, variant: str) -> None:
    model = neox(**VARIANTS[variant])
    assert_logits_and_hooks(converted(model, tmp_path), transformer_lens(model, processed=True), TOKENS)


@pytest.mark.slow
def test_the_size_of_pythia(tmp_path: Path) -> None:
    """Pythia-70m's dimensions, random weights: logits of both, raw and processed, and every hook activation."""
    model = neox(**PYTHIA)
    bundle = converted(model, tmp_path, processed=False)
    assert (bundle.cfg.rotary_dim, bundle.cfg.d_head, bundle.cfg.n_ctx) == (16, 64, 2048)
    tokens = np.random.default_rng(1).integers(0, 50304, (1, 300))
    logits, _ = forward(bundle.params, bundle.cfg, jnp.asarray(tokens))
    assert_close(logits, model(torch.tensor(tokens)).logits.numpy(), "oracle", "logits")
    assert_logits_and_hooks(bundle, transformer_lens(model, processed=False), tokens)
    assert_logits_and_hooks(load_bundle(tmp_path / "bundle"), transformer_lens(model, processed=True), tokens)


def change_config(path: Path, *gone: str, **changed: Any) -> None:
    config = path / "config.json"
    fields = {name: value for name, value in json.loads(config.read_text()).items() if name not in gone}
    config.write_text(json.dumps(fields | changed))


def test_an_old_checkpoint(tmp_path: Path) -> None:
    """As transformers 4.2x wrote it: its words in the config, and buffers among the weights of a pickle."""
    model = neox(rotary_emb_base=37)
    model.save_pretrained(tmp_path / "neox")
    expected, _ = forward(*_params_and_cfg(converted(model, tmp_path / "new", processed=False)), jnp.asarray(TOKENS))
    state = {k: torch.tensor(v) for k, v in load_file(tmp_path / "neox" / "model.safetensors").items()}
    (tmp_path / "neox" / "model.safetensors").unlink()
    for layer in range(2):
        prefix = f"gpt_neox.layers.{layer}.attention"
        state[f"{prefix}.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.bool).tril()
        state[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
        state[f"{prefix}.rotary_emb.inv_freq"] = torch.tensor([1.0])
    torch.save(state, tmp_path / "neox" / "pytorch_model.bin")
    change_config(tmp_path / "neox", "rope_parameters", "attention_bias", "dtype", rotary_pct=0.5, rotary_emb_base=37)
    change_config(tmp_path / "neox", torch_dtype="float16", rope_scaling=None)
    convert(str(tmp_path / "neox"), [], tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle", processed=False)
    logits, _ = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS))
    assert_close(logits, expected, "exact", "logits")


def _params_and_cfg(bundle: Bundle) -> tuple[Any, Any]:
    return bundle.params, bundle.cfg


def test_what_the_config_leaves_out(tmp_path: Path) -> None:
    """What transformers takes then."""
    transformers = pytest.importorskip("transformers")
    neox(rotary_pct=0.25, hidden_size=24).save_pretrained(tmp_path / "neox")
    gone = ("rope_parameters", "hidden_act", "layer_norm_eps", "use_parallel_residual", "bos_token_id")
    change_config(tmp_path / "neox", *gone)
    convert(str(tmp_path / "neox"), [], tmp_path / "bundle")
    cfg, theirs = load_bundle(tmp_path / "bundle").cfg, transformers.GPTNeoXConfig.from_pretrained(tmp_path / "neox")
    assert cfg.rotary_dim == 8 * theirs.rope_parameters["partial_rotary_factor"]
    assert cfg.rotary_base == theirs.rope_parameters["rope_theta"]
    assert (cfg.activation, cfg.eps, cfg.bos_token_id) == (theirs.hidden_act, theirs.layer_norm_eps, 0)
    assert cfg.parallel_residual == theirs.use_parallel_residual


def random_sae(hook: str, width: int, seed: int) -> Any:
    W_enc, W_dec = np.random.default_rng(seed).normal(size=(2, width, 40)) / np.sqrt(width)
    b_enc, b_dec = 0.1 * np.random.default_rng(seed + 1).normal(size=40), np.full(width, 0.1)
    return sae_from_arrays(W_enc=W_enc, W_dec=W_dec.T, b_enc=b_enc, b_dec=b_dec, hook_name=hook)


ENDS: dict[str, tuple[str, str, bool, str]] = {
    "MLP to MLP": ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", True, "structured"),
    "residual stream to residual stream": ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", True, "reference"),
    "MLP output to heads": ("blocks.0.hook_mlp_out", "blocks.1.attn.hook_z", True, "reference"),
    "attention's output to residual stream": ("blocks.0.hook_attn_out", "blocks.1.hook_resid_post", True, "reference"),
    "heads to MLP, one after the other": ("blocks.0.attn.hook_z", "blocks.1.mlp.hook_post", False, "reference"),
    "MLP to residual stream, one after the other": (
        "blocks.0.mlp.hook_post",
        "blocks.1.hook_resid_post",
        False,
        "structured",
    ),
    "embedding to turned keys": ("hook_embed", "blocks.1.attn.hook_rot_k", True, "reference"),
}
"""Source hook, target hook, whether residuals are parallel, and the method that `auto` takes."""


@pytest.mark.parametrize("ends", [pytest.param(row, marks=[pytest.mark.slow] * (n > 1)) for n, row in enumerate(ENDS)])
def test_attributed_from_end_to_end(tmp_path: Path, ends: str) -> None:
    """Two SAEs of a converted model: frozen edges and what they leave out add up to the targets."""
    source, target, parallel, method = ENDS[ends]
    bundle = converted(neox(use_parallel_residual=parallel), tmp_path)
    for n, hook in enumerate((source, target)):
        bundle.saes[hook] = random_sae(hook, 20 if ".mlp." in hook else 12, n)
    asked: dict[str, Any] = {"source": source, "target": target, "positions": "all", "derivative": "frozen"}
    result = attribute(bundle, [TOKENS[0]], **asked, splice="source")
    assert result.settings["method"] == method
    targets = result.targets.to_pandas()
    assert len(result.edges) > 1000 and len(targets) > 100
    kinds = ["attribution_sum", "attribution_cut", *REMAINDER_COLUMNS[:-1]]
    explained = np.nan_to_num(targets[kinds].to_numpy(np.float64)).sum(1)
    activation = targets["activation"].to_numpy()
    assert np.abs(explained - activation).max() <= 1e-5 * activation.max()
    assert np.abs(targets["attribution_sum"]).max() > 1e-2


@pytest.mark.parametrize(
    ("parallel", "hooks"),
    [
        (True, ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post")),
        (False, ("blocks.0.hook_resid_mid", "blocks.1.mlp.hook_post")),
    ],
    ids=["parallel", "one after the other"],
)
@pytest.mark.slow
def test_gradients_are_those_of_pytorch(tmp_path: Path, parallel: bool, hooks: tuple[str, str]) -> None:
    """Through the whole model, the original notebook's way: one backward pass a target, on TransformerLens' model."""
    model = neox(use_parallel_residual=parallel)
    bundle = converted(model, tmp_path, processed=False)
    for n, hook in enumerate(hooks):
        bundle.saes[hook] = random_sae(hook, 20 if ".mlp." in hook else 12, n)
    edges = attribute(bundle, [TOKENS[0]], source=hooks[0], target=hooks[1], positions="all").to_pandas()
    theirs = transformer_lens_model(bundle.cfg, bundle.params, steps=())
    pairs = edges[["target_pos", "target_feature"]].drop_duplicates()
    edges = edges.merge(pairs.iloc[:: len(pairs) // 15])  # a backward pass a target is slow
    wanted = edges[["target_pos", "target_feature"]].drop_duplicates().to_numpy()
    source, target = (bundle.saes[hook] for hook in hooks)
    at_hook = hook_gradients(theirs, TOKENS[0], source, target, wanted)
    by_target = {tuple(pair): gradient for pair, gradient in zip(wanted, at_hook, strict=True)}
    W_dec = np.asarray(source.weights.W_dec)
    rows = edges[["target_pos", "target_feature", "source_pos", "source_feature"]].to_numpy()
    expected = np.array([by_target[p, f][t] @ W_dec[i] for p, f, t, i in rows], np.float32)
    assert len(expected) > 500
    assert_close(edges["gradient"].to_numpy(), expected, "oracle", "gradient")


@pytest.mark.parametrize(
    "parallel", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["parallel", "one after the other"]
)
def test_a_graph_adds_up(tmp_path: Path, parallel: bool) -> None:
    """What enters each feature and logit of a graph is its value; there are no positions to add."""
    bundle = converted(neox(use_parallel_residual=parallel), tmp_path)
    for layer in range(2):
        hook = f"blocks.{layer}.mlp.hook_post"
        bundle.saes[hook] = random_sae(hook, 20, layer)
    graph = build_graph(bundle, TOKENS[0][:6], top_logits=2, include_bos=True)
    into, nodes = graph.adjacency().sum(axis=1), graph.nodes
    ends = nodes.are("feature", "logit")
    value = np.abs(nodes.value[ends]).max()
    assert ends.sum() > 50
    assert np.abs(np.asarray(into).ravel() - nodes.value)[ends].max() < 1e-4 * value
    from_position = graph.adjacency()[:, nodes.are("position")]
    assert not from_position.nnz or not np.any(from_position.data)


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_act": "quick_gelu"}, "hidden_act must be one of gelu, .*, got 'quick_gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is not supported; expected null"),
        ({"rope_parameters": ROPE | {"rope_type": "yarn"}}, "rope_type must be 'default', got 'yarn'"),
        ({"rope_parameters": ROPE | {"factor": 2.0}}, "rope_parameters may hold rope_type, rope_theta and"),
        ({"rope_parameters": [0.5]}, "rope_parameters may hold"),
        ({"rotary_pct": 0.25}, "rotary_pct is 0.25, but rope_parameters.partial_rotary_factor is 0.5; correct"),
        ({"rope_theta": 500.0}, "rope_theta is 500.0, but rope_parameters.rope_theta is 10000.0; correct one"),
        ({"rope_parameters": None, "rotary_emb_base": "1e4"}, "rotary_emb_base must be a number, got '1e4'"),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.75}}, "an even number of a head's 4, got 0.75, so 3"),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 1.5}}, "an even number of a head's 4, got 1.5, so 6"),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 0}}, "an even number of a head's 4, got 0.0, so 0"),
        (
            {"rope_parameters": None, "partial_rotary_factor": 0.5},
            "but rotary_pct, which is not given, is 0.25; correct",
        ),
        ({"use_parallel_residual": "yes"}, "use_parallel_residual must be true or false, got 'yes'"),
        ({"attention_bias": False}, "unknown tensor gpt_neox.layers.0.attention.dense.bias"),
        ({"num_attention_heads": 5}, r"hidden_size \(12\) must be a multiple of num_attention_heads \(5\)"),
        ({"sliding_window": 4}, "'sliding_window'"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    neox().save_pretrained(tmp_path / "neox")
    change_config(tmp_path / "neox", **change)
    with pytest.raises(InputError, match=sentence):
        convert(str(tmp_path / "neox"), [], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
