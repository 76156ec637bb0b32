"""Tiny bundles on disk, with activations on both sides of the notebook's thresholds."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.bundle import save_bundle
from tests.helpers import loud_saes, random_params, random_tokens, tiny_config, tiny_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "global then local": {},
    "local then global, two wide heads": {"attention": ("local", "global"), "n_heads": 2, "d_head": 6, "window": 3},
    "both local, tied, another eps": {"attention": ("local", "local"), "eps": 1e-3, "tied_unembedding": True},
}


def write_bundle(path: Path, **overrides: Any) -> Path:
    """A random bundle whose SAEs have activations on both sides of the notebook's thresholds."""
    cfg = tiny_config(**({"d_mlp": 40} | overrides))
    save_bundle(path, cfg, random_params(cfg), loud_saes(cfg), tiny_tokenizer(cfg), source={"source": "random numbers"})
    return path


def texts(cfg: Any) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a prompt and of a story that is longer than the local window."""
    prompt, story = (np.asarray(random_tokens(cfg, n, seed=n)) for n in (7, 12))
    return prompt, story
