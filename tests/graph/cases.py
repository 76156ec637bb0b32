"""Small graphs whose models and autoencoders differ in every respect that could matter."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcircuits.bundle import Bundle
from jaxcircuits.graph import Graph
from tests.helpers import random_tokens, tiny_bundle, tiny_config, tiny_sae

MLP0, MLP1 = "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"


def plain(dtype: Any = jnp.float64) -> Bundle:
    """Two layers, an SAE on each MLP: what ships, small."""
    return tiny_bundle(tiny_config(), dtype=dtype)


def mixed(dtype: Any = jnp.float64) -> Bundle:
    """Three layers as they were trained; an SAE, a transcoder with a linear path, a normalised TopK."""
    cfg = tiny_config(n_layers=3, window=3)
    saes = {
        "mlp": tiny_sae(cfg, MLP0, dtype=dtype),
        "transcoder": tiny_sae(
            cfg,
            "blocks.1.ln2.hook_normalized",
            26,
            dtype=dtype,
            hook_out="blocks.1.hook_mlp_out",
            activation="jumprelu",
            skip=True,
        ),
        "stream": tiny_sae(
            cfg, "blocks.2.hook_resid_post", 28, dtype=dtype, activation="topk", k=6, normalization="layer_norm"
        ),
    }
    return tiny_bundle(cfg, dtype=dtype, saes=saes, processed=False)


def prompt_of(bundle: Bundle, length: int = 9, seed: int = 0) -> np.ndarray:
    """Random tokens."""
    return np.asarray(random_tokens(bundle.cfg, length, seed=seed))


def sums(graph: Graph) -> np.ndarray:
    """What the edges into each node add up to, with those that are cut."""
    return np.bincount(graph.target, graph.weight, len(graph.nodes)) + graph.nodes.cut
