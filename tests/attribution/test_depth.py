"""Every kind of SAE on every hook that it can sit on, with layers between: it loads, splices and attributes."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import forward, load_bundle, reconstruct, save_bundle, splice_edits
from jaxcircuits.attribution import Engine, Settings, between
from jaxcircuits.attribution.plan import Counts, bytes_of, make_plan
from jaxcircuits.attribution.task import Shape
from jaxcircuits.bundle import Bundle
from jaxcircuits.model.hooks import side_by_side
from tests.attribution.cases import assert_same_edges, assert_same_targets, prompts_of
from tests.helpers import assert_close, random_params, tiny_bundle, tiny_config, tiny_sae

KINDS: dict[str, dict[str, Any]] = {
    "ReLU": {},
    "JumpReLU": {"activation": "jumprelu"},
    "TopK": {"activation": "topk", "k": 6},
    "GroupMax": {"activation": "groupmax", "k": 4},
    "layer norm": {"normalization": "layer_norm"},
    "constant norm": {"normalization": "constant_norm_rescale", "activation": "topk", "k": 6},
    "encoder reads what arrives": {"subtract_b_dec": False},
}
"""Fields of both SAEs' configs."""

HOOKS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
    "mlp.hook_post",
)
TRANSCODERS = {
    "transcoder": ("ln2.hook_normalized", {"hook_out": "hook_mlp_out"}),
    "transcoder of the stream": ("hook_resid_mid", {"hook_out": "hook_mlp_out", "activation": "topk", "k": 6}),
    "skip transcoder": ("ln2.hook_normalized", {"hook_out": "hook_mlp_out", "skip": True, "activation": "jumprelu"}),
}
ROWS = {f"{kind}, {hook}": (hook, fields) for kind, fields in KINDS.items() for hook in HOOKS} | TRANSCODERS
FAST = ("TopK, hook_resid_pre", "JumpReLU, attn.hook_z", "skip transcoder")


def gpt2(**overrides: Any) -> Any:
    """Four layers as GPT-2 has them."""
    fields = {"n_layers": 4, "attention": ("global",) * 4, "window": 16, "attention_scale": 0.5, "family": "gpt2"}
    return tiny_config(**fields | overrides)


def bundle_on(hook: str, fields: dict[str, Any], where: Path, layers: tuple[int, int] = (0, 2)) -> Bundle:
    """Two SAEs of a kind, two layers apart, as they are loaded from a bundle's files, in float64."""
    cfg = gpt2()

    def on(layer: int) -> dict[str, Any]:
        return {name: f"blocks.{layer}.{v}" if name == "hook_out" else v for name, v in fields.items()}

    saes = {f"layer {n}": tiny_sae(cfg, f"blocks.{n}.{hook}", 24, seed=n, **on(n)) for n in layers}
    save_bundle(where, cfg, random_params(cfg), saes, None, source={})
    loaded = load_bundle(where)
    for name, sae in saes.items():
        assert loaded.saes[name].cfg == sae.cfg
        jax.tree.map(np.testing.assert_array_equal, loaded.saes[name].weights, sae.weights)
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), loaded.params)
    return replace(loaded, params=params, saes={name: sae.astype(jnp.float64) for name, sae in loaded.saes.items()})


@pytest.mark.parametrize("row", [pytest.param(r, marks=[pytest.mark.slow] * (r not in FAST)) for r in ROWS])
def test_every_kind_on_every_hook(row: str, tmp_path: Path, x64: None) -> None:
    bundle = bundle_on(*ROWS[row], tmp_path / "bundle")
    sae, tokens = bundle.saes["layer 0"], jnp.asarray(prompts_of(bundle, 9)[0][1])
    reads, writes = sae.cfg.hook_name, sae.cfg.hook_written
    _, arriving = forward(bundle.params, bundle.cfg, tokens, taps=(reads,))
    _, spliced = forward(bundle.params, bundle.cfg, tokens, taps=(writes,), edits=splice_edits([sae]))
    reconstructed = reconstruct(sae, side_by_side(reads, arriving[reads]))
    assert_close(side_by_side(writes, spliced[writes]), reconstructed, "sae")

    settings = Settings("layer 0", "layer 2", positions="all", splice="source")
    engine = Engine(bundle, settings)
    assert engine.task.way == "between"
    edges, targets = engine.run(prompts_of(bundle, 9, 5))
    expected, of_targets = Engine(bundle, replace(settings, method="reference")).run(prompts_of(bundle, 9, 5))
    assert len(edges["prompt"]) > 20
    assert np.abs(expected["gradient"]).max() > 1e-3
    assert_same_edges(edges, expected, "methods")
    assert_same_targets(targets, of_targets, "methods")


WAYS = [
    pytest.param(*way, marks=[pytest.mark.slow] * (way != ("exact", "forward", False)))
    for way in product(("exact", "frozen"), ("reverse", "forward"), (False, True))
]


@pytest.mark.parametrize(("derivative", "direction", "collapse"), WAYS)
def test_every_way_through_layers(
    derivative: str, direction: str, collapse: bool, monkeypatch: pytest.MonkeyPatch, x64: None
) -> None:
    """Windows of positions, few passes at a time, either direction: the definition's numbers, held hooks included."""
    monkeypatch.setattr(between, "WORTH_A_WINDOW", 1)
    monkeypatch.setattr(between, "WINDOWS", 2)
    cfg = gpt2(n_ctx=12)
    hooks = {"first": "blocks.0.hook_mlp_out", "held": "blocks.1.hook_attn_out", "last": "blocks.3.mlp.hook_post"}
    saes = {name: tiny_sae(cfg, hook, 24, dtype=jnp.float64) for name, hook in hooks.items()}
    bundle = tiny_bundle(cfg, dtype=jnp.float64, saes=saes)
    settings = Settings("first", "last", positions="all", through="direct", derivative=derivative, completeness=True)
    engine, prompts = Engine(bundle, settings), prompts_of(bundle, 12, 7)
    plan = engine.make_plan(prompts)
    ways = {"direction": direction, "collapse": collapse, "passes_at_once": 8}
    engine.plan = replace(plan, shapes=tuple(replace(shape, **ways) for shape in plan.shapes))
    edges, targets = engine.run(prompts)
    expected, of_targets = Engine(bundle, replace(settings, method="reference")).run(prompts)
    assert np.abs(expected["gradient"]).max() > 1e-3
    assert_same_edges(edges, expected, "methods")
    assert_same_targets(targets, of_targets, "methods")


def test_the_plan_goes_the_cheaper_way() -> None:
    """Few sources go forward; MLPs become matrices where enough targets share them and there is room for them."""
    cfg = gpt2(d_model=64, d_mlp=256, n_heads=4, d_head=16, n_ctx=64)
    hooks = {"first": "blocks.0.hook_resid_pre", "last": "blocks.3.hook_resid_post"}
    bundle = tiny_bundle(cfg, saes={name: tiny_sae(cfg, hook, 24) for name, hook in hooks.items()})
    task = Engine(bundle, Settings("first", "last", positions="all")).task
    widths = {"d_sae": 24, "d_sae_target": 24, "d_in": 64, "bytes": 4}

    def shape(sources: float, targets: float, memory: int = 2**30) -> Shape:
        counts = Counts(sources, 24, targets)
        plan = make_plan(task, widths, [64], counts, memory, exact=True)
        assert bytes_of(plan.shapes[0], task, widths) <= memory
        return plan.shapes[0]

    assert (shape(20, 4).direction, shape(2, 20).direction) == ("reverse", "forward")
    assert (shape(20, 10).collapse, shape(20, 0.1).collapse) == (True, False)
    assert not shape(20, 10, memory=12_000_000).collapse
    assert shape(20, 10).chunk >= 640
