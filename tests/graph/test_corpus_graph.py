"""The graph of a corpus: its edges are a run's statistics and counts, its paths those that a search finds."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import networkx
import numpy as np
import pytest

from jaxcircuits import Settings, load_bundle
from jaxcircuits.bulk import Run, attribute_to_run, read_prompts
from jaxcircuits.cli import main
from jaxcircuits.graph.corpus import TOKEN, CorpusGraph, Edge, Kept, Unit, corpus_graph
from tests.helpers import saved_bundle

TEXTS = [" ".join(f"w{1 + (7 * i + 3 * j) % 9}" for j in range(3 + i % 5)) for i in range(12)]
KEPT = Kept(min_stories=3, max_q=0.5, min_lift=1.2)


pytestmark = pytest.mark.xdist_group("corpus graph")  # what is compiled once serves all


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("runs")
    saved_bundle(place / "tiny")
    bundle = load_bundle(place / "tiny")
    options = {"statistics": True, "activations": True, "quiet": True}
    found, _ = attribute_to_run(
        bundle, Settings(positions="all"), read_prompts(bundle, texts=TEXTS), place / "run", **options
    )
    return found


@pytest.fixture(scope="module")
def graph(run: Run) -> CorpusGraph:
    return corpus_graph([run], KEPT)


def test_edges_are_the_statistics_that_pass(run: Run, graph: CorpusGraph) -> None:
    frame = run.statistics.to_table().to_pandas()
    kept = frame[(frame.stories >= 3) & (frame.q_mean <= 0.5) & (frame.mean_shrunk != 0)]
    expected = {
        (int(r.source_feature), int(r.target_feature), int(r.offset)): (r.mean_shrunk, int(r.stories))
        for r in kept.itertuples()
    }
    edges = [e for e in graph.edges if e.source.sae != TOKEN]
    assert {(e.source.number, e.target.number, e.offset): (e.weight, e.times) for e in edges} == expected
    assert len(edges) > 20
    into = Counter()
    for e in edges:
        into[e.target] += e.strength
    np.testing.assert_allclose(list(into.values()), 1.0)
    assert graph.saes == (edges[0].source.sae, edges[0].target.sae) == tuple(load_bundle(run.path.parent / "tiny").saes)


def test_tokens_are_those_that_features_are_active_on(run: Run, graph: CorpusGraph) -> None:
    acts = run.activations.to_table().to_pandas()
    tokens = run.prompts.to_table().to_pandas().tokens
    together = Counter(
        (int(r.feature), int(tokens[r.prompt][r.pos])) for r in acts[acts.side == 0].itertuples()
    )  # fmt: skip
    each = Counter(int(t) for ids in tokens for t in ids[1:])
    total = Counter()
    for (feature, _), n in together.items():
        total[feature] += n
    found = [e for e in graph.edges if e.source.sae == TOKEN]
    assert len(found) > 20
    for e in found:
        n, token, feature = together[e.target.number, e.source.number], e.source.number, e.target.number
        assert e.times == n >= 3
        assert e.strength == pytest.approx(n / total[feature])
        assert e.weight == pytest.approx(n / each[token] / (total[feature] / each.total())) and e.weight >= 1.2
        assert graph.tokens[token] == f"w{token}"


def test_paths_are_the_best_of_all(graph: CorpusGraph) -> None:
    whole = networkx.MultiDiGraph()
    for e in graph.edges:
        whole.add_edge(e.source, e.target, key=e.offset, strength=e.strength)
    start = next(e.source for e in graph.edges if e.source.sae == TOKEN)
    end = graph.within(start, 2)[-1].target
    every = [
        float(np.prod([whole.edges[edge]["strength"] for edge in path]))
        for path in networkx.all_simple_edge_paths(whole, start, end)
    ]
    paths = graph.paths(start, end, 4)
    assert [p.score for p in paths] == pytest.approx(sorted(every, reverse=True)[:4])
    for path in paths:
        assert (path.edges[0].source, path.edges[-1].target) == (start, end)
        assert all(a.target == b.source for a, b in pairwise(path.edges))
    assert graph.to_networkx().number_of_edges() == len(graph.edges)
    assert {e.target for e in graph.within(start, 1)} == set(whole.successors(start))


def test_saes_that_meet_make_longer_paths() -> None:
    def edge(a: Unit, b: Unit, strength: float, offset: int = 0) -> Edge:
        return Edge(a, b, offset, strength, strength, 9, 0.0)

    a, b, c, d = Unit("0", 1), Unit("1", 2), Unit("1", 3), Unit("2", 4)
    edges = (edge(c, d, 0.5), edge(a, b, 0.4), edge(a, b, 0.1, 1), edge(a, c, 0.3), edge(b, d, 0.25))
    graph = CorpusGraph(("0", "1", "2"), edges, {})
    assert [p.score for p in graph.paths(a, d)] == pytest.approx([0.15, 0.1, 0.025])
    assert [e.target for e in graph.within(a, 1)] == [b, c, b]
    assert graph.paths(d, a) == []


def test_the_command(run: Run, graph: CorpusGraph, capsys: pytest.CaptureFixture[str]) -> None:
    place, kept = str(run.path), ["--min-stories", "3", "--max-q", "0.5", "--min-lift", "1.2"]

    def ask(*options: str) -> dict:
        assert main(["circuits", place, *kept, *options, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    rows = ask("--limit", "3")["edges"]
    sizes = sorted((abs(e.weight) for e in graph.edges if e.source.sae != TOKEN), reverse=True)
    assert [abs(row["weight"]) for row in rows] == sizes[:3]
    feature = next(e.target for e in graph.edges if e.source.sae != TOKEN)
    rows = ask("--edges-of", str(feature.number), "--figure", "edges.png")["edges"]
    assert all(row["target"] == graph.label(feature) for row in rows)
    assert Path("edges.png").read_bytes()[:4] == b"\x89PNG"
    token = next(e.source for e in graph.edges if e.source.sae == TOKEN)
    word = graph.tokens[token.number]
    assert len(ask("--from-token", word, "--limit", "9999")["edges"]) == len(graph.within(token, 2))
    end = graph.within(token, 2)[-1].target
    paths = ask("--paths", word, graph.label(end), "--limit", "2")["paths"]
    assert [p["score"] for p in paths] == [p.score for p in graph.paths(token, end, 2)]
    assert main(["circuits", place, *kept, "--paths", word, graph.label(end)]) == 0
    assert " → " in capsys.readouterr().out
    assert main(["circuits", place, *kept, "--limit", "3", "--csv"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("source,target,offset,weight") and len(lines) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--from-token", "nothing"], "no token 'nothing'"),
        (["--edges-of", "999"], "no edge of blocks.1.mlp.hook_post#999 recurs"),
        (["--max-q", "-1"], "nothing recurs"),
        (["--figure", "x.gif"], "ends in .png"),
    ],
)
def test_refusals(run: Run, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["circuits", str(run.path), "--min-stories", "3", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_two_runs_of_the_same_saes_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["circuits", str(run.path), str(run.path)]) == 2
    assert "two runs lead from" in capsys.readouterr().err
