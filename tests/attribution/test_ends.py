"""Other hooks and other kinds of autoencoders: structured where there is a closed form, equal to the reference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import REMAINDER_COLUMNS
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.sae import encode, pre_activations
from tests.attribution.cases import assert_same_edges, assert_same_targets, prompts_of, thinned
from tests.helpers import tiny_bundle, tiny_config, tiny_sae

EXACT = {"positions": "all"}
FROZEN = {"positions": "all", "derivative": "frozen", "splice": "source"}
WHOLE = {"parts": "heads", "positions": "all"}

HOOKS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "MLP output to residual": ("blocks.0.hook_mlp_out", "blocks.1.hook_resid_post", FROZEN, "adjacent"),
    "residual to residual": ("blocks.0.hook_resid_post", "blocks.2.hook_resid_pre", EXACT, "adjacent"),
    "residual to its block's MLP": ("blocks.1.hook_resid_pre", "blocks.1.mlp.hook_post", WHOLE, "adjacent"),
    "embedding to MLP output": ("hook_embed", "blocks.0.hook_mlp_out", FROZEN, "adjacent"),
    "residual to middle": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_mid", FROZEN, "adjacent"),
    "MLP to heads": ("blocks.0.mlp.hook_post", "blocks.1.attn.hook_z", WHOLE, "adjacent"),
    "MLP to attention's output": ("blocks.0.mlp.hook_post", "blocks.1.hook_attn_out", EXACT, "adjacent"),
    "MLP to what the next reads": ("blocks.0.mlp.hook_post", "blocks.1.ln2.hook_normalized", FROZEN, "adjacent"),
    "MLP to pre-activations": ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_pre", EXACT, "adjacent"),
    "residual through a layer": ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post", FROZEN, "between"),
    "MLP output through a layer": ("blocks.0.hook_mlp_out", "blocks.2.hook_resid_mid", EXACT, "between"),
    "MLP to heads through a layer": ("blocks.0.mlp.hook_post", "blocks.2.attn.hook_z", EXACT, "between"),
    "MLP to attention's output through a layer": ("blocks.0.hook_mlp_out", "blocks.2.hook_attn_out", EXACT, "between"),
    "attention's output to its block's MLP": ("blocks.1.hook_attn_out", "blocks.1.mlp.hook_post", FROZEN, "between"),
    "heads to the next MLP": ("blocks.0.attn.hook_z", "blocks.1.hook_mlp_out", EXACT, "between"),
    "middle to heads through a layer": ("blocks.0.hook_resid_mid", "blocks.2.attn.hook_z", EXACT, "between"),
    "heads through a layer": ("blocks.0.attn.hook_z", "blocks.2.hook_resid_post", FROZEN, "between"),
    "heads to attention's output": ("blocks.0.attn.hook_z", "blocks.1.hook_attn_out", FROZEN, "reference"),
    "pre-activations to MLP": ("blocks.0.mlp.hook_pre", "blocks.1.mlp.hook_post", FROZEN, "reference"),
}
"""Source hook, target hook, settings, and the way they are computed."""

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "JumpReLU": ({"activation": "jumprelu"}, EXACT),
    "TopK": ({"activation": "topk", "k": 6}, EXACT),
    "GroupMax": ({"activation": "groupmax", "k": 4}, {**EXACT, "splice": "source"}),
    "JumpReLU, integrated": ({"activation": "jumprelu"}, {"derivative": "integrated", "points": 3}),
    "TopK, integrated": ({"activation": "topk", "k": 6}, {"derivative": "integrated", "points": 3}),
    "layer norm": ({"normalization": "layer_norm"}, {**EXACT, "parts": "kinds"}),
    "constant norm": ({"normalization": "constant_norm_rescale"}, {**EXACT, "splice": "source"}),
    "layer norm, frozen": ({"normalization": "layer_norm", "activation": "topk", "k": 6}, FROZEN),
    "constant norm, integrated": (
        {"normalization": "constant_norm_rescale", "activation": "jumprelu"},
        {"derivative": "integrated", "points": 3, "positions": "all", "baseline": "mean"},
    ),
}
"""Fields of both SAEs' configs, and settings."""


def _bundle(source: str, target: str, dtype: Any, of_source: dict[str, Any], of_target: dict[str, Any]) -> Bundle:
    cfg = tiny_config(n_layers=3)
    saes = {
        "first": tiny_sae(cfg, source, 24, dtype=dtype, **of_source),
        "second": tiny_sae(cfg, target, 28, seed=1, dtype=dtype, **of_target),
    }
    return tiny_bundle(cfg, dtype=dtype, saes=saes)


def _run(bundle: Bundle, **settings: Any) -> tuple[Engine, Any, Any]:
    engine = Engine(bundle, Settings("first", "second", **settings))
    return engine, *engine.run(prompts_of(bundle, 9, 5))


def _compare(bundle: Bundle, settings: dict[str, Any], way: str) -> None:
    """Structured against reference; frozen, the targets are complete too."""
    engine, edges, targets = _run(bundle, **settings)
    assert engine.task.way == way
    reference = {**settings, "parts": "kinds"} if settings.get("parts") == "heads" else settings
    _, expected, expected_targets = _run(bundle, method="reference", **reference)
    assert len(expected["prompt"]) > 20 and np.abs(expected["gradient"]).max() > 1e-3
    assert_same_edges(edges, expected, "methods")
    if settings is FROZEN:
        _assert_complete(targets)
    if reference is settings:
        assert_same_targets(targets, expected_targets, "methods")
        return
    for kind in ("value", "query", "key"):
        heads = sum(edges[f"{kind}_{head}"] for head in range(bundle.cfg.n_heads))
        np.testing.assert_allclose(heads, expected[kind], atol=1e-10 * np.abs(expected["gradient"]).max())


@pytest.mark.parametrize("hooks", thinned(HOOKS))
def test_every_pair_of_hooks(hooks: str, x64: None) -> None:
    source, target, settings, way = HOOKS[hooks]
    bundle = _bundle(source, target, jnp.float64, {}, {})
    if way == "reference":
        engine, _, targets = _run(bundle, **settings)
        assert engine.task.way == way
        _assert_complete(targets)
        with pytest.raises(InputError, match="method 'structured' covers"):
            Engine(bundle, Settings("first", "second", **settings, method="structured"))
    else:
        _compare(bundle, settings, way)


def _assert_complete(targets: Any) -> None:
    sums = ("attribution_sum", "attribution_cut", *REMAINDER_COLUMNS[:-1])
    explained = sum(np.nan_to_num(targets[name]) for name in sums)
    assert np.abs(explained - targets["activation"]).max() <= 1e-10 * np.abs(targets["activation"]).max()
    assert np.abs(targets["attribution_sum"]).max() > 1e-3


@pytest.mark.parametrize("kind", thinned(KINDS))
def test_every_kind_of_autoencoder(kind: str, x64: None) -> None:
    fields, settings = KINDS[kind]
    bundle = _bundle("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", jnp.float64, fields, fields)
    _compare(bundle, settings, "adjacent")


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "with a linear path"])
@pytest.mark.parametrize("settings", [EXACT, FROZEN], ids=["exact", "frozen, spliced"])
def test_transcoders(settings: dict[str, Any], skip: bool, x64: None) -> None:
    """They read what the MLP reads and write what it writes; spliced, they take its place."""
    ends = [f"blocks.{layer}.ln2.hook_normalized" for layer in (0, 1)]
    fields = [{"hook_out": f"blocks.{layer}.hook_mlp_out", "skip": skip} for layer in (0, 1)]
    bundle = _bundle(*ends, jnp.float64, *fields)
    _compare(bundle, settings, "adjacent")


def test_a_normalised_source_is_differentiated_with_respect_to_its_activation(x64: None) -> None:
    """One unit of a feature is its decoder row times what the normalisation undoes: checked by moving the feature."""
    hook, other = "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"
    bundle = _bundle(hook, other, jnp.float64, {"normalization": "layer_norm"}, {"normalization": "layer_norm"})
    _, edges, _ = _run(bundle, splice="source")
    engine = Engine(bundle, Settings("first", "second", splice="source"))
    problem, source, target = engine.problem, engine.pair.source, engine.pair.target
    from jaxcircuits.attribution.problem import source_side, target_side
    from jaxcircuits.sae import decode

    at = int(np.abs(edges["gradient"]).argmax())
    _, tokens = prompts_of(bundle, 9, 5)[edges["prompt"][at]]
    arriving, _ = source_side(problem, bundle.params, source, jnp.asarray(tokens))
    acts = encode(source, arriving)

    def moved(step: float) -> jax.Array:
        changed = acts.at[edges["source_pos"][at], edges["source_feature"][at]].add(step)
        h = decode(source, changed, arriving)
        reached, _ = target_side(problem, bundle.params, h, jnp.asarray(tokens))
        return encode(target, reached)[edges["target_pos"][at], edges["target_feature"][at]]

    difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
    np.testing.assert_allclose(edges["gradient"][at], difference, rtol=1e-7)


@pytest.mark.parametrize("held", ["blocks.0.hook_mlp_out", "blocks.0.hook_resid_post", "blocks.1.mlp.hook_pre"])
def test_what_is_held_is_held_by_every_method(held: str, x64: None) -> None:
    """An SAE between the ends cuts the paths through its hook where only direct ones are asked for."""
    cfg = tiny_config(n_layers=3)
    hooks = {"first": "blocks.0.mlp.hook_post", "second": "blocks.1.mlp.hook_post", "between": held}
    saes = {name: tiny_sae(cfg, hook, 24, seed=len(name), dtype=jnp.float64) for name, hook in hooks.items()}
    bundle = tiny_bundle(cfg, dtype=jnp.float64, saes=saes)
    _, edges, _ = _run(bundle, through="direct", positions="all")
    _, expected, _ = _run(bundle, through="direct", positions="all", method="reference")
    assert_same_edges(edges, expected, "methods")
    assert np.abs(expected["gradient"]).max() == 0  # every path from one MLP to the next leads through these


@pytest.mark.parametrize("fields", [{"activation": "topk", "k": 5}, {"activation": "groupmax", "k": 4}])
def test_no_more_features_are_on_than_k(fields: dict[str, Any]) -> None:
    sae = tiny_sae(tiny_config(), **fields)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((50, sae.cfg.d_in)), jnp.float32)
    acts, pre_acts = encode(sae, x), pre_activations(sae, x)
    on = np.asarray(acts > 0)
    assert (on.sum(1) <= fields["k"]).all() and on.sum() > 100
    np.testing.assert_array_equal(np.asarray(acts)[on], np.asarray(pre_acts)[on])
