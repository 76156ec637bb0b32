"""What cannot drive a target does not, to the last bit; what must not matter does not."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution.problem import Settings, resolve, source_side
from jaxcircuits.attribution.reference import hook_gradients
from tests.attribution.cases import assert_same_edges, bundle_of, edges_of, prompts_of
from tests.helpers import TOLERANCES, tiny_bundle, tiny_config


@pytest.mark.parametrize("window", [1, 3, 12])
def test_only_earlier_positions_inside_the_window_drive(window: int) -> None:
    """The gradient is differentiated, not masked: what lies outside must be zero by itself."""
    bundle = tiny_bundle(tiny_config(window=window))
    (_, tokens), *_ = prompts_of(bundle, 12)
    pair = resolve(bundle, Settings(target_quantity="pre_activation"))
    _, h = source_side(pair.problem, bundle.params, pair.source, jnp.asarray(tokens))
    pos = jnp.arange(12, dtype=jnp.int32)
    gradients = hook_gradients(bundle.params, pair.target, jnp.asarray(tokens), h, pos, 0 * pos, problem=pair.problem)
    reached = np.asarray(jnp.abs(gradients).max(-1) > 0)  # [target, pos]
    distance = np.arange(12)[:, None] - np.arange(12)[None]
    np.testing.assert_array_equal(reached, (distance >= 0) & (distance < window))


@pytest.mark.parametrize("method", ["reference", "structured"])
def test_no_edge_from_outside_a_local_window(method: str) -> None:
    bundle = bundle_of("global then local")
    edges = edges_of(bundle, prompts_of(bundle, 16), positions="all", method=method)
    outside = edges["target_pos"] - edges["source_pos"] >= bundle.cfg.window
    assert outside.any()
    assert not edges["gradient"][outside].any()
    assert np.abs(edges["gradient"][~outside]).min() > 0


@pytest.mark.parametrize("method", ["reference", "structured"])
@pytest.mark.parametrize(("spliced", "same_as"), [("target", "none"), ("both", "source")])
def test_splicing_the_target_changes_no_edge(method: str, spliced: str, same_as: str) -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 13)
    with_it, without = (edges_of(bundle, prompts, positions="all", method=method, splice=s) for s in (spliced, same_as))
    assert_same_edges(with_it, without, "exact", ("gradient", "attribution", "source_act", "target_act"))


def test_splicing_the_source_changes_edges() -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 13)
    plain, spliced = (
        edges_of(bundle, prompts, splice=s, target_threshold=-np.inf, target_quantity="pre_activation")
        for s in ("none", "source")
    )
    assert np.abs(plain["gradient"] - spliced["gradient"]).max() > 1e-3


@pytest.mark.parametrize("method", ["reference", "structured"])
def test_processing_changes_no_edge(method: str, x64: None) -> None:
    settings = {"positions": "all", "splice": "source", "method": method}
    prompts = prompts_of(bundle_of("global then local", jnp.float64), 13)
    processed, raw = (
        edges_of(bundle_of("global then local", jnp.float64, processed=p), prompts, **settings) for p in (True, False)
    )
    assert_same_edges(processed, raw, "methods", ("gradient", "attribution", "source_act", "target_act"))
    same = processed["source_pos"] == processed["target_pos"]
    for name in ("cosine_similarity", "virtual_weight"):
        assert np.abs(processed[name][same] - raw[name][same]).max() <= TOLERANCES["methods"]["float64"]


def test_the_intervention_does_what_the_derivative_says(x64: None) -> None:
    """Moving a source by a little moves its target by that times the gradient; the error term is kept."""
    from jaxcircuits.model import forward
    from jaxcircuits.sae import encode

    bundle = bundle_of("global then local", jnp.float64)
    prompts = prompts_of(bundle, 10)
    edges = edges_of(bundle, prompts, positions="all", top_k=1)
    source, target = bundle.saes.values()
    tokens, delta = jnp.asarray(prompts[0][1]), 1e-6

    def targets_after(source_pos: int, feature: int, change: float):
        edit = lambda value: value.at[source_pos].add(change * source.weights.W_dec[feature])  # noqa: E731
        hook = target.cfg.hook_name
        _, acts = forward(bundle.params, bundle.cfg, tokens, taps=(hook,), edits={source.cfg.hook_name: edit})
        return encode(target, acts[hook])

    before = targets_after(0, 0, 0.0)
    for i in np.argsort(-np.abs(edges["attribution"]))[:20]:
        after = targets_after(edges["source_pos"][i], edges["source_feature"][i], delta)
        at = (edges["target_pos"][i], edges["target_feature"][i])
        rise = float(after[at] - before[at])
        assert rise == pytest.approx(delta * edges["gradient"][i], rel=1e-3)
