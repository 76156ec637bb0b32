"""Which features, which edges first: by what the graph says, and the simpler choices it is compared with."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.ends import entry_of, split
from jaxcircuits.bundle import Bundle
from jaxcircuits.graph.ablation import parts_of
from jaxcircuits.graph.build import Prepared
from jaxcircuits.graph.direct import Leaves, Wiring
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.influence import edge_effect, edge_influence, effect, influence
from jaxcircuits.model import forward
from jaxcircuits.types import ModelWeights

METHODS = ("effect", "influence", "activation", "cosine", "integrated gradients", "random")
"""How circuits are chosen.

- `effect`: absolute `effect` of a node or edge in the graph.
- `influence`: as of `influence` and `edge_influence`.
- `activation`: of a feature; of an edge, the smaller of its ends'.
- `cosine`: absolute cosine of weights, straight through the residual stream: of what a feature writes with the
  logits' direction, and of an edge with what its target reads.
- `integrated gradients`: of the metric along each SAE's features, rising from zero with the rest of the model free; of
  an edge, the smaller of its ends'.
- `random`: any.
"""

POINTS = 10
"""Of the integrated gradients, as in feature-circuits."""


def node_scores(
    bundle: Bundle, made: Prepared, graph: Graph, method: str, rng: np.random.Generator
) -> Float[np.ndarray, "feature"]:
    """What each feature that is a node scores; the larger, the sooner it is in a circuit."""
    features = graph.nodes.are("feature")
    if method == "effect":
        return np.abs(effect(graph)[features])
    if method == "influence":
        return influence(graph)[features]
    if method == "activation":
        return graph.nodes.value[features]
    if method == "integrated gradients":
        return np.abs(integrated_gradients(made))
    if method == "cosine":
        return np.abs(_logit_cosines(bundle, made))
    return rng.random(int(features.sum()))


def edge_scores(
    bundle: Bundle, made: Prepared, graph: Graph, method: str, rng: np.random.Generator, edges: Int[np.ndarray, "edge"]
) -> Float[np.ndarray, "edge"]:
    """What each of some edges from features scores."""
    if method == "effect":
        return np.abs(edge_effect(graph))[edges]
    if method == "influence":
        return edge_influence(graph)[edges]
    if method == "random":
        return rng.random(len(edges))
    source, target = graph.source[edges], graph.target[edges]
    if method == "cosine":
        return np.abs(_edge_cosines(bundle, made, graph, source, target))
    at = np.full(len(graph.nodes), np.inf)  # of logits: an edge into them is as good as its source
    at[graph.nodes.are("feature")] = node_scores(bundle, made, graph, method, rng)
    return np.minimum(at[source], at[target])


def integrated_gradients(made: Prepared) -> Float[np.ndarray, "feature"]:
    """Mean gradient of the metric along the line on which one SAE's features rise, times how far; all SAEs in turn.

    Source: Sparse Feature Circuits (Marks et al. 2024), node attribution; the metric is the graph's first logit node.
    """
    direction = jnp.asarray(made.logit_targets.directions[0], made.params.W_U.dtype)
    parts, found = parts_of(made), []
    for s in range(len(made.saes)):
        each = np.asarray(
            _integrated(
                made.params, made.tokens, made.leaves, jnp.int32(made.at), direction, wiring=made.wiring, number=s
            )
        )
        mine = parts.sae == s
        found.append(each[parts.pos[mine], parts.slot[mine]])
    return np.concatenate(found) if found else np.zeros(0)


@partial(jax.jit, static_argnames=("wiring", "number"))
def _integrated(
    params: ModelWeights,
    tokens: Int[Array, "pos"],
    leaves: Leaves,
    at: Int[Array, ""],
    direction: Float[Array, "d_vocab"],
    *,
    wiring: Wiring,
    number: int,
) -> Float[Array, "pos slot"]:
    rows = leaves.written[number].features

    def metric(factor):
        moved = jnp.einsum("ps,psd->pd", factor - 1, rows)
        edits = {wiring.writes[number]: lambda value: value + moved.reshape(value.shape)}
        logits, _ = forward(params, wiring.cfg, tokens, edits=edits, logits_at=at[None])
        assert logits is not None
        return logits[0] @ direction

    points = (jnp.arange(POINTS, dtype=rows.dtype) + 0.5) / POINTS
    return jax.lax.map(lambda point: jax.grad(metric)(jnp.full(rows.shape[:2], point)), points).mean(0)


def _logit_cosines(bundle: Bundle, made: Prepared) -> Float[np.ndarray, "feature"]:
    read = np.asarray(bundle.params.W_U, np.float64) @ made.logit_targets.directions[0]
    parts, written = parts_of(made), _writes(bundle, made)
    return np.array([_cosine(written[s][f], read) for s, f in zip(parts.sae, parts.number, strict=True)])


def _edge_cosines(
    bundle: Bundle, made: Prepared, graph: Graph, source: Int[np.ndarray, "edge"], target: Int[np.ndarray, "edge"]
) -> Float[np.ndarray, "edge"]:
    written, read = _writes(bundle, made), _reads(bundle, made)
    logits = np.asarray(bundle.params.W_U, np.float64) @ made.logit_targets.directions[0]
    nodes = graph.nodes
    found = np.zeros(len(source))
    for i, (s, t) in enumerate(zip(source, target, strict=True)):
        to = logits if nodes.kind[t] == "logit" else read[nodes.sae[t]][:, nodes.feature[t]]
        found[i] = _cosine(written[nodes.sae[s]][nodes.feature[s]], to)
    return found


def _cosine(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


def _writes(bundle: Bundle, made: Prepared) -> list[Float[np.ndarray, "_d_sae d_model"]]:
    """What one unit of each feature adds to the residual stream; zero where more than a matrix lies between."""
    found = []
    for sae, hook in zip(made.saes, made.wiring.writes, strict=True):
        entry, W_dec = entry_of(hook), np.asarray(sae.weights.W_dec, np.float64)
        if entry is None:
            found.append(np.zeros((len(W_dec), bundle.cfg.d_model)))
        else:
            W = entry.matrix(bundle.params)
            found.append(W_dec if W is None else W_dec @ np.asarray(W, np.float64))
    return found


def _reads(bundle: Bundle, made: Prepared) -> list[Float[np.ndarray, "d_model _d_sae"]]:
    """What each feature reads of the residual stream if norm and GELU were the identity; zero elsewhere."""
    found = []
    for sae, hook in zip(made.saes, made.wiring.reads, strict=True):
        block, name = split(hook)
        W_enc = np.asarray(sae.weights.W_enc, np.float64)
        if name in ("mlp.hook_post", "mlp.hook_pre"):
            assert block is not None
            found.append(np.asarray(bundle.params.blocks[block].mlp.W_in, np.float64) @ W_enc)
        elif len(W_enc) == bundle.cfg.d_model:
            found.append(W_enc)
        else:
            found.append(np.zeros((bundle.cfg.d_model, W_enc.shape[1])))
    return found
