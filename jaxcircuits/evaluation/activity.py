"""What autoencoders make of a model's values over a corpus, a batch at a time."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.evaluation.batches import BOS, Batch
from jaxcircuits.model import forward, side_by_side
from jaxcircuits.sae import SAE
from jaxcircuits.sae.activity import Activity, activity_sums
from jaxcircuits.types import ModelWeights


def add_batch(bundle: Bundle, saes: Mapping[str, SAE], batch: Batch, bos: BOS, into: Mapping[str, Activity]) -> None:
    """Adds a batch's sums to each autoencoder's."""
    within = batch.counted if bos.statistics else batch.counted & ~batch.bos
    found = _sums(bundle.params, bundle.cfg, dict(saes), *map(jnp.asarray, (batch.tokens, batch.counted, within)))
    for name, sums in found.items():
        into[name].add(sums, int(within.sum()), int(batch.counted.sum()))


@partial(jax.jit, static_argnames="cfg")
def _sums(
    params: ModelWeights,
    cfg: ModelConfig,
    saes: dict[str, Any],
    tokens: Int[Array, "batch pos"],
    counted: Bool[Array, "batch pos"],
    within: Bool[Array, "batch pos"],
) -> dict[str, dict[str, Array]]:
    hooks = {hook for sae in saes.values() for hook in (sae.cfg.hook_name, sae.cfg.hook_written)}
    _, acts = forward(params, cfg, tokens, taps=hooks, logits_at=None)
    values = {hook: side_by_side(hook, value) for hook, value in acts.items()}
    return {
        name: activity_sums(sae, values[sae.cfg.hook_name], values[sae.cfg.hook_written], counted, within)
        for name, sae in saes.items()
    }
