"""Small attributions that differ in every respect that could matter, and the two ways they are compared."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.bundle import Bundle
from tests.helpers import TOLERANCES, assert_close, random_tokens, tiny_bundle, tiny_config

NEOX: dict[str, Any] = {
    **{"positions": "rotary", "rotary_dim": 2, "rotary_base": 40.0, "parallel_residual": True, "activation": "gelu"},
    **{"attention_scale": 0.5, "attention": ("global", "global"), "family": "gpt_neox"},
}
MODELS: dict[str, dict[str, Any]] = {
    "global then local": {},
    "local then global": {"attention": ("local", "global")},
    "three layers": {"attention": ("global", "local", "global")},
    "window 1": {"attention": ("global", "local"), "window": 1},
    "one head, untidy widths": {"n_heads": 1, "d_head": 7, "d_model": 10, "d_mlp": 9, "eps": 1e-2},
    "scaled scores, no BOS": {"attention_scale": 0.5, "bos_token_id": None},
    "rotary, parallel": NEOX,
    "rotary, one after the other": NEOX | {"parallel_residual": False, "rotary_dim": 4, "attention": ("local",) * 2},
    "parallel, learned positions": {"parallel_residual": True, "activation": "relu"},
}
"""Overrides of `tiny_config`."""
EACH_MODEL = [
    pytest.param(
        name, marks=[pytest.mark.slow] * (name in ("rotary, one after the other", "parallel, learned positions"))
    )
    for name in MODELS
]

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all positions": {"positions": "all"},
    "source spliced": {"splice": "source", "positions": "all"},
    "both spliced, BOS too": {"splice": "both", "include_bos": True},
    "BOS not spliced": {"splice": "source", "splice_bos": False, "positions": "all", "include_bos": True},
    "every source": {"source_threshold": "all", "positions": "all"},
    "pre-activations, off ones too": {"target_quantity": "pre_activation", "target_threshold": -np.inf},
    "neurons": {"source_basis": "neurons", "source_threshold": "all", "positions": "all"},
    "neurons of a reconstruction": {"source_basis": "neurons", "splice": "source"},
    "thresholds": {"source_threshold": 0.4, "target_threshold": 0.3, "positions": "all"},
    "the largest": {"top_k": 3, "positions": "all"},
    "large ones": {"min_attribution": 0.05, "positions": "all"},
    "the largest of the large": {"min_attribution": 0.05, "top_k": 2},
    "parts": {"parts": "kinds"},
    "parts, all positions": {"parts": "kinds", "positions": "all", "splice": "source"},
    "remainder": {"completeness": True},
    "frozen": {"derivative": "frozen"},
    "frozen, all positions": {"derivative": "frozen", "positions": "all", "include_bos": True},
    "frozen, secant": {"derivative": "frozen", "gelu": "secant", "positions": "all", "splice": "source"},
    "frozen, pre-activations": {
        "derivative": "frozen",
        "target_quantity": "pre_activation",
        "target_threshold": -np.inf,
        "positions": "all",
        "source_threshold": 0.4,
    },
    "frozen, parts": {"derivative": "frozen", "parts": "kinds", "positions": "all"},
    "frozen neurons": {"derivative": "frozen", "source_basis": "neurons", "source_threshold": "all"},
    "integrated": {"derivative": "integrated", "points": 5},
    "integrated, all positions": {"derivative": "integrated", "points": 4, "positions": "all", "splice": "both"},
    "integrated from the mean": {"derivative": "integrated", "points": 4, "baseline": "mean", "top_k": 4},
    "integrated pre-activations": {
        "derivative": "integrated",
        "points": 3,
        "target_quantity": "pre_activation",
        "parts": "kinds",
        "positions": "all",
    },
}
"""Fields of `Settings`."""

BETWEEN: dict[str, dict[str, Any]] = {
    f"{derivative}, {through}, {positions}": {"derivative": derivative, "through": through, "positions": positions}
    for derivative in ("exact", "frozen", "integrated")
    for through in ("total", "direct")
    for positions in ("same", "all")
}
"""With a layer between the SAEs, and an SAE on it."""
for _row in BETWEEN.values():
    _row |= {"completeness": True, "points": 3, "splice": "source"}

KEY = ("prompt", "target_pos", "target_feature", "source_pos", "source_feature")


def bundle_of(model: str, dtype: Any = jnp.float32, *, processed: bool = True) -> Bundle:
    """A random bundle with one SAE a layer."""
    return tiny_bundle(tiny_config(**MODELS[model]), dtype=dtype, processed=processed)


def prompts_of(bundle: Bundle, *lengths: int) -> list[tuple[int, np.ndarray]]:
    """Numbered prompts of random tokens."""
    return [(i, np.asarray(random_tokens(bundle.cfg, n, seed=i))) for i, n in enumerate(lengths)]


def edges_of(bundle: Bundle, prompts: list[tuple[int, np.ndarray]], targets=None, **settings: Any) -> Columns:
    """The edges in the precision they were computed in."""
    return Engine(bundle, Settings(**settings)).run(prompts, targets)[0]


def assert_same_targets(actual: Columns, expected: Columns, kind: str) -> None:
    """Asserts that two lists of targets agree: the same columns, their sums relative to the largest of any kind."""
    assert list(actual) == list(expected)
    sums = [n for n in expected if n not in (*KEY, "activation", "pre_activation", "edges", "edges_cut")]
    unit = max(np.nanmax(np.abs(expected[n]), initial=0.0) for n in (*sums, "pre_activation"))
    for name, values in expected.items():
        if name not in sums:
            assert_close(actual[name], values, kind if name.endswith("activation") else "exact", name)
            continue
        tolerance = TOLERANCES[kind][str(expected["activation"].dtype)]
        np.testing.assert_array_equal(np.isnan(actual[name]), np.isnan(values), name)
        assert np.nanmax(np.abs(actual[name] - values), initial=0.0) <= tolerance * unit, name


def assert_same_edges(actual: Columns, expected: Columns, kind: str, columns=("gradient", "attribution")) -> None:
    """Asserts that two edge lists have the same rows, derivatives agreeing over each target's edges, activations."""
    for name in KEY:
        np.testing.assert_array_equal(actual[name], expected[name], name)
    keys = np.stack([expected[name] for name in KEY[:3]])
    starts = np.flatnonzero(np.r_[True, (np.diff(keys, axis=1) != 0).any(0)]) if keys.size else np.zeros(0, int)
    for name in columns:
        assert actual[name].dtype == expected[name].dtype, name
        if name.endswith("_act"):
            assert_close(actual[name], expected[name], kind, name)
            continue
        tolerance = TOLERANCES[kind][str(actual[name].dtype)]
        if len(starts):
            off = np.maximum.reduceat(np.abs(actual[name] - expected[name]), starts)
            size = np.maximum.reduceat(np.abs(expected[name]), starts)
            worst = int((off - tolerance * size).argmax())
            assert (off <= tolerance * size).all(), (
                f"{name}: {off[worst]:.3g} off where the largest is {size[worst]:.3g}"
            )


def thinned(rows: Iterable[str]) -> list[Any]:
    """Rows of a table, two of three in the slow stage: each compiles programs of its own for seconds."""
    return [pytest.param(row, marks=[pytest.mark.slow] * (n % 3 > 0)) for n, row in enumerate(rows)]
