"""Graphs on disk and for other programs: nothing lost, ids unique, the viewers' rules kept, the rules able to fail."""

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle, shipped_bundle
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.graph import (
    Graph,
    build_graph,
    load_graph,
    prune,
    save_graph,
    schema_problems,
    to_circuit_tracer,
    to_networkx,
)
from tests.graph.conftest import Case
from tests.graph.independent import Detached, differences
from tests.helpers import TOLERANCES


@pytest.fixture
def graph(mixed_case: Case) -> Graph:
    return mixed_case[2]


def assert_same_graph(one: Graph, other: Graph) -> None:
    for f in fields(one.nodes):
        mine, theirs = getattr(one.nodes, f.name), getattr(other.nodes, f.name)
        assert mine.dtype == theirs.dtype or f.name == "kind"
        np.testing.assert_array_equal(mine, theirs, f.name)
    for name in ("tokens", "source", "target", "weight"):
        assert getattr(one, name).dtype == getattr(other, name).dtype
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert list(one.parts) == list(other.parts)
    for name, part in one.parts.items():
        np.testing.assert_array_equal(part, other.parts[name])
    for name in ("token_strings", "saes", "biases"):
        assert getattr(one, name) == getattr(other, name)
    assert json.loads(json.dumps(one.settings)) == other.settings


def test_a_graph_comes_back_as_it_was(graph: Graph, tmp_path: Path) -> None:
    save_graph(graph, tmp_path / "one")
    assert_same_graph(graph, load_graph(tmp_path / "one"))
    pruned = prune(graph)
    save_graph(pruned, tmp_path / "two")
    assert_same_graph(pruned, load_graph(tmp_path / "two"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    with pytest.raises(InputError, match="exists already"):
        save_graph(graph, tmp_path / "one")
    save_graph(pruned, tmp_path / "one", overwrite=True)
    assert len(load_graph(tmp_path / "one").nodes) == len(pruned.nodes)


def test_a_damaged_graph_is_refused(graph: Graph, tmp_path: Path) -> None:
    save_graph(graph, tmp_path / "graph")
    file = tmp_path / "graph" / "graph.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        load_graph(tmp_path / "graph")
    (tmp_path / "graph" / "graph.json").write_text("{}")
    with pytest.raises(InputError, match="schema 1"):
        load_graph(tmp_path / "graph")
    with pytest.raises(InputError, match="there is no file"):
        load_graph(tmp_path / "nothing")


def test_networkx_has_every_edge(graph: Graph) -> None:
    networkx = pytest.importorskip("networkx")
    other = to_networkx(graph)
    assert networkx.is_directed_acyclic_graph(other)
    dense = networkx.to_numpy_array(other, nodelist=range(len(graph.nodes)), weight="weight")
    np.testing.assert_array_equal(dense, graph.adjacency().toarray().T)
    last = other.nodes[len(graph.nodes) - 1]
    assert (last["kind"], last["label"]) == ("logit", graph.label(len(graph.nodes) - 1))


def test_the_viewers_file_keeps_the_rules_and_the_weights(graph: Graph) -> None:
    for shown in (graph, prune(graph)):
        content = json.loads(json.dumps(to_circuit_tracer(shown, slug="A <b> & c"), allow_nan=False))
        assert schema_problems(content) == []
        assert [link["weight"] for link in content["links"]] == shown.weight.tolist()
        assert len({node["node_id"] for node in content["nodes"]}) == len(shown.nodes)
        assert content["metadata"]["info"]["generator"]["name"] == "jaxcircuits"
        assert content["metadata"]["slug"] == "a-b-c"
        shares = [node["influence"] for node in content["nodes"] if node["influence"] is not None]
        assert max(shares) == pytest.approx(1)


def test_names_of_features_are_saved_and_exported(graph: Graph, tmp_path: Path) -> None:
    """A name stands for what nobody named, hints for what has no name; in every node of the feature."""
    nodes, at = graph.nodes, np.flatnonzero(graph.nodes.are("feature"))
    keys = [(graph.saes[nodes.sae[i]], int(nodes.feature[i])) for i in at]
    first, other = keys[0], next(key for key in keys if key != keys[0])
    save_graph(graph.labelled({first: "wolves"}).labelled({("elsewhere", 1): "none"}), tmp_path / "named")
    named = load_graph(tmp_path / "named")
    assert named.label(at[0]) == graph.label(at[0]).replace(f"#{first[1]}", f"#{first[1]} (wolves)")
    content = to_circuit_tracer(
        prune(named, node_threshold=1, edge_threshold=1), hints={first: "x", other: "#7 promotes"}
    )
    assert schema_problems(content) == []
    shown = {node["clerp"] for node in content["nodes"] if node["feature_type"] == "cross layer transcoder"}
    assert {"wolves", "#7 promotes"} <= shown and "x" not in shown
    assert any(text.startswith(graph.saes[0]) for text in shown)


def test_strict_ids_are_circuit_tracers_own_or_refused(plain_case: Case) -> None:
    whole = plain_case[2]
    nodes = whole.nodes
    # The error of layer l has the id of feature l of layer 0: these graphs differ in whether that feature is on.
    clash = nodes.are("feature") & (nodes.sae == 0) & (nodes.feature < 2)
    assert clash.any()
    content = to_circuit_tracer(whole.keep(~clash), strict=True)
    assert schema_problems(content) == []
    assert {n["feature_type"] for n in content["nodes"]} == {
        "embedding",
        "mlp reconstruction error",
        "cross layer transcoder",
        "logit",
    }
    assert "0_1_8" in {n["node_id"] for n in content["nodes"] if n["feature_type"] == "mlp reconstruction error"}
    with pytest.raises(InputError, match="two nodes have circuit-tracer's id 0_"):
        to_circuit_tracer(whole, strict=True)
    assert schema_problems(to_circuit_tracer(whole)) == []


def _broken() -> dict[str, Any]:
    def change(path: tuple, value: Any):
        def apply(content):
            *inside, last = path
            for key in inside:
                content = content[key]
            if value is None:
                del content[last]
            else:
                content[last] = value

        return apply

    return {
        "metadata: slug is missing": change(("metadata", "slug"), None),
        "nodes[0]: node_id has the wrong type": change(("nodes", 0, "node_id"), 7),
        "nodes[0]: unknown field colour": change(("nodes", 0, "colour"), "red"),
        "links[0]: weight must be finite": change(("links", 0, "weight"), float("nan")),
        "belongs to two nodes": lambda c: c["nodes"].append(c["nodes"][0]),
        "which is no node": change(("links", 0, "source"), "nowhere"),
        "lies outside the prompt": change(("nodes", 0, "ctx_idx"), 900),
        "unknown feature_type": change(("nodes", 0, "feature_type"), "neuron"),
        "is there twice": lambda c: c["links"].append(c["links"][0]),
        "links: expected a list": change(("links",), "many"),
        "ctx_idx has the wrong type": change(("nodes", 0, "ctx_idx"), True),
        "pinned nowhere is no node": change(("qParams", "pinnedIds"), ["nowhere"]),
    }


@pytest.mark.parametrize("sentence", list(_broken()))
def test_the_rules_can_be_broken(graph: Graph, sentence: str) -> None:
    content = copy.deepcopy(to_circuit_tracer(prune(graph)))
    _broken()[sentence](content)
    assert any(sentence in problem for problem in schema_problems(content))


@pytest.mark.slow
def test_fifty_prompts_add_up_and_a_hundred_have_unique_ids(x64: None) -> None:
    """On the shipped weights: every node's sum, edges into some by PyTorch, and what is exported."""
    bundle = load_bundle(dtype=jnp.float64)
    stories = list(read_corpus(shipped_bundle() / "stories.txt"))[:100]
    assert len(stories) == 100
    for number, story in enumerate(stories):
        tokens = bundle.tokenize(story)[: 9 + number % 8]
        built = build_graph(bundle, tokens, include_bos=number % 2 == 0)
        for shown in (built, prune(built)):
            content = to_circuit_tracer(shown)
            assert schema_problems(content) == []
            assert len({node["node_id"] for node in content["nodes"]}) == len(shown.nodes)
        if number < 50:
            ends = np.flatnonzero(built.nodes.are("feature", "logit"))
            into = built.adjacency()[ends]
            missing = np.asarray(into.sum(axis=1)).ravel() - built.nodes.value[ends]
            largest = abs(into).max(axis=1).toarray().ravel()
            assert len(ends) > 100
            assert (np.abs(missing) <= TOLERANCES["methods"]["float64"] * largest).all()
            other = Detached(bundle, tokens)
            for end in np.random.default_rng(number).choice(ends, 5, replace=False):
                assert np.abs(differences(built, other, end)).max() <= 1e-6
