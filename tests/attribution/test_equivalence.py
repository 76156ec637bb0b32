"""Every method gives the numbers of the definition: one row a case, one column a method."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.errors import InputError
from tests.attribution.cases import (
    BETWEEN,
    EACH_MODEL,
    KEY,
    SETTINGS,
    assert_same_edges,
    assert_same_targets,
    bundle_of,
    edges_of,
    prompts_of,
    thinned,
)
from tests.helpers import TOLERANCES, tiny_bundle, tiny_config

OUTER = {"source": "blocks.0.mlp.hook_post", "target": "blocks.2.mlp.hook_post"}

METHODS = ("structured",)


def _compare(method: str, model: str, settings: dict[str, Any], dtype: Any, processed: bool, **ends: str) -> None:
    bundle = bundle_of(model, dtype, processed=processed)
    # By default the last two layers, which are adjacent.
    ends = ends or {"source": f"blocks.{bundle.cfg.n_layers - 2}.mlp.hook_post"}
    prompts = prompts_of(bundle, 11, 5)
    found, targets = Engine(bundle, Settings(**ends, **settings, method=method)).run(prompts)
    expected, expected_targets = Engine(bundle, Settings(**ends, **settings, method="reference")).run(prompts)
    assert len(expected["prompt"]) > 20
    if "through" not in settings or settings["through"] == "total" or settings["positions"] == "all":
        assert np.abs(expected["gradient"]).max() > 1e-3
    parts = ("residual", "value", "query", "key") if "parts" in settings else ()
    assert_same_edges(found, expected, "methods", ("gradient", "attribution"))
    for part in parts:  # differences of derivatives: relative to these
        size = np.abs(expected["gradient"]).max()
        assert np.abs(found[part] - expected[part]).max() <= TOLERANCES["methods"][str(found[part].dtype)] * size, part
    assert_same_targets(targets, expected_targets, "methods")


@pytest.mark.parametrize("settings", thinned(SETTINGS))
@pytest.mark.parametrize("method", METHODS)
def test_every_setting(method: str, settings: str) -> None:
    _compare(method, "global then local", SETTINGS[settings], jnp.float32, True)


@pytest.mark.parametrize("derivative", ["exact", pytest.param("frozen", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", EACH_MODEL)
@pytest.mark.parametrize("method", METHODS)
def test_every_model(method: str, model: str, derivative: str) -> None:
    settings = {"positions": "all", "splice": "source", "derivative": derivative, "completeness": True}
    _compare(method, model, settings, jnp.float32, True)


@pytest.mark.parametrize("settings", thinned(BETWEEN))
def test_with_a_layer_between(settings: str) -> None:
    _compare("structured", "three layers", BETWEEN[settings], jnp.float32, True, **OUTER)


@pytest.mark.parametrize("positions", ["same", "all"])
def test_forward_through_a_layer_between(positions: str, x64: None) -> None:
    """Few sources: they are pushed through it, instead of the targets back."""
    settings = {"positions": positions, "source_threshold": 1.0, "completeness": True}
    bundle = bundle_of("three layers", jnp.float64)
    engine = Engine(bundle, Settings(**OUTER, **settings))
    direction = "forward" if positions == "all" else "reverse"  # one position alone: pulled back in closed form
    assert {shape.direction for shape in engine.make_plan(prompts_of(bundle, 11, 5)).shapes} == {direction}
    _compare("structured", "three layers", settings, jnp.float64, True, **OUTER)


@pytest.mark.parametrize(
    "processed", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["processed", "as trained"]
)
@pytest.mark.parametrize(
    "settings",
    [
        "all positions",
        "both spliced, BOS too",
        "pre-activations, off ones too",
        "parts, all positions",
        "frozen, pre-activations",
        "frozen, secant",
        "integrated from the mean",
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_in_float64(method: str, settings: str, processed: bool, x64: None) -> None:
    _compare(method, "global then local", SETTINGS[settings], jnp.float64, processed)


def test_auto_is_structured_where_it_can_be() -> None:
    bundle = bundle_of("three layers")
    first, second, third = bundle.saes
    assert Engine(bundle, Settings(source=first, target=second)).task.way == "adjacent"
    assert Engine(bundle, Settings(source=first, target=third)).task.way == "between"
    assert Engine(bundle, Settings(source=first, target=third, parts="kinds")).method == "reference"
    with pytest.raises(InputError, match="one block's attention lies between.*reference"):
        Engine(bundle, Settings(source=first, target=third, method="structured", parts="kinds"))


@pytest.mark.parametrize("method", [*METHODS, pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("positions", ["same", "all"])
def test_a_batch_equals_each_prompt_alone(method: str, positions: str) -> None:
    bundle = tiny_bundle(tiny_config(n_ctx=40))
    prompts = prompts_of(bundle, 3, 40, 17, 1)
    together = edges_of(bundle, prompts, method=method, positions=positions)
    alone = [edges_of(bundle, [prompt], method=method, positions=positions) for prompt in prompts]
    one_by_one = {name: np.concatenate([edges[name] for edges in alone]) for name in together}
    assert_same_edges(together, one_by_one, "methods", ("gradient", "attribution", "source_act", "target_act"))


@pytest.mark.parametrize("method", [*METHODS, "reference"])
def test_chunks_change_nothing(method: str) -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 16, 9)
    whole = edges_of(bundle, prompts, method=method, positions="all")
    small = Engine(bundle, Settings(method=method, positions="all"), memory=1)
    cut, _ = small.run(prompts)
    assert {(shape.batch, shape.chunk) for shape in small.plan.shapes} == {(1, 1)}
    assert_same_edges(cut, whole, "methods")


def test_edges_come_in_their_order() -> None:
    bundle = tiny_bundle(tiny_config(n_ctx=40))
    edges = edges_of(bundle, prompts_of(bundle, 30, 4, 18), positions="all")
    order = np.lexsort([edges[name] for name in reversed(KEY)])
    np.testing.assert_array_equal(order, np.arange(len(order)))
