"""Rotary positions and parallel residuals, and Gemma 2's blocks: one block between, and several."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings, plan
from jaxcircuits.attribution.edges import REMAINDER_COLUMNS, part_names
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from tests.attribution.cases import NEOX, assert_same_edges, assert_same_targets, prompts_of
from tests.helpers import TOLERANCES, gemma_config, tiny_bundle, tiny_config, tiny_sae

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
    "heads to the next block": ("blocks.0.attn.hook_z", "blocks.1.mlp.hook_post", {}, FROZEN),
    "attention's output to the next block's heads": ("blocks.0.hook_attn_out", "blocks.1.attn.hook_z", {}, EXACT),
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


LEARNED = {"positions": "learned", "rotary_dim": None}
DEPTH: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "two blocks between": ("blocks.0.mlp.hook_post", "blocks.3.mlp.hook_post", {}, EXACT),
    "one after the other": ("blocks.0.mlp.hook_post", "blocks.3.mlp.hook_post", SEQUENTIAL, EXACT),
    "learned positions": ("blocks.0.mlp.hook_post", "blocks.3.mlp.hook_post", LEARNED, EXACT),
    "the residual stream's end": ("blocks.0.hook_resid_pre", "blocks.3.hook_resid_post", {}, EXACT),
    "the end, one after the other": ("blocks.0.hook_resid_pre", "blocks.3.hook_resid_post", SEQUENTIAL, EXACT),
    "attention's output": ("blocks.0.hook_attn_out", "blocks.2.mlp.hook_post", {}, EXACT),
    "heads": ("blocks.0.attn.hook_z", "blocks.2.mlp.hook_pre", {}, EXACT),
    "heads, one after the other": ("blocks.0.attn.hook_z", "blocks.2.mlp.hook_post", SEQUENTIAL, EXACT),
    "to the heads": ("blocks.0.mlp.hook_post", "blocks.2.attn.hook_z", {}, EXACT),
    "to the heads, one after the other": ("blocks.0.mlp.hook_post", "blocks.2.hook_attn_out", SEQUENTIAL, EXACT),
    "forward": ("blocks.0.mlp.hook_post", "blocks.3.mlp.hook_post", {}, EXACT),
    "forward, one after the other": ("blocks.0.mlp.hook_post", "blocks.3.hook_resid_post", SEQUENTIAL, FROZEN),
    "forward, learned positions": ("blocks.0.hook_attn_out", "blocks.3.hook_mlp_out", LEARNED, FROZEN),
    "own position": ("blocks.0.mlp.hook_post", "blocks.3.mlp.hook_post", {}, {}),
    "own position, one after the other": ("blocks.0.mlp.hook_post", "blocks.3.hook_resid_post", SEQUENTIAL, {}),
    "frozen": ("blocks.0.mlp.hook_post", "blocks.3.mlp.hook_post", {}, FROZEN),
    "frozen, one after the other": ("blocks.0.mlp.hook_post", "blocks.3.hook_resid_post", SEQUENTIAL, FROZEN),
    "integrated": ("blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post", {}, {"derivative": "integrated", "points": 3}),
}
"""The same with blocks between."""
QUICK = ("two blocks between", "one after the other")


@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize("ends", [pytest.param(row, marks=[pytest.mark.slow] * (row not in QUICK)) for row in DEPTH])
def test_blocks_between_are_passed_as_the_definition_does(ends: str, collapse: bool, x64: None, monkeypatch) -> None:
    monkeypatch.setattr(plan, "collapses", lambda *_: collapse)
    source, target, changed, settings = DEPTH[ends]
    direction = "forward" if "forward" in ends else "reverse"
    monkeypatch.setattr(plan, "direction_of", lambda *_: direction)
    bundle = _bundle(source, target, changed, jnp.float64, attention=("global", "local", "global", "local"), n_layers=4)
    engine = Engine(bundle, Settings("first", "second", **settings))
    assert engine.task.way == "between"
    prompts = prompts_of(bundle, 9, 5)
    edges, targets = engine.run(prompts)
    assert engine.plan is not None
    if settings.get("positions") == "all":
        shape = engine.plan.shape(9)
        assert (shape.collapse, shape.direction) == (collapse, direction)
    expected, wanted = Engine(bundle, Settings("first", "second", **settings, method="reference")).run(prompts)
    assert len(expected["prompt"]) > 40 and np.abs(expected["gradient"]).max() > 1e-3
    assert_same_edges(edges, expected, "methods")
    assert_same_targets(targets, wanted, "methods")
    if settings is FROZEN:
        sums = ("attribution_sum", "attribution_cut", *REMAINDER_COLUMNS[:-1])
        explained = sum(np.nan_to_num(targets[name]) for name in sums)
        assert np.abs(explained - targets["activation"]).max() <= 1e-10 * np.abs(targets["activation"]).max()


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, SEQUENTIAL, LEARNED], ids=["both", "rotary", "parallel"])
@pytest.mark.parametrize("held", ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"])
def test_what_is_held_between_passes_nothing(held: str, changed: dict[str, Any], x64: None) -> None:
    ends = "blocks.0.hook_resid_pre", "blocks.3.mlp.hook_post"
    bundle = _bundle(*ends, changed, jnp.float64, attention=("global",) * 4, n_layers=4)
    third = tiny_sae(bundle.cfg, held, 20, seed=2, dtype=jnp.float64)
    bundle = replace(bundle, saes={**bundle.saes, "third": third})
    settings = {"positions": "all", "through": "direct"}
    engine = Engine(bundle, Settings("first", "second", **settings))
    assert engine.task.way == "between" and engine.problem.held == (held,)
    prompts = prompts_of(bundle, 9)
    expected, _ = Engine(bundle, Settings("first", "second", **settings, method="reference")).run(prompts)
    assert_same_edges(engine.run(prompts)[0], expected, "methods")


WAYS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "a remainder behind both": ("blocks.0.mlp.hook_post", "blocks.1.hook_resid_post", {}, {"completeness": True}),
    "parts of several blocks": ("blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post", {}, PARTS),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_has_no_closed_form_is_left_to_the_definition(way: str) -> None:
    source, target, changed, settings = WAYS[way]
    bundle = _bundle(source, target, changed, jnp.float32, attention=("global",) * 3)
    assert Engine(bundle, Settings("first", "second", **settings)).method == "reference"
    with pytest.raises(InputError, match="targets in a later block.*use --method reference"):
        Engine(bundle, Settings("first", "second", **settings, method="structured"))


GEMMA_ENDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "residual stream to residual stream": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", {}, PARTS),
    "residual stream, frozen": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", {}, FROZEN),
    "MLP output to MLP": ("blocks.0.hook_mlp_out", "blocks.1.mlp.hook_post", {}, EXACT),
    "MLP output to MLP output, secant": (
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_mlp_out",
        {},
        FROZEN | {"gelu": "secant"},
    ),
    "to what a gate multiplies": ("blocks.0.hook_mlp_out", "blocks.1.mlp.hook_pre_linear", {}, EXACT),
    "to what is activated": ("blocks.0.hook_mlp_out", "blocks.1.mlp.hook_pre", {}, FROZEN),
    "embedding to heads": ("hook_embed", "blocks.0.attn.hook_z", {}, PARTS),
    "embedding to attention's output": ("hook_embed", "blocks.0.hook_attn_out", {}, EXACT),
    "to what the MLP reads": ("blocks.1.hook_resid_pre", "blocks.1.ln2.hook_normalized", {}, EXACT),
    "no caps, a key for every head": (
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
        {"score_cap": None, "n_kv_heads": None},
        EXACT,
    ),
    "integrated": (
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
        {},
        EXACT | {"derivative": "integrated", "points": 3},
    ),
    "by head": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", {}, {"positions": "all", "parts": "heads"}),
}
GEMMA_DEPTH: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "two blocks between": ("blocks.0.hook_resid_post", "blocks.3.hook_resid_post", {}, EXACT),
    "MLP output to MLP": ("blocks.0.hook_mlp_out", "blocks.3.mlp.hook_post", {}, EXACT),
    "attention's output to heads": ("blocks.0.hook_attn_out", "blocks.2.attn.hook_z", {}, EXACT),
    "frozen": ("blocks.0.hook_mlp_out", "blocks.3.hook_resid_post", {}, FROZEN),
    "frozen, secant": ("blocks.0.hook_resid_pre", "blocks.2.hook_mlp_out", {}, FROZEN | {"gelu": "secant"}),
    "forward": ("blocks.0.hook_resid_post", "blocks.3.hook_resid_post", {}, EXACT),
    "own position": ("blocks.0.hook_resid_post", "blocks.3.hook_resid_post", {}, {}),
    "own position, from attention": ("blocks.0.hook_attn_out", "blocks.3.hook_mlp_out", {}, {}),
    "integrated": ("blocks.0.hook_mlp_out", "blocks.2.mlp.hook_post", {}, {"derivative": "integrated", "points": 3}),
}
"""The same with blocks between."""


def _gemma(source: str, target: str, **changed: Any) -> Bundle:
    cfg = gemma_config(**changed)
    saes = {
        "first": tiny_sae(cfg, source, 24, dtype=jnp.float64),
        "second": tiny_sae(cfg, target, 28, seed=1, dtype=jnp.float64),
    }
    return tiny_bundle(cfg, dtype=jnp.float64, saes=saes)


@pytest.mark.parametrize(
    "ends", [pytest.param(row, marks=[pytest.mark.slow] * (n % 4 > 0)) for n, row in enumerate(GEMMA_ENDS)]
)
def test_gemma_structured_equals_the_definition(ends: str, x64: None) -> None:
    source, target, changed, settings = GEMMA_ENDS[ends]
    _compare(_gemma(source, target, **changed), settings, "adjacent")


@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize(
    "ends", [pytest.param(row, marks=[pytest.mark.slow] * (n > 0)) for n, row in enumerate(GEMMA_DEPTH)]
)
def test_gemma_blocks_between(ends: str, collapse: bool, x64: None, monkeypatch) -> None:
    monkeypatch.setattr(plan, "collapses", lambda *_: collapse)
    source, target, changed, settings = GEMMA_DEPTH[ends]
    direction = "forward" if "forward" in ends else "reverse"
    monkeypatch.setattr(plan, "direction_of", lambda *_: direction)
    bundle = _gemma(source, target, **changed, attention=("global", "local", "global", "local"), n_layers=4)
    _compare(bundle, settings, "between")


def _compare(bundle: Bundle, settings: dict[str, Any], way: str) -> None:
    """Edges, their parts and what they leave out, by method structured and by the definition."""
    engine = Engine(bundle, Settings("first", "second", **settings))
    assert engine.task.way == way
    prompts = prompts_of(bundle, 9, 5)
    edges, targets = engine.run(prompts)
    if settings.get("parts") == "heads":  # which the definition does not have
        parts = part_names("heads", bundle.cfg.n_heads)
        size = np.abs(edges["gradient"]).max()
        assert np.abs(sum(edges[name] for name in parts) - edges["gradient"]).max() <= 1e-10 * size
        settings = settings | {"parts": "kinds"}
    expected, wanted = Engine(bundle, Settings("first", "second", **settings, method="reference")).run(prompts)
    assert len(expected["prompt"]) > 100 and np.abs(expected["gradient"]).max() > 1e-2
    assert_same_edges(edges, expected, "methods")
    assert_same_targets(targets, wanted, "methods")
    size = TOLERANCES["methods"]["float64"] * np.abs(expected["gradient"]).max()
    for part in ("residual", "value", "query", "key") if settings.get("parts") and "residual" in edges else ():
        if part in edges:
            assert np.abs(edges[part] - expected[part]).max() <= size, part
            assert np.abs(expected[part]).max() > 0 or part == "residual", part


GEMMA_SOURCES = (
    "hook_embed",
    "blocks.0.attn.hook_q",
    "blocks.0.attn.hook_z",
    "blocks.0.hook_attn_out",
    "blocks.0.mlp.hook_pre",
    "blocks.0.mlp.hook_pre_linear",
    "blocks.0.mlp.hook_post",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_resid_post",
)


@pytest.mark.parametrize("gelu", ["tangent", "secant"])
@pytest.mark.parametrize(
    "source", [pytest.param(s, marks=[pytest.mark.slow] * (s not in GEMMA_SOURCES[4:7])) for s in GEMMA_SOURCES]
)
def test_gemma_targets_complete(source: str, gelu: str, x64: None) -> None:
    """What enters a target adds up to it: through two blocks, so that a gate lies between, whatever the source."""
    bundle = _gemma(source, "blocks.1.hook_resid_post")
    asked = {"positions": "all", "derivative": "frozen", "gelu": gelu, "splice": "source"}
    engine = Engine(bundle, Settings("first", "second", **asked))
    _, targets = engine.run(prompts_of(bundle, 9, 5))
    size = np.abs(targets["activation"]).max()
    assert len(targets["prompt"]) > 50
    held = source.endswith("attn.hook_q") or (source.endswith("hook_pre") and gelu == "secant")  # pattern and gate
    assert (np.abs(targets["attribution_sum"]).max() > 1e-2 * size) != held
    assert np.abs(targets["unexplained"]).max() <= 1e-10 * size
    assert (np.abs(targets["gelu_constant"]).max() > 1e-3 * size) == (gelu == "tangent")


def test_gemma_integrated_targets_rise_by_their_edges(x64: None) -> None:
    bundle = _gemma("blocks.0.mlp.hook_post", "blocks.1.hook_resid_post")
    asked = {"derivative": "integrated", "points": 24, "source_threshold": "all", "positions": "all"}
    asked |= {"target_quantity": "pre_activation", "target_threshold": -np.inf}
    _, targets = Engine(bundle, Settings("first", "second", **asked)).run(prompts_of(bundle, 9, 5))
    assert np.abs(targets["unexplained"]).max() < 1e-7 * np.abs(targets["pre_activation"]).max()
    assert np.abs(targets["baseline"] - targets["pre_activation"]).max() > 0.1


def test_gemma_behind_a_norm_is_the_definitions(x64: None) -> None:
    """A source whose output passes a norm before it is added has no direction of its own in the stream."""
    bundle = _gemma("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post")
    edges, _ = Engine(bundle, Settings("first", "second")).run(prompts_of(bundle, 9))
    assert np.isnan(edges["cosine_similarity"]).all(), "weights alone say nothing through a norm and a gate"
    with pytest.raises(InputError, match="'structured' covers"):
        Engine(bundle, Settings("first", "second", method="structured"))
    with pytest.raises(InputError, match="stages are defined for"):
        Engine(bundle, Settings("first", "second", stages=True))
