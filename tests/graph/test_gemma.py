"""Graphs of a model as Gemma 2 is: gates, norms behind, and logits before their cap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.graph import Graph, build_graph
from jaxcircuits.model import forward
from tests.graph.cases import prompt_of, sums
from tests.helpers import TOLERANCES, gemma_config, tiny_bundle, tiny_sae

TOLERANCE = TOLERANCES["methods"]["float64"]
RESID, TRANSCODED = "blocks.0.hook_resid_post", ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")


def _bundle() -> Bundle:
    """A residual stream's autoencoder, and a transcoder from behind a norm, as Gemma Scope has them."""
    cfg = gemma_config(embedding_scale=3.0, logit_cap=1.2)
    saes = {
        "stream": tiny_sae(cfg, RESID, 24, dtype=jnp.float64, activation="jumprelu"),
        "transcoder": tiny_sae(
            cfg, TRANSCODED[0], 26, dtype=jnp.float64, hook_out=TRANSCODED[1], activation="jumprelu"
        ),
    }
    return tiny_bundle(cfg, dtype=jnp.float64, saes=saes)


def _graph(bundle: Bundle, **settings: Any) -> tuple[np.ndarray, Graph]:
    tokens = prompt_of(bundle, 7)
    with jax.enable_x64(True):
        return tokens, build_graph(bundle, tokens, include_bos=True, top_logits=3, **settings)


@pytest.mark.parametrize("gelu", ["tangent", pytest.param("secant", marks=pytest.mark.slow)])
def test_frozen_edges_add_up_to_every_node(gelu: str, x64: None) -> None:
    _, graph = _graph(_bundle(), gelu=gelu)
    ends = graph.nodes.are("feature", "logit")
    size = np.abs(graph.nodes.value[ends]).max()
    assert ends.sum() > 60
    assert np.abs(sums(graph) - graph.nodes.value)[ends].max() <= TOLERANCE * size
    constants = graph.nodes.are("gelu")
    assert constants.any() == (gelu == "tangent")


def test_logits_are_those_before_the_cap_and_probabilities_those_behind(x64: None) -> None:
    bundle = _bundle()
    tokens, graph = _graph(bundle)
    with jax.enable_x64(True):
        logits = forward(bundle.params, bundle.cfg, jnp.asarray(tokens))[0]
        assert logits is not None
        capped = np.asarray(logits[-1])
    before = bundle.cfg.logit_cap * np.arctanh(capped / bundle.cfg.logit_cap)
    nodes = graph.nodes
    mine = nodes.are("logit")
    np.testing.assert_allclose(nodes.value[mine], before[nodes.feature[mine]] - before.mean(), atol=1e-10)
    probability = np.exp(capped) / np.exp(capped).sum()
    np.testing.assert_allclose(nodes.probability[mine], probability[nodes.feature[mine]], atol=1e-10)
    assert np.abs(before).max() > 1.5 * np.abs(capped).max()
