"""Edges against PyTorch and TransformerLens, run live and the original notebook's way."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from tests.attribution.cases import EACH_MODEL, assert_same_edges, bundle_of, prompts_of, thinned
from tests.helpers import gemma_config, random_params, tiny_bundle, tiny_sae
from tests.oracle import TorchSAE, oracle_feature_acts, oracle_gradients, oracle_hook_value, transformer_lens_model

pytestmark = pytest.mark.torch

METHODS = ["reference", pytest.param("structured", marks=pytest.mark.slow)]
"""In the fast stage the structured method is compared with the reference alone."""
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "source spliced": {"splice": "source"},
    "target spliced": {"splice": "target"},
    "both spliced, BOS too": {"splice": "both", "include_bos": True},
    "BOS not spliced": {"splice": "both", "splice_bos": False, "include_bos": True},
    "pre-activations": {"target_quantity": "pre_activation", "target_threshold": -0.3},
    "neurons": {"source_basis": "neurons", "splice": "source"},
}


def _oracle_edges(bundle, model, row: int, tokens: np.ndarray, **settings: Any) -> dict[str, np.ndarray]:
    """All edges of a prompt, every position, in the order of the package's."""
    names = list(bundle.saes)
    source, target = (bundle.saes[settings.get(end, names[i])] for end, i in (("source", 0), ("target", -1)))
    splice = settings.get("splice", "none")
    keep_first = not settings.get("splice_bos", True)
    spliced = [s for s, when in ((source, ("source", "both")), (target, ("target", "both"))) if splice in when]
    read = {"spliced": spliced, "keep_first": keep_first}
    if settings.get("source_basis") == "neurons":
        directions = np.eye(source.cfg.d_in, dtype=np.asarray(source.weights.W_dec).dtype)
        source_acts = oracle_hook_value(model, tokens, source.cfg.hook_name, **read)
    else:
        directions = np.asarray(source.weights.W_dec)
        source_acts = oracle_feature_acts(model, tokens, source, **read)
    acts = oracle_feature_acts(model, tokens, target, **read)
    quantity = settings.get("target_quantity", "activation")
    differentiated = oracle_feature_acts(model, tokens, target, quantity=quantity, **read)
    first = 1 if bundle.cfg.bos_token_id is not None and not settings.get("include_bos") else 0
    targets = np.argwhere(differentiated > settings.get("target_threshold", 0.0))
    targets = targets[targets[:, 0] >= first]
    at_hook = oracle_gradients(model, tokens, source, target, targets, splice, quantity=quantity, keep_first=keep_first)
    rows = []
    for (pos, feature), gradient in zip(targets, at_hook, strict=True):
        for source_pos in range(first, pos + 1):
            for s in np.flatnonzero(source_acts[source_pos] > 0):
                value, act = gradient[source_pos] @ directions[s], source_acts[source_pos, s]
                rows.append((row, pos, feature, source_pos, s, value, value * act, act, acts[pos, feature]))
    names = ("prompt", "target_pos", "target_feature", "source_pos", "source_feature")
    names += ("gradient", "attribution", "source_act", "target_act")
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    return {k: v.astype(acts.dtype) if v.dtype.kind == "f" else v for k, v in columns.items()}


def _compare(bundle, model, method: str, settings: dict[str, Any]) -> None:
    for row, tokens in prompts_of(bundle, 12, 6):
        engine = Engine(bundle, Settings(**settings, method=method, positions="all"))
        edges, _ = engine.run([(row, tokens)])
        assert len(edges["prompt"]) > 20
        expected = _oracle_edges(bundle, model, row, tokens, **settings)
        assert_same_edges(edges, expected, "oracle", ("gradient", "attribution", "source_act", "target_act"))


@pytest.mark.parametrize("settings", list(SETTINGS))
@pytest.mark.parametrize("method", METHODS)
def test_every_setting(method: str, settings: str) -> None:
    bundle = bundle_of("global then local")
    model = transformer_lens_model(bundle.cfg, random_params(bundle.cfg))  # processed by TransformerLens
    _compare(bundle, model, method, SETTINGS[settings])


@pytest.mark.parametrize("model", [row for row in EACH_MODEL if "scaled" not in row.values[0]])
@pytest.mark.parametrize("method", METHODS)
def test_every_model_in_float64(method: str, model: str, x64: None) -> None:
    bundle = bundle_of(model, jnp.float64, processed=False)
    theirs = transformer_lens_model(bundle.cfg, random_params(bundle.cfg, dtype=jnp.float64), steps=(), dtype="float64")
    source = f"blocks.{bundle.cfg.n_layers - 2}.mlp.hook_post"
    _compare(bundle, theirs, method, {"source": source, "splice": "source"})


GEMMA_ENDS = {
    "adjacent MLPs": ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"),
    "residual stream to residual stream": ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"),
    "MLP output to heads": ("blocks.0.hook_mlp_out", "blocks.1.attn.hook_z"),
}


@pytest.mark.parametrize("ends", thinned(GEMMA_ENDS))
def test_gemma_in_float64(ends: str, x64: None) -> None:
    """Through norms behind, gates, shared keys and capped scores."""
    cfg = gemma_config()
    first, second = GEMMA_ENDS[ends]
    saes = {name: tiny_sae(cfg, name, n, seed=n, dtype=jnp.float64) for name, n in ((first, 24), (second, 28))}
    bundle = tiny_bundle(cfg, dtype=jnp.float64, saes=saes, processed=False)
    theirs = transformer_lens_model(cfg, random_params(cfg, dtype=jnp.float64), steps=(), dtype="float64")
    _compare(bundle, theirs, "auto", {"source": first, "target": second, "splice": "source"})


def test_a_layer_between() -> None:
    bundle = bundle_of("three layers")
    model = transformer_lens_model(bundle.cfg, random_params(bundle.cfg))
    _compare(bundle, model, "auto", {"splice": "both"})


@pytest.mark.parametrize("processed", [True, False], ids=["processed", "as trained"])
def test_cosines_and_virtual_weights(processed: bool) -> None:
    """Both are of TransformerLens' processed weights, whichever weights the bundle computes with."""
    bundle = bundle_of("global then local", processed=processed)
    model = transformer_lens_model(bundle.cfg, random_params(bundle.cfg))
    source, target = (TorchSAE(sae) for sae in bundle.saes.values())
    writes = (source.W_dec @ model.blocks[0].mlp.W_out).numpy()
    reads = (model.blocks[1].mlp.W_in @ target.W_enc).numpy()
    virtual = writes @ reads
    cosine = virtual / np.linalg.norm(writes, axis=1)[:, None] / np.linalg.norm(reads, axis=0)
    edges, _ = Engine(bundle, Settings(positions="all")).run(prompts_of(bundle, 12))
    same = edges["source_pos"] == edges["target_pos"]
    pairs = (edges["source_feature"][same], edges["target_feature"][same])
    for name, expected in (("virtual_weight", virtual), ("cosine_similarity", cosine)):
        assert np.isnan(edges[name][~same]).all()
        assert np.abs(edges[name][same] - expected[pairs]).max() <= 2e-5 * np.abs(expected[pairs]).max()
