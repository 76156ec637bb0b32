"""Losses and divergences, token by token: as the model is, with autoencoders spliced in, with hooks held at a value."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.evaluation.batches import BOS, Batch
from jaxcircuits.interventions import Edit, splice_edits
from jaxcircuits.model import forward, side_by_side
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights


class Variant(NamedTuple):
    """One way to run the model.

    Attributes:
        saes: Autoencoders spliced in.
        held: Hooks whose value is the given vector at every position.
    """

    saes: Mapping[str, SAE]
    held: Mapping[str, Float[Array, "width"]]


class TokenLosses(NamedTuple):
    """Of each position: nats of its target (0 where there is none), and KL(original ‖ this variant) in nats."""

    nll: Float[np.ndarray, "batch pos"]
    kl: Float[np.ndarray, "batch pos"]


def batch_losses(
    bundle: Bundle, batch: Batch, variants: Sequence[Variant], bos: BOS
) -> tuple[TokenLosses, list[TokenLosses]]:
    """The original's losses of a batch, and each variant's."""
    tokens, targets = jnp.asarray(batch.tokens), jnp.asarray(batch.targets)
    keep = None if bos.splice else jnp.asarray(batch.bos)
    original, nll = _original(bundle.params, bundle.cfg, tokens, targets)
    found = [
        _variant(bundle.params, bundle.cfg, dict(v.saes), dict(v.held), tokens, targets, keep, original)
        for v in variants
    ]
    return TokenLosses(np.asarray(nll), np.zeros_like(nll)), [TokenLosses(*map(np.asarray, pair)) for pair in found]


@partial(jax.jit, static_argnames="cfg")
def _original(
    params: ModelWeights, cfg: ModelConfig, tokens: Int[Array, "batch pos"], targets: Int[Array, "batch pos"]
) -> tuple[Float[Array, "batch pos d_vocab"], Float[Array, "batch pos"]]:
    logits, _ = forward(params, cfg, tokens)
    assert logits is not None
    log_probs = jax.nn.log_softmax(logits)
    return log_probs, _nll(log_probs, targets)


@partial(jax.jit, static_argnames="cfg")
def _variant(
    params: ModelWeights,
    cfg: ModelConfig,
    saes: dict[str, Any],
    held: dict[str, Any],
    tokens: Int[Array, "batch pos"],
    targets: Int[Array, "batch pos"],
    keep: Bool[Array, "batch pos"] | None,
    original: Float[Array, "batch pos d_vocab"],
) -> tuple[Float[Array, "batch pos"], Float[Array, "batch pos"]]:
    edits = splice_edits(saes.values(), keep) | {hook: _hold(hook, vector) for hook, vector in held.items()}
    logits, _ = forward(params, cfg, tokens, edits=edits)
    assert logits is not None
    log_probs = jax.nn.log_softmax(logits)
    return _nll(log_probs, targets), (jnp.exp(original) * (original - log_probs)).sum(-1)


def _hold(hook: str, vector: Float[Array, "width"]) -> Edit:
    return lambda value: jnp.broadcast_to(vector, side_by_side(hook, value).shape).reshape(value.shape)


def _nll(log_probs: Float[Array, "batch pos d_vocab"], targets: Int[Array, "batch pos"]) -> Float[Array, "batch pos"]:
    picked = jnp.take_along_axis(log_probs, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return jnp.where(targets >= 0, -picked, 0)


class Means:
    """Sums of losses in float64, over every batch."""

    def __init__(self, bos: BOS) -> None:
        self._bos = bos
        self._nll = self._kl = 0.0
        self.scored = self.compared = 0

    def add(self, batch: Batch, losses: TokenLosses) -> None:
        """Adds a batch."""
        compared = batch.counted if self._bos.loss else batch.counted & ~batch.bos
        scored = compared & (batch.targets >= 0)
        self._nll += losses.nll[scored].sum(dtype=np.float64)
        self._kl += losses.kl[compared].sum(dtype=np.float64)
        self.scored += int(scored.sum())
        self.compared += int(compared.sum())

    @property
    def total(self) -> float:
        """All nats."""
        return float(self._nll)

    @property
    def ce(self) -> float:
        """Nats a token; NaN where none was scored."""
        return float(self._nll / self.scored) if self.scored else float("nan")

    @property
    def kl(self) -> float:
        """Divergence a position."""
        return float(self._kl / self.compared) if self.compared else float("nan")
