"""The kinds add up: to the target where derivatives are frozen, to its rise from the baseline where integrated."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import REMAINDER_COLUMNS
from tests.attribution.cases import bundle_of, prompts_of

SUMS = ("attribution_sum", "attribution_cut", *REMAINDER_COLUMNS[:-1])
OUTER = {"source": "blocks.0.mlp.hook_post", "target": "blocks.2.mlp.hook_post"}


def _targets(model: str, dtype: Any, **settings: Any) -> dict[str, np.ndarray]:
    bundle = bundle_of(model, dtype, processed=settings.pop("processed", True))
    return Engine(bundle, Settings(**settings)).run(prompts_of(bundle, 11, 5))[1]


def _sum(targets: dict[str, np.ndarray]) -> np.ndarray:
    return sum(np.nan_to_num(targets[name]) for name in SUMS)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("include_bos", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.7, "all", pytest.param(1e6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gelu", ["tangent", "secant"])
def test_frozen_targets_complete(gelu: str, threshold: float | str, include_bos: bool, x64: None) -> None:
    settings = {"target_quantity": "pre_activation", "target_threshold": -np.inf, "positions": "all"}
    asked = {"gelu": gelu, "source_threshold": threshold, "include_bos": include_bos}
    targets = _targets("global then local", jnp.float64, derivative="frozen", **settings, **asked)
    size = np.abs(targets["pre_activation"]).max()
    assert len(targets["prompt"]) > 100
    assert np.abs(_sum(targets) - targets["pre_activation"]).max() <= 1e-10 * size
    assert np.abs(targets["unexplained"]).max() <= 1e-10 * size
    for name in ("sae_error", "b_dec", "residual_input", "model_bias", "target_bias"):
        assert np.abs(targets[name]).max() > 1e-3, name
    assert (np.abs(targets["gelu_constant"]).max() > 1e-3) == (gelu == "tangent")
    assert (np.abs(targets["attribution_bos"]).max() > 1e-3) == (not include_bos)
    cut = np.abs(targets["attribution_cut"]).max()
    assert cut > 1e-3 if threshold in (0.7, 1e6) else cut <= 1e-10 * size


@pytest.mark.parametrize(
    "processed", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["processed", "as trained"]
)
@pytest.mark.parametrize("splice", ["none", "source"])
@pytest.mark.parametrize("through", ["total", "direct"])
@pytest.mark.parametrize("method", ["reference", "structured"])
def test_they_complete_through_a_layer_between(
    method: str, through: str, splice: str, processed: bool, x64: None
) -> None:
    asked = {"through": through, "splice": splice, "processed": processed, "method": method, "top_k": 2}
    targets = _targets("three layers", jnp.float64, derivative="frozen", positions="all", **OUTER, **asked)
    size = np.abs(targets["activation"]).max()
    assert np.abs(_sum(targets) - targets["activation"]).max() <= 1e-10 * size
    assert (np.abs(targets["held"]).max() > 1e-3) == (through == "direct")
    assert (np.abs(targets["sae_error"]).max() > 1e-3) == (splice == "none")


def test_what_lies_at_other_positions_is_a_kind_of_its_own(x64: None) -> None:
    same, every = (
        _targets("global then local", jnp.float64, derivative="frozen", positions=p) for p in ("same", "all")
    )
    assert np.abs(_sum(same) - same["activation"]).max() <= 1e-10 * np.abs(same["activation"]).max()
    np.testing.assert_allclose(same["attribution_sum"] + same["attribution_elsewhere"], every["attribution_sum"])
    assert np.abs(same["attribution_elsewhere"]).max() > 1e-3
    assert not np.any(every["attribution_elsewhere"])


def test_what_is_cut_is_what_a_lower_threshold_lists(x64: None) -> None:
    low, high = (
        _targets("global then local", jnp.float64, derivative="frozen", positions="all", source_threshold=t)
        for t in (0.0, 0.9)
    )
    assert (high["edges"] < low["edges"]).any()
    np.testing.assert_allclose(high["attribution_sum"] + high["attribution_cut"], low["attribution_sum"], atol=1e-12)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_integrated_targets_rise_by_their_edges(baseline: str, x64: None) -> None:
    """Pre-activations are smooth along the path, so a few points integrate them to the last digits."""
    settings = {"target_quantity": "pre_activation", "target_threshold": -np.inf, "positions": "all"}
    settings |= {"derivative": "integrated", "baseline": baseline, "source_threshold": "all"}
    errors = []
    for points in (2, 16):
        targets = _targets("global then local", jnp.float64, points=points, **settings)
        errors.append(np.abs(targets["unexplained"]).max() / np.abs(targets["pre_activation"]).max())
    assert errors[1] < 1e-9 < errors[0]
    assert np.abs(targets["baseline"] - targets["pre_activation"]).max() > 0.1


def test_integrated_activations_report_what_the_kink_leaves() -> None:
    targets = _targets("global then local", jnp.float32, derivative="integrated", positions="all")
    rise = targets["activation"] - targets["baseline"]
    explained = targets["attribution_sum"] + targets["attribution_cut"] + targets["attribution_bos"]
    np.testing.assert_allclose(targets["unexplained"], rise - explained, atol=1e-5)
    assert np.isnan(targets["sae_error"]).all()


def test_exact_derivatives_have_a_remainder_on_request() -> None:
    without = _targets("global then local", jnp.float32)
    assert "unexplained" not in without
    targets = _targets("global then local", jnp.float32, completeness=True)
    assert np.isnan(targets["model_bias"]).all()
    assert np.isfinite(targets["sae_error"]).all()
