"""The reference itself: against central differences, computed with nothing but `forward` and `encode`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.model import forward
from jaxcircuits.sae import encode, pre_activations, reconstruct
from tests.attribution.cases import edges_of, prompts_of
from tests.helpers import TOLERANCES, gemma_config, tiny_bundle, tiny_config, tiny_sae

STEP = 1e-5

PAIRS: dict[str, tuple[str, str]] = {
    "adjacent MLPs": ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"),
    "a layer between": ("blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post"),
    "embedding to residual stream": ("hook_embed", "blocks.1.hook_resid_post"),
    "heads to MLP, one layer": ("blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"),
    "residual stream to queries": ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_q"),
    "MLP input to MLP output": ("blocks.2.mlp.hook_pre", "blocks.2.hook_mlp_out"),
    "Gemma 2, adjacent MLPs": ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"),
    "Gemma 2, residual stream to residual stream": ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post"),
    "Gemma 2, heads to what a gate multiplies": ("blocks.1.attn.hook_z", "blocks.2.mlp.hook_pre_linear"),
}


def _bundle(pair: str, dtype: Any):
    config = gemma_config if pair.startswith("Gemma") else tiny_config
    cfg = config(attention=("global", "local", "local"), window=3, d_vocab=13, d_mlp=16, n_layers=3)
    hooks = dict(zip(("source", "target"), PAIRS[pair], strict=True))
    saes = {end: tiny_sae(cfg, hook, 20 if end == "source" else 15, dtype=dtype) for end, hook in hooks.items()}
    return tiny_bundle(cfg, dtype=dtype, saes=saes)


def _target(bundle, tokens, shift, *, spliced: bool, quantity: str, pos: int, feature: int) -> float:
    """One target when the value that leaves the source hook, spliced or not, is moved by `shift`."""
    source, target = bundle.saes["source"], bundle.saes["target"]

    def edit(value):
        flat = value.reshape(len(tokens), -1)
        return ((reconstruct(source, flat) if spliced else flat) + shift).reshape(value.shape)

    hook = target.cfg.hook_name
    _, acts = forward(bundle.params, bundle.cfg, tokens, taps=(hook,), edits={source.cfg.hook_name: edit})
    read = encode if quantity == "activation" else pre_activations
    return float(read(target, acts[hook].reshape(len(tokens), -1)[pos])[feature])


@pytest.mark.parametrize("spliced", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["none", "spliced"])
@pytest.mark.parametrize("pair", list(PAIRS))
def test_central_differences(pair: str, spliced: bool, x64: None) -> None:
    bundle = _bundle(pair, jnp.float64)
    prompts = prompts_of(bundle, 7)
    tokens = jnp.asarray(prompts[0][1])
    quantity = "pre_activation" if pair == "a layer between" else "activation"
    settings = {"positions": "all", "splice": "source" if spliced else "none", "target_quantity": quantity}
    edges = edges_of(bundle, prompts, source="source", target="target", method="reference", **settings)
    assert len(edges["prompt"]) > 50
    W_dec = bundle.saes["source"].weights.W_dec
    size = np.abs(edges["gradient"]).max()
    some = np.random.default_rng(0).choice(len(edges["prompt"]), 25, replace=False)
    earlier = np.flatnonzero(edges["source_pos"] < edges["target_pos"])
    for i in [*some, *earlier[:10]]:
        at = {"pos": int(edges["target_pos"][i]), "feature": int(edges["target_feature"][i])}
        direction = W_dec[edges["source_feature"][i]]
        shift = jnp.zeros((7, W_dec.shape[1])).at[edges["source_pos"][i]].set(STEP * direction)
        up, down = (_target(bundle, tokens, s, spliced=spliced, quantity=quantity, **at) for s in (shift, -shift))
        assert abs((up - down) / (2 * STEP) - edges["gradient"][i]) <= TOLERANCES["finite_difference"]["float64"] * size


def test_heads_side_by_side_keep_their_places() -> None:
    """A source on `attn.hook_z` writes to the heads that its decoder row names."""
    bundle = _bundle("heads to MLP, one layer", jnp.float32)
    edges = edges_of(bundle, prompts_of(bundle, 6), source="source", target="target", positions="all")
    later = edges["source_pos"] < edges["target_pos"]
    assert later.any()
    assert not edges["gradient"][later].any()  # z of one position reaches the MLP of that position alone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "target", "target": "source"}, "must sit before"),
        ({"source": "target"}, "must sit before"),
        ({"source": "nobody"}, "no SAE 'nobody'; it has source, target"),
        ({"positions": "some"}, "positions must be one of same, all, got 'some'"),
        ({"method": "guess"}, "method must be one of"),
        ({"derivative": "finite"}, "derivative must be one of"),
        ({"splice": "all"}, "splice must be one of"),
        ({"source_threshold": "most"}, "number or 'all'"),
        ({"target_threshold": float("nan")}, "got NaN"),
        ({"top_k": 0}, "at least 1"),
        ({"points": 0}, "at least 1"),
        ({"min_attribution": -1.0}, "must not be negative"),
        ({"gelu": "chord"}, "gelu must be one of tangent, secant"),
        ({"through": "both"}, "through must be one of total, direct"),
        ({"precision": "high"}, "precision must be one of highest, tf32, bf16"),
        ({"parts": "heads", "method": "reference"}, "parts by head are computed by method structured"),
        ({"stages": True, "method": "reference"}, "stages are computed by method structured"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    bundle = _bundle("adjacent MLPs", jnp.float32)
    with pytest.raises(InputError, match=message):
        edges_of(bundle, prompts_of(bundle, 4), **settings)


def test_a_bundle_without_saes() -> None:
    bundle = tiny_bundle(saes={})
    with pytest.raises(InputError, match="has no SAE"):
        edges_of(bundle, prompts_of(bundle, 4))
