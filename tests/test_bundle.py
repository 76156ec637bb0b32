"""Bundles on disk: round trip, and every way to damage one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle
from jaxcircuits.errors import InputError
from tests.helpers import saved_bundle, tiny_config

WRONG_TYPE = "must be a positive integer|must be a word|of the wrong type"
"""The last where the tests' type checker is quicker than the config."""
SAE = "saes/blocks.0.mlp.hook_post"


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip(tied: bool) -> None:
    saved = saved_bundle("b", tiny_config(tied_unembedding=tied))
    loaded = load_bundle("b", processed=False)
    assert loaded.cfg == saved.cfg
    assert list(loaded.saes) == list(saved.saes)
    ours, theirs = (jax.tree.leaves((b.params, dict(b.saes))) for b in (loaded, saved))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert load_bundle("b").params.ln_final is None


def change(file: str, **fields: Any) -> Callable[[Path], None]:
    """Changes a file of JSON, and lets the manifest forget what it was."""

    def apply(bundle: Path) -> None:
        old = json.loads((bundle / file).read_text())
        (bundle / file).write_text(json.dumps(old | fields))
        manifest = json.loads((bundle / "manifest.json").read_text())
        if file != "manifest.json":
            del manifest["sha256"][file]
            (bundle / "manifest.json").write_text(json.dumps(manifest))

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "no file b/manifest.json"),
    "a manifest that is a word": (lambda b: (b / "manifest.json").write_text('"x"'), "expected a bundle of schema 1"),
    "another schema": (change("manifest.json", schema=99), "expected a bundle of schema 1"),
    "sums that are a list": (change("manifest.json", sha256=[]), "expected the sha256 of each file"),
    "no sums": (change("manifest.json", sha256={}), "expected the sha256 of each file"),
    "a file gone": (lambda b: (b / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "a bit turned": (lambda b: (b / "model.safetensors").open("ab").write(b"x"), "model.safetensors is damaged"),
    "a config that is a list": (
        lambda b: (change("config.json")(b), (b / "config.json").write_text("[]")),
        "expected a JSON object, got list",
    ),
    "an unknown field": (change("config.json", rotary=3), "unknown field 'rotary'"),
    "a width that is a word": (change("config.json", d_model="12"), WRONG_TYPE),
    "attention that is a number": (change("config.json", attention=3), WRONG_TYPE),
    "attention of one layer": (change("config.json", attention=["global"]), "must name 2 layers, got 1"),
    "a BOS outside": (change("config.json", bos_token_id=31), "bos_token_id must lie in 0..30, got 31"),
    "an unknown step": (change("config.json", processing=["fold"]), "unknown processing step 'fold'"),
    "other heads": (change("config.json", n_heads=5), "must have shape"),
    "a hook that is a number": (change(f"{SAE}/config.json", hook_name=3), WRONG_TYPE),
    "an activation that is a list": (change(f"{SAE}/config.json", activation=[1]), WRONG_TYPE),
    "an activation of tomorrow": (change(f"{SAE}/config.json", activation="softmax"), "unknown SAE activation 'softmax'"),
    "another d_in": (change(f"{SAE}/config.json", d_in=5), "must have shape"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_named(damage: str) -> None:
    apply, message = DAMAGE[damage]
    saved_bundle("b")
    apply(Path("b"))
    with pytest.raises(InputError, match=message):
        load_bundle("b")
