"""Every method gives the numbers of the definition: one row a case, one column a method."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.errors import InputError
from tests.attribution.cases import KEY, MODELS, SETTINGS, assert_same_edges, bundle_of, edges_of, prompts_of
from tests.helpers import tiny_bundle, tiny_config

METHODS = ("structured",)


def _compare(method: str, model: str, settings: dict[str, Any], dtype: Any, processed: bool) -> None:
    bundle = bundle_of(model, dtype, processed=processed)
    ends = {"source": f"blocks.{bundle.cfg.n_layers - 2}.mlp.hook_post"}  # the last two layers are adjacent
    prompts = prompts_of(bundle, 11, 5)
    found = edges_of(bundle, prompts, **ends, **settings, method=method)
    expected = edges_of(bundle, prompts, **ends, **settings, method="reference")
    assert len(expected["prompt"]) > 20
    assert np.abs(expected["gradient"]).max() > 1e-3
    assert_same_edges(found, expected, "methods")


@pytest.mark.parametrize("settings", list(SETTINGS))
@pytest.mark.parametrize("method", METHODS)
def test_every_setting(method: str, settings: str) -> None:
    _compare(method, "global then local", SETTINGS[settings], jnp.float32, True)


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("method", METHODS)
def test_every_model(method: str, model: str) -> None:
    _compare(method, model, {"positions": "all", "splice": "source"}, jnp.float32, True)


@pytest.mark.parametrize("processed", [True, False], ids=["processed", "as trained"])
@pytest.mark.parametrize("settings", ["all positions", "both spliced, BOS too", "pre-activations, off ones too"])
@pytest.mark.parametrize("method", METHODS)
def test_in_float64(method: str, settings: str, processed: bool, x64: None) -> None:
    _compare(method, "global then local", SETTINGS[settings], jnp.float64, processed)


def test_auto_is_structured_where_it_can_be() -> None:
    bundle = bundle_of("three layers")
    first, second, third = bundle.saes
    assert Engine(bundle, Settings(source=first, target=second)).method == "structured"
    assert Engine(bundle, Settings(source=first, target=third)).method == "reference"
    with pytest.raises(InputError, match="adjacent layers.*reference"):
        Engine(bundle, Settings(source=first, target=third, method="structured"))


@pytest.mark.parametrize("method", [*METHODS, "reference"])
@pytest.mark.parametrize("positions", ["same", "all"])
def test_a_batch_equals_each_prompt_alone(method: str, positions: str) -> None:
    bundle = tiny_bundle(tiny_config(n_ctx=40))
    prompts = prompts_of(bundle, 3, 40, 17, 16, 2, 1, 33)
    together = edges_of(bundle, prompts, method=method, positions=positions)
    alone = [edges_of(bundle, [prompt], method=method, positions=positions) for prompt in prompts]
    one_by_one = {name: np.concatenate([edges[name] for edges in alone]) for name in together}
    assert_same_edges(together, one_by_one, "methods", ("gradient", "attribution", "source_act", "target_act"))


@pytest.mark.parametrize("method", [*METHODS, "reference"])
def test_chunks_change_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxcircuits.attribution import engine

    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 16, 9)
    whole = edges_of(bundle, prompts, method=method, positions="all")
    monkeypatch.setattr(engine, "REFERENCE_CHUNK", 5)
    monkeypatch.setattr(engine, "STRUCTURED_CHUNK_BYTES", 1)
    monkeypatch.setattr(engine, "TOKENS_A_BATCH", 1)
    assert_same_edges(edges_of(bundle, prompts, method=method, positions="all"), whole, "methods")


def test_edges_come_in_their_order() -> None:
    bundle = tiny_bundle(tiny_config(n_ctx=40))
    edges = edges_of(bundle, prompts_of(bundle, 30, 4, 18), positions="all")
    order = np.lexsort([edges[name] for name in reversed(KEY)])
    np.testing.assert_array_equal(order, np.arange(len(order)))
