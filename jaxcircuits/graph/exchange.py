"""A graph for other programs: networkx, and the JSON that circuit-tracer's and Neuronpedia's viewers read.

Source: circuit-tracer 0.4 (`graph_models.py`: fields of nodes and links, cumulative influence) and Neuronpedia's
`graph-schema.json` (the superset, with biases). circuit-tracer gives the error of layer l the id of feature l of layer
0; here ids are unique, unless its own are asked for.
"""

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxcircuits.errors import InputError
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.influence import influence
from jaxcircuits.graph.labels import Labels

if TYPE_CHECKING:
    import networkx

TYPES = {
    "token": "embedding",
    "position": "embedding",
    "bias": "bias",
    "gelu": "bias",
    "error": "mlp reconstruction error",
    "rest": "mlp reconstruction error",
    "feature": "cross layer transcoder",
    "logit": "logit",
}
"""What the viewers call each kind."""

_GENERATION = {"max_n_logits": "top_logits", "desired_logit_prob": "logit_mass", "max_feature_nodes": "max_features"}
STRICT = ("token", "error", "feature", "logit")
"""Kinds that circuit-tracer has."""


def to_networkx(graph: Graph) -> "networkx.DiGraph":
    """The graph for networkx, nodes by number, with `kind`, `sae`, `layer`, `pos`, `feature`, `value`, `label`.

    Raises:
        InputError: networkx is not installed.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, to_networkx
    >>> graph = build_graph(load_bundle(), "The dog was", top_logits=2)
    >>> import networkx
    >>> networkx.is_directed_acyclic_graph(to_networkx(graph))
    True
    """
    try:
        import networkx
    except ImportError:
        raise InputError("networkx is not installed; pip install 'jaxcircuits[graph]'.") from None
    found, nodes = networkx.DiGraph(), graph.nodes
    for i in range(len(nodes)):
        found.add_node(
            i,
            kind=str(nodes.kind[i]),
            sae=graph.saes[nodes.sae[i]] if nodes.sae[i] >= 0 else None,
            layer=int(nodes.layer[i]),
            pos=int(nodes.pos[i]),
            feature=int(nodes.feature[i]),
            value=_number(nodes.value[i]),
            label=graph.label(i),
        )
    for e in range(len(graph.weight)):
        parts = {name: float(part[e]) for name, part in graph.parts.items()}
        found.add_edge(int(graph.source[e]), int(graph.target[e]), weight=float(graph.weight[e]), **parts)
    return found


def to_circuit_tracer(
    graph: Graph, *, slug: str = "graph", strict: bool = False, hints: Labels | None = None
) -> dict[str, Any]:
    """The graph as an object that circuit-tracer's and Neuronpedia's viewers read; weights in full precision.

    Args:
        graph: The graph, usually pruned: these viewers take some thousands of edges.
        slug: Its name in them.
        strict: Whether ids are circuit-tracer's own, and the kinds that it does not have are left out.
        hints: What stands for the name of a feature that has none in the graph (`Graph.labelled`).

    Raises:
        InputError: Strict ids are not unique, which the sentence explains.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, prune, schema_problems, to_circuit_tracer
    >>> graph = prune(build_graph(load_bundle(), "The dog was", top_logits=2))
    >>> content = to_circuit_tracer(graph)
    >>> schema_problems(content), len(content["links"]) == len(graph.weight)
    ([], True)
    """
    nodes = graph.nodes
    kept = nodes.are(*STRICT) if strict else np.ones(len(nodes), bool)
    ids = [_strict_id(graph, i) if strict else _id(graph, i) for i in range(len(nodes))]
    used = [ids[i] for i in np.flatnonzero(kept)]
    if len(set(used)) < len(used):
        twice = next(name for name in used if used.count(name) > 1)
        raise InputError(
            f"two nodes have circuit-tracer's id {twice}: it numbers the error of layer l like feature l of layer 0, "
            "and SAEs of one layer alike; export without strict ids."
        )
    shares = cumulative_influence(graph)
    settings = graph.settings
    pruned = settings.get("pruned", {})
    tokens = list(graph.token_strings)
    last = int(nodes.pos[nodes.are("logit")].max(initial=len(tokens) - 1))
    links = kept[graph.source] & kept[graph.target]
    return {
        "metadata": {
            "slug": _slug(slug),
            "scan": "jaxcircuits-" + str(settings.get("sha256", {}).get("model.safetensors", "unnamed"))[:12],
            "transcoder_list": list(graph.saes),
            "prompt_tokens": tokens,
            "prompt": "".join(tokens),
            "node_threshold": pruned.get("node_threshold"),
            "schema_version": 1,
            "info": {
                "description": f"{settings.get('derivative', '')} direct edges of one prompt",
                "generator": {
                    "name": "jaxcircuits",
                    "version": settings.get("versions", {}).get("jaxcircuits", ""),
                },
            },
            "generation_settings": {
                theirs: settings[ours] for theirs, ours in _GENERATION.items() if settings.get(ours) is not None
            },
            "pruning_settings": {
                "node_threshold": pruned.get("node_threshold"),
                "edge_threshold": pruned.get("edge_threshold"),
            },
        },
        "qParams": {
            "pinnedIds": [ids[i] for i in np.flatnonzero(nodes.are("logit"))],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            _node(graph, i, ids[i], _number(shares[i]), last, hints or {}) for i in np.flatnonzero(kept).tolist()
        ],
        "links": [
            {"source": ids[s], "target": ids[t], "weight": float(w)}
            for s, t, w in zip(graph.source[links], graph.target[links], graph.weight[links], strict=True)
        ],
    }


def cumulative_influence(graph: Graph) -> Float[np.ndarray, "node"]:
    """Share of all influence that a node and those before it, the larger ones, have; NaN for logits.

    The viewers' slider keeps the nodes at which it stays below a threshold.
    """
    found = influence(graph)
    order = np.argsort(-found, kind="stable")
    shares = np.empty(len(found))
    shares[order] = np.cumsum(found[order]) / max(found.sum(), 1e-300)
    return np.where(graph.nodes.are("logit"), np.nan, shares)


def _prefix(graph: Graph, node: int) -> str:
    """What an id says of the SAE: its layer, or its name where that layer has several."""
    sae, layer = graph.nodes.sae[node], int(graph.nodes.layer[node])
    others = np.unique(graph.nodes.sae[(graph.nodes.layer == layer) & (graph.nodes.sae >= 0)])
    return str(layer) if len(others) < 2 else graph.saes[sae]


def _id(graph: Graph, node: int) -> str:
    nodes = graph.nodes
    kind, layer, pos, feature = str(nodes.kind[node]), nodes.layer[node], nodes.pos[node], nodes.feature[node]
    if kind == "token":
        return f"E_{feature}_{pos}"
    if kind == "position":
        return f"P_{pos}"
    if kind == "bias":
        return f"bias_{graph.biases[feature]}"
    if kind == "gelu":
        return f"{layer}_gelu_{pos}"
    if kind == "logit":
        minus = "" if nodes.minus[node] < 0 else f"-{nodes.minus[node]}"
        return f"{layer + 1}_{feature}{minus}_{pos}"
    middle = {"feature": feature, "error": "err", "rest": "rest"}[kind]
    return f"{_prefix(graph, node)}_{middle}_{pos}"


def _strict_id(graph: Graph, node: int) -> str:
    nodes = graph.nodes
    kind, layer, pos, feature = str(nodes.kind[node]), nodes.layer[node], nodes.pos[node], nodes.feature[node]
    if kind == "error":
        return f"0_{layer}_{pos}"
    return f"{layer}_{feature}_{pos}" if kind == "feature" else _id(graph, node)


def _node(graph: Graph, node: int, node_id: str, share: float | None, last: int, hints: Labels) -> dict[str, Any]:
    nodes = graph.nodes
    kind, layer, pos, feature = str(nodes.kind[node]), int(nodes.layer[node]), int(nodes.pos[node]), nodes.feature[node]
    feature = int(feature)
    shown = {"token": ("E", pos), "position": ("E", pos), "logit": (str(layer + 1), feature)}
    if kind == "feature":
        # Cantor's pairing, as circuit-tracer numbers features across layers.
        shown["feature"] = (str(layer), (layer + feature) * (layer + feature + 1) // 2 + feature)
    row, number = shown.get(kind, (str(max(layer, 0)), -1))
    js = {"token": f"E_{feature}-{pos}", "logit": f"L_{feature}-{pos}", "feature": f"{layer}_{feature}-0"}
    probability = _number(nodes.probability[node])
    label = graph.label(node)
    if kind == "logit" and probability is not None:
        label = f"Output {label.removeprefix('logit ')} (p={probability:.3f})"
    if kind == "feature":
        label = graph.feature_name(node) or hints.get((graph.saes[nodes.sae[node]], feature), label)
    return {
        "node_id": node_id,
        "feature": number,
        "layer": row,
        "ctx_idx": max(pos, 0),
        "feature_type": TYPES[kind],
        "token_prob": probability or 0.0,
        "is_target_logit": kind == "logit",
        "run_idx": 0,
        "reverse_ctx_idx": max(last - max(pos, 0), 0),
        "jsNodeId": js.get(kind, f"{node_id}-0"),
        "clerp": label,
        "influence": share,
        "activation": _number(nodes.value[node]) if kind == "feature" else None,
    }


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "graph"
