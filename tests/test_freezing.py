"""Interventions with attention, norms and GELUs held: what they hold, and that frozen edges are their effects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import Change, intervene, pre_activations, steer
from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.errors import InputError
from jaxcircuits.model import hook_names
from tests.helpers import (
    TOLERANCES,
    assert_close,
    gemma_config,
    neox_config,
    random_tokens,
    tiny_bundle,
    tiny_config,
    tiny_sae,
)

CFG = tiny_config()
SOURCE, BEHIND, BEFORE = "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "blocks.1.hook_resid_mid"
PATTERN, SCALE, FINAL = "blocks.1.attn.hook_pattern", "blocks.1.ln2.hook_scale", "ln_final.hook_scale"


@pytest.mark.parametrize(
    ("cfg", "target", "freeze", "splice"),
    [
        (CFG, BEFORE, ("attention", "norms"), "none"),
        (CFG, BEHIND, ("attention", "norms", "gelu"), "source"),
        (neox_config(), "blocks.1.hook_resid_post", ("attention", "norms", "gelu"), "source"),
        (gemma_config(), "blocks.1.hook_resid_post", ("attention", "norms", "gelu"), "source"),
    ],
    ids=["before a GELU", "behind a GELU", "rotary, parallel, GELU by erf", "Gemma 2"],
)
def test_frozen_edges_are_the_effects_of_large_changes(cfg, target, freeze, splice, x64) -> None:
    """No GELU lies before the first target; the tangent stands for the one before the second."""
    saes = {name: tiny_sae(cfg, name, dtype=jnp.float64) for name in (SOURCE, target)}
    bundle = tiny_bundle(cfg, dtype=jnp.float64, saes=saes)
    tokens = random_tokens(cfg, 8)
    settings = {"derivative": "frozen", "positions": "all", "splice": splice, "target_quantity": "pre_activation"}
    edges, _ = Engine(bundle, Settings(**settings)).run([(0, np.asarray(tokens))])

    def read(changes):
        run = intervene(
            bundle.params,
            cfg,
            saes,
            tokens,
            changes,
            splice=(SOURCE,) if splice == "source" else (),
            freeze=freeze,
            taps=[target],
        )
        return pre_activations(saes[target], run.acts[target])

    before = read(())
    assert_close(read([steer(SOURCE, 3, 0.0)]), before, "methods")
    one = jax.jit(lambda feature, pos: read([Change(SOURCE, "set", feature, 0.0, pos[None])]) - before)
    size = np.abs(edges["attribution"]).max()
    places = set(zip(edges["source_pos"].tolist(), edges["source_feature"].tolist(), strict=True))
    for pos, feature in sorted(places)[::20]:
        own = (edges["source_pos"] == pos) & (edges["source_feature"] == feature)
        effect = np.asarray(one(feature, jnp.int32(pos)))[edges["target_pos"][own], edges["target_feature"][own]]
        off = np.abs(effect + edges["attribution"][own]).max()
        assert off <= TOLERANCES["methods"]["float64"] * size
    assert_close(read([steer(SOURCE, 3, 50.0)]) - before, 10 * (read([steer(SOURCE, 3, 5.0)]) - before), "methods")


def test_each_holds_what_it_says_and_nothing_before_the_change() -> None:
    bundle, tokens = tiny_bundle(CFG), random_tokens(CFG, 2, 8)
    change = steer(SOURCE, 5, 4.0, positions=3)
    taps = [name for name in hook_names(CFG) if name.endswith(("hook_pattern", "hook_scale", "hook_pre"))]

    def run(*changes, **options):
        found = intervene(bundle.params, CFG, bundle.saes, tokens, changes, taps=taps, **options)
        return {**found.acts, "logits": found.logits}

    plain = run()
    same = {
        freeze: {name for name, value in run(change, freeze=freeze).items() if bool((value == plain[name]).all())}
        for freeze in ((), ("attention",), ("norms",), ("attention", "norms", "gelu"))
    }
    early = {name for name in taps if name.startswith("blocks.0.")}
    assert same[()] == early
    assert same[("attention",)] == early | {PATTERN}
    assert same[("norms",)] == early | {"blocks.1.ln1.hook_scale", SCALE, FINAL}
    assert same[("attention", "norms", "gelu")] == early | {PATTERN, "blocks.1.ln1.hook_scale", SCALE, FINAL}
    # Held are the values of the run without changes, which splices all the same.
    spliced = run(change, freeze=("attention",), splice=[SOURCE])
    assert_close(spliced[PATTERN], run(splice=[SOURCE])[PATTERN], "exact")
    # Without a change there is nothing to hold.
    assert_close(run(freeze=("attention", "norms", "gelu"))["logits"], plain["logits"], "exact")


def test_what_cannot_be_frozen_is_refused() -> None:
    bundle = tiny_bundle(CFG)
    with pytest.raises(InputError, match="freeze takes attention, norms, gelu, got 'softmax'"):
        intervene(bundle.params, CFG, bundle.saes, random_tokens(CFG, 4), freeze=["softmax"])
