"""How much each node matters for the logits: influence, effect, and the two scores of a graph.

Influence takes absolute weights, each node's edges normalised to sum to one, and sums over all paths to the logits; so
a node that pushes two ways at once still counts. Effect keeps signs: what the logits would lose if all that a node
contributes, along every path, were missing.

Source: "Circuit Tracing: Revealing Computational Graphs in Language Models" (Ameisen et al. 2025) and circuit-tracer
0.4 (`compute_influence`, `compute_graph_scores`), whose graphs have no biases: here biases and constants are left out
before edges are normalised, unless asked for.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse

from jaxcircuits.graph.graph import Graph

CONSTANT = ("bias", "gelu")
"""Kinds that are the same in every prompt, or follow from a layer's input alone: nothing a circuit explains."""

EXPLAINED, UNEXPLAINED = ("token", "position"), ("error", "rest")
"""Where paths end well, and where they end in what features do not express."""


class Scores(NamedTuple):
    """How much of a graph its features explain.

    Attributes:
        replacement: Share of influence that comes from embeddings rather than from errors.
        completeness: Share of edges that come from features and embeddings rather than errors, nodes weighted by
            influence.
    """

    replacement: float
    completeness: float


def logit_weights(graph: Graph) -> Float[np.ndarray, "node"]:
    """What each node counts as an end: a logit by its token's probability, a difference as one, others nothing.

    In a part without logits (`leading_to`) the last node is the end.
    """
    logit = graph.nodes.are("logit")
    probability = np.where(np.isnan(graph.nodes.probability), 1.0, graph.nodes.probability)
    ends = np.where(logit, probability, 0.0)
    if len(ends) and not logit.any():
        ends[-1] = 1.0
    return ends


def normalized(graph: Graph, *, constants: bool = False) -> sparse.csr_array:
    """Absolute weights `[target, source]`, each row divided by its sum.

    Args:
        graph: The graph.
        constants: Whether biases and GELU constants count.
    """
    A = abs(graph.adjacency())
    if not constants:
        A = A @ sparse.diags_array((~graph.nodes.are(*CONSTANT)).astype(A.dtype))
    total = np.asarray(A.sum(axis=1)).ravel()
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(total, 1e-10)) @ A)


def summed_paths(A: sparse.csr_array, ends: Float[np.ndarray, "node"]) -> Float[np.ndarray, "node"]:
    """`ends A + ends A A + ...`: for each node, products of weights over every path to the ends, summed.

    Ends once more count nothing of themselves. The sum is finite because edges lead forwards only.
    """
    found, step = np.zeros(len(ends)), ends
    while (step := step @ A).any():
        found += step
    return found


def influence(graph: Graph, *, constants: bool = False) -> Float[np.ndarray, "node"]:
    """Influence of each node on the logits; logits themselves have none unless one feeds another.

    Args:
        graph: The graph.
        constants: Whether biases and GELU constants count.

    >>> import numpy as np
    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, influence
    >>> graph = build_graph(load_bundle(), "The dog was", top_logits=2)
    >>> found = influence(graph)
    >>> ends = float(np.nansum(graph.nodes.probability))
    >>> leaves = graph.nodes.are("token", "position", "error", "rest")
    >>> bool(np.isclose(found[leaves].sum(), ends))  # all that reaches the logits began somewhere
    True
    """
    return summed_paths(normalized(graph, constants=constants), logit_weights(graph))


def edge_influence(graph: Graph, *, constants: bool = False) -> Float[np.ndarray, "edge"]:
    """Influence of each edge: its share of its target, times the target's own influence."""
    A, ends = normalized(graph, constants=constants), logit_weights(graph)
    at = summed_paths(A, ends) + ends
    scored = sparse.csr_array(sparse.diags_array(at) @ A)
    return np.asarray(scored[graph.target, graph.source]).ravel()


def effect(graph: Graph) -> Float[np.ndarray, "node"]:
    """Signed contribution of each node to the logits along every path, in units of the (weighted) logits.

    An edge counts as the share of its target's value that it carries, and the target's own effect is passed on in that
    share. Where edges are frozen and all of them listed, the leaves' effects add up to the logits' values.
    """
    value = graph.nodes.value
    ends = logit_weights(graph)
    ends = ends / max(ends.sum(), 1e-300)
    logit = graph.nodes.are("logit") | (ends > 0)
    per_unit = np.ones(len(value))
    features = graph.nodes.are("feature") & ~logit
    per_unit[features] = 1 / value[features]
    A = sparse.csr_array(sparse.diags_array(np.where(logit | features, per_unit, 0.0)) @ graph.adjacency())
    return summed_paths(A, ends)


def edge_effect(graph: Graph) -> Float[np.ndarray, "edge"]:
    """Signed contribution of each edge to the logits, as of `effect`."""
    ends = logit_weights(graph)
    logit = graph.nodes.are("logit") | (ends > 0)
    value = np.where(logit, 1.0, np.where(graph.nodes.are("feature"), graph.nodes.value, np.inf))
    at = effect(graph) + ends / max(ends.sum(), 1e-300)
    return graph.weight * (at / value)[graph.target]


def scores(graph: Graph) -> Scores:
    """Replacement and completeness of a graph, whole or pruned.

    Both see listed edges only; what is in `cut` has no source and counts for neither side.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, scores
    >>> found = scores(build_graph(load_bundle(), "The dog was", top_logits=2))
    >>> 0 < found.replacement < found.completeness < 1
    True
    """
    A, ends = normalized(graph), logit_weights(graph)
    found = summed_paths(A, ends)
    good = found[graph.nodes.are(*EXPLAINED)].sum()
    bad = graph.nodes.are(*UNEXPLAINED)
    of_errors = np.asarray(A[:, np.flatnonzero(bad)].sum(axis=1)).ravel()
    at = found + ends
    return Scores(float(good / max(good + found[bad].sum(), 1e-300)), float(((1 - of_errors) * at).sum() / at.sum()))
