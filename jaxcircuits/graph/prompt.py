"""What a prompt's graph is made of: one forward pass, the features that become nodes, and the rest of each hook."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.remainder import source_fields
from jaxcircuits.attribution.selection import bucket
from jaxcircuits.graph.direct import Leaves, Wiring, Written
from jaxcircuits.graph.settings import GraphSettings
from jaxcircuits.model import forward, side_by_side
from jaxcircuits.sae import SAE, encode
from jaxcircuits.sae.normalization import norm_of
from jaxcircuits.types import ModelWeights

SLOTS = 32
"""Features a position that every program has room for; where there are more, the next power of two is compiled."""


class Passed(NamedTuple):
    """A forward pass as the SAEs see it."""

    acts: tuple[Float[Array, "pos _d_sae"], ...]  # one an SAE, as all below
    scale: tuple[Float[Array, "pos 1"], ...]  # what a decoder row is multiplied by besides the activation
    error: tuple[Float[Array, "pos _d_out"], ...]
    bias: tuple[Float[Array, "pos _d_out"], ...]
    logits: Float[Array, "d_vocab"]


@partial(jax.jit, static_argnames="wiring")
def run(
    params: ModelWeights, saes: tuple[SAE, ...], tokens: Int[Array, "pos"], at: Int[Array, ""], *, wiring: Wiring
) -> Passed:
    """Runs the model once, nothing spliced; `at` is the position of the logits."""
    logits, acts = forward(params, wiring.cfg, tokens, taps={*wiring.reads, *wiring.writes}, logits_at=at[None])
    assert logits is not None
    found = Passed((), (), (), (), logits[0])
    for sae, read, write in zip(saes, wiring.reads, wiring.writes, strict=True):
        x, h = side_by_side(read, acts[read]), side_by_side(write, acts[write])
        norm, feature_acts = norm_of(sae.cfg, x), encode(sae, x)
        everywhere = jnp.ones(len(tokens), bool)
        fields = source_fields(
            sae, sae.weights.W_dec, norm, h, feature_acts, everywhere, neurons=False, integrated=False
        )
        scale = jnp.ones_like(x[:, :1]) if norm is None else norm.out_scale
        found = Passed(
            acts=(*found.acts, feature_acts),
            scale=(*found.scale, scale),
            error=(*found.error, fields["sae_error"]),
            bias=(*found.bias, fields["b_dec"]),
            logits=found.logits,
        )
    return found


class Slots(NamedTuple):
    """The features of one SAE that are nodes, by position: a slot each, the free ones -1."""

    feature: Int[np.ndarray, "pos slot"]

    @property
    def pos(self) -> Int[np.ndarray, "_n"]:
        """Position of each feature, in order."""
        return np.nonzero(self.feature >= 0)[0]

    @property
    def number(self) -> Int[np.ndarray, "_n"]:
        """Number of each feature, in order."""
        return self.feature[self.feature >= 0]


def choose(
    settings: GraphSettings,
    acts: tuple[Float[np.ndarray, "pos _d_sae"], ...],
    lengths: tuple[Float[np.ndarray, "_n"], ...],
    n: int,
    first: int,
) -> tuple[Slots, ...]:
    """Which features are nodes.

    Args:
        settings: Threshold and number.
        acts: Activations of each SAE.
        lengths: Of each SAE's decoder rows.
        n: Tokens of the prompt; later positions are padding.
        first: The first position at which features count.
    """
    masks = []
    for feature_acts in acts:
        mask = feature_acts > settings.threshold
        mask[:first], mask[n:] = False, False
        masks.append(mask)
    sizes = [a * length for a, length in zip(acts, lengths, strict=True)]
    if settings.max_features is not None and sum(m.sum() for m in masks) > settings.max_features:
        every = np.concatenate([size[mask] for size, mask in zip(sizes, masks, strict=True)])
        keep = np.zeros(len(every), bool)
        keep[np.argsort(-every, kind="stable")[: settings.max_features]] = True
        ends = np.cumsum([m.sum() for m in masks])[:-1]
        for mask, kept in zip(masks, np.split(keep, ends), strict=True):
            mask[mask] = kept
    found = []
    for mask in masks:
        slots = np.full((len(mask), bucket(int(mask.sum(1).max(initial=1)), SLOTS)), -1, np.int32)
        for pos in range(len(mask)):
            features = np.flatnonzero(mask[pos])
            slots[pos, : len(features)] = features
        found.append(Slots(slots))
    return tuple(found)


@partial(jax.jit, static_argnames="embedding_scale")
def take_apart(
    params: ModelWeights,
    saes: tuple[SAE, ...],
    tokens: Int[Array, "pos"],
    passed: Passed,
    slots: tuple[Int[Array, "pos _slot"], ...],
    token_start: Float[Array, "d_model"],
    *,
    embedding_scale: float,
) -> Leaves:
    """The prompt's leaves: embeddings, and each hook's value as features, other features, error and bias."""
    written = []
    for i, sae in enumerate(saes):
        acts = jnp.take_along_axis(passed.acts[i], jnp.maximum(slots[i], 0), axis=1) * (slots[i] >= 0)
        rows = sae.weights.W_dec[jnp.maximum(slots[i], 0)] * (acts * passed.scale[i])[..., None]
        rest_acts = passed.acts[i].at[jnp.arange(len(tokens))[:, None], jnp.maximum(slots[i], 0)].add(-acts)
        rest = (rest_acts @ sae.weights.W_dec) * passed.scale[i]
        written.append(Written(rows, rest, passed.error[i], passed.bias[i]))
    token = params.W_E[tokens] * embedding_scale
    position = jnp.zeros_like(token) if params.W_pos is None else params.W_pos[: len(tokens)]
    return Leaves(token, jnp.broadcast_to(token_start * embedding_scale, token.shape), position, tuple(written))
