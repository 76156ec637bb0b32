"""What a logit owes to each feature and to each edge: attributions to the very number that faithfulness measures.

A circuit leaves some features, or edges, as they are and gives the others their fill. Let every one have a number
between, 0 at its fill and 1 as it is: the logit is then a function F of these numbers, F(0) with everything ablated and
F(1) the model's, and what it owes to one is the derivative of F with respect to its number: gradient × (activation -
fill), along every path through the model. Meant along the straight line from 0 to 1, attributions add up to F(1) -
F(0), but for the quadrature and for features that cross a threshold on the way.

Source: Axiomatic Attribution for Deep Networks (Sundararajan et al. 2017), proposition 1; the line for all features at
once is that of `derivative="integrated"`. One SAE's features alone: Sparse Feature Circuits (Marks et al. 2024).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.attribution.selection import bucket
from jaxcircuits.config import ModelConfig
from jaxcircuits.graph.ablation import LEAST, Parts, circuit_logits, parts_of, slotted, spread
from jaxcircuits.graph.build import Prepared
from jaxcircuits.graph.direct import feature_edges, logit_edges
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights

Fill = Float[np.ndarray, "feature"]
"""What a feature outside a circuit takes, in units of its activation."""

POINTS = 10
"""Of the line on which features move, as in feature-circuits; a point costs a backward pass."""

EDGE_POINTS = 5
"""Of the line on which edges move; a point costs a graph."""


def node_attributions(made: Prepared, fill: Fill, derivative: str = "integrated") -> Float[np.ndarray, "feature"]:
    """What the graph's first logit owes to each feature, the rest of the model running on behind it.

    Args:
        made: The prompt, whose wiring is of exact derivatives.
        fill: What a feature is compared with.
        derivative: `"exact"`: in the model as it is. `"integrated"`: the mean while all features rise from their fill.
            `"one SAE"`: the mean while the features of the same SAE rise and all others are as they are.
    """
    n, (points, weights) = len(made.saes), midpoints(POINTS)
    if derivative == "exact":
        return _along(made, fill, np.ones((1, n)), np.ones(1))
    if derivative == "integrated":
        return _along(made, fill, np.repeat(points[:, None], n, axis=1), weights)
    found, sae = np.zeros(len(fill)), parts_of(made).sae
    for s in range(n):
        line = np.where(np.arange(n) == s, points[:, None], 1.0)
        found[sae == s] = _along(made, fill, line, weights)[sae == s]
    return found


def midpoints(n: int) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Points in the middle of `n` equal steps from 0 to 1, and their weights: thresholds make steps of the function."""
    return (np.arange(n) + 0.5) / n, np.full(n, 1 / n)


def _along(
    made: Prepared, fill: Fill, points: Float[np.ndarray, "n sae"], weights: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "feature"]:
    dtype = made.params.W_E.dtype
    found = _kept_gradients(
        made.params,
        dict(zip(made.names, made.saes, strict=True)),
        made.tokens,
        tuple(jnp.asarray(is_node) for is_node in spread(made, np.ones(len(fill), bool), False)),
        tuple(jnp.asarray(raised, dtype) for raised in spread(made, fill, 0)),
        jnp.int32(made.at),
        jnp.asarray(made.logit_targets.directions[0], dtype),
        jnp.asarray(points, dtype),
        jnp.asarray(weights, dtype),
        cfg=made.wiring.cfg,
    )
    parts = parts_of(made)
    columns = [
        np.asarray(each, np.float64)[parts.pos[parts.sae == s], parts.number[parts.sae == s]]
        for s, each in enumerate(found)
    ]
    return np.concatenate(columns) if columns else np.zeros(0)


@partial(jax.jit, static_argnames="cfg")
def _kept_gradients(
    params: ModelWeights,
    saes: dict[str, SAE],
    tokens: Int[Array, "pos"],
    is_node: tuple[Array, ...],
    raised: tuple[Float[Array, "pos _d_sae"], ...],
    at: Int[Array, ""],
    direction: Float[Array, "d_vocab"],
    points: Float[Array, "n sae"],
    weights: Float[Array, "n"],
    *,
    cfg: ModelConfig,
) -> tuple[Float[Array, "pos _d_sae"], ...]:
    def logit(scale):
        return circuit_logits(params, saes, tokens, scale, raised, at, cfg) @ direction

    def gradient(point):
        return jax.grad(logit)(tuple(jnp.where(node, by, 1) for node, by in zip(is_node, point, strict=True)))

    found = jax.lax.map(gradient, points)
    return tuple(jnp.tensordot(weights, each, axes=1) for each in found)


def edge_attributions(
    made: Prepared, fill: Fill, derivative: str = "integrated", *, leads_on: Bool[np.ndarray, "feature"] | None = None
) -> Float[np.ndarray, "target feature"]:
    """What the graph's first logit owes to each edge from a feature: rows are features, and last the logit.

    As where edges are ablated, errors and features that are off stay as they are; a feature that is on counts as on all
    the way, so integrated attributions add up.

    Args:
        made: The prompt, whose wiring is of exact derivatives.
        fill: What the source of an edge that is not kept is taken for.
        derivative: `"exact"`: in the model as it is. `"integrated"`: the mean while all edges rise from their fill.
        leads_on: Which features have an edge to another node; edges into the others are owed nothing and not looked at.
    """
    parts, points, weights = parts_of(made), np.ones(1), np.ones(1)
    if derivative == "integrated":
        points, weights = np.polynomial.legendre.leggauss(EDGE_POINTS)
        points, weights = (points + 1) / 2, weights / 2
    if leads_on is None:
        leads_on = np.ones(len(fill), bool)
    found = np.zeros((len(fill) + 1, len(fill)))
    for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
        found += weight * _edges_at(made, parts, fill, point, leads_on)
    return found


def _edges_at(
    made: Prepared, parts: Parts, fill: Fill, point: float, leads_on: Bool[np.ndarray, "feature"]
) -> Float[np.ndarray, "target feature"]:
    """Attributions at one point of the line: direct edges forwards, then the logit's derivative backwards."""
    n, size = len(parts.act), made.chunk()
    now, direct = parts.act.astype(np.float64), np.zeros((n + 1, n))

    def factors():
        return made.factors._replace(features=slotted(made, (point * now + (1 - point) * fill) / parts.act))

    def by_feature(found: tuple[Array, ...]) -> Float[np.ndarray, "target feature"]:
        return np.concatenate(
            [np.asarray(f)[:, parts.pos[parts.sae == s], parts.slot[parts.sae == s]] for s, f in enumerate(found)], 1
        )

    for s, sae in enumerate(made.saes):
        mine, seen = np.flatnonzero((parts.sae == s) & leads_on), factors()
        if not made.wiring.cuts(s):
            continue
        for first in range(0, len(mine), size):
            chunk = mine[first : first + size]
            filled = np.pad(chunk, (0, min(size, bucket(len(chunk), LEAST)) - len(chunk)), mode="edge")
            pos, which = (jnp.asarray(column[filled], jnp.int32) for column in (parts.pos, parts.number))
            values, rows = feature_edges(
                made.params, sae, made.tokens, made.leaves, seen, pos, which, wiring=made.wiring, number=s
            )
            now[chunk] = np.asarray(values)[: len(chunk)]
            direct[chunk] = by_feature(rows.features)[: len(chunk)]
    direction = jnp.asarray(made.logit_targets.directions[:1], made.params.W_U.dtype)
    _, row = logit_edges(
        made.params, made.tokens, made.leaves, factors(), jnp.int32(made.at), direction, wiring=made.wiring
    )
    direct[n] = by_feature(row.features)
    owed = np.zeros(n + 1)  # d logit / d value of each target
    owed[n] = 1
    for s in reversed(range(len(made.saes))):
        mine = np.flatnonzero(parts.sae == s)
        later = np.append(np.flatnonzero(parts.sae > s), n)
        owed[mine] = point / parts.act[mine] * (owed[later] @ direct[np.ix_(later, mine)])
    return owed[:, None] * direct * ((now - fill) / parts.act)
