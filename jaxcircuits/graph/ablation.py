"""The model with only a circuit of it left: what is outside, features or single edges, takes another value.

Features are ablated in the running model (`jaxcircuits.interventions`): what lies behind them follows, SAE errors too.
Edges are ablated by giving each target inputs of its own, features along kept edges as they are in the circuit and
the others at their fill, all else as it was; layer by layer, through softmax, norms and GELU as they are.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcircuits.attribution.selection import bucket
from jaxcircuits.config import ModelConfig
from jaxcircuits.graph.build import CHUNK, Prepared
from jaxcircuits.graph.direct import Factors, Leaves, Wiring, feature_value, logits_of
from jaxcircuits.interventions import Change, intervene
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights

CIRCUITS_AT_ONCE = 8
"""Circuits of nodes that are run together."""

LEAST = 16
"""Targets of edges that are run together, at least."""


class Parts(NamedTuple):
    """The features that are nodes, in the order of the graph's."""

    sae: Int[np.ndarray, "feature"]
    pos: Int[np.ndarray, "feature"]
    slot: Int[np.ndarray, "feature"]
    number: Int[np.ndarray, "feature"]
    act: Float[np.ndarray, "feature"]


def parts_of(made: Prepared) -> Parts:
    """The features of a prepared prompt."""
    columns: list[list[np.ndarray]] = [[] for _ in Parts._fields]
    for number, slots in enumerate(made.slots):
        pos, slot = np.nonzero(slots.feature >= 0)
        which = slots.feature[pos, slot]
        act = made.acts[number][pos, which]
        for column, values in zip(columns, (np.full(len(pos), number), pos, slot, which, act), strict=True):
            column.append(values)
    return Parts(*(np.concatenate(column) if column else np.zeros(0) for column in columns))


def run_nodes(
    made: Prepared, kept: Bool[np.ndarray, "circuit feature"], fill: Float[np.ndarray, "feature"]
) -> Float[np.ndarray, "circuit d_vocab"]:
    """Logits of the model when features outside a circuit take their fill.

    Args:
        made: The prompt.
        kept: Which features each circuit has; features that are no nodes are left alone.
        fill: What a feature outside takes, in units of its activation.
    """
    dtype = made.params.W_E.dtype
    found = _run_nodes(
        made.params,
        dict(zip(made.names, made.saes, strict=True)),
        made.tokens,
        tuple(jnp.asarray(scale, dtype) for scale in spread(made, kept, 1)),
        tuple(jnp.asarray(raised, dtype) for raised in spread(made, fill, 0)),
        jnp.int32(made.at),
        cfg=made.wiring.cfg,
    )
    return np.asarray(found)


@partial(jax.jit, static_argnames="cfg")
def _run_nodes(
    params: ModelWeights,
    saes: dict[str, SAE],
    tokens: Int[Array, "pos"],
    scale: tuple[Float[Array, "circuit pos _d_sae"], ...],
    raised: tuple[Float[Array, "pos _d_sae"], ...],
    at: Int[Array, ""],
    *,
    cfg: ModelConfig,
) -> Float[Array, "circuit d_vocab"]:
    def one(scale):
        return circuit_logits(params, saes, tokens, scale, raised, at, cfg)

    return jax.lax.map(one, scale, batch_size=CIRCUITS_AT_ONCE)


def circuit_logits(
    params: ModelWeights,
    saes: dict[str, SAE],
    tokens: Int[Array, "pos"],
    scale: tuple[Float[Array, "pos _d_sae"], ...],
    raised: tuple[Float[Array, "pos _d_sae"], ...],
    at: Int[Array, ""],
    cfg: ModelConfig,
) -> Float[Array, "d_vocab"]:
    """Logits of the model when each feature is `scale` times its activation and, for the rest, `raised`."""
    changes = []
    for name, by, fill in zip(saes, scale, raised, strict=True):
        every = jnp.arange(by.shape[1])
        changes += [Change(name, "scale", every, by), Change(name, "steer", every, (1 - by) * fill)]
    logits = intervene(params, cfg, saes, tokens, changes, logits_at=at[None]).logits
    assert logits is not None
    return logits[0]


def spread(
    made: Prepared, values: Shaped[np.ndarray, "*n feature"], elsewhere: float | bool
) -> tuple[Shaped[np.ndarray, "*n pos _d_sae"], ...]:
    """A number a node for every feature of each SAE at each position; those that are no nodes have another."""
    parts, found = parts_of(made), []
    for s, sae in enumerate(made.saes):
        mine = parts.sae == s
        each = np.full((*values.shape[:-1], len(made.tokens), sae.cfg.d_sae), elsewhere, values.dtype)
        each[..., parts.pos[mine], parts.number[mine]] = values[..., mine]
        found.append(each)
    return tuple(found)


def slotted(made: Prepared, values: Float[np.ndarray, "*n feature"]) -> tuple[Float[Array, "*n pos _slot"], ...]:
    """Factors on features, in their slots; free slots have 1."""
    parts, found = parts_of(made), []
    for s, slots in enumerate(made.slots):
        mine = parts.sae == s
        each = np.ones((*values.shape[:-1], *slots.feature.shape), made.params.W_E.dtype)
        each[..., parts.pos[mine], parts.slot[mine]] = values[..., mine]
        found.append(jnp.asarray(each))
    return tuple(found)


def run_edges(
    made: Prepared, kept: Bool[np.ndarray, "target feature"], fill: Float[np.ndarray, "feature"]
) -> Float[np.ndarray, "d_vocab"]:
    """Logits of the model when edges outside a circuit carry their source's fill.

    Args:
        made: The prompt, whose wiring is of exact derivatives.
        kept: For each feature, and last for the logits, which features reach it.
        fill: What a target sees of a source along an edge that is not kept, in units of its activation.
    """
    parts = parts_of(made)
    now = parts.act.astype(np.float64)

    def factors(targets: Int[np.ndarray, "target"]) -> tuple[Float[Array, "target pos _slot"], ...]:
        return slotted(made, np.where(kept[targets], now, fill) / parts.act)

    for s, sae in enumerate(made.saes):
        if not made.wiring.cuts(s):
            continue
        mine = np.flatnonzero((parts.sae == s) & kept.any(axis=0))  # the others are seen at their fill
        for first in range(0, len(mine), CHUNK):
            chunk = mine[first : first + CHUNK]
            size = min(CHUNK, bucket(len(chunk), LEAST))
            filled = np.pad(chunk, (0, size - len(chunk)), mode="edge")
            pos, which = (jnp.asarray(column[filled], jnp.int32) for column in (parts.pos, parts.number))
            pre_acts = _feature_values(
                made.params, sae, made.tokens, made.leaves, made.factors, factors(filled), pos, which,
                wiring=made.wiring, number=s,
            )  # fmt: skip
            now[chunk] = _activated(sae, np.asarray(pre_acts, np.float64)[: len(chunk)], parts.number[chunk])
    row = factors(np.array([len(parts.act)]))
    logits = _logits(
        made.params, made.tokens, made.leaves, made.factors, tuple(f[0] for f in row), jnp.int32(made.at),
        wiring=made.wiring,
    )  # fmt: skip
    return np.asarray(logits)


def _activated(sae: SAE, pre_acts: Float[np.ndarray, "n"], number: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Activations of features that were on; those of a top-k stay in the competition's result."""
    if sae.cfg.activation == "jumprelu":
        return np.where(pre_acts > np.asarray(sae.weights.threshold)[number], np.maximum(pre_acts, 0), 0)
    return np.maximum(pre_acts, 0)


@partial(jax.jit, static_argnames=("wiring", "number"))
def _feature_values(
    params: ModelWeights,
    sae: SAE,
    tokens: Int[Array, "pos"],
    leaves: Leaves,
    factors: Factors,
    features: tuple[Float[Array, "target pos _slot"], ...],
    pos: Int[Array, "target"],
    which: Int[Array, "target"],
    *,
    wiring: Wiring,
    number: int,
) -> Float[Array, "target"]:
    def one(target):
        mine, at, feature = target
        own = factors._replace(features=mine)
        return feature_value(wiring, params, sae, tokens, leaves, own, number, at, feature)

    return jax.lax.map(one, (features, pos, which), batch_size=16)


@partial(jax.jit, static_argnames="wiring")
def _logits(
    params: ModelWeights,
    tokens: Int[Array, "pos"],
    leaves: Leaves,
    factors: Factors,
    features: tuple[Float[Array, "pos _slot"], ...],
    at: Int[Array, ""],
    *,
    wiring: Wiring,
) -> Float[Array, "d_vocab"]:
    own = factors._replace(features=features)
    return logits_of(wiring, params, tokens, leaves, own, at)
