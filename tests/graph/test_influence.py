"""Influence, effect, scores and pruning: on graphs small enough for a pencil, and against sums of powers."""

from typing import Any

import numpy as np
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.graph import Graph, Nodes, edge_influence, effect, influence, prune, scores
from jaxcircuits.graph.influence import edge_effect, logit_weights, normalized
from jaxcircuits.graph.prune import carrying


def graph_of(kinds: list[str], edges: dict[tuple[int, int], float], probability: dict[int, float]) -> Graph:
    """A graph from edges `(source, target): weight`; a node's value is what its edges add up to."""
    n = len(kinds)
    pairs = sorted(edges, key=lambda pair: pair[::-1])
    source, target = (np.array([pair[i] for pair in pairs], np.int32) for i in (0, 1))
    weight = np.array([edges[pair] for pair in pairs])
    kind = np.array(kinds)
    value = np.bincount(target, weight, n)
    value[~np.isin(kind, ["feature", "logit"])] = np.nan
    whole = {name: np.zeros(n, np.int32) for name in ("sae", "layer", "pos")}
    zero = np.zeros(n)
    chance = np.array([probability.get(i, np.nan) for i in range(n)])
    nodes = Nodes(
        kind=kind,
        **whole,
        feature=np.arange(n, dtype=np.int32),
        minus=np.full(n, -1, np.int32),
        value=value,
        probability=chance,
        cut=zero,
        baseline=zero,
        unexplained=zero,
    )
    return Graph(np.zeros(1, np.int32), ("a",), ("sae",), ("b",), nodes, source, target, weight)


def random_graph(seed: int, n: int = 30) -> Graph:
    rng = np.random.default_rng(seed)
    kinds = ["token"] * 4 + ["error"] * 3 + ["bias"] * 2 + ["gelu"] + ["feature"] * (n - 12) + ["logit"] * 2
    edges = {
        (s, t): float(rng.normal())
        for t in range(10, n)
        for s in range(min(t, n - 2))
        if rng.random() < 0.4 or s in (0, 8)
    }
    return graph_of(kinds, edges, {n - 2: 0.6, n - 1: 0.3})


def test_a_diamond_by_hand() -> None:
    """token → two features → logit; the second feature also has an error beneath it."""
    kinds = ["token", "error", "feature", "feature", "logit"]
    edges = {(0, 2): 2.0, (0, 3): 1.0, (1, 3): -3.0, (2, 4): 4.0, (3, 4): 1.0}
    graph = graph_of(kinds, edges, {4: 0.5})
    # Shares of |weight|: into 3: 1/4 and 3/4; into the logit: 4/5 and 1/5, times its probability.
    expected = np.array([0.4 + 0.1 / 4, 0.1 * 3 / 4, 0.4, 0.1, 0])
    np.testing.assert_allclose(influence(graph), expected)
    np.testing.assert_allclose(edge_influence(graph), [0.4, 0.025, 0.075, 0.4, 0.1])
    # Signed: feature 3 has the value -2, of which the token gives +1: a share of -1/2 of what it gives the logit.
    np.testing.assert_allclose(effect(graph), [4 - 0.5, 1.5, 4, 1, 0])
    np.testing.assert_allclose(edge_effect(graph), [4.0, -0.5, 1.5, 4.0, 1.0])
    found = scores(graph)
    assert found.replacement == pytest.approx(0.425 / 0.5)
    # Every node but feature 3 has no error among its edges; the token and the error have no edges at all.
    at = influence(graph) + logit_weights(graph)
    assert found.completeness == pytest.approx(1 - 0.75 * at[3] / at.sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("constants", [False, True])
def test_influence_is_the_sum_of_powers(seed: int, constants: bool) -> None:
    graph = random_graph(seed)
    A, ends = np.abs(graph.adjacency().toarray()), logit_weights(graph)
    if not constants:
        A[:, graph.nodes.are("bias", "gelu")] = 0
    total = A.sum(1, keepdims=True)
    A = np.divide(A, total, where=total > 0, out=np.zeros_like(A))
    expected = ends @ (np.linalg.inv(np.eye(len(A)) - A) - np.eye(len(A)))
    np.testing.assert_allclose(influence(graph, constants=constants), expected, atol=1e-12)
    np.testing.assert_allclose(normalized(graph, constants=constants).toarray(), A, atol=1e-12)
    dense = (expected + ends)[:, None] * A
    np.testing.assert_allclose(
        edge_influence(graph, constants=constants), dense[graph.target, graph.source], atol=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_influence_and_effect_are_conserved(seed: int) -> None:
    """All that reaches the logits began in a leaf."""
    graph = random_graph(seed)
    ends, leaves = logit_weights(graph), ~graph.nodes.are("feature", "logit")
    assert influence(graph, constants=True)[leaves].sum() == pytest.approx(ends.sum())
    value = (ends * np.nan_to_num(graph.nodes.value)).sum() / ends.sum()
    assert effect(graph)[leaves].sum() == pytest.approx(value)
    into = np.bincount(graph.target, edge_effect(graph), len(ends))
    features = graph.nodes.are("feature")
    np.testing.assert_allclose(into[features], effect(graph)[features], atol=1e-9)


def test_the_fewest_that_carry_a_share() -> None:
    scores = np.array([0.1, 0.5, 0.15, 0.25, 0.0])
    assert carrying(scores, 0.5).tolist() == [False, True, False, False, False]
    assert carrying(scores, 0.76).tolist() == [False, True, True, True, False]
    assert carrying(scores, 1.0).tolist() == [True, True, True, True, False]
    assert not carrying(np.zeros(3), 0.5).any()


@pytest.mark.parametrize("seed", range(3))
def test_pruning_keeps_what_carries_and_leaves_no_loose_ends(seed: int) -> None:
    graph = random_graph(seed)
    sizes = []
    for threshold in (0.5, 0.8, 0.95):
        small = prune(graph, node_threshold=threshold, edge_threshold=0.9)
        kinds = small.nodes
        sizes.append(len(kinds))
        assert kinds.are("token").sum() == 4
        assert kinds.are("logit").sum() == 2
        led, leads = (np.bincount(ends, minlength=len(kinds)) > 0 for ends in (small.target, small.source))
        assert led[kinds.are("feature")].all()
        assert leads[~kinds.are("token", "logit")].all()
        assert not kinds.are("bias", "gelu").any()
        # What is gone is counted: edges and cut still make up each value.
        rest = np.bincount(small.target, small.weight, len(kinds)) + kinds.cut
        ends = kinds.are("feature", "logit")
        np.testing.assert_allclose(rest[ends], kinds.value[ends], atol=1e-12)
        assert small.settings["pruned"]["node_threshold"] == threshold
    assert sizes[0] < sizes[1] < sizes[2] < len(graph.nodes)


def test_pruning_to_a_number_of_edges() -> None:
    graph = random_graph(0)
    small = prune(graph, node_threshold=1.0, edge_threshold=1.0, top_k=3)
    assert np.bincount(small.target).max() <= 3
    counted = ~graph.nodes.are("bias", "gelu")[graph.source]
    into = graph.weight[(graph.target == len(graph.nodes) - 1) & counted]
    kept = small.weight[small.target == len(small.nodes) - 1]
    assert set(np.abs(kept)) <= set(np.sort(np.abs(into))[-3:])


@pytest.mark.parametrize("asked", [{"node_threshold": 0}, {"edge_threshold": 1.5}, {"top_k": 0}])
def test_thresholds_that_are_none(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(asked))):
        prune(random_graph(0), **asked)
