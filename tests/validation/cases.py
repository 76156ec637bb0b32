"""Tiny bundles on disk, with activations on both sides of the notebook's thresholds."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.bundle import save_bundle
from jaxcircuits.sae import SAE
from tests.helpers import random_params, random_tokens, tiny_config, tiny_saes, tiny_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "global then local": {},
    "local then global, two wide heads": {"attention": ("local", "global"), "n_heads": 2, "d_head": 6, "window": 3},
    "both local, tied, another eps": {"attention": ("local", "local"), "eps": 1e-3, "tied_unembedding": True},
}


def write_bundle(path: Path, **overrides: Any) -> Path:
    """A random bundle whose SAEs have activations on both sides of the notebook's thresholds."""
    cfg = tiny_config(**({"d_mlp": 40} | overrides))
    saes = {}
    for name, sae in tiny_saes(cfg, d_sae=60).items():
        weights = sae.weights._replace(W_enc=3 * sae.weights.W_enc, W_dec=0.4 * sae.weights.W_dec)
        saes[name] = SAE(weights, sae.cfg)
    save_bundle(path, cfg, random_params(cfg), saes, tiny_tokenizer(cfg), source={"source": "random numbers"})
    return path


def texts(cfg: Any) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a prompt and of a story that is longer than the local window."""
    prompt, story = (np.asarray(random_tokens(cfg, n, seed=n)) for n in (7, 12))
    return prompt, story
