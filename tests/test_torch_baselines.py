"""The benchmark's PyTorch side computes what it is compared with."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import Columns
from tests.helpers import random_params, random_tokens, tiny_bundle, tiny_config

pytest.importorskip("torch")
pytest.importorskip("transformer_lens")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import torch_baselines as baselines
import torch_model

pytestmark = pytest.mark.torch

MODELS: dict[str, dict[str, Any]] = {
    "global then local": {},
    "local then global": {"attention": ("local", "global")},
    "as trained": {"processing": ()},
    "three layers": {"n_layers": 3},
}


def _case(overrides: dict[str, Any], splice: str) -> tuple[Any, ...]:
    cfg = tiny_config(**overrides)
    bundle = tiny_bundle(cfg)
    tokens = np.asarray(random_tokens(cfg, 9, seed=3))
    names = [f"blocks.{layer}.mlp.hook_post" for layer in (cfg.n_layers - 2, cfg.n_layers - 1)]
    settings = Settings(source=names[0], target=names[1], method="reference", splice=splice)
    edges, targets = Engine(bundle, settings).run([(0, tokens)])
    pairs = list(zip(targets["target_pos"].tolist(), targets["target_feature"].tolist(), strict=True))
    baselines.set_threads(1)  # more only get in each other's way at this size
    model = torch_model.transformer_lens_model(cfg, random_params(cfg))
    return model, torch_model.torch_saes(*(bundle.saes[name] for name in names)), tokens, pairs, edges


def _assert_edges(
    gradients: np.ndarray, given: baselines.Given, pairs: list[tuple[int, int]], edges: Columns, tolerance: float = 2e-5
) -> None:
    listed = 0
    for row, (pos, feature) in zip(gradients, pairs, strict=True):
        of_target = (edges["target_pos"] == pos) & (edges["target_feature"] == feature)
        expected, count = edges["gradient"][of_target], int(given.counts[pos])
        np.testing.assert_array_equal(given.sources[pos, :count], edges["source_feature"][of_target])
        assert not row[count:].any()
        assert np.abs(row[:count] - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=0)
        listed += count
    assert listed == len(edges["gradient"]) > 100


@pytest.mark.parametrize("splice", ["none", "source"])
@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
def test_every_way_gives_the_edges_of_the_reference(overrides: dict[str, Any], splice: str) -> None:
    model, saes, tokens, pairs, edges = _case(overrides, splice)
    given = baselines.given_activations(model, saes, tokens, pairs, splice)
    whole = baselines.notebook_cell(model, saes, tokens, pairs, splice)
    assert whole.shape == (len(pairs), saes[0].W_dec.shape[0])
    _assert_edges(baselines.at_active_sources(given, whole), given, pairs, edges)
    _assert_edges(baselines.careful_loop(given)(), given, pairs, edges)
    for chunk in (7, 1000):
        _assert_edges(baselines.batched_vjps(given, chunk)(), given, pairs, edges)
        _assert_edges(baselines.plain_batched_vjps(given, chunk)(), given, pairs, edges)


def test_targets_in_any_order() -> None:
    model, saes, tokens, pairs, edges = _case({}, "none")
    shuffled = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]
    given = baselines.given_activations(model, saes, tokens, shuffled)
    _assert_edges(baselines.careful_loop(given)(), given, shuffled, edges)
    _assert_edges(baselines.batched_vjps(given, 4)(), given, shuffled, edges)


@pytest.mark.parametrize("splice", ["none", "source"])
def test_forward_and_encode(splice: str) -> None:
    model, saes, tokens, pairs, edges = _case({}, splice)
    source_acts, target_acts = baselines.forward_and_encode(model, saes, tokens, splice)
    active = np.argwhere(target_acts > 0)
    assert [tuple(pair) for pair in active[active[:, 0] > 0].tolist()] == pairs
    listed = source_acts[edges["source_pos"], edges["source_feature"]]
    assert np.abs(listed - edges["source_act"]).max() <= 2e-5 * np.abs(edges["source_act"]).max()
    listed = target_acts[edges["target_pos"], edges["target_feature"]]
    assert np.abs(listed - edges["target_act"]).max() <= 2e-5 * np.abs(edges["target_act"]).max()


def test_the_notebook_collects_parameter_gradients_and_the_careful_ways_none() -> None:
    model, saes, tokens, pairs, _ = _case({}, "none")
    assert all(parameter.requires_grad for parameter in model.parameters())
    collected: list[int] = []
    handle = model.blocks[0].mlp.W_in.register_hook(lambda gradient: collected.append(1))
    baselines.notebook_cell(model, saes, tokens, pairs[:3])
    assert len(collected) == 3
    given = baselines.given_activations(model, saes, tokens, pairs[:3])
    baselines.careful_loop(given)()
    baselines.batched_vjps(given)()
    baselines.plain_batched_vjps(given)()
    handle.remove()
    assert len(collected) == 3
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(weight.requires_grad for weight in [given.h, given.resid, given.weights.W_in, given.weights.W_O])
