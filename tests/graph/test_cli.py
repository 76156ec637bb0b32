"""`jaxcircuits graph`: what it writes, prints and refuses."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxcircuits.cli import main
from jaxcircuits.graph import load_graph, schema_problems
from jaxcircuits.report.explorer import content as content_of
from jaxcircuits.report.graph import conjunction_row, read_conjunctions
from tests.helpers import saved_bundle

PROMPT = "w3 w9 w4 w17 w5"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    saved_bundle(path)
    return str(path)


def test_a_graph_from_the_command_line(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["graph", "--bundle", bundle, "--prompt", PROMPT, "--out", "graph"]
    assert main([*line, "--top-logits", "3"]) == 0
    printed = capsys.readouterr().out
    assert "Nodes of largest influence" in printed
    assert "replacement" in printed
    assert sorted(p.name for p in Path("graph").iterdir()) == [
        "circuit-tracer.json",
        "circuit.png",
        "circuit.svg",
        "graph.json",
        "graph.safetensors",
    ]
    graph = load_graph("graph")
    assert graph.nodes.are("logit").sum() == 3
    assert schema_problems(json.loads(Path("graph/circuit-tracer.json").read_text())) == []
    assert "w17" in Path("graph/circuit.svg").read_text()
    assert main(line) == 2
    assert "exists already" in capsys.readouterr().err
    last = graph.nodes.are("feature") & (graph.nodes.sae == 1) & (graph.nodes.pos == len(graph.tokens) - 1)
    sae, feature = graph.saes[1], int(graph.nodes.feature[last][0])
    Path("names.json").write_text(json.dumps({sae: {str(feature): "a name"}}))
    shown = ["--leading-to", str(feature), "--conjunctions", "3", "--labels", "names.json"]
    assert main([*line, "--overwrite", "--difference", "w3", "w5", "--json", *shown]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["nodes"] == len(load_graph("graph").nodes)
    first = content["strongest_edges"][0]
    assert {"source", "target", "weight", "influence"} <= set(first)
    pairs = json.loads(Path("graph/conjunctions.json").read_text())
    assert len(content["conjunctions"]) == len(pairs) == 3
    assert {pair["target"]["feature"] for pair in pairs} == {feature}
    read = read_conjunctions("graph/conjunctions.json")
    assert [conjunction_row(load_graph("graph"), pair) for pair in read] == pairs
    carried = content_of(load_graph("graph"), pairs=read)["pairs"]
    assert [carried_pair[3] for carried_pair in carried] == pytest.approx([p.interaction for p in read], rel=1e-4)
    assert load_graph("graph").label(carried[0][1]).startswith(f"{read[0].a.sae} #{read[0].a.feature}")
    Path("graph/conjunctions.json").write_text('[{"target": 3}]')
    assert main(["view", "graph", "--no-cards"]) == 2
    assert "no file of conjunctions" in capsys.readouterr().err
    assert any(f"#{feature} (a name)" in load_graph("graph").label(i) for i in range(content["nodes"]))
    assert "a name" in Path("graph/circuit.svg").read_text()
    clerps = [node["clerp"] for node in json.loads(Path("graph/circuit-tracer.json").read_text())["nodes"]]
    assert any(" promotes " in text for text in clerps)
    assert "like pair" in Path("graph/circuit.svg").read_text()
    ends = load_graph("graph").nodes.are("logit")
    assert ends.sum() == 1


def test_faithfulness_from_the_command_line(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["graph", "--bundle", bundle, "--faithfulness", "--prompt", PROMPT, "w4 w8 w17 w2 w9", "--out", "out"]
    assert main([*line, "--units", "nodes", "--methods", "effect", "random", "--fill", "mean"]) == 0
    assert "Circuits of nodes" in capsys.readouterr().out
    table = pq.read_table("out/faithfulness.parquet").to_pandas()
    assert set(table.method) == {"effect", "random"}
    whole = table[table.share == 1]
    np.testing.assert_allclose(whole.circuit, whole.model, rtol=1e-5)
    np.testing.assert_allclose(whole.complement, whole.ablated, rtol=1e-5)
    assert {p.name for p in Path("out").iterdir()} == {
        "faithfulness.json",
        "faithfulness.parquet",
        "faithfulness-nodes.png",
        "completeness-nodes.png",
    }
    content = json.loads(Path("out/faithfulness.json").read_text())
    assert content["nodes"]["methods"]["effect"]["faithfulness"][-1][0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "a graph is of one prompt; give --prompt"),
        (["--prompt", "w1", "w2"], "a graph is of one prompt, got 2"),
        (["--prompt", "w1 w2", "--logits", "w1 w2"], "must be one token"),
        (["--prompt", "w1 w2", "--node-threshold", "2"], "node_threshold must lie above 0"),
        (["--prompt", "w1", "--faithfulness", "--fill", "resample"], "takes at least 2 prompts, got 1"),
        (["--prompt", "w1 w2", "--top-k", "0"], "top_k must be a whole number"),
        (["--prompt", PROMPT, "--labels", "nowhere.json"], "there is no file nowhere.json"),
        (["--prompt", PROMPT, "--leading-to", "999"], "is no node at position 5; there are"),
        (["--prompt", PROMPT, "--conjunctions", "1"], "2 drivers of it, got 4 and 1"),
    ],
)
def test_what_cannot_be_used(
    bundle: str, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["graph", "--bundle", bundle, "--out", "nowhere", *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("nowhere").exists()
