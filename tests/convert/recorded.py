"""Autoencoders that `scripts/record_sae_samples.py` recorded, and a model that they fit."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxcircuits.bundle import save_bundle
from jaxcircuits.convert import SAESource
from jaxcircuits.types import NormWeights
from tests.helpers import tiny_bundle, tiny_config

SAMPLES = Path(__file__).parent / "samples"
MANIFEST: dict[str, dict[str, Any]] = json.loads((SAMPLES / "manifest.json").read_text())
READ = [name for name, about in MANIFEST.items() if "refused" not in about]


def save_plain_model(path: Path) -> None:
    """A bundle whose hook points have the samples' widths: 16 on the residual stream and the heads, 20 in the MLP.

    Its norms neither scale nor shift, so that what reads a norm does so with the weights of its file.
    """
    bundle = tiny_bundle(tiny_config(d_model=16, n_heads=4, d_head=4, d_mlp=20), processed=False)
    one = NormWeights(jnp.ones(16), jnp.zeros(16))
    params = bundle.params._replace(blocks=tuple(block._replace(ln1=one, ln2=one) for block in bundle.params.blocks))
    save_bundle(path, bundle.cfg, params, bundle.saes, bundle.tokenizer, source={"source": "random numbers"})


def source(name: str) -> SAESource:
    """What a user would name."""
    return SAESource(str(SAMPLES / name / MANIFEST[name]["source"]), **MANIFEST[name].get("asked", {}))
