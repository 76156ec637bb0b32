"""Descriptions of a graph's features: the most important ones, from one pass over a corpus for each SAE."""

from collections.abc import Callable, Iterable

import numpy as np

from jaxcircuits.bulk.record import weight_hashes
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation import FeatureSummary, describe_features
from jaxcircuits.graph import Graph
from jaxcircuits.report.explorer.content import importance


def describe_graph(
    graph: Graph,
    bundle: Bundle,
    texts: Callable[[], Iterable[str]],
    *,
    most: int = 200,
    examples: int = 4,
    quiet: bool = True,
) -> list[FeatureSummary]:
    """Describes the features of a graph, at most `most` of them, the most important first.

    Args:
        graph: The graph.
        bundle: What it was made with.
        texts: Gives the corpus anew each time.
        most: Number of features.
        examples: Examples of each.
        quiet: Whether there is no progress bar.

    Raises:
        InputError: The graph was made with other weights, or the corpus cannot be read.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, prune
    >>> from jaxcircuits.report.explorer import describe_graph
    >>> bundle = load_bundle()
    >>> graph = prune(build_graph(bundle, "The dog was", top_logits=2))
    >>> cards = describe_graph(graph, bundle, lambda: ["The dog was happy."], most=1)
    >>> len(cards), cards[0].sae in graph.saes
    (1, True)
    """
    made_with = graph.settings.get("sha256")
    if made_with is not None and made_with != weight_hashes(bundle):
        raise InputError("the graph was made with other weights; name its bundle with --bundle, or pass --no-cards.")
    if bundle.tokenizer is None:
        raise InputError("the bundle has no tokenizer to read a corpus with; pass --no-cards.")
    found = []
    for number, features in enumerate(described_features(graph, most)):
        if features:
            name = graph.saes[number]
            found += describe_features(bundle, name, features, texts(), n=examples, tokens=8, quiet=quiet)
    return found


def described_features(graph: Graph, most: int) -> list[list[int]]:
    """For each SAE, the features among the graph's `most` most important ones; a feature counts at all positions."""
    nodes = graph.nodes
    at = np.flatnonzero(nodes.are("feature"))
    pairs, which = np.unique(np.stack([nodes.sae[at], nodes.feature[at]], 1), axis=0, return_inverse=True)
    total = np.bincount(which.ravel(), importance(graph)[at], len(pairs))
    kept = pairs[np.argsort(-total, kind="stable")[:most]]
    return [kept[kept[:, 0] == sae, 1].tolist() for sae in range(len(graph.saes))]
