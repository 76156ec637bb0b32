"""The part of a graph that matters: nodes and edges that together carry a given share of influence.

Source: circuit-tracer 0.4, `prune_graph` (node threshold 0.8, edge threshold 0.98).
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csgraph

from jaxcircuits.errors import InputError
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.influence import edge_influence, influence, logit_weights

ALWAYS = ("token", "logit")
"""Kinds that stay whatever they carry: a reader wants the whole text, and the answer."""


def carrying(scores: Float[np.ndarray, "n"], share: float) -> Bool[np.ndarray, "n"]:
    """The fewest entries that carry a share of the sum; all that equal the smallest of them.

    >>> import numpy as np
    >>> from jaxcircuits.graph.prune import carrying
    >>> carrying(np.array([5.0, 1.0, 3.0, 1.0, 0.0]), 0.8).tolist()
    [True, False, True, False, False]
    """
    ordered = np.sort(scores)[::-1]
    total = ordered.sum()
    if not total:
        return np.zeros(len(scores), bool)
    enough = int(np.searchsorted(np.cumsum(ordered) / total, share))
    smallest = ordered[min(enough, len(ordered) - 1)]
    return (scores >= smallest) & (scores > 0)


def prune(
    graph: Graph, *, node_threshold: float = 0.8, edge_threshold: float = 0.98, top_k: int | None = None
) -> Graph:
    """Keeps the nodes, then the edges, that carry most of the influence on the logits.

    Then features without an edge into them and nodes without one out of them go, until none is left. Tokens and logits
    stay. What a node loses is added to its `cut`.

    Args:
        graph: The graph.
        node_threshold: Share of all nodes' influence that the kept ones carry.
        edge_threshold: Share of the remaining edges' influence that the kept ones carry.
        top_k: Besides, at most that many edges of largest absolute weight into each node.

    Raises:
        InputError: A threshold is none.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, prune
    >>> graph = build_graph(load_bundle(), "The dog was", top_logits=2)
    >>> small = prune(graph, node_threshold=0.5)
    >>> len(small.nodes) < len(graph.nodes), len(small.weight) < len(graph.weight)
    (True, True)
    """
    for name, threshold in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 < threshold <= 1:
            raise InputError(f"{name} must lie above 0, up to 1, got {threshold}.")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}.")
    stays = graph.nodes.are(*ALWAYS) | (logit_weights(graph) > 0)
    nodes = carrying(influence(graph), node_threshold) | stays
    graph, stays = graph.keep(nodes), stays[nodes]
    edges = carrying(edge_influence(graph), edge_threshold)
    if top_k is not None:
        edges &= _largest(graph, top_k)
    return replace(
        _without_loose_ends(graph, edges, stays),
        settings={
            **graph.settings,
            "pruned": {"node_threshold": node_threshold, "edge_threshold": edge_threshold, "top_k": top_k},
        },
    )


def leading_to(graph: Graph, node: int) -> Graph:
    """The part of a graph that leads to one node, and all tokens; the node is its last, and its end in place of logits.

    Args:
        graph: The graph.
        node: The number of the node.

    Raises:
        InputError: There is no such node.

    >>> import numpy as np
    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, influence, leading_to
    >>> graph = build_graph(load_bundle(), "The dog was", top_logits=2)
    >>> node = int(np.flatnonzero(graph.nodes.are("feature"))[-1])
    >>> part = leading_to(graph, node)
    >>> part.label(len(part.nodes) - 1) == graph.label(node)
    True
    >>> leaves = part.nodes.are("token", "position", "error", "rest")
    >>> round(float(influence(part)[leaves].sum()), 4)  # all of it began somewhere
    1.0
    """
    if not 0 <= node < len(graph.nodes):
        raise InputError(f"the graph has nodes 0..{len(graph.nodes) - 1}, got {node}.")
    keep = graph.nodes.are("token")
    keep[csgraph.breadth_first_order(graph.adjacency(), node, return_predecessors=False)] = True
    return graph.keep(keep)


def feature_node(graph: Graph, feature: int) -> int:
    """The node of a feature of the last SAE at the position of the logits.

    Raises:
        InputError: It is no node there.
    """
    nodes, pos, sae = graph.nodes, graph.settings["position"], len(graph.saes) - 1
    there = nodes.are("feature") & (nodes.sae == sae) & (nodes.pos == pos)
    found = np.flatnonzero(there & (nodes.feature == feature))
    if not len(found):
        raise InputError(
            f"feature {feature} of {graph.saes[sae] if graph.saes else 'the last SAE'} is no node at position {pos}; "
            f"there are {', '.join(map(str, nodes.feature[there][:12])) or 'none'}."
        )
    return int(found[0])


def _without_loose_ends(graph: Graph, edges: Bool[np.ndarray, "edge"], stays: Bool[np.ndarray, "node"]) -> Graph:
    n = len(graph.nodes)
    nodes, feature = np.ones(n, bool), graph.nodes.are("feature")
    while True:
        edges = edges & nodes[graph.source] & nodes[graph.target]
        leads = np.bincount(graph.source[edges], minlength=n) > 0
        led = np.bincount(graph.target[edges], minlength=n) > 0
        left = nodes & (stays | (leads & (led | ~feature)))
        if (left == nodes).all():
            return graph.keep(nodes, edges)
        nodes = left


def _largest(graph: Graph, k: int) -> Bool[np.ndarray, "edge"]:
    """Which edges are among the `k` largest into their target."""
    order = np.lexsort((-np.abs(graph.weight), graph.target))
    starts = np.searchsorted(graph.target[order], graph.target[order])
    among = np.zeros(len(order), bool)
    among[order] = np.arange(len(order)) - starts < k
    return among
