"""What the page carries: a graph as columns of short numbers, nodes in rows by layer, edges strongest first."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxcircuits.evaluation import FeatureSummary
from jaxcircuits.graph import KINDS, Graph, Interaction, Labels, edge_influence, influence, scores
from jaxcircuits.graph.influence import CONSTANT, logit_weights
from jaxcircuits.graph.interactions import feature_at

SHOWN = 300
"""Edges that a page draws when it opens: what a person can still read."""

MOST = 20_000
"""Edges that a page carries: what a browser draws within two seconds."""

DIGITS = 5
"""Significant digits of every number: the page shows three."""

KIND_NAMES = {
    "token": "tokens",
    "position": "positions",
    "bias": "biases",
    "gelu": "GELU constants",
    "error": "SAE errors",
    "rest": "other features",
    "feature": "features",
    "logit": "logits",
}


def content(
    graph: Graph,
    cards: Sequence[FeatureSummary] = (),
    labels: Labels | None = None,
    pairs: Sequence[Interaction] = (),
    *,
    shown: int = SHOWN,
    most: int = MOST,
    corpus: str = "the corpus",
    card_note: str = "",
) -> dict[str, Any]:
    """A graph as the page's data, JSON-able.

    Args:
        graph: Any graph, whole or pruned.
        cards: Descriptions of some of its features.
        labels: Names of some of them, besides those that the graph has.
        pairs: Pairs of drivers, from `conjunctions`, the largest first.
        shown: Edges drawn at first: those of most influence, or where there are no logits of largest |weight|.
        most: Edges that the page carries, first by either; the rest is added to `cut`.
        corpus: What the descriptions were read from, in words.
        card_note: What stands where a feature has no description.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, prune
    >>> from jaxcircuits.report.explorer import content
    >>> data = content(prune(build_graph(load_bundle(), "The dog was", top_logits=2)))
    >>> [row["title"] for row in data["rows"]], data["tokens"][1:]
    (['embeddings', 'layer 0', 'layer 1', 'logits'], ['The', ' dog', ' was'])
    """
    graph = graph.labelled(labels or {})
    logits = bool(graph.nodes.are("logit").any())
    about, important = _about(graph, most), importance(graph)
    through = edge_influence(graph) if logits else np.zeros(len(graph.weight))
    edges = first_edges(np.abs(graph.weight), through, most)
    kept = _joined(graph, edges)
    graph, through, important = graph.keep(kept, edges), through[edges], important[kept]
    nodes = graph.nodes
    ranked = np.argsort(-np.abs(graph.weight), kind="stable")
    number = {feature_at(graph, int(i)): int(i) for i in np.flatnonzero(nodes.are("feature"))}
    kinds = [kind for kind in KINDS if (nodes.kind == kind).any()]
    return {
        "about": about,
        "importance": "influence" if logits else "strength",
        "ranked_by": "influence on the logits" if logits else "sum of |weight| in and out",
        "corpus": corpus,
        "card_note": card_note,
        "shown": shown,
        "by": "influence" if logits else "weight",
        "hidden": [kind for kind in CONSTANT if kind in kinds],
        "kind_names": {kind: KIND_NAMES[kind] for kind in kinds},
        "tokens": list(graph.token_strings),
        "saes": list(graph.saes),
        "rows": rows_of(graph),
        "kinds": kinds,
        "nodes": {
            "kind": [kinds.index(kind) for kind in nodes.kind],
            "sae": nodes.sae.tolist(),
            "row": row_of_each(graph),
            "pos": nodes.pos.tolist(),
            "feature": nodes.feature.tolist(),
            "name": [graph.label(node) for node in range(len(nodes))],
            "short": [short_name(graph, node) for node in range(len(nodes))],
            "place": [place_of(graph, node) for node in range(len(nodes))],
            "importance": short(important),
            **{name: short(getattr(nodes, name)) for name in ("value", "probability", "cut", "unexplained")},
        },
        "edges": {
            "source": graph.source[ranked].tolist(),
            "target": graph.target[ranked].tolist(),
            "weight": short(graph.weight[ranked]),
            "influence": short(through[ranked]) if logits else [],
            "parts": {name: short(part[ranked]) for name, part in graph.parts.items()},
        },
        "pairs": [
            [*(number[end] for end in (p.target, p.a, p.b)), *short(np.array([p.interaction]))]
            for p in pairs
            if {p.target, p.a, p.b} <= set(number) and p.interaction
        ],
        "cards": {f"{graph.saes.index(card.sae)}:{card.feature}": _card(card) for card in cards},
        "labels": {
            f"{graph.saes.index(sae)}:{feature}": text
            for sae, names in graph.settings.get("labels", {}).items()
            if sae in graph.saes
            for feature, text in names.items()
        },
    }


def first_edges(
    size: Float[np.ndarray, "edge"], through: Float[np.ndarray, "edge"], most: int
) -> Bool[np.ndarray, "edge"]:
    """Which edges are among the first, by size or by the influence that goes through them, whichever is better.

    >>> import numpy as np
    >>> from jaxcircuits.report.explorer.content import first_edges
    >>> first_edges(np.array([9.0, 8.0, 1.0, 2.0]), np.array([0.0, 0.1, 0.7, 0.2]), 2).tolist()
    [True, False, True, False]
    """
    rank = np.full(len(size), len(size))
    for values in (size, through):
        order = np.argsort(-values, kind="stable")
        rank[order] = np.minimum(rank[order], np.arange(len(size)))
    found = np.zeros(len(size), bool)
    found[np.argsort(rank, kind="stable")[:most]] = True
    return found


def _joined(graph: Graph, edges: Bool[np.ndarray, "edge"]) -> Bool[np.ndarray, "node"]:
    """Nodes that some edges join, with tokens and logits; where that is every edge, all of them."""
    if edges.all():
        return np.ones(len(graph.nodes), bool)
    nodes = graph.nodes.are("token", "logit")
    nodes[graph.source[edges]] = nodes[graph.target[edges]] = True
    return nodes


def importance(graph: Graph) -> Float[np.ndarray, "node"]:
    """Influence on the logits, a logit's being its own weight; in a graph without logits the sum of |weight|."""
    if graph.nodes.are("logit").any():
        return influence(graph) + logit_weights(graph)
    size, n = np.abs(graph.weight), len(graph.nodes)
    return np.bincount(graph.source, size, n) + np.bincount(graph.target, size, n)


def rows_of(graph: Graph) -> list[dict[str, str]]:
    """The rows of the drawing from the bottom: embeddings, a row an SAE, logits."""
    nodes = graph.nodes
    rows = [_row("embeddings")] if nodes.are("token", "position").any() else []
    for number, name in enumerate(graph.saes):
        layers = nodes.layer[(nodes.sae == number) & nodes.are("feature", "error", "rest")]
        first, _, rest = name.partition(".")
        short_name = rest.partition(".")[2] if first == "blocks" else name
        rows.append(_row(f"layer {layers[0]}" if len(layers) else name, short_name, name))
    return rows + ([_row("logits")] if nodes.are("logit").any() else [])


def row_of_each(graph: Graph) -> list[int]:
    """Row of each node. A constant of a layer stands with the first SAE that can read it."""
    nodes = graph.nodes
    below = int(nodes.are("token", "position").any())
    top = below + len(graph.saes) - 1 + int(nodes.are("logit").any())
    layer_of = [nodes.layer[(nodes.sae == s) & nodes.are("feature", "error")] for s in range(len(graph.saes))]
    found = []
    for kind, sae, layer in zip(nodes.kind.tolist(), nodes.sae.tolist(), nodes.layer.tolist(), strict=True):
        if sae >= 0:
            found.append(below + sae)
        elif kind == "logit":
            found.append(top)
        elif layer < 0:
            found.append(0)
        else:
            later = [below + s for s, layers in enumerate(layer_of) if len(layers) and layers[0] >= layer]
            found.append(later[0] if later else top)
    return found


def short(values: Float[np.ndarray, "n"]) -> list[float | int | None]:
    """Numbers with few digits; what is not finite is null.

    >>> import numpy as np
    >>> from jaxcircuits.report.explorer.content import short
    >>> short(np.array([0.123456789, 2.0, np.nan]))
    [0.12346, 2, None]
    """
    found: list[float | int | None] = []
    for value in values.tolist():
        rounded = float(f"{value:.{DIGITS}g}")
        found.append(None if not np.isfinite(rounded) else int(rounded) if rounded.is_integer() else rounded)
    return found


def short_name(graph: Graph, node: int) -> str:
    """A node's name where its place is said elsewhere."""
    kind, sae = str(graph.nodes.kind[node]), int(graph.nodes.sae[node])
    if kind == "bias":
        name = graph.label(node)
        return name.removeprefix(f"{graph.saes[sae]} ") if sae >= 0 else re.sub(r"^blocks\.\d+\.", "", name)
    names = {"token": "token", "position": "position", "gelu": "GELU constant", "error": "SAE error"}
    names |= {"rest": "other features", "feature": f"#{graph.nodes.feature[node]}"}
    return names.get(kind) or graph.label(node).removeprefix("logit ")


def place_of(graph: Graph, node: int) -> str:
    """Where a node is: token, and layer where its kind does not say it."""
    pos, layer = int(graph.nodes.pos[node]), int(graph.nodes.layer[node])
    words = [] if pos < 0 else [f"{pos} {graph.token_strings[pos].strip()}"]
    if layer >= 0 and graph.nodes.kind[node] != "logit":
        words.append(f"layer {layer}")
    return " · ".join(words)


def _row(title: str, detail: str = "", name: str = "") -> dict[str, str]:
    return {"title": title, "detail": detail if detail != title else "", "name": name or title}


def _about(graph: Graph, most: int) -> str:
    """The graph in one line."""
    asked, nodes = graph.settings, graph.nodes
    words = [f"{asked['derivative']} derivative"] if "derivative" in asked else []
    words += [f"{len(nodes):,} nodes", f"{len(graph.weight):,} edges"]
    words += [f"here the first {most:,}"] if most < len(graph.weight) else []
    if asked.get("pruned"):
        words.append("pruned")
    if nodes.are("logit").any():
        found = scores(graph)
        words += [f"replacement {found.replacement:.2f}", f"completeness {found.completeness:.2f}"]
    return " · ".join([*words, f"jaxcircuits {asked.get('versions', {}).get('jaxcircuits', '')}".strip()])


def _card(card: FeatureSummary) -> dict[str, Any]:
    """A description of a feature; activations of an example only where there are some."""
    peaks = [example.tokens[example.at].strip() for example in card.examples]
    return {
        "density": short(np.array([card.density]))[0],
        "max": short(np.array([card.max_activation]))[0],
        "peak": max(peaks, key=peaks.count) if peaks else "",
        "promoted": _with_numbers(card.promoted),
        "suppressed": _with_numbers(card.suppressed),
        "examples": [
            {
                "at": example.at,
                "tokens": example.tokens,
                "acts": [[i, short(np.array([a]))[0]] for i, a in enumerate(example.activations) if a > 0],
            }
            for example in card.examples
        ],
    }


def _with_numbers(pairs: Sequence[tuple[str, float]]) -> list[list[Any]]:
    return [[text, short(np.array([number]))[0]] for text, number in pairs]
