"""Which features, which edges first: by what the graph says, and the simpler choices it is compared with."""

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.attribution.ends import entry_of, split
from jaxcircuits.bundle import Bundle
from jaxcircuits.graph.ablation import parts_of
from jaxcircuits.graph.attributions import Fill, edge_attributions, node_attributions
from jaxcircuits.graph.build import Prepared
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.influence import edge_effect, edge_influence, effect, influence

METHODS = (
    "integrated attribution",
    "exact attribution",
    "effect",
    "influence",
    "activation",
    "cosine",
    "integrated gradients",
    "random",
)
"""How circuits are chosen; of scores that have a sign, by their absolute value.

- `integrated attribution`: what the logit owes to a feature or edge, the mean while all of them rise from their fill
  (`graph.attributions`).
- `exact attribution`: the same in the model as it is: gradient × (activation - fill).
- `effect`: of `effect` of a node or edge in the graph, the part above its fill.
- `influence`: as of `influence` and `edge_influence`.
- `activation`: of a feature; of an edge, the smaller of its ends'.
- `cosine`: of weights, straight through the residual stream: of what a feature writes with the logits' direction, and
  of an edge with what its target reads.
- `integrated gradients`: of the logit while one SAE's features rise from their fill and the rest of the model is free;
  of an edge, the smaller of its ends'.
- `random`: any.
"""

DERIVATIVES = {
    "integrated attribution": "integrated",
    "exact attribution": "exact",
    "integrated gradients": "one SAE",
}


def node_scores(
    bundle: Bundle, made: Prepared, graph: Graph, method: str, fill: Fill, rng: np.random.Generator
) -> Float[np.ndarray, "feature"]:
    """What each feature that is a node scores; the larger, the sooner it is in a circuit."""
    features = graph.nodes.are("feature")
    if method in DERIVATIVES:
        return np.abs(node_attributions(made, fill, DERIVATIVES[method]))
    if method == "effect":
        return np.abs(effect(graph)[features] * (1 - fill / graph.nodes.value[features]))
    if method == "influence":
        return influence(graph)[features]
    if method == "activation":
        return graph.nodes.value[features]
    if method == "cosine":
        return np.abs(_logit_cosines(bundle, made))
    return rng.random(int(features.sum()))


def edge_scores(
    bundle: Bundle,
    made: Prepared,
    graph: Graph,
    method: str,
    fill: Fill,
    rng: np.random.Generator,
    edges: Int[np.ndarray, "edge"],
) -> Float[np.ndarray, "edge"]:
    """What each of some edges from features scores."""
    source, target = graph.source[edges], graph.target[edges]
    if method.endswith("attribution"):
        row = circuit_row(graph)
        leads_on = np.isin(np.arange(len(fill)), row[source])
        found = edge_attributions(made, fill, DERIVATIVES[method], leads_on=leads_on)
        return np.abs(found[row[target], row[source]])
    if method == "effect":
        above = np.ones(len(graph.nodes))
        features = graph.nodes.are("feature")
        above[features] -= fill / graph.nodes.value[features]
        return np.abs(edge_effect(graph)[edges] * above[source])
    if method == "influence":
        return edge_influence(graph)[edges]
    if method == "random":
        return rng.random(len(edges))
    if method == "cosine":
        return np.abs(_edge_cosines(bundle, made, graph, source, target))
    at = np.full(len(graph.nodes), np.inf)  # of logits: an edge into them is as good as its source
    at[graph.nodes.are("feature")] = node_scores(bundle, made, graph, method, fill, rng)
    return np.minimum(at[source], at[target])


def circuit_row(graph: Graph) -> Int[np.ndarray, "node"]:
    """The row that a feature has in the matrix of a circuit of edges; a logit's is the one behind all features."""
    feature = graph.nodes.are("feature")
    return np.where(graph.nodes.are("logit"), int(feature.sum()), np.cumsum(feature) - 1)


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
        entry, W_dec = entry_of(hook, norms_behind=bundle.cfg.norms_behind), np.asarray(sae.weights.W_dec, np.float64)
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
