"""What is computed, counted by formula, and the rate at which the machine multiplies matrices.

A product of `[m, k]` and `[k, n]` counts `2 m k n`; norms, softmax, GELU and gathers count nothing. With d = `d_model`,
a = heads x `d_head`, m = `d_mlp`, L = positions, and counts of what was asked for (padding is waste, so it counts
nothing), the last layer stopping at its `mlp.hook_post`:

    forward pass, a position     layers (8 d a + 4 L a) + (2 layers - 1) 2 d m
    both encoders, a position    2 m s1 + 2 m s2
    pull, a target               2 m d + 2 d a + 2 L a     and at its own position  2 L a + 6 a d
    same-position pair           2 d
    push, a source               4 d a       (keys and values; all positions only)
    pair of all positions        4 a
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig


def forward_flops(cfg: ModelConfig, length: int) -> float:
    """Of one prompt, up to the last layer's `mlp.hook_post`."""
    d, a = cfg.d_model, cfg.n_heads * cfg.d_head
    attention = cfg.n_layers * (8 * d * a + 4 * length * a)
    return length * (attention + (2 * cfg.n_layers - 1) * 2 * d * cfg.d_mlp)


def encoder_flops(bundle: Bundle, length: int) -> float:
    """Of one prompt, of all the bundle's SAEs."""
    return length * sum(2.0 * sae.cfg.d_in * sae.cfg.d_sae for sae in bundle.saes.values())


def attribution_flops(
    cfg: ModelConfig, length: int, targets: int, edges: int, sources: int = 0, cross: int = 0
) -> float:
    """Of one prompt from given activations, structured.

    Args:
        cfg: The model.
        length: Positions.
        targets: How many.
        edges: Pairs at the targets' own positions.
        sources: How many are pushed: 0 for same-position.
        cross: Pairs at other positions, which are computed whether or not the source comes later.
    """
    d, a, m = cfg.d_model, cfg.n_heads * cfg.d_head, cfg.d_mlp
    pull = targets * (2 * m * d + 2 * d * a + 4 * length * a + 6 * a * d)
    return pull + edges * 2 * d + sources * 4 * d * a + cross * 4 * a


def products(bundle: Bundle, rows: int) -> Mapping[str, tuple[Callable[[], Any], float]]:
    """Matrix products of the shapes that matter, and their FLOPs: the fastest is the ceiling."""
    sae = next(iter(bundle.saes.values()))
    mlp = bundle.params.blocks[0].mlp
    multiply = jax.jit(jnp.matmul)
    found = {}
    for right in (sae.weights.W_enc, mlp.W_in):
        left = jax.random.normal(jax.random.key(0), (rows, right.shape[0]), right.dtype)
        name = f"matrix product [{rows}, {right.shape[0]}] x [{right.shape[0]}, {right.shape[1]}]"
        found[name] = (lambda left=left, right=right: multiply(left, right)), 2.0 * left.size * right.shape[1]
    return found
