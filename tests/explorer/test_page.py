"""The page without a browser: what it carries, what it lets nobody load, what ships with it."""

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from jaxcircuits.evaluation import Example, FeatureSummary
from jaxcircuits.files import sha256
from jaxcircuits.graph import edge_influence, influence
from jaxcircuits.graph.influence import logit_weights
from jaxcircuits.report.explorer import content, page
from jaxcircuits.report.explorer.cards import described_features
from jaxcircuits.report.explorer.content import row_of_each, short
from tests.explorer.graphs import HOOKS, HOSTILE, random_graph

EXPLORER = files("jaxcircuits.report.explorer")


def carried(text: str) -> dict:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(data)


def card(sae: str = HOOKS[0], feature: int = 0) -> FeatureSummary:
    example = Example(2.0, 1, ["</script>", "<b>peak</b>", " end"], [0.0, 2.0, 0.5])
    return FeatureSummary(sae, feature, 0.01, 1.0, 2.0, {}, [example], "W_U", [("</script>", 1.5)], [("&amp;", -1.0)])


def test_the_library_is_the_one_that_its_note_names() -> None:
    vendor = Path(str(EXPLORER.joinpath("vendor")))
    (version, stated) = re.findall(
        r"\| `d3`.*\| ([\d.]+) \| ISC.*`([0-9a-f]{64})`", (vendor / "README.md").read_text()
    )[0]
    library = (vendor / "d3.min.js").read_text(encoding="utf-8")
    assert sha256(vendor / "d3.min.js") == stated
    assert f"v{version}" in library[:80]
    assert "Permission to use" in (vendor / "LICENSE").read_text()


def test_the_data_are_the_graph() -> None:
    graph = random_graph()
    data = carried(page(content(graph), "x"))
    edges = sorted(zip(data["edges"]["target"], data["edges"]["source"], data["edges"]["weight"], strict=True))
    assert [edge[:2] for edge in edges] == list(zip(graph.target.tolist(), graph.source.tolist(), strict=True))
    np.testing.assert_allclose([edge[2] for edge in edges], graph.weight, rtol=1e-4)
    assert np.all(np.diff(np.abs(data["edges"]["weight"])) <= 0)  # strongest first: a number is a rank
    assert data["tokens"] == list(HOSTILE)
    assert [data["kinds"][kind] for kind in data["nodes"]["kind"]] == graph.nodes.kind.tolist()
    np.testing.assert_allclose(data["nodes"]["importance"], influence(graph) + logit_weights(graph), rtol=1e-4)
    assert data["hidden"] == ["bias"]


def test_a_page_carries_the_first_edges_and_says_so() -> None:
    graph = random_graph()
    data = content(graph, most=50)
    size, through = np.abs(graph.weight), edge_influence(graph)
    assert len(data["edges"]["weight"]) == 50 and "300 edges · here the first 50" in data["about"]
    np.testing.assert_allclose(np.abs(data["edges"]["weight"])[:20], np.sort(size)[::-1][:20], rtol=1e-4)
    np.testing.assert_allclose(sorted(data["edges"]["influence"])[-20:], np.sort(through)[-20:], rtol=1e-4)
    # What a node has lost is in its cut, and importance is that of the whole graph.
    ends = set(data["edges"]["source"]) | set(data["edges"]["target"])
    kinds = [data["kinds"][kind] for kind in data["nodes"]["kind"]]
    assert all(node in ends or kind in ("token", "logit") for node, kind in enumerate(kinds)) and len(kinds) < 74
    into = np.bincount(data["edges"]["target"], data["edges"]["weight"], len(kinds)) + data["nodes"]["cut"]
    whole = {graph.label(node): total for node, total in enumerate(graph.adjacency().sum(1))}
    np.testing.assert_allclose(into, [whole[name] for name in data["nodes"]["name"]], rtol=1e-3, atol=1e-4)
    known = {graph.label(node): value for node, value in enumerate(influence(graph) + logit_weights(graph))}
    np.testing.assert_allclose(data["nodes"]["importance"], [known[n] for n in data["nodes"]["name"]], rtol=1e-4)


def test_rows_lead_upwards_and_are_named() -> None:
    graph = random_graph()
    rows = np.array(row_of_each(graph))
    leaves = graph.nodes.are("bias")[graph.source]
    assert (rows[graph.source] < rows[graph.target])[~leaves].all()
    assert (rows[graph.source] <= rows[graph.target]).all()
    titles = [(row["title"], row["detail"]) for row in content(graph)["rows"]]
    assert titles == [("embeddings", ""), ("layer 0", "mlp.hook_post"), ("layer 1", "mlp.hook_post"), ("logits", "")]


def test_without_logits_strength_ranks() -> None:
    graph = random_graph(logits=0)
    data = content(graph)
    sums = np.abs(graph.adjacency())
    np.testing.assert_allclose(data["nodes"]["importance"], sums.sum(0) + sums.sum(1), rtol=1e-4)
    assert (data["importance"], data["by"], data["edges"]["influence"]) == ("strength", "weight", [])
    assert data["rows"][-1]["title"] == "layer 1"


def test_nothing_ends_a_script_or_leaves_the_page() -> None:
    graph = random_graph()
    labels = {(HOOKS[0], int(graph.nodes.feature[graph.nodes.are("feature")][0])): "</script><script>hacked=3</script>"}
    text = page(content(graph, [card()], labels), "</title><script>hacked=4</script>")
    assert text.count("<script") == text.count("</script>") == 3
    assert text.count("</title>") == 1
    assert EXPLORER.joinpath("vendor/LICENSE").read_text(encoding="utf-8") in text
    data = carried(text)
    assert data["tokens"] == list(HOSTILE) and list(data["labels"].values()) == list(labels.values())
    assert data["cards"]["0:0"]["examples"][0]["tokens"][1] == "<b>peak</b>" == data["cards"]["0:0"]["peak"]
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy and "http" not in policy
    page_itself = text.replace(EXPLORER.joinpath("vendor/d3.min.js").read_text(encoding="utf-8"), "")
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://|@import|url\(", page_itself)


def test_lone_surrogates_and_numbers_that_are_none_stay_valid(tmp_path: Path) -> None:
    from jaxcircuits.report.explorer import write_page

    size = write_page(tmp_path / "page.html", content(random_graph(("a", "\ud800", "\u2028"))), "\ud800")
    written = (tmp_path / "page.html").read_bytes()
    assert len(written) == size and carried(written.decode())["tokens"] == ["a", "�", "\u2028"]
    assert short(np.array([np.inf, -0.0, 1e-30])) == [None, 0, 1e-30]


def test_a_page_of_a_thousand_edges_is_small() -> None:
    text = page(content(random_graph(features=60, edges=1000), [card(feature=f) for f in range(100)]), "x")
    assert len(text.encode()) < 500_000


@pytest.mark.parametrize("most", [3, 10_000])
def test_the_most_important_features_are_described(most: int) -> None:
    graph = random_graph()
    found = described_features(graph, most)
    at = graph.nodes.are("feature")
    pairs = list(zip(graph.nodes.sae[at].tolist(), graph.nodes.feature[at].tolist(), strict=True))
    total: dict[tuple[int, int], float] = {}
    for pair, value in zip(pairs, influence(graph)[at], strict=True):
        total[pair] = total.get(pair, 0.0) + value
    expected = sorted(total, key=lambda pair: -total[pair])[:most]
    assert {(sae, feature) for sae, features in enumerate(found) for feature in features} == set(expected)
