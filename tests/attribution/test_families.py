"""Rotary positions and parallel residuals: structured where one block lies between, by the definition elsewhere."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import REMAINDER_COLUMNS
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from tests.attribution.cases import NEOX, assert_same_edges, assert_same_targets, prompts_of
from tests.helpers import TOLERANCES, tiny_bundle, tiny_config, tiny_sae

PARTS = {"parts": "kinds", "positions": "all"}
FROZEN = {"positions": "all", "derivative": "frozen", "splice": "source"}
EXACT = {"positions": "all", "completeness": False}
SEQUENTIAL = {"parallel_residual": False, "rotary_dim": 4}

ENDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "MLP to residual stream": ("blocks.0.mlp.hook_post", "blocks.1.hook_resid_post", {}, PARTS),
    "embedding to what the MLP reads, frozen": ("hook_embed", "blocks.0.ln2.hook_normalized", SEQUENTIAL, FROZEN),
    "residual stream to its block's heads": ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", {}, PARTS),
    "MLP to MLP, frozen": ("blocks.0.mlp.hook_post", "blocks.1.hook_mlp_out", {}, FROZEN),
    "embedding to attention's output": ("hook_embed", "blocks.0.hook_attn_out", {}, EXACT),
    "residual stream to its block's MLP": ("blocks.1.hook_resid_pre", "blocks.1.mlp.hook_pre", {}, EXACT),
    "residual stream to residual stream": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", SEQUENTIAL, PARTS),
    "residual stream alone": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", {}, EXACT),
    "MLP to residual stream, integrated": (
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_resid_post",
        {},
        EXACT | {"derivative": "integrated", "points": 3},
    ),
}
"""Source hook, target hook, what is otherwise than in `NEOX`, and settings."""


def _bundle(source: str, target: str, changed: dict[str, Any], dtype: Any, **more: Any) -> Bundle:
    cfg = tiny_config(**(NEOX | changed | more))
    saes = {"first": tiny_sae(cfg, source, 24, dtype=dtype), "second": tiny_sae(cfg, target, 28, seed=1, dtype=dtype)}
    return tiny_bundle(cfg, dtype=dtype, saes=saes)


@pytest.mark.parametrize("ends", [pytest.param(row, marks=[pytest.mark.slow] * (n > 0)) for n, row in enumerate(ENDS)])
def test_structured_equals_the_definition(ends: str, x64: None) -> None:
    source, target, changed, settings = ENDS[ends]
    bundle = _bundle(source, target, changed, jnp.float64)
    engine = Engine(bundle, Settings("first", "second", **settings))
    assert engine.task.way == "adjacent"
    prompts = prompts_of(bundle, 9, 5)
    edges, targets = engine.run(prompts)
    expected, wanted = Engine(bundle, Settings("first", "second", **settings, method="reference")).run(prompts)
    assert len(expected["prompt"]) > 100 and np.abs(expected["gradient"]).max() > 1e-2
    assert_same_edges(edges, expected, "methods")
    assert_same_targets(targets, wanted, "methods")
    size = TOLERANCES["methods"]["float64"] * np.abs(expected["gradient"]).max()
    for part in ("residual", "value", "query", "key") if "parts" in settings else ():
        assert np.abs(edges[part] - expected[part]).max() <= size, part
        assert np.abs(expected[part]).max() > 0 or (part == "residual" and "hook_z" in target), part
    if settings is FROZEN:
        sums = ("attribution_sum", "attribution_cut", *REMAINDER_COLUMNS[:-1])
        explained = sum(np.nan_to_num(targets[name]) for name in sums)
        assert np.abs(explained - targets["activation"]).max() <= 1e-10 * np.abs(targets["activation"]).max()


def test_attention_does_not_reach_its_own_blocks_mlp() -> None:
    """Where residuals are parallel: no edge from another position, and none from what attention writes."""
    bundle = _bundle("blocks.1.hook_resid_pre", "blocks.1.mlp.hook_post", {}, jnp.float32)
    edges, _ = Engine(bundle, Settings("first", "second", positions="all")).run(prompts_of(bundle, 9))
    own = edges["source_pos"] == edges["target_pos"]
    assert np.abs(edges["gradient"][own]).max() > 1e-2 and not np.any(edges["gradient"][~own])
    bundle = _bundle("blocks.1.hook_attn_out", "blocks.1.mlp.hook_post", {}, jnp.float32)
    edges, _ = Engine(bundle, Settings("first", "second")).run(prompts_of(bundle, 9))
    assert len(edges["prompt"]) > 20 and not np.any(edges["gradient"])


WAYS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "a block between": ("blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post", {}, {}),
    "a block between, one after the other": ("blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post", SEQUENTIAL, {}),
    "a block between, learned positions": (
        "blocks.0.mlp.hook_post",
        "blocks.2.mlp.hook_post",
        {"positions": "learned", "rotary_dim": None},
        {},
    ),
    "a remainder behind both": ("blocks.0.mlp.hook_post", "blocks.1.hook_resid_post", {}, {"completeness": True}),
    "attention's output": ("blocks.0.hook_attn_out", "blocks.1.mlp.hook_post", {}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_has_no_closed_form_is_left_to_the_definition(way: str) -> None:
    source, target, changed, settings = WAYS[way]
    bundle = _bundle(source, target, changed, jnp.float32, attention=("global",) * 3)
    assert Engine(bundle, Settings("first", "second", **settings)).method == "reference"
    with pytest.raises(InputError, match="rotary positions or parallel residuals.*use --method reference"):
        Engine(bundle, Settings("first", "second", **settings, method="structured"))
